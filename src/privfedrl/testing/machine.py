"""A Hypothesis state machine that attacks an adapter step by step and checks I1 to I12 after each.

Guarantee: every step goes through one simulated network, so a failure prints a script that repeats
it without Hypothesis. Adversaries, by profile, each with the powers of those before it:

    honest-but-curious   the network loses, repeats, reorders and delays; clients crash and return
    transport-only       ... and changes bytes and brings back packets of earlier rounds
    malicious-server     ... and mixes up packets, forks its view, asks for both shares, rewinds
    coalition            ... and the first ``max_colluding`` clients sign for every view
"""

from __future__ import annotations

import zlib
from typing import Any, ClassVar, Final, Literal
from unittest import TestCase

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import AggregationAdapter, Claim, RoundSpec
from privfedrl.testing.invariants import Violation, violations
from privfedrl.testing.network import Action, Edit, Schedule, SimulatedNetwork, Step, play_round
from privfedrl.testing.replay import colluders, draw_vectors, judge
from privfedrl.testing.schedule import shrink
from privfedrl.testing.strategies import edits

__all__ = ["PROFILES", "Profile", "aggregation_machine"]

Profile = Literal["honest-but-curious", "transport-only", "malicious-server", "coalition"]

_PICK: Final = st.integers(0, 999)
"""Reduced modulo the number of things there are to choose from, so that shrinking is steady."""

_TRIES: Final = 60
"""How often a failing schedule is played again to make it smaller: seconds, not minutes."""

_REPEATED: Final = 4
"""One example in so many is played a second time to see whether it gives the same bytes."""


