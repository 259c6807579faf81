"""What a run of attacks says: JSON for machines, JUnit for CI, a table for people.

Guarantee: an outcome that was not earned by running the attack is never called passed, and every
failure carries a Python script that shows it again.

JSON: {"schema": "privfedrl.testing/verdict-1", "adapter": str, "reference": str, "profile": str,
"ok": bool, "claims": [str], "counts": {status: int}, "seconds": float, "outcomes": [{"id": str,
"title": str, "status": "passed" | "failed" | "unclaimed" | "not-applicable", "needs": [str],
"detail": str, "seconds": float, "script": str}]}. Claims are spelled as members of ``Claim``;
``script`` is empty unless the status is failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final

# only builds a tree of the kit's own strings; nothing is parsed
from xml.etree.ElementTree import Element, SubElement, tostring

from privfedrl.testing.adapter import AggregationAdapter
from privfedrl.testing.scene import Step

__all__ = ["Outcome", "Status", "Verdict", "attack_script", "reference_of", "steps_script"]

_SCHEMA: Final = "privfedrl.testing/verdict-1"
_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Status(Enum):
    """How an attack ended. Only PASSED counts in favour of the adapter."""

    PASSED = "passed"
    FAILED = "failed"
    UNCLAIMED = "unclaimed"
    NOT_APPLICABLE = "not-applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One attack on one adapter. ``needs`` are the names of the claims that it tests."""

    id: str
    title: str
    status: Status
    needs: tuple[str, ...] = ()
    detail: str = ""
    seconds: float = 0.0
    script: str = field(default="", repr=False)

    @property
    def reason(self) -> str:
        """Why it is not passed: "unclaimed: DIFFERENCING"; empty if it is."""
        return "" if self.status is Status.PASSED else f"{self.status.value}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All outcomes of one run. ``reference`` is "module:name" of the adapter's class."""

    adapter: str
    reference: str
    profile: str
    claims: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed. It says nothing about what is unclaimed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes with a finding."""
        return tuple(each for each in self.outcomes if each.status is Status.FAILED)

    @property
    def counts(self) -> dict[str, int]:
        """How many outcomes have each status."""
        ended = [each.status for each in self.outcomes]
        return {status.value: ended.count(status) for status in Status}

    @property
    def seconds(self) -> float:
        """Time of all attacks together."""
        return sum(each.seconds for each in self.outcomes)

    def to_json(self) -> str:
        """One JSON object; see the head of this module."""
        outcomes = [asdict(each) | {"status": each.status.value} for each in self.outcomes]
        head: dict[str, Any] = {
            "schema": _SCHEMA,
            "adapter": self.adapter,
            "reference": self.reference,
            "profile": self.profile,
            "ok": self.ok,
            "claims": list(self.claims),
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
        }
        return json.dumps(head | {"outcomes": outcomes}, indent=2, sort_keys=True)

    def to_junit(self) -> str:
        """One JUnit suite with a case per attack; unclaimed and not applicable ones are skipped."""
        counts = self.counts
        skipped = counts[Status.UNCLAIMED.value] + counts[Status.NOT_APPLICABLE.value]
        suite = Element(
            "testsuite",
            name=_clean(f"privfedrl.testing {self.adapter}"),
            tests=str(len(self.outcomes)),
            failures=str(counts[Status.FAILED.value]),
            errors="0",
            skipped=str(skipped),
            time=f"{self.seconds:.3f}",
        )
        for outcome in self.outcomes:
            case = SubElement(
                suite,
                "testcase",
                classname=_clean(self.adapter),
                name=_clean(f"{outcome.id}: {outcome.title}"),
                time=f"{outcome.seconds:.3f}",
            )
            if outcome.status is Status.FAILED:
                failure = SubElement(case, "failure", message=_clean(outcome.detail))
                failure.text = _clean(outcome.script)
            elif outcome.status is not Status.PASSED:
                SubElement(case, "skipped", message=_clean(outcome.reason))
        return tostring(suite, encoding="unicode", xml_declaration=True)

    def to_text(self) -> str:
        """A table with one line per attack and the counts below."""
        wide = max((len(each.id) for each in self.outcomes), default=0)
        rows = [
            f"{each.status.value:14} {each.id:{wide}} {each.seconds:6.2f} s  "
            f"{each.title}{f' ({each.detail})' if each.detail else ''}"
            for each in self.outcomes
        ]
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return "\n".join(
            [f"{self.adapter}, profile {self.profile}", *rows, counts or "nothing ran"]
        )


def reference_of(adapter: AggregationAdapter) -> str:
    """ "module:name" of the adapter's class, as ``load_adapter`` takes it."""
    kind = type(adapter)
    return f"{kind.__module__}:{kind.__qualname__}"


_HEAD: Final = '''"""{title}

{id} against {adapter}: {detail}
Exit code 1 and the finding if it is still there. An argument names another adapter, module:name.
"""

import sys

'''

_STEPS: Final = """from privfedrl.testing.oracle import judge
from privfedrl.testing.replay import load_adapter
from privfedrl.testing.scene import replay

SPEC = {spec}
STEPS = {steps}

adapter = load_adapter(sys.argv[1] if len(sys.argv) > 1 else {reference!r})
sys.exit("\\n".join(judge(replay(adapter, SPEC, STEPS))) or None)
"""

_ATTACK: Final = """from privfedrl.testing.attacks import run_attacks
from privfedrl.testing.replay import load_adapter

adapter = load_adapter(sys.argv[1] if len(sys.argv) > 1 else {reference!r})
verdict = run_attacks(adapter, only=[{id!r}], thorough={thorough})
sys.exit(None if verdict.ok else verdict.to_text())
"""


def steps_script(
    outcome: Outcome, adapter: AggregationAdapter, spec: Mapping[str, Any], steps: Sequence[Step]
) -> str:
    """A script that does ``steps`` again and prints what the oracle says."""
    return _head(outcome, adapter) + _STEPS.format(
        spec=repr(dict(spec)),
        steps="".join(["[\n", *(f"    {step!r},\n" for step in steps), "]"]),
        reference=reference_of(adapter),
    )


def attack_script(outcome: Outcome, adapter: AggregationAdapter, *, thorough: bool) -> str:
    """A script that runs the whole attack again, for findings that no single scene shows."""
    return _head(outcome, adapter) + _ATTACK.format(
        id=outcome.id, reference=reference_of(adapter), thorough=thorough
    )


def _head(outcome: Outcome, adapter: AggregationAdapter) -> str:
    said = {
        "title": outcome.title,
        "id": outcome.id,
        "adapter": adapter.name,
        "detail": outcome.detail,
    }
    # a text must not end the docstring that it is put into
    harmless = {
        key: _clean(text).replace("\\", "/").replace('"', "'") for key, text in said.items()
    }
    return _HEAD.format(**harmless)


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
