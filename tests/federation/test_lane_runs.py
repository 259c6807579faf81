"""Packing several coordinates into a word changes the bytes on the wire and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privfedrl as pf
from privfedrl.federation.run_directory import METRICS, RunDirectory
from privfedrl.federation.simulate import Runtime
from privfedrl.plan import Plan
from privfedrl.primitives.random import DeterministicEntropy

LANES = {"ring_bits": 64, "lane_bits": 21}
ROTATED = {"ring_bits": 64, "lane_bits": 21, "headroom": "rotated"}


@pytest.mark.parametrize("kind", ["pairwise", "none"])
def test_lanes_change_no_bit_of_the_policy(
    tmp_path: Path, make_plan: Callable[..., Plan], kind: str
) -> None:
    def run(name: str, encoding: dict[str, Any]) -> tuple[pf.Run, list[Any]]:
        plan = make_plan(
            federation={"rounds": 2},
            protection={"kind": kind},
            simulation={"dropouts_per_round": 2},
            encoding=encoding,
        )
        done = pf.simulate(
            plan,
            out=tmp_path / name,
            seed=3,
            runtime=Runtime(workers=1),
            entropy=DeterministicEntropy(b"a"),
        )
        return done, RunDirectory(done.path).rows(METRICS)

    plain, plain_rows = run("plain", {})
    for name, encoding in (("lanes", LANES), ("rotated", ROTATED)):
        packed, rows = run(name, encoding)
        assert np.array_equal(packed.parameters, plain.parameters)
        assert packed.summary.epsilon == plain.summary.epsilon
        for with_lanes, without in zip(rows, plain_rows, strict=True):
            assert with_lanes["survivors"] == without["survivors"]
            assert with_lanes["policy_sha256"] == without["policy_sha256"]
        if kind == "pairwise":
            saved = plain.summary.bytes_up_per_agent_round - packed.summary.bytes_up_per_agent_round
            # 3 coordinates in 8 bytes instead of 2; a shorter vector has a shorter length field
            assert 0 <= saved - (64 * 4 - 22 * 8) <= 2
