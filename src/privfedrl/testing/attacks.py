"""The attack suite: every attack of the threat model as small table rows, run against any adapter.

Guarantee: an attack passes only if it ran to its end and the oracle found nothing; an attack on
something that the adapter does not claim is unclaimed, one that it cannot be put through is not
applicable, and a crash of the adapter inside an attack is a failure.

Ids start with the number of the attack in the threat model: A1 inconsistent models, A2 crafted
models, A3 both shares, A4 equivocation, A5 key substitution, A6 low-order keys, A7 replay, A8 mask
reuse, A9 small cohorts, A10 server-chosen parameters, A11 restart, A12 disaggregation, A13 the
server's view, A14 differencing, A15 overflow, A16 damaged frames, A17 wrong shares, A18 dropouts,
A20 side releases, A22 release without reservation. A19 and A21 are about what goes into the vector
and A23 about decryption: not matters of an aggregation protocol.

The lies that attacks ask an adapter to sign are listed in ``AggregationAdapter.forge``.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest import SkipTest

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import AggregationAdapter
from privfedrl.testing.attack_cases_bytes import BYTE_ATTACKS
from privfedrl.testing.attack_cases_keys import KEY_ATTACKS
from privfedrl.testing.attack_cases_masks import MASK_ATTACKS
from privfedrl.testing.attack_cases_rounds import ROUND_ATTACKS
from privfedrl.testing.attack_cases_shares import SHARE_ATTACKS
from privfedrl.testing.attack_cases_splices import SPLICE_ATTACKS
from privfedrl.testing.attack_cases_views import VIEW_ATTACKS
from privfedrl.testing.bench import Attack, Bench, Finding, NotApplicable
from privfedrl.testing.oracle import judge
from privfedrl.testing.scene import Scene, Step, replay, shrink, spec_changes
from privfedrl.testing.verdict import (
    Outcome,
    Status,
    Verdict,
    attack_script,
    reference_of,
    steps_script,
)

__all__ = ["ATTACKS", "Attack", "attack_suite", "run_attack", "run_attacks", "suite_of"]

_MAX_SCRIPT: Final = 1 << 18
"""A script that would spell out more bytes runs the whole attack instead."""


def _order(attack: Attack) -> tuple[int, str]:
    number = re.match(r"[A-Z](\d+)", attack.id)
    return (int(number[1]) if number else 0, attack.id)


ATTACKS: Final[tuple[Attack, ...]] = tuple(
    sorted(
        (
            *VIEW_ATTACKS,
            *KEY_ATTACKS,
            *BYTE_ATTACKS,
            *ROUND_ATTACKS,
            *SHARE_ATTACKS,
            *MASK_ATTACKS,
            *SPLICE_ATTACKS,
        ),
        key=_order,
    )
)
"""All attacks, by number."""


def run_attacks(
    adapter: AggregationAdapter,
    *,
    only: Iterable[str] | None = None,
    thorough: bool = False,
    stop_at_first: bool = False,
    shrink_tries: int = 80,
    attacks: Sequence[Attack] = ATTACKS,
) -> Verdict:
    """Run attacks against ``adapter``.

    Args:
        only: ids, or their part before the dash ("A4"); all if None.
        thorough: more cases of each attack; minutes instead of seconds.
        stop_at_first: end at the first failure, the quick attacks first.
        shrink_tries: how often a failing schedule is replayed to make it shorter; 0 keeps it.
    Raises:
        ConfigurationError: ``only`` names no attack.
    """
    chosen = _chosen(attacks, only)
    if stop_at_first:
        chosen = sorted(chosen, key=lambda attack: attack.cost)
    outcomes: list[Outcome] = []
    for attack in chosen:
        outcomes.append(run_attack(adapter, attack, thorough=thorough, shrink_tries=shrink_tries))
        if stop_at_first and outcomes[-1].status is Status.FAILED:
            break
    return Verdict(
        adapter=adapter.name,
        reference=reference_of(adapter),
        profile="thorough" if thorough else "quick",
        claims=tuple(sorted(claim.name for claim in adapter.claims)),
        outcomes=tuple(outcomes),
    )


def _chosen(attacks: Sequence[Attack], only: Iterable[str] | None) -> list[Attack]:
    if only is None:
        return list(attacks)
    wanted = tuple(only)
    chosen = [each for each in attacks if each.id in wanted or each.id.split("-")[0] in wanted]
    known = {name for each in chosen for name in (each.id, each.id.split("-")[0])}
    unknown = sorted(set(wanted) - known)
    if unknown:
        raise ConfigurationError(f"only must name attacks, got {', '.join(unknown)}")
    return chosen


def run_attack(
    adapter: AggregationAdapter, attack: Attack, *, thorough: bool = False, shrink_tries: int = 80
) -> Outcome:
    """Run one attack. Never raises for what the adapter does."""
    blank = Outcome(
        id=attack.id,
        title=attack.title,
        status=Status.PASSED,
        needs=tuple(sorted(claim.name for claim in attack.needs)),
    )
    missing = sorted(claim.name for claim in attack.needs - adapter.claims)
    if missing:
        return replace(blank, status=Status.UNCLAIMED, detail=", ".join(missing))
    started = time.perf_counter()
    ended = _attempt(adapter, attack, thorough=thorough)
    outcome = replace(
        blank,
        status=ended.status,
        detail=ended.detail,
        seconds=round(time.perf_counter() - started, 3),
    )
    if outcome.status is Status.FAILED:
        script = _script(adapter, outcome, ended, thorough=thorough, tries=shrink_tries)
        return replace(outcome, script=script)
    return outcome


@dataclass(frozen=True, slots=True)
class _Ended:
    status: Status
    detail: str = ""
    scene: Scene | None = None
    problem: str = ""


def _attempt(adapter: AggregationAdapter, attack: Attack, *, thorough: bool) -> _Ended:
    try:
        attack.run(Bench(adapter, thorough))
    except Finding as finding:
        return _Ended(Status.FAILED, str(finding), finding.scene, finding.problem)
    except NotApplicable as reason:
        return _Ended(Status.NOT_APPLICABLE, str(reason))
    except Exception as error:  # noqa: BLE001 - whatever escapes is the adapter's failure
        where = traceback.extract_tb(error.__traceback__)[-1]
        return _Ended(Status.FAILED, f"{type(error).__name__} at {where.name}:{where.lineno}")
    return _Ended(Status.PASSED)


def _script(
    adapter: AggregationAdapter, outcome: Outcome, ended: _Ended, *, thorough: bool, tries: int
) -> str:
    """The shortest schedule that still shows the finding, or the attack itself."""
    if ended.scene is not None and ended.problem:
        spec, kind = spec_changes(ended.scene.spec), _kind(ended.problem)

        def still_fails(steps: Sequence[Step]) -> bool:
            problems = judge(replay(adapter, spec, steps))
            return kind in map(_kind, problems)

        if not tries or still_fails(ended.scene.steps):
            steps = shrink(ended.scene.steps, still_fails, tries=tries)
            if _weight(steps) <= _MAX_SCRIPT:
                return steps_script(outcome, adapter, spec, steps)
    return attack_script(outcome, adapter, thorough=thorough)


def _weight(steps: Sequence[Step]) -> int:
    """Bytes of all packets that are spelled out."""
    named = (step[2] for step in steps if step[0] == "deliver")
    return sum(len(name[2]) for name in named if len(name) == 4)


def _kind(problem: str) -> str:
    """A problem without its numbers: shorter schedules show it with others."""
    return re.sub(r"[\d-]+", "#", problem)


def attack_suite(
    adapter: AggregationAdapter,
    *,
    only: Iterable[str] | None = None,
    thorough: bool = False,
    attacks: Sequence[Attack] = ATTACKS,
) -> type[Any]:
    """A class that pytest collects, with one test per attack, named after it.

    An unclaimed attack is skipped with the reason "unclaimed: ...". Use it as a base class or
    assign it to a name that starts with "Test".
    """
    rows = _chosen(attacks, only)
    tests = {f"test_{attack.id}": _test_of(adapter, attack, thorough) for attack in rows}
    return suite_of("AttackSuite", adapter.name, tests)


def suite_of(name: str, about: str, tests: dict[str, Callable[[Any], None]]) -> type[Any]:
    """A plain class of test methods; their names may hold dashes, which become underscores."""
    methods = {key.replace("-", "_"): test for key, test in tests.items()}
    return type(name, (), {"__doc__": about, **methods})


def _test_of(adapter: AggregationAdapter, attack: Attack, thorough: bool) -> Callable[[Any], None]:
    def test(_: Any) -> None:
        outcome = run_attack(adapter, attack, thorough=thorough)
        if outcome.status is Status.FAILED:
            raise AssertionError(f"{outcome.reason}\n\n{outcome.script}")
        if outcome.status is not Status.PASSED:
            raise SkipTest(outcome.reason)

    test.__doc__ = attack.title
    return test