class _Curious(RuleBasedStateMachine):
    """Honest parties on a bad network."""

    adapter: ClassVar[AggregationAdapter]
    spec: ClassVar[RoundSpec]
    coalition: ClassVar[bool] = False
    place: ClassVar[str] = ""
    shrinking: ClassVar[bool] = True
    smallest: ClassVar[dict[Schedule, Schedule]]

    def __init__(self) -> None:
        super().__init__()
        self.allies = colluders(self.adapter, self.spec) if self.coalition else ()
        self.names = self.adapter.client_names(self.spec)
        self.network = self._fresh()
        self.failed = False
        self.ruthless = False

    def _fresh(self) -> SimulatedNetwork:
        vectors = draw_vectors(self.adapter, self.spec)
        return SimulatedNetwork(self.adapter, self.spec, vectors, colluding=self.allies)

    def name(self, pick: int) -> str:
        """Some client."""
        return self.names[pick % len(self.names)]

    def waiting(self, pick: int) -> int:
        """Some packet under way."""
        there = self.network.deliverable
        return there[pick % len(there)]

    def do(self, action: Action, **given: Any) -> None:
        """One step, or nothing where it makes no sense."""
        self.network.do(Step(action=action, **given))

    @initialize(ruthless=st.integers(0, 4))
    def first_round(self, ruthless: int) -> None:
        """In four of five examples so much goes well that there is something to attack."""
        self.ruthless = ruthless == 4
        self.network.open()

    @property
    def may_harm(self) -> bool:
        """Whether one more client may be lost."""
        quorum = self.adapter.quorum(self.spec) or len(self.names) - 1
        return self.ruthless or len(self.network.run.harmed) < len(self.names) - quorum

    @precondition(lambda self: self.network.finished())
    @rule(absent=st.sets(_PICK, max_size=2))
    def next_round(self, absent: set[int]) -> None:
        """Leave and join: the next round begins, some clients stay away."""
        self.do(Action.FINISH)
        self.network.open()
        for pick in sorted(absent):
            self.do(Action.CUT, name=self.name(pick))

    @precondition(lambda self: self.network.deliverable)
    @rule(pick=_PICK)
    def deliver(self, pick: int) -> None:
        """Any packet under way: what is older may wait."""
        self.network.deliver(self.waiting(pick))

    @precondition(lambda self: not self.network.finished())
    @rule(turn=_PICK, times=st.integers(1, 3))
    def exchange(self, turn: int, times: int) -> None:
        """Everything under way and the answers, starting anywhere; then the deadline."""
        for _ in range(times):
            stage = self.network.stage
            for _ in range(2):
                batch = self.network.deliverable
                start = turn % max(1, len(batch))
                for number in batch[start:] + batch[:start]:
                    self.network.deliver(number)
            if self.network.stage == stage:
                self.close()

    @rule(pick=_PICK)
    def again(self, pick: int) -> None:
        """Any packet of this round, once more or late."""
        packets = self.network.run.packets
        if packets:
            self.network.deliver(packets[pick % len(packets)].number)

    @precondition(lambda self: self.may_harm and self.network.deliverable)
    @rule(pick=_PICK)
    def lose(self, pick: int) -> None:
        self.do(Action.DROP, packet=self.waiting(pick))

    @precondition(lambda self: self.may_harm)
    @rule(pick=_PICK)
    def cut(self, pick: int) -> None:
        self.do(Action.CUT, name=self.name(pick))

    @precondition(lambda self: self.network.cut_off)
    @rule()
    def rejoin(self) -> None:
        for name in sorted(self.network.cut_off):
            self.do(Action.JOIN, name=name)

    @precondition(lambda self: self.may_harm)
    @rule(pick=_PICK)
    def crash_and_restore(self, pick: int) -> None:
        """A client starts anew from what it kept on disk."""
        self.do(Action.RESTART, name=self.name(pick))

    @precondition(lambda self: self.ruthless or len(self.network.in_flight) <= 1)
    @rule()
    def close(self) -> None:
        """The deadline of the phase, for every view."""
        for view in range(self.network.num_views):
            self.do(Action.CLOSE, argument=view)

    @invariant()
    def nothing_is_broken(self) -> None:
        if self.network.runs:
            last = self.network.runs[-1:]
            self._judge(violations(self.adapter, last, colluding=self.allies, transcripts=False))

    def teardown(self) -> None:
        """Let the round end, look at everything, and sometimes play it all a second time."""
        if self.failed or not self.network.runs:
            return
        self.network.finish()
        schedule = self.network.schedule()
        self._judge(violations(self.adapter, self.network.runs, colluding=self.allies))
        chosen = zlib.crc32(schedule.to_json().encode()) % _REPEATED == 0
        if chosen and Claim.DETERMINISTIC in self.adapter.claims:
            self._judge(self._differences(schedule))

    def _differences(self, schedule: Schedule) -> tuple[Violation, ...]:
        second = self._fresh()
        play_round(second, schedule)
        return tuple(
            Violation("I12", one.spec.round, "the same schedule gave other bytes")
            for one, two in zip(self.network.runs, second.runs, strict=True)
            if [sent.packet for sent in one.packets] != [sent.packet for sent in two.packets]
        )

    def _small(self, schedule: Schedule, found: tuple[Violation, ...]) -> Schedule:
        """A smaller schedule that breaks the same, where judging alone shows it."""
        broken = {violation.invariant for violation in found}

        def fails(candidate: Schedule) -> bool:
            again = judge(self.adapter, self.spec, candidate, coalition=self.coalition)
            return bool(broken & {violation.invariant for violation in again})

        if self.shrinking and schedule not in self.smallest:
            small = shrink(schedule, fails, tries=_TRIES) if fails(schedule) else schedule
            self.smallest[schedule] = small
        return self.smallest.get(schedule, schedule)

    def _judge(self, found: tuple[Violation, ...]) -> None:
        if not found:
            return
        self.failed = True
        script = self._small(self.network.schedule(), found).script(
            self.place, spec=self.spec, coalition=self.coalition
        )
        lines = "\n".join(str(violation) for violation in found)
        raise AssertionError(
            f"{lines}\n\n{self.adapter.name} breaks its claims. Replay:\n\n{script}"
        )


class _Transport(_Curious):
    """An attacker on the wire, who has every packet of every round."""

    @precondition(lambda self: self.network.deliverable)
    @rule(pick=_PICK, edit=edits())
    def tamper(self, pick: int, edit: Edit) -> None:
        """A changed copy arrives first."""
        self.do(Action.TAMPER, packet=self.waiting(pick), edit=edit)

    @precondition(lambda self: len(self.network.runs) > 1)
    @rule(pick=_PICK)
    def replay_an_earlier_round(self, pick: int) -> None:
        earlier = self.network.runs[-1].packets[0].number if self.network.runs[-1].packets else 0
        if earlier:
            self.network.deliver(pick % earlier)


