"""The report as text: every number in it comes from the verdict and the observations."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from observations import ISSUE, Observation

from privfedrl.testing.verdict import Status, Verdict

__all__ = ["render"]

_PACKAGES = ("flwr", "numpy", "cryptography", "pycryptodome", "protobuf", "hypothesis", "privfedrl")

_HEAD = """\
# SecAgg+ of Flower 1.41.0 under the kit, {date}

**In short.** Flower's SecAgg+ gives correct sums, also when clients vanish before or after sending
their vector, and its clients check more of what they receive than one might expect. Two things
differ from what the documentation lets a reader expect and matter most in practice: masks are drawn
from 28 or 32 bits of seed (known as [#7522][issue]), and one client lost in the first two stages
costs the round. Both have small remedies. We thank the authors: SecAgg+ in Flower is readable and
documented, and its stages separate cleanly, which made it easy to put a test kit around it.

This is about version 1.41.0 as published on PyPI, on the date above. Later versions may differ. The
finding that weighs most for confidentiality has been public since July 2026 as that issue, and pull
request #7570 proposes a remedy; both were open in the copies that we could read. A short search of
the public issues found no report of the others. Corrections are welcome.

[issue]: {issue}

## What was run

The real `secaggplus_mod` inside a real `ClientApp` with its `Context`, and the real
`SecAggPlusWorkflow.__call__` with `FedAvg`, in a thread, because the workflow pulls. Messages cross
as Flower's own protobuf bytes. Ours are a grid that hands messages over and keeps the SuperLink's
rules for replies, and a node that runs each message id once. All nodes are neighbours
(`num_shares=1.0`); the threshold is that of the kit's round: 4 of 6.

**How sums are compared.** A 32-bit residue is cut into 16-bit limbs, each a parameter on the
lattice of the quantiser (clipping range 2^15, quantisation range 2^16, weight = `max_weight`).
Quantisation is then the identity and the kit's exact-sum oracle applies without tolerance. The
quantisation error of ordinary parameters is measured separately below.

**What Flower claims**, as we read its documentation (the docstring of `SecAggPlusWorkflow`, the
page "Secure Aggregation Protocols", the glossary):

| claim in the kit | because the documentation says |
|---|---|
| `EXACT_SUM` | "ensures the secure summation of integer vectors owned by multiple parties" |
| `DROPOUTS` | "by design robust to client dropout"; "recovery of contributions from dropped \
clients" |
| `UNIFORM_MASKS` | "random mask entries are uniformly sampled ([0, modulus_range-1])" |

We found no statement about servers that deviate from the protocol, authenticated messages,
restarts, replays or records for auditors. Attacks on those are **unclaimed** below. An unclaimed
attack is not a defect of Flower: it was not run, it says nothing for or against, and it is listed
so that nobody takes it for passed.

"""

_SECTIONS = (
    ("strength", "What works well"),
    ("finding", "Where the documentation lets one expect something else"),
    ("unclaimed", "Beyond what is claimed"),
    ("limit", "Precision, size and cost"),
)
_INTRO = {
    "strength": "Measured like everything else, because a reader deserves both sides.",
    "finding": "Each was seen with Flower's own objects; the suggestions are only offers.",
    "unclaimed": "For users who need more than the documentation promises. No defect is implied.",
    "limit": "Documented, or plain consequences of the design.",
}

_FOOT = """\
## How to reproduce

    make kit-flower

installs `flwr=={flwr}` with the versions of `constraints.txt` into an environment of its own and
writes the three files of this report. Sources: `audits/flower`. Keys are drawn by Flower from the
operating system, so keys, times and rounding errors differ from run to run. The script of a failure
(in the verdict) runs with `PYTHONPATH=audits/flower`.

Measured on: {machine}.
CPU times are of a machine with other work on it: take them as orders of magnitude.
Versions: {versions}.

A test can only refute. That an attack did not work here is no proof that none would.
"""


def environment() -> dict[str, str]:
    """Class of machine and versions, without names."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    python = {"machine": machine, "python": platform.python_version()}
    return python | {each: importlib.metadata.version(each) for each in _PACKAGES}


def render(verdict: Verdict, seen: dict[str, Any]) -> str:
    """Markdown of a verdict and of what ``run.measure`` gave."""
    found = [Observation(**each) for each in seen["observations"]]
    versions = dict(seen["environment"])
    machine = versions.pop("machine")
    return "".join(
        [
            _HEAD.format(date=seen["date"], issue=ISSUE),
            _attacks(verdict),
            _machines(seen["machines"]),
            *(_section(kind, title, found) for kind, title in _SECTIONS),
            _FOOT.format(
                flwr=versions["flwr"],
                machine=machine,
                versions=", ".join(f"{name} {version}" for name, version in versions.items()),
            ),
        ]
    )


def _attacks(verdict: Verdict) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in verdict.counts.items())
    rows = "".join(
        f"| {each.id} | {each.title} | **{each.status.value}** | {each.detail} |\n"
        for each in verdict.outcomes
        if each.status is not Status.UNCLAIMED
    )
    unclaimed: dict[str, list[str]] = {}
    for each in verdict.outcomes:
        if each.status is Status.UNCLAIMED:
            unclaimed.setdefault(each.detail, []).append(each.id)
    rest = "".join(f"| {', '.join(ids)} | {missing} |\n" for missing, ids in unclaimed.items())
    return (
        f"## Verdict\n\n{len(verdict.outcomes)} attacks: {counts}. The titles name what an attack "
        f"tries; *passed* means that it did not work.\n\n| attack | tries to show that | outcome | "
        f"seen |\n|---|---|---|---|\n{rows}\n{_explain(verdict)}\n\n"
        "### Unclaimed: not run, not passed, not a defect\n\n"
        f"| attacks | would need the claim |\n|---|---|\n{rest}\n"
    )


def _explain(verdict: Verdict) -> str:
    known = all(each.id.startswith("A18-") for each in verdict.failures)
    masks = (
        "The statistics of masked vectors look at values; no such test can see how short the seed "
        "behind them is, which is the subject of a section below."
    )
    if not (known and verdict.failures):
        return masks
    return (
        "The failures of A18 are one finding: the round ends with no sum, never a wrong one, "
        "when a client is lost at one of the first two stages; lost later, it is survived. See *A "
        f"client lost at one of the first two stages costs the round*.\n\n{masks}"
    )


def _section(kind: str, title: str, found: list[Observation]) -> str:
    parts = [f"## {title}\n\n{_INTRO[kind]}\n\n"]
    for each in found:
        if each.kind == kind:
            seen = json.dumps(each.observed, indent=1)
            source = f" See {each.reference}." if each.reference else ""
            parts.append(
                f"### {each.title[:1].upper()}{each.title[1:]}\n\n"
                f"*Documentation:* {each.documented}. *Measured by* `{each.name}`:\n\n"
                f"```json\n{seen}\n```\n\n{each.comment}{source}\n\n"
            )
    return "".join(parts)


def _machines(machines: list[dict[str, str]]) -> str:
    rows = "".join(
        f"| {profile} | {claims} | {outcome} | {_brief(schedule)} |\n"
        for profile, claims, outcome, schedule in map(_machine_row, machines)
    )
    return (
        "### State machine\n\nRandom schedules of deliveries, losses, duplicates, late packets and "
        "restarts, with\nevery invariant that follows from the claims checked after each step. The "
        "second row sets one\nclaim aside to look past the first finding.\n\n"
        f"| profile | claims | outcome | smallest schedule found |\n|---|---|---|---|\n{rows}\n"
    )


def _machine_row(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[key] for key in ("profile", "claims", "outcome", "schedule"))


def _brief(schedule: str) -> str:
    """The steps in words; the schedule itself is in the observations' file."""
    steps = json.loads(schedule)["steps"] if schedule else []
    words = (" ".join(map(str, _step(each))) for each in steps)
    return ", ".join(
        f"{word} (x{count})" if (count := len(list(same))) > 1 else word
        for word, same in groupby(words)
    )


def _step(step: dict[str, Any]) -> Iterator[Any]:
    yield step["action"]
    if step["action"] != "deliver" and "packet" in step:
        yield f"packet {step['packet']}"
    if "name" in step:
        yield step["name"]
