"""Noise that cancels over rounds: the banded square-root matrix mechanism on exact integers.

Guarantee: what leaves is an integer mixture of exact sums plus independent integer noise, so the
charge is that of one ordinary release with the sensitivity stated here; a unit that comes back
sooner than ``bands`` rounds after its last time is refused. Off unless a plan asks for it.
Proof: audits/proofs/correlated_noise.md.

Notation: b bands, L scale, m_k integer coefficients, q_t exact integer sum of round t, z_t fresh
integer noise, y_t what is released, x_t what everybody computes from it:

    m_k = round(L binom(2k, k) / 4^k), k < b        (m_0 = L; the root of the prefix-sum matrix)
    y_t = m_0 q_t + m_1 q_{t-1} + .. + m_{b-1} q_{t-b+1} + z_t
    x_t = (y_t - m_1 x_{t-1} - .. - m_{b-1} x_{t-b+1}) / L = q_t + sum_j w_j z_{t-j},  w = 1/m

The w_j sum to nearly zero: noise of one round is taken back by the next ones, so a policy that
adds up the x_t carries less of it, although each x_t alone carries more.

Whoever mixes keeps the last b - 1 exact sums. Between rounds those are un-noised private state:
seizing it tells b - 1 rounds exactly, which independent noise would not. Rotations must be the
same in all rounds, else the noise of different rounds does not cancel (utility only).
References: Denisov et al. 2022 (arXiv 2202.08312); Fichtenberger, Henzinger and Upadhyay 2023
(arXiv 2202.11205, the coefficients); Choquette-Choo et al. 2023 (arXiv 2306.08153, bands and
separation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, PrivacyError, shown
from privfedrl.privacy.events import DiscreteGaussianEvent
from privfedrl.privacy.units import IntegerSensitivity

__all__ = ["MAX_BANDS", "MAX_SCALE", "CorrelatedNoise", "SumHistory", "decode", "release"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MAX_BANDS = 1024  # sums kept in memory; the gain grows with the logarithm of the bands only
MAX_SCALE = 2**12  # 16 is within 4 % of the real-valued optimum over 200 rounds
_MAX_ROUNDS = 2**16


def _check_integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(
            f"{name} must be an integer in {low} .. {high}, got {shown(value)}"
        )
    return value


@lru_cache(maxsize=64)
def _coefficients(bands: int, scale: int) -> tuple[int, ...]:
    rounded = []
    top, bottom = scale, 1  # L binom(2k, k) and 4^k, exactly
    for k in range(bands):
        rounded.append((2 * top + bottom) // (2 * bottom))
        top, bottom = top * 2 * (2 * k + 1) // (k + 1), bottom * 4
    return tuple(rounded)


@lru_cache(maxsize=64)
def _decoder_weights(bands: int, scale: int, rounds: int) -> FloatArray:
    m = np.array(_coefficients(bands, scale), dtype=np.float64)
    weights = np.zeros(rounds)
    weights[0] = 1.0 / m[0]
    for t in range(1, rounds):
        reach = min(t, bands - 1)
        weights[t] = -(m[1 : reach + 1] @ weights[t - reach : t][::-1]) / m[0]
    weights.flags.writeable = False
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedNoise:
    """How rounds are mixed before noise, and what one participation of a unit can change.

    Attributes:
        bands: b, rounds that one round's sum takes part in, 2 .. MAX_BANDS (one band would be
            independent noise). Also the least distance between two participations of a unit.
        scale: L, coefficients are rounded to multiples of 1/L; 2 .. MAX_SCALE. Rounding costs
            accuracy of the cancellation, never privacy.
    Raises:
        ConfigurationError: out of range, or so small a scale that the last band rounds to zero.
    """

    bands: int
    scale: int = 16

    def __post_init__(self) -> None:
        _check_integer("bands", self.bands, 2, MAX_BANDS)
        _check_integer("scale", self.scale, 2, MAX_SCALE)
        if self.coefficients[-1] == 0:
            raise ConfigurationError(
                f"scale = {self.scale} rounds the last of bands = {self.bands} coefficients to 0: "
                "use a larger scale or fewer bands"
            )

    @property
    def coefficients(self) -> tuple[int, ...]:
        """m_0 .. m_{b-1}: positive, never increasing, m_0 = scale > m_1."""
        return _coefficients(self.bands, self.scale)

    def sensitivity(self, bound: IntegerSensitivity) -> IntegerSensitivity:
        """How far one participation moves the b releases that it is in, all taken together.

        Args:
            bound: how far the unit moves the exact sum of its round.
        Returns:
            l2_squared times sum m_k^2 and l1 times sum m_k.
        """
        if not isinstance(bound, IntegerSensitivity):
            raise ConfigurationError(
                f"bound must be an IntegerSensitivity, got {type(bound).__name__}"
            )
        return IntegerSensitivity(
            l2_squared=bound.l2_squared * sum(m * m for m in self.coefficients),
            l1=bound.l1 * sum(self.coefficients),
            unit=bound.unit,
        )

    def event(
        self, bound: IntegerSensitivity, *, variance: int, coordinates: int
    ) -> DiscreteGaussianEvent:
        """The charge for one participation, at the round in which it happens, for b releases.

        Trajectories take part once: this is their whole bill. Persons and agents compose one event
        per participation.

        Args:
            variance: parameter of the central discrete Gaussian z per coordinate.
            coordinates: length of one round's vector.
        """
        _check_integer("coordinates", coordinates, 1, 2**40)
        return DiscreteGaussianEvent(
            sensitivity=self.sensitivity(bound),
            variance=variance,
            shares=1,
            coordinates=coordinates * self.bands,
        )

    def headroom(self, largest_sum: int, largest_noise: int) -> int:
        """Largest magnitude of a coordinate of y, from those of q and z."""
        return sum(self.coefficients) * largest_sum + largest_noise

    def decoder_weights(self, rounds: int) -> FloatArray:
        """w_0 .. w_{rounds-1}, float64, read-only: x_t holds w_j of the noise of round t - j."""
        return _decoder_weights(
            self.bands, self.scale, _check_integer("rounds", rounds, 1, _MAX_ROUNDS)
        )

    def decoded_variance(self, variance: float, round_index: int) -> float:
        """Variance of the noise in each coordinate of x at ``round_index`` >= 0, in units of q."""
        if not (math.isfinite(variance) and variance >= 0):
            raise ConfigurationError(f"variance must be finite and >= 0, got {shown(variance)}")
        weights = self.decoder_weights(round_index + 1)
        return float(variance * (weights @ weights))

    def prefix_gain(self, rounds: int) -> float:
        """Root mean square noise of all prefix sums: independent noise divided by this.

        At equal privacy and equal participations, which must be at least b rounds apart or single.
        """
        drift = np.cumsum(self.decoder_weights(rounds))
        times = np.arange(rounds, 0, -1)  # noise of round s is in rounds - s prefix sums
        norm = math.sqrt(sum(m * m for m in self.coefficients[:rounds]))
        return math.sqrt(times.sum() / float(times @ drift**2)) / norm


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SumHistory:
    """The last b - 1 exact sums and who was in them, newest first. Secret: to the mixer only.

    Attributes:
        sums: int64 [p] each, without noise.
        units: of each, the units that took part (agents, persons, or batches of trajectories).
    """

    sums: tuple[IntArray, ...] = ()
    units: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        if len(self.sums) != len(self.units):
            raise ConfigurationError(
                f"sums and units must be of one length, got {len(self.sums)} and {len(self.units)}"
            )

    def __repr__(self) -> str:
        """How many rounds; the sums are private."""
        return f"SumHistory(rounds={len(self.sums)})"


def release(
    noise: CorrelatedNoise,
    history: SumHistory,
    total: IntArray,
    *,
    units: Collection[str],
    sample: Callable[[int], IntArray],
) -> tuple[IntArray, SumHistory]:
    """Mix a round's exact sum with the last ones and add fresh noise.

    Args:
        history: from the last release; empty before the first. Keep the returned one, durably and
            before the release leaves; a round released twice from one history would cost twice.
        total: int64 [p], exact sum of the round.
        units: everyone who is in ``total``; empty rounds are allowed.
        sample: length -> int64 noise, independent on every call, as ``event`` was charged for.
    Returns:
        y int64 [p], and the history for the next round. Arithmetic is modulo 2^64: a value beyond
        costs accuracy, never privacy. Sums known modulo a smaller power of two may be given as
        residues; then y must be reduced to that power before it leaves.
    Raises:
        PrivacyError: a unit took part fewer than ``bands`` rounds ago. Nothing was drawn.
        ConfigurationError: a shape or type does not fit.
    """
    _check_vector("total", total, total.shape)
    if len(history.sums) >= noise.bands:
        raise ConfigurationError(
            f"history must hold fewer than bands = {noise.bands} rounds, got {len(history.sums)}"
        )
    present = frozenset(units)
    for age, before in enumerate(history.units, start=1):
        if not before.isdisjoint(present):
            raise PrivacyError(
                f"a unit must stay away for bands = {noise.bands} rounds, "
                f"one is back after {age}: its contributions would add up in one release"
            )
    sums = (total.copy(), *history.sums)
    fresh = sample(total.shape[0])
    _check_vector("sample", fresh, total.shape)
    mixed = fresh.copy()
    for coefficient, past in zip(noise.coefficients, sums, strict=False):
        _check_vector("history", past, total.shape)
        mixed += np.int64(coefficient) * past
    kept = noise.bands - 1
    return mixed, SumHistory(sums=sums[:kept], units=(present, *history.units)[:kept])


def decode(
    noise: CorrelatedNoise, released: IntArray | FloatArray, past: Sequence[FloatArray]
) -> FloatArray:
    """x_t from y_t and the decoded rounds before it: public, post-processing.

    Args:
        released: int64 [p], y_t; or float64, a linear map of it that is the same in all rounds.
        past: float64 [p] each, x_{t-1}, x_{t-2}, ..: all since the first round, or at least the
            last b - 1.
    Returns:
        float64 [p] in units of the exact sum.
    """
    if released.dtype not in (np.int64, np.float64) or released.ndim != 1:
        raise ConfigurationError(
            f"released must be int64 or float64 of one axis, got {released.dtype} {released.shape}"
        )
    x = released.astype(np.float64)
    for coefficient, before in zip(noise.coefficients[1:], past, strict=False):
        if before.shape != x.shape:
            raise ConfigurationError(f"past must have shape {x.shape}, got {before.shape}")
        x -= coefficient * before
    return x / noise.scale


def _check_vector(name: str, array: IntArray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.int64 or array.ndim != 1 or array.shape != shape:
        raise ConfigurationError(
            f"{name} must be int64 of one axis and equal length, got {array.dtype} {array.shape}"
        )
