"""A network in memory between the parties of an adapter: it loses, repeats, reorders and lies.

Guarantee: nothing that a party does is lost. Every packet is kept with its number, every refusal
with its error, and every other exception as a finding; none is swallowed.

Notation: a *stage* counts exchanges from 0; an answer has the stage of what it answers. A *view* is
one server of a round; view 0 is the first, others are forks by which a malicious server shows
clients another course of the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from privfedrl.testing.adapter import (
    AggregationAdapter,
    Packet,
    RingVector,
    RoundSpec,
    Store,
)
from privfedrl.testing.run import Finding, Refusal, Run, Sent
from privfedrl.testing.schedule import Action, Schedule, Step

__all__ = ["SimulatedNetwork"]

_MAX_EXCHANGES: Final = 64
"""A protocol with more stages than this is taken for one that does not end."""


@dataclass(slots=True)
class _View:
    """A server, what it has taken so far, and the colluders' second selves that talk to it."""

    server: Any
    stage: int = 0
    taken: list[tuple[int, Packet]] = field(default_factory=list)
    twins: dict[str, Any] = field(default_factory=dict)
    closed: bool = False


@dataclass(slots=True)
class _Link:
    """The live parties of the current round, and who made which bytes for whom."""

    clients: dict[str, Any] = field(default_factory=dict)
    views: list[_View] = field(default_factory=list)
    births: dict[str, int] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict)
    taken: dict[str, list[tuple[int, Packet]]] = field(default_factory=dict)
    made: dict[tuple[str, bytes], int] = field(default_factory=dict)
    known: set[bytes] = field(default_factory=set)
    # took the opening of an old round for the present one, and lives in that round from then on
    misled: set[str] = field(default_factory=set)


