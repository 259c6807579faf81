"""The attack suite: silent on the reference, loud on adapters that were broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, RemoteProtocolError
from privfedrl.testing.adapter import (
    Aggregate,
    AggregationAdapter,
    Claim,
    Packet,
    Reveal,
    RingVector,
    RoundSpec,
    Store,
)
from privfedrl.testing.attacks import ATTACKS, attack_suite, run_attack, run_attacks
from privfedrl.testing.bench import Attack, Bench
from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter
from privfedrl.testing.verdict import Status

SOUND = "privfedrl.testing.pairwise_guarded:GuardedPairwiseAdapter"
ROW = {attack.id: attack for attack in ATTACKS}


class TestReference(attack_suite(GuardedPairwiseAdapter())):
    """Every attack on our own protocol; none may be skipped (see the next test)."""


@pytest.fixture(scope="module")
def quick_ids() -> list[str]:
    return [attack.id for attack in ATTACKS]


def test_the_reference_claims_what_every_attack_needs() -> None:
    needed = frozenset[Claim]().union(*(attack.needs for attack in ATTACKS))
    assert needed <= GuardedPairwiseAdapter.claims


def test_every_attack_of_the_threat_model_that_concerns_a_protocol_has_a_row(
    quick_ids: list[str],
) -> None:
    numbers = {int(each.split("-")[0][1:]) for each in quick_ids}
    assert numbers == {*range(1, 19), 20, 22}
    assert len(set(quick_ids)) == len(quick_ids)


def test_an_adapter_without_claims_is_unclaimed_and_never_passed() -> None:
    class Modest(GuardedPairwiseAdapter):
        claims = frozenset()

    verdict = run_attacks(Modest())
    assert {outcome.status for outcome in verdict.outcomes} == {Status.UNCLAIMED}
    assert all("EXACT_SUM" in o.detail for o in verdict.outcomes if "EXACT_SUM" in o.needs)


def test_one_missing_claim_leaves_its_attacks_unclaimed_and_runs_the_rest() -> None:
    class NotBound(GuardedPairwiseAdapter):
        claims = GuardedPairwiseAdapter.claims - {Claim.MODEL_BINDING}

    verdict = run_attacks(NotBound(), only=["A1", "A2", "A5-relabelled"])
    said = {outcome.id: outcome.status for outcome in verdict.outcomes}
    assert said == {
        "A1-split-model": Status.UNCLAIMED,
        "A2-crafted-model": Status.UNCLAIMED,
        "A5-relabelled": Status.PASSED,
    }


def test_an_unclaimed_attack_is_skipped_by_pytest_with_its_reason(tmp_path: Path) -> None:
    module = tmp_path / "test_modest.py"
    module.write_text(
        "from privfedrl.testing.attacks import attack_suite\n"
        "from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter\n"
        "class Modest(GuardedPairwiseAdapter):\n"
        "    claims = frozenset()\n"
        "TestModest = attack_suite(Modest(), only=['A4'])\n"
    )
    ran = _python("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(module), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert "unclaimed: AGREEMENT, EXACT_SUM" in ran.stdout
    expected = sum(attack.id.startswith("A4-") for attack in ATTACKS)
    assert f"{expected} skipped" in ran.stdout


def test_without_forging_the_attacks_that_need_it_are_not_applicable() -> None:
    class NoForge(GuardedPairwiseAdapter):
        def forge(self, spec: RoundSpec, packet: Packet, **changes: Any) -> None:
            return None

        def make_lax_server(self, spec: RoundSpec) -> None:
            return None

        def make_charging_client(self, *_: Any) -> None:
            return None

    ids = ["A5-equal-keys", "A6-low-order", "A17", "A4-lax", "A9-lax", "A22"]
    verdict = run_attacks(NoForge(), only=ids)
    assert {o.status for o in verdict.outcomes} == {Status.NOT_APPLICABLE}
    assert run_attack(NoForge(), ROW["A5-impostor-server"]).status is Status.PASSED


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="A99"):
        run_attacks(GuardedPairwiseAdapter(), only=["A99"])


def test_stopping_at_the_first_finding_tries_the_cheap_attacks_first() -> None:
    def finds(bench: Bench) -> None:
        bench.expect(False, "found")

    def passes(_: Bench) -> None:
        return

    rows = tuple(
        Attack(id=name, title=name, needs=frozenset(), run=run, cost=cost)
        for name, run, cost in (("A1-dear", finds, 9), ("A2-cheap", passes, 1), ("A3", finds, 2))
    )
    verdict = run_attacks(GuardedPairwiseAdapter(), attacks=rows, stop_at_first=True)
    assert [outcome.id for outcome in verdict.outcomes] == ["A2-cheap", "A3"]
    assert not verdict.ok


# adapters that were broken on purpose


class WrongTotal(GuardedPairwiseAdapter):
    """The first coordinate is one too large."""

    def result(self, server: Any) -> Aggregate:
        right = super().result(server)
        total = right.total.copy()
        total[0] += 1
        return Aggregate(total=total, survivors=right.survivors)


class Forgetful(GuardedPairwiseAdapter):
    """A restart finds an empty disk."""

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Any:
        return super().make_client(spec, name, vector, {})


class Untyped(GuardedPairwiseAdapter):
    """Refusals are KeyErrors."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        try:
            return super().deliver(party, packet)
        except self.errors as error:
            raise KeyError("refused") from error


