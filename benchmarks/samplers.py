"""What does one integer of exact noise cost, next to OpenDP's exact vector sampler?

    python benchmarks/samplers.py [--json] [--quick] [--turns 9]

Nanoseconds a sample, one thread, at four standard deviations. Each arm draws once per turn, one
after the other, so that a slow moment of the machine hits all arms alike; medians over the turns.
Figures and verdicts are CPU time of the process (no arm waits for anything), which neighbours on
the machine disturb less; elapsed time is printed beside it. OpenDP's sampler takes and returns
lists: `opendp` counts these conversions, from and to an int64 array, as every caller with arrays
needs them; `opendp core` is the library call on a prepared object alone, without any conversion.
The numpy arms are not private at all (a fast generator, floating point) and are here for scale.
Exit status 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import opendp.prelude as dp
from opendp._convert import py_to_c
from opendp._lib import AnyObjectPtr, FfiResult, lib, unwrap
from opendp.mod import Measurement

from privfedrl.privacy import samplers
from privfedrl.privacy.exact_samplers import exact_discrete_gaussian
from privfedrl.privacy.samplers import DiscreteGaussianSampler, SkellamSampler

SIGMAS = (3, 30, 1000, 20_000)
TARGET_SIGMA = 1000  # targets hold up to this standard deviation
MIN_RATIO, MAX_NS = 20.0, 150.0
OURS = ("discrete gaussian", "skellam")
PEER, PEER_CORE = "opendp", "opendp core"
ORACLE = "exact oracle"

# samples per turn: enough for a steady figure, few enough that slow arms do not take all the time
SIZES = {**dict.fromkeys(OURS, 1 << 18), PEER: 4000, PEER_CORE: 4000, ORACLE: 200}
NUMPY_SIZE = 1 << 18


def opendp_arms(sigma: int, size: int) -> dict[str, Callable[[], object]]:
    """OpenDP's exact discrete Gaussian on vectors, with and without conversions."""
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    measurement = dp.m.make_gaussian(*space, scale=float(sigma))
    zeros = np.zeros(size, dtype=np.int64)
    prepared = py_to_c(zeros.tolist(), c_type=AnyObjectPtr, type_name="Vec<i64>")
    invoke = lib.opendp_core__measurement_invoke
    invoke.argtypes, invoke.restype = [Measurement, AnyObjectPtr], FfiResult
    return {
        PEER: lambda: np.array(measurement(zeros.tolist()), dtype=np.int64),
        PEER_CORE: lambda: unwrap(invoke(measurement, prepared), AnyObjectPtr),
    }


def arms(sigma: int) -> dict[str, Callable[[], object]]:
    generator = np.random.default_rng(0)
    half = sigma * sigma / 2
    gaussian, skellam = DiscreteGaussianSampler(sigma**2), SkellamSampler(sigma**2)
    return {
        "discrete gaussian": lambda: gaussian.sample(SIZES["discrete gaussian"]),
        "skellam": lambda: skellam.sample(SIZES["skellam"]),
        **opendp_arms(sigma, SIZES[PEER]),
        ORACLE: lambda: exact_discrete_gaussian(sigma**2, SIZES[ORACLE]),
        "numpy normal+rint": lambda: np.rint(generator.normal(0.0, sigma, NUMPY_SIZE)),
        "numpy poisson-poisson": lambda: (
            generator.poisson(half, NUMPY_SIZE) - generator.poisson(half, NUMPY_SIZE)
        ),
    }


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """CPU and elapsed time of one call."""
    start, cpu = time.perf_counter(), time.process_time()
    function()
    return time.process_time() - cpu, time.perf_counter() - start


