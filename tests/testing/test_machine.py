"""The machine passes what is right, catches what is wrong, and its script says the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError
from privfedrl.testing.adapter import Aggregate, AggregationAdapter, Claim, Packet, RoundSpec
from privfedrl.testing.machine import PROFILES, aggregation_machine
from privfedrl.testing.pairwise import PairwiseAdapter


class TestReference(aggregation_machine(PairwiseAdapter(), "honest-but-curious")):
    """Collected by pytest, as an embedding would write it."""


def run(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == 1
    return result


def failure(adapter: AggregationAdapter, profile: Any = "transport-only", **given: Any) -> str:
    result = run(aggregation_machine(adapter, profile, shrinking=False, **given))
    assert len(result.failures) == 1, result.errors
    return result.failures[0][1]


@pytest.mark.parametrize("profile", sorted(set(PROFILES) - {"honest-but-curious"}))
def test_the_reference_withstands(profile: Any) -> None:
    result = run(aggregation_machine(PairwiseAdapter(), profile))
    assert result.wasSuccessful(), result.failures


@pytest.mark.slow
@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_reference_withstands_a_thorough_search(profile: Any) -> None:
    """Minutes under HYPOTHESIS_PROFILE=thorough, the short search otherwise."""
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    result = run(
        aggregation_machine(PairwiseAdapter(), profile, thorough=thorough, shrinking=False)
    )
    assert result.wasSuccessful(), result.failures


def test_an_unknown_profile_is_refused() -> None:
    profile: Any = "omnipotent"
    with pytest.raises(ConfigurationError, match="profile must be one of"):
        aggregation_machine(PairwiseAdapter(), profile)


class OffByOne(PairwiseAdapter):
    """The last word of the sum is one too large."""

    def result(self, server: Any) -> Aggregate:
        right = super().result(server)
        wrong = right.total.copy()
        wrong[-1:] += np.uint32(1)
        return replace(right, total=wrong)


class Gullible(PairwiseAdapter):
    """Takes bytes for the genuine ones: a changed packet is repaired before it is checked."""

    genuine: dict[tuple[str, str, str], bytes]

    def __init__(self) -> None:
        self.genuine = {}

    def _repair(self, packets: list[Packet]) -> list[Packet]:
        for packet in packets:
            self.genuine[packet.sender, packet.recipient, packet.kind] = packet.data
        return packets

    def start(self, server: Any) -> list[Packet]:
        return self._repair(super().start(server))

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        data = self.genuine[packet.sender, packet.recipient, packet.kind]
        return self._repair(super().deliver(party, replace(packet, data=data)))

    def close_phase(self, server: Any) -> list[Packet]:
        return self._repair(super().close_phase(server))


class Forgetful(PairwiseAdapter):
    """Loses one client's shares without a word."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        if packet.kind == "shares" and packet.sender.endswith("3"):
            return []
        return super().deliver(party, packet)


class Amnesiac(PairwiseAdapter):
    """A restarted client has forgotten what it released."""

    def make_client(self, spec: RoundSpec, name: str, vector: Any, store: Any) -> Any:
        return super().make_client(spec, name, vector, {})


class Untyped(PairwiseAdapter):
    """Refuses with whatever comes to mind."""

    def deliver(self, party: Any, packet: Packet) -> list[Packet]:
        try:
            return super().deliver(party, packet)
        except self.errors as error:
            raise ValueError("no") from error


class Naked(PairwiseAdapter):
    """The kit sees the vector itself where the mask should be."""

    def __init__(self) -> None:
        self.vectors: dict[str, Any] = {}

    def make_client(self, spec: RoundSpec, name: str, vector: Any, store: Any) -> Any:
        self.vectors[name] = vector.copy()
        return super().make_client(spec, name, vector, store)

    def residues(self, spec: RoundSpec, packet: Packet) -> Any:
        return None if super().residues(spec, packet) is None else self.vectors[packet.sender]


class Bookkeeper(PairwiseAdapter):
    """Books every sum twice."""

    def ledger_entries(self, server: Any) -> int:
        return 2


BROKEN = {
    OffByOne: "I1 in round 1: the sum is wrong in 1 of 4 places",
    Gullible: "took a foreign .* for a genuine one",
    Forgetful: "I1[01]* in round 1: .*served honestly",
    Untyped: "I6 in round .* raised ValueError",
    Naked: "I9 in round 1: client-000 sent its vector without a mask",
    Bookkeeper: "I7 in round 1: the opened sum has 2 ledger entries",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_protocol_is_caught(kind: type[PairwiseAdapter]) -> None:
    assert re.search(BROKEN[kind], failure(kind()))


def test_a_client_that_forgets_its_release_is_caught() -> None:
    text = failure(Amnesiac(), "malicious-server")
    assert "released two masked vectors" in text


def test_what_is_not_claimed_is_not_judged() -> None:
    class Modest(OffByOne):
        claims = PairwiseAdapter.claims - {Claim.EXACT_SUM}

    assert run(aggregation_machine(Modest(), "honest-but-curious")).wasSuccessful()


def test_a_shrunk_failure_prints_a_script_that_fails_alike(tmp_path: Path) -> None:
    """The script is run by another process, against the adapter as a module of its own.

    The machine may meet the fault in a late round, its shortened schedule meets it in an early one:
    which, depends on the search. What broke must be the same.
    """
    module = """
        import numpy as np
        from dataclasses import replace
        from privfedrl.testing import PairwiseAdapter

        class Losing(PairwiseAdapter):
            def result(self, server):
                right = super().result(server)
                if len(right.survivors) == 6:
                    return right
                return replace(right, total=right.total + np.uint32(1))
    """
    (tmp_path / "losing_adapter.py").write_text(textwrap.dedent(module), encoding="utf-8")
    found: dict[str, Any] = {}
    exec(compile(textwrap.dedent(module), "losing_adapter", "exec"), found)
    case = aggregation_machine(
        found["Losing"](), "honest-but-curious", place="losing_adapter:Losing"
    )
    (text,) = [each for _, each in run(case).failures]
    fault = r"I1 in round \d: the sum is wrong in 4 of 4 places\n"
    assert re.search(fault, text), text
    script = text[text.index("# Replays one schedule") : text.index("coalition=False))") + 17]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(fault, done.stdout), text
    assert script.count('"action"') <= 6