class SimulatedNetwork:
    """All rounds of one federation, one after another.

    Args:
        adapter, spec: of the parties; each later round counts ``spec.round`` up by one.
        vectors: per client, its input in every round.
        stores: per client, what it keeps on disk; made here if absent and shared by all rounds.
        specs: names (a client or the adapter's server) that are told another spec.
        colluding: clients that sign whatever each view of the server wants.
    """

    def __init__(
        self,
        adapter: AggregationAdapter,
        spec: RoundSpec,
        vectors: Mapping[str, RingVector],
        *,
        stores: MutableMapping[str, Store] | None = None,
        specs: Mapping[str, RoundSpec] | None = None,
        colluding: tuple[str, ...] = (),
    ) -> None:
        self.adapter = adapter
        self.spec = spec
        self.vectors = vectors
        self.stores: MutableMapping[str, Store] = {} if stores is None else stores
        self.sent: list[Sent] = []
        self.in_flight: list[int] = []
        self.steps: list[Step] = []
        self.runs: list[Run] = []
        self.cut_off: set[str] = set()
        self._specs = dict(specs or {})
        self._colluding = colluding
        self._link: _Link | None = None

    # what can be done to a round; every call is written down in ``steps``

    def do(self, step: Step) -> None:
        """Do ``step``; skip one that makes no sense now (no such packet, no open round)."""
        if step.action is not Action.OPEN and self._link is None:
            return
        if step.action in _OF_PACKETS and not 0 <= step.packet < len(self.sent):
            return
        self.steps.append(step)
        _ACTIONS[step.action](self, step)

    def open(self) -> Run:
        """Begin the next round."""
        self.do(Step(action=Action.OPEN))
        return self.runs[-1]

    def deliver(self, number: int) -> None:
        """Hand over packet ``number``; again, if it was delivered before."""
        self.do(Step(action=Action.DELIVER, packet=number))

    def finish(self) -> Run:
        """Go on honestly until the round has ended."""
        self.do(Step(action=Action.FINISH))
        return self.runs[-1]

    @property
    def run(self) -> Run:
        """The current or last round."""
        return self.runs[-1]

    @property
    def deliverable(self) -> list[int]:
        """Numbers of the packets that are under way and not cut off, oldest first."""
        return [
            number
            for number in self.in_flight
            if not {self.sent[number].packet.sender, self.sent[number].packet.recipient}
            & self.cut_off
        ]

    @property
    def stage(self) -> int:
        """The stage of the first server."""
        return self._now.views[0].stage

    @property
    def num_views(self) -> int:
        """How many servers this round has."""
        return len(self._now.views)

    def finished(self, view: int = 0) -> bool:
        """Whether that server has ended."""
        return self._now.views[view].closed

    def schedule(self) -> Schedule:
        """All that was done so far, replayable against a fresh network."""
        return Schedule(steps=tuple(self.steps))

    # the steps

    @property
    def _now(self) -> _Link:
        if self._link is None:
            raise LookupError("no round is open: call open() first")
        return self._link

    def _open(self, step: Step) -> None:
        if self.runs:
            self.spec = replace(self.spec, round=self.spec.round + 1)
        self.in_flight.clear()
        self.cut_off.clear()
        self._link = _Link()
        names = self.adapter.client_names(self.spec)
        deceived = set(names) if self.adapter.server in self._specs else set(self._specs)
        self.runs.append(
            Run(spec=self.spec, vectors=self.vectors, harmed=(deceived | set(self.spec.impostors)))
        )
        for name in names:
            self._link.clients[name] = self._make_client(name)
        self._add_view()

    def _spec_of(self, name: str) -> RoundSpec:
        return replace(self._specs.get(name, self.spec), round=self.spec.round)

    def _make_client(self, name: str) -> Any:
        """A client; its store outlives it, its seed does not."""
        births = self._now.births.get(name, 0)
        self._now.births[name] = births + 1
        spec = self._spec_of(name)
        if births:
            spec = replace(spec, seed=spec.seed + b"/born again %d" % births)
        store = self.stores.setdefault(name, {})
        return self.adapter.make_client(spec, name, self.vectors[name].copy(), store)

    def _add_view(self) -> int:
        view = _View(self.adapter.make_server(self._spec_of(self.adapter.server)))
        self._now.views.append(view)
        number = len(self._now.views) - 1
        out = self._call(view.server, None, lambda: self.adapter.start(view.server), view=number)
        self._emit(out or [], frozenset({number}), stage=0)
        return number

    def _deliver(self, step: Step) -> None:
        sent = self.sent[step.packet]
        self._take_off(step.packet)
        self._hand_over(sent, sent.packet)

    def _drop(self, step: Step) -> None:
        self._take_off(step.packet)
        self._harm(self.sent[step.packet].packet)

    def _tamper(self, step: Step) -> None:
        """An attacker sends a changed copy; the packet itself stays where it is."""
        sent = self.sent[step.packet]
        self._hand_over(sent, replace(sent.packet, data=step.edit.apply(sent.packet.data)))

    def _substitute(self, step: Step) -> None:
        if 0 <= step.argument < len(self.sent):
            other = self.sent[step.argument]
            sender = self.sent[step.packet].packet.sender
            recipient = self.sent[step.packet].packet.recipient
            self._hand_over(other, replace(other.packet, sender=sender, recipient=recipient))

    def _redirect(self, step: Step) -> None:
        if step.name in self._now.clients:
            sent = self.sent[step.packet]
            self._hand_over(sent, replace(sent.packet, recipient=step.name))

    def _cut(self, step: Step) -> None:
        self.cut_off.add(step.name)
        self.run.harmed.add(step.name)

    def _join(self, step: Step) -> None:
        self.cut_off.discard(step.name)

    def _restart(self, step: Step) -> None:
        if step.name in self._now.clients:
            self._now.clients[step.name] = self._make_client(step.name)
            self._now.taken.pop(step.name, None)
            self._now.misled.discard(step.name)
            self.run.harmed.add(step.name)

    def _fork(self, step: Step) -> None:
        """A second server with the first one's history, in which ``name`` fell silent."""
        first, stage = self._now.views[0], step.argument
        self._now.shown.update(dict.fromkeys(step.audience, self.num_views))
        self.run.harmed.update(step.audience)
        number = self._add_view()
        fork = self._now.views[number]
        for current in range(stage + 1):
            for at, packet in first.taken:
                if at == current and not (at == stage and packet.sender == step.name):
                    self._give_to_server(number, packet)
            if fork.stage == current and not fork.closed:
                self._close_view(number)
        for name in self._colluding:
            fork.twins[name] = self._twin(name, stage)

    def _twin(self, name: str, stage: int) -> Any:
        """A colluder's second self: its secrets and history up to ``stage``, another future."""
        twin = self.adapter.make_client(self._spec_of(name), name, self.vectors[name].copy(), {})
        for at, packet in self._now.taken.get(name, ()):
            if at <= stage:
                self._call(twin, packet, partial(self.adapter.deliver, twin, packet))
        return twin

    def _close(self, step: Step) -> None:
        if not 0 <= step.argument < self.num_views or self._now.views[step.argument].closed:
            return
        if step.argument == 0:
            for number in self.in_flight:
                self._harm(self.sent[number].packet)
        self._close_view(step.argument)

    def _finish(self, step: Step) -> None:
        for _ in range(_MAX_EXCHANGES):
            while self.deliverable:
                sent = self.sent[self.deliverable[0]]
                self._take_off(sent.number)
                self._hand_over(sent, sent.packet)
            still_open = [n for n, view in enumerate(self._now.views) if not view.closed]
            if not still_open:
                return
            for number in still_open:
                self._close(Step(action=Action.CLOSE, argument=number))
        self.run.findings.append(Finding(party=self.adapter.server, what="the round never ends"))

    # how bytes reach a party

    def _take_off(self, number: int) -> None:
        if number in self.in_flight:
            self.in_flight.remove(number)

    def _harm(self, packet: Packet) -> None:
        self._harm_party(packet.sender)
        self._harm_party(packet.recipient)

    def _harm_party(self, name: str) -> None:
        if name != self.adapter.server:
            self.run.harmed.add(name)

    def _hand_over(self, sent: Sent, packet: Packet) -> None:
        if packet.recipient != self.adapter.server:
            self._give_to_client(sent, packet)
            return
        views = sent.views if sent.round == self.spec.round else {0}
        for number in sorted(views):
            self._give_to_server(number, packet)

    def _give_to_client(self, sent: Sent, packet: Packet) -> None:
        name, made = packet.recipient, self._now.made.get((packet.recipient, packet.data))
        if name not in self._now.clients:
            what = "was sent a packet, but nobody has that name"
            self.run.findings.append(Finding(party=name, what=what, packet=packet))
            return
        views = frozenset({0}) if made is None else self.sent[made].views
        if 0 not in views:
            self.run.harmed.add(name)  # it was shown a fork
        with_twin = sorted(n for n in views if name in self._now.views[n].twins)
        for number in with_twin:
            twin = self._now.views[number].twins[name]
            out = self._call(twin, packet, partial(self.adapter.deliver, twin, packet))
            self._emit(out or [], frozenset({number}), stage=sent.stage)
        views -= set(with_twin)
        if not views:
            return
        party = self._now.clients[name]
        ended = self.adapter.finished(party)
        out = self._call(party, packet, lambda: self.adapter.deliver(party, packet))
        if out is None:
            return
        self._now.taken.setdefault(name, []).append((sent.stage, packet))
        if ended and out:
            self.run.findings.append(
                Finding(party=name, what="sent more after it had ended", packet=packet)
            )
        self._emit(out, views, stage=sent.stage)

    def _give_to_server(self, number: int, packet: Packet) -> None:
        view = self._now.views[number]
        stage = view.stage
        out = self._call(
            view.server, packet, lambda: self.adapter.deliver(view.server, packet), view=number
        )
        if out is not None:
            view.taken.append((stage, packet))
            self._advance(number, out)

    def _close_view(self, number: int) -> None:
        view = self._now.views[number]
        out = self._call(
            view.server, None, lambda: self.adapter.close_phase(view.server), view=number
        )
        self._advance(number, out or [])

    def _advance(self, number: int, out: list[Packet]) -> None:
        view = self._now.views[number]
        ended = self.adapter.finished(view.server)
        if view.closed and out:
            self.run.findings.append(
                Finding(party=self.adapter.server, what="sent more after it had ended")
            )
        if out or (ended and not view.closed):
            view.stage += 1
        self._emit(out, frozenset({number}), stage=view.stage)
        if ended and not view.closed:
            view.closed = True
            self._read_result(number)

    def _read_result(self, number: int) -> None:
        server, run = self._now.views[number].server, self.run
        try:
            run.aggregates[number] = self.adapter.result(server)
            if number == 0:
                run.transcript = self.adapter.transcript(server)
                run.ledger_entries = self.adapter.ledger_entries(server)
        except self.adapter.errors as error:
            if number == 0:
                run.error = error
        except Exception as error:  # noqa: BLE001 - an adapted library may raise anything; recorded
            self._find(self.adapter.server, None, error)

    def _call(
        self,
        party: Any,
        packet: Packet | None,
        act: Callable[[], list[Packet]],
        *,
        view: int = 0,
    ) -> list[Packet] | None:
        """What ``act`` returns, or None after it raised; the error is written down."""
        name = self.adapter.server if packet is None else packet.recipient
        judged = packet is not None and name not in self._now.misled
        hostile = packet is not None and judged and (name, packet.data) not in self._now.made
        foreign = packet is not None and judged and packet.data not in self._now.known
        before = self._look_at(party, name)
        try:
            out = act()
        except self.adapter.errors as error:
            changed = self._look_at(party, name) != before
            if changed and hostile and not foreign:
                self._harm_party(name)  # genuine bytes that were meant for somebody else
            self.run.refusals.append(
                Refusal(
                    party=name,
                    packet=packet,
                    error=error,
                    view=view,
                    hostile=hostile,
                    foreign=foreign,
                    changed=changed,
                )
            )
            return None
        except Exception as error:  # noqa: BLE001 - an adapted library may raise anything; recorded
            self._find(name, packet, error)
            return None
        if packet is not None:
            self.run.accepted.append((packet, hostile))
            if hostile:
                self._harm_party(name)
                self._now.misled.add(name)
        return out

    def _look_at(self, party: Any, name: str) -> tuple[bool, tuple[str, ...] | None]:
        waiting = self.adapter.waiting_for(party) if name == self.adapter.server else None
        return self.adapter.finished(party), waiting

    def _find(self, party: str, packet: Packet | None, error: Exception) -> None:
        what = f"raised {type(error).__name__}, which is not one of the adapter's errors"
        self.run.findings.append(Finding(party=party, what=what, packet=packet, error=error))

    def _emit(self, packets: list[Packet], views: frozenset[int], *, stage: int) -> None:
        for packet in packets:
            key = (packet.recipient, packet.data)
            if key in self._now.made:
                number = self._now.made[key]
                sent = self.sent[number]
                self.sent[number] = replace(sent, views=sent.views | views)
                again = 0 in views or self._now.shown.get(packet.recipient) in views
                if again and number not in self.in_flight:
                    self.in_flight.append(number)  # sent again, perhaps because it was lost
                continue
            number = self._now.made[key] = len(self.sent)
            self._now.known.add(packet.data)
            sent = Sent(
                number=number, round=self.spec.round, stage=stage, views=views, packet=packet
            )
            self.sent.append(sent)
            self.run.packets.append(sent)
            if packet.sender != self.adapter.server:
                self._learn(sent)
            elif not self._is_shown(packet.recipient, views):
                continue
            self.in_flight.append(number)

    def _is_shown(self, name: str, views: frozenset[int]) -> bool:
        """Whether the server lets ``name`` see a packet of these views; colluders see them all."""
        return name in self._colluding or self._now.shown.get(name, 0) in views

    def _learn(self, sent: Sent) -> None:
        """The server side sees every byte that a client lets go, delivered or not."""
        known, packet = self.run.knowledge, sent.packet
        residues = self.adapter.residues(self.spec, packet)
        if residues is not None:
            known.residues.setdefault(packet.sender, []).append(residues)
        server = self._now.views[min(sent.views)].server
        known.reveals += self.adapter.reveals(self.spec, server, packet)


_OF_PACKETS: Final = frozenset(
    {Action.DELIVER, Action.DROP, Action.TAMPER, Action.SUBSTITUTE, Action.REDIRECT}
)
_ACTIONS: Final[dict[Action, Callable[[SimulatedNetwork, Step], None]]] = {
    Action.OPEN: SimulatedNetwork._open,
    Action.DELIVER: SimulatedNetwork._deliver,
    Action.DROP: SimulatedNetwork._drop,
    Action.TAMPER: SimulatedNetwork._tamper,
    Action.SUBSTITUTE: SimulatedNetwork._substitute,
    Action.REDIRECT: SimulatedNetwork._redirect,
    Action.CUT: SimulatedNetwork._cut,
    Action.JOIN: SimulatedNetwork._join,
    Action.RESTART: SimulatedNetwork._restart,
    Action.FORK: SimulatedNetwork._fork,
    Action.CLOSE: SimulatedNetwork._close,
    Action.FINISH: SimulatedNetwork._finish,
}