class NoFloor(GuardedPairwiseAdapter):
    """Everybody uses smaller floors than they were told."""

    def parameters(self, spec: RoundSpec) -> Any:
        return super().parameters(replace(spec, min_clients=2, min_honest=2))


class Obedient(GuardedPairwiseAdapter):
    """Clients take whatever plan and model the server names."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        if packet.recipient != self.server and hasattr(party, "model"):
            for model in (b"m" * 32, b"n" * 32):
                if model in packet.data:
                    party.model = model
        return super().deliver(party, packet)


class AnyKey(GuardedPairwiseAdapter):
    """Impostors are as good as the registered clients."""

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Any:
        return super().make_client(replace(spec, impostors=frozenset()), name, vector, store)


class Unmasked(GuardedPairwiseAdapter):
    """What goes over the wire shows a constant."""

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        masked = super().residues(spec, packet)
        return None if masked is None else np.zeros_like(masked)


class BothShares(GuardedPairwiseAdapter):
    """Every answer holds both shares of everybody."""

    def reveals(self, spec: RoundSpec, server: Any, packet: Packet) -> tuple[Reveal, ...]:
        shares = super().reveals(spec, server, packet)
        return tuple(replace(each, kind=kind) for each in shares for kind in ("self", "pair"))


class Talkative(GuardedPairwiseAdapter):
    """The size of an answer depends on the input."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        if packet.recipient == self.server and packet.data[:4] == b"PFRL":
            length = int.from_bytes(packet.data[8:12], "big")
            packet = replace(packet, data=packet.data[: 12 + length + 64])
        answers = super().deliver(party, packet)
        if packet.recipient == self.server:
            return answers
        pad = bytes(int(party.vector[0] % 2**32 // 2**31))
        return [replace(answer, data=answer.data + pad) for answer in answers]


class Hungry(GuardedPairwiseAdapter):
    """Every frame is copied two thousand times before it is looked at."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        assert bytes(min(2_000 * len(packet.data), 2**25))[:1] in (b"", b"\0")
        return super().deliver(party, packet)


class Negligent(GuardedPairwiseAdapter):
    """Any bytes are a good transcript."""

    def verify_transcript(self, spec: RoundSpec, transcript: bytes) -> None:
        return


class Uncharged(GuardedPairwiseAdapter):
    """The ledger is asked for nothing."""

    def make_charging_client(self, *given: Any) -> Any:
        return super().make_charging_client(*given[:-1], lambda: None)


class Amnesiac(GuardedPairwiseAdapter):
    """The server adds a late vector to a sum that has been opened."""

    def __init__(self) -> None:
        self.late: Counter[int] = Counter()

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        if packet.recipient == self.server and self.finished(party):
            self.late[id(party)] += 1
        return super().deliver(party, packet)

    def result(self, server: Any) -> Aggregate:
        right = super().result(server)
        return Aggregate(total=right.total + self.late[id(server)], survivors=right.survivors)


class Quitter(GuardedPairwiseAdapter):
    """The server gives up when anybody is missing."""

    def close_phase(self, server: Any) -> list[Packet]:
        server.party.abort()
        return []


class Restless(GuardedPairwiseAdapter):
    """A client that has ended goes on sending."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        ended = packet.recipient != self.server and self.finished(party)
        try:
            return super().deliver(party, packet)
        except RemoteProtocolError:
            if not ended:
                raise
            return [Packet(packet.recipient, self.server, b"still here")]


BROKEN = [
    (WrongTotal, "A15-wrap"),
    (WrongTotal, "A18-dropouts"),
    (Forgetful, "A11-restart"),
    (Forgetful, "A11-rewind"),
    (Forgetful, "A12-rounds"),
    (Untyped, "A16-damaged"),
    (Untyped, "A16-hostile"),
    (NoFloor, "A9-floor"),
    (Obedient, "A2-crafted-model"),
    (AnyKey, "A5-impostor-client"),
    (AnyKey, "A9-sybil"),
    (Unmasked, "A8-rounds"),
    (BothShares, "A3-both-shares"),
    (Talkative, "A20-sizes"),
    (Hungry, "A16-memory"),
    (Negligent, "A16-transcript"),
    (Uncharged, "A22-uncharged"),
    (Amnesiac, "A14-late-vector"),
    (Quitter, "A18-dropouts"),
    (Quitter, "A14-late-vector"),
    (Restless, "A7-stages"),
]


@pytest.mark.parametrize(
    ("adapter", "attack"), BROKEN, ids=[f"{kind.__name__}-{attack}" for kind, attack in BROKEN]
)
def test_a_broken_adapter_is_caught_by_the_attack_named_for_it(
    adapter: type[AggregationAdapter], attack: str
) -> None:
    outcome = run_attack(adapter(), ROW[attack], shrink_tries=0)
    assert outcome.status is Status.FAILED, outcome.reason
    assert outcome.detail
    assert outcome.script


# the scripts of failures


@pytest.fixture
def broken_module(tmp_path: Path) -> Path:
    path = tmp_path / "broken_adapter.py"
    path.write_text(
        "from privfedrl.testing.adapter import Aggregate\n"
        "from privfedrl.testing.pairwise_guarded import GuardedPairwiseAdapter\n"
        "class Late(GuardedPairwiseAdapter):\n"
        "    def result(self, server):\n"
        "        right = super().result(server)\n"
        "        off = len(right.survivors) < 6\n"
        "        return Aggregate(total=right.total + off, survivors=right.survivors)\n"
        "class Shown(GuardedPairwiseAdapter):\n"
        "    def residues(self, spec, packet):\n"
        "        masked = super().residues(spec, packet)\n"
        "        return None if masked is None else masked & 3\n"
    )
    return path


def _python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(cwd), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("name", "attack", "says"),
    [("Late", "A18-dropouts", "not the sum of their inputs"), ("Shown", "A8-clients", "related")],
)
def test_the_script_of_a_failure_shows_it_again_and_passes_on_a_sound_adapter(
    broken_module: Path, monkeypatch: pytest.MonkeyPatch, name: str, attack: str, says: str
) -> None:
    monkeypatch.syspath_prepend(str(broken_module.parent))
    module = __import__(broken_module.stem)
    outcome = run_attack(getattr(module, name)(), ROW[attack])
    assert outcome.status is Status.FAILED
    script = broken_module.with_name("finding.py")
    script.write_text(outcome.script)
    again = _python(str(script), cwd=script.parent)
    assert again.returncode == 1
    assert says in again.stderr
    sound = _python(str(script), SOUND, cwd=script.parent)
    assert sound.returncode == 0, sound.stderr


def test_a_failing_schedule_is_made_shorter(
    broken_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(broken_module.parent))
    adapter = __import__(broken_module.stem).Late()
    whole = run_attack(adapter, ROW["A18-dropouts"], shrink_tries=0).script
    short = run_attack(adapter, ROW["A18-dropouts"], shrink_tries=150).script
    assert short.count("'deliver'") < whole.count("'deliver'")
    assert compile(short, "finding.py", "exec")