def measure(sigma: int, turns: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median nanoseconds a sample of each arm over interleaved turns, CPU and elapsed."""
    functions = arms(sigma)
    for function in functions.values():  # first calls build tables and load code
        function()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(turns):
        for name, function in functions.items():
            times[name].append(seconds(function))
    cpu, elapsed = (
        {
            name: 1e9
            * statistics.median(pair[which] for pair in pairs)
            / SIZES.get(name, NUMPY_SIZE)
            for name, pairs in times.items()
        }
        for which in (0, 1)
    )
    return cpu, elapsed


def build_ms(sigma: int, repeats: int) -> dict[str, float]:
    """Median CPU milliseconds to build a table; a sampler builds it once and keeps it."""
    builders = {"discrete gaussian": samplers._gaussian_table, "skellam": samplers._skellam_table}
    # the function under the cache: every call builds
    return {
        name: 1e3
        * statistics.median(
            seconds(lambda build=build: build.__wrapped__(sigma**2))[0] for _ in range(repeats)
        )
        for name, build in builders.items()
    }


def verdicts(sigma: int, nanoseconds: dict[str, float]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in OURS:
        found, ratio = nanoseconds[name], nanoseconds[PEER] / nanoseconds[name]
        counts = sigma <= TARGET_SIGMA
        common = {"sigma": sigma, "arm": name}
        rows += [
            {
                **common,
                "quantity": "times faster than opendp",
                "found": round(ratio, 1),
                "target": f">= {MIN_RATIO:.0f}" if counts else None,
                "met": ratio >= MIN_RATIO if counts else None,
            },
            {
                **common,
                "quantity": "CPU ns a sample",
                "found": round(found, 1),
                "target": f"<= {MAX_NS:.0f}" if counts else None,
                "met": found <= MAX_NS if counts else None,
            },
        ]
    return rows


def report(turns: int) -> dict[str, object]:
    cases, results = [], []
    for sigma in SIGMAS:
        nanoseconds, elapsed = measure(sigma, turns)
        built = build_ms(sigma, min(turns, 3))
        core = {name: nanoseconds[PEER_CORE] / nanoseconds[name] for name in OURS}
        cases.append(
            {
                "sigma": sigma,
                "median_ns": {name: round(value, 1) for name, value in nanoseconds.items()},
                "median_elapsed_ns": {name: round(value, 1) for name, value in elapsed.items()},
                "ratio_to_opendp_core": {name: round(value, 1) for name, value in core.items()},
                "table_build_ms": {name: round(value, 2) for name, value in built.items()},
            }
        )
        results += verdicts(sigma, nanoseconds)
    return {
        "benchmark": "samplers",
        "turns": turns,
        "samples_per_turn": {**SIZES, "numpy": NUMPY_SIZE},
        "numpy": np.__version__,
        "opendp": version("opendp"),
        "cases": cases,
        "results": results,
        "all_met": all(row["met"] is not False for row in results),
    }


def table(outcome: dict) -> str:
    cases = outcome["cases"]
    lines = [f"{'':<38}" + "".join(f"{f'sigma {sigma}':>13}" for sigma in SIGMAS)]

    def add(title: str, key: str, name: str, digits: int) -> None:
        cells = "".join(f"{case[key][name]:>13,.{digits}f}" for case in cases)
        lines.append(f"{title + ': ' + name:<38}{cells}")

    for name in cases[0]["median_ns"]:
        add("CPU ns", "median_ns", name, 1)
    for name in OURS:
        add("elapsed ns", "median_elapsed_ns", name, 1)
    for name in OURS:
        add("faster than core", "ratio_to_opendp_core", name, 0)
    for name in OURS:
        add("table, CPU ms", "table_build_ms", name, 2)
    words = {True: "met", False: "MISSED", None: "for scale"}
    for row in outcome["results"]:
        lines.append(
            f"sigma {row['sigma']:<7}{row['arm']:<19}{row['quantity']:<25}"
            f"{row['found']:>9}{row['target'] or '-':>8}  {words[row['met']]}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="three turns: a smoke test")
    parser.add_argument("--turns", type=int, default=9, help="repetitions of every arm")
    options = parser.parse_args()
    if options.turns < 1:
        parser.error(f"--turns must be >= 1, got {options.turns}")
    outcome = report(3 if options.quick else options.turns)
    print(table(outcome), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(outcome))
    return 0 if outcome["all_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