class _Server(_Transport):
    """A server that does whatever helps it, with its own key."""

    @precondition(lambda self: self.network.sent)
    @rule(pick=_PICK, other=_PICK)
    def substitute(self, pick: int, other: int) -> None:
        """One packet arrives in the name and place of another."""
        count = len(self.network.sent)
        self.do(Action.SUBSTITUTE, packet=pick % count, argument=other % count)

    @precondition(lambda self: self.network.sent)
    @rule(pick=_PICK, to=_PICK)
    def redirect(self, pick: int, to: int) -> None:
        """A packet for one client goes to another."""
        self.do(Action.REDIRECT, packet=pick % len(self.network.sent), name=self.name(to))

    @precondition(lambda self: self.network.num_views < 3)
    @rule(pick=_PICK, back=st.integers(0, 2), audience=st.sets(_PICK))
    def equivocate(self, pick: int, back: int, audience: set[int]) -> None:
        """Some clients are shown a course in which another one fell silent a little earlier."""
        stage = max(0, self.network.stage - back)
        shown = tuple(sorted({self.name(each) for each in audience}))
        self.do(Action.FORK, name=self.name(pick), argument=stage, audience=shown)

    @precondition(lambda self: self.network.num_views < 3)
    @rule(pick=_PICK)
    def ask_both_shares(self, pick: int) -> None:
        """Once a sum is open, ask everybody again as if one survivor had dropped out."""
        self.do(Action.FINISH)
        last = max((sent.stage for sent in self.network.run.packets), default=0)
        stage = max(0, last - 2)  # of the masked vectors, where two stages follow them
        self.do(Action.FORK, name=self.name(pick), argument=stage, audience=self.names)
        self.do(Action.FINISH)

    @precondition(lambda self: self.may_harm)
    @rule(pick=_PICK)
    def rewind(self, pick: int) -> None:
        """Restart a client and show it once more all that it was shown."""
        name = self.name(pick)
        self.do(Action.RESTART, name=name)
        for sent in list(self.network.run.packets):
            if sent.packet.recipient == name:
                self.network.deliver(sent.number)

    @precondition(lambda self: self.network.num_views < 3)
    @rule()
    def run_the_round_again(self) -> None:
        """Restart everybody and open the round of the same number once more."""
        self.do(Action.FINISH)
        for name in self.names:
            self.do(Action.RESTART, name=name)
        self.do(Action.FORK, argument=-1, audience=self.names)
        self.do(Action.FINISH)

    @precondition(lambda self: self.ruthless and not self.network.finished())
    @rule(pick=_PICK)
    def shrink_cohort(self, pick: int) -> None:
        """Cut one client more than the cohort floor allows."""
        for offset in range(len(self.names) - self.spec.min_clients + 1):
            self.do(Action.CUT, name=self.name(pick + offset))


PROFILES: Final[dict[str, type[_Curious]]] = {
    "honest-but-curious": _Curious,
    "transport-only": _Transport,
    "malicious-server": _Server,
    "coalition": _Server,
}


def aggregation_machine(
    adapter: AggregationAdapter,
    profile: Profile = "malicious-server",
    *,
    thorough: bool = False,
    shrinking: bool = True,
    spec: RoundSpec | None = None,
    place: str | None = None,
) -> type[TestCase]:
    """A test class that pytest and unittest collect; subclass it under a name of your own.

    Args:
        adapter: what is attacked; its parties must be deterministic for the replay to be exact.
        profile: how much the adversary may do.
        thorough: minutes instead of seconds.
        shrinking: whether a failure is made smaller, which takes seconds; thorough: minutes.
        spec: the first round; later ones count up.
        place: "module:name" under which the printed script imports the adapter; its class if None.
    Raises:
        ConfigurationError: no such profile.
    """
    if profile not in PROFILES:
        raise ConfigurationError(f"profile must be one of {sorted(PROFILES)}, got {profile!r}")
    kind = type(adapter)
    machine: Any = type(
        f"{kind.__name__}Machine",
        (PROFILES[profile],),
        {
            "adapter": adapter,
            "spec": spec or RoundSpec(),
            "coalition": profile == "coalition",
            "shrinking": shrinking,
            "smallest": {},
            "place": place or f"{kind.__module__}:{kind.__qualname__}",
        },
    )
    case: type[TestCase] = machine.TestCase
    # hypothesis reads this attribute of the class that it generates
    setattr(case, "settings", _settings(thorough=thorough, shrinking=shrinking))  # noqa: B010 - see above
    return case


def _settings(*, thorough: bool, shrinking: bool) -> settings:
    phases = (Phase.generate, Phase.shrink) if shrinking and thorough else (Phase.generate,)
    return settings(
        phases=phases,
        max_examples=150 if thorough else 25,
        stateful_step_count=40 if thorough else 20,
        derandomize=not thorough,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
