"""The coordinates of a row beside the gradient: returns and the count of unclipped units.

Guarantee: every coordinate is a function of its own unit, within +-weight * C, and zero for an
absent unit; the L2 bound of a row is stated by :func:`row_groups`. What is computed from the
released sums is post-processing and costs nothing.

    row = [policy | critic | mean return | spread | clip count], each part only if it is asked for

Notation: C the clip norm of the gradient part, C_r the current clip, x in [-1, 1] the position of a
clamped return, b whether a unit's gradient is within C_r. Needs numpy only: a coordinator reads
released metrics without torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError
from privfedrl.training.clip_groups import ClipGroup, total_clip
from privfedrl.training.local_update import check_clip_norm

__all__ = [
    "ClipQuantile",
    "ReturnRelease",
    "count_coordinate",
    "return_coordinate",
    "row_groups",
    "spread_coordinate",
]

Float = NDArray[np.float64]

# beyond these a coordinate drowns in rounding, or the noise drowns the gradient
_WEIGHTS = (1e-6, 1e6)
_LEARNING_RATES = (1e-6, 10.0)
_QUANTILES = (0.001, 0.999)
_MAX_UNITS = 2**53  # exact as a float64
_ANY = (-sys.float_info.max, sys.float_info.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnRelease:
    """Release the mean return, and if asked its spread, as coordinates of the protected vector.

    Attributes:
        low, high: public bounds; returns outside are clamped.
        weight: size of a coordinate relative to the clip norm of the gradient. The L2 bound of a
            row grows from C to C sqrt(1 + weight^2 (1 + spread)), and the noise with it.
        spread: release weight C (2 x^2 - 1) as well, for a standard deviation.
    """

    low: float
    high: float
    weight: float
    spread: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            _number(f"return_release.{name}", getattr(self, name), _ANY)
        # half_width: two subnormal numbers can differ and still halve to the same one
        if not (self.low < self.high and self.half_width > 0.0):
            raise ConfigurationError(
                f"return_release needs low < high, got {self.low!r} and {self.high!r}"
            )
        _number("return_release.weight", self.weight, _WEIGHTS)
        if not isinstance(self.spread, bool):
            raise ConfigurationError(f"return_release.spread must be a bool, got {self.spread!r}")

    @property
    def middle(self) -> float:
        """The return that is encoded as zero."""
        return self.low / 2.0 + self.high / 2.0

    @property
    def half_width(self) -> float:
        """Distance from the middle to either bound."""
        return self.high / 2.0 - self.low / 2.0

    @property
    def num_coordinates(self) -> int:
        """1, or 2 with the spread."""
        return 1 + self.spread

    def group(self, clip_norm: float) -> ClipGroup:
        """These coordinates with their joint bound weight C sqrt(1 + spread)."""
        bound = self.weight * clip_norm * math.sqrt(self.num_coordinates)
        return ClipGroup(name="returns", size=self.num_coordinates, clip_norm=bound)

    def total_clip(self, clip_norm: float) -> float:
        """C sqrt(1 + weight^2 (1 + spread)): the L2 bound of a gradient with these coordinates."""
        return total_clip(row_groups(1, clip_norm=clip_norm, return_release=self))

    def mean_return(self, coordinate_sum: float, *, clip_norm: float, denominator: int) -> float:
        """The mean return that a released sum of this coordinate stands for (post-processing).

        Args:
            coordinate_sum: the noised sum over ``denominator`` units.
            clip_norm: C of the gradient part.
            denominator: public number of units, >= 1; absent ones count as ``middle``.
        """
        mean = coordinate_sum / (_count(denominator) * self.weight * clip_norm)
        return self.middle + self.half_width * mean

    def return_std(
        self, mean_sum: float, spread_sum: float, *, clip_norm: float, denominator: int
    ) -> float:
        """The standard deviation of the units' returns (post-processing).

        Args:
            mean_sum, spread_sum: the noised sums of the two coordinates over ``denominator`` units.
            clip_norm, denominator: as in :meth:`mean_return`.
        Returns:
            half_width sqrt(max(0, E[x^2] - E[x]^2)); biased by the noise, and an absent unit counts
            as E[x] = 0, E[x^2] = 1/2.
        """
        scale = _count(denominator) * self.weight * clip_norm
        mean, square = mean_sum / scale, (spread_sum / scale + 1.0) / 2.0
        return self.half_width * math.sqrt(max(0.0, square - mean**2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipQuantile:
    """Let the clip follow the norm that a share ``quantile`` of the units stays below.

    Each unit adds one coordinate, weight C (2 b - 1): the count of unclipped units, centred, so
    that replacing b moves it by no more than presence does. Everything else is post-processing.

    Attributes:
        quantile: share of the units that shall not be clipped, 0.001 to 0.999.
        learning_rate: factor of the exponential step, 1e-6 to 10.
        low, high: public bounds of the current clip.
        weight: size of the coordinate relative to C.
    Reference: Andrew, Thakkar, McMahan and Ramaswamy 2021 (arXiv 1905.03871), geometric update;
        audits/proofs/adaptive_clip.md.
    """

    quantile: float
    learning_rate: float
    low: float
    high: float
    weight: float

    def __post_init__(self) -> None:
        _number("clip_quantile.quantile", self.quantile, _QUANTILES)
        _number("clip_quantile.learning_rate", self.learning_rate, _LEARNING_RATES)
        for name in ("low", "high"):
            check_clip_norm(getattr(self, name), name=f"clip_quantile.{name}")
        if self.low > self.high:
            raise ConfigurationError(
                f"clip_quantile needs low <= high, got {self.low!r} and {self.high!r}"
            )
        _number("clip_quantile.weight", self.weight, _WEIGHTS)

    def group(self, clip_norm: float) -> ClipGroup:
        """The coordinate with its bound weight C."""
        return ClipGroup(name="clip count", size=1, clip_norm=self.weight * clip_norm)

    def checked(self, current_clip: float) -> float:
        """``current_clip``, or ConfigurationError unless it is within [low, high]."""
        if not self.low <= check_clip_norm(current_clip, name="current_clip") <= self.high:
            raise ConfigurationError(
                f"current_clip must be in [{self.low}, {self.high}], got {current_clip!r}"
            )
        return float(current_clip)

    def next_clip(
        self, clip: float, coordinate_sum: float, *, clip_norm: float, denominator: int
    ) -> float:
        """The clip of the next round (post-processing of a released sum).

        Args:
            clip: C_r, the clip of this round, in [low, high].
            coordinate_sum: the noised sum of the coordinate over ``denominator`` units.
            clip_norm: C of the gradient part.
            denominator: public number of units, >= 1.
        Returns:
            C_r exp(-learning_rate (f - quantile)) within [low, high], f the noised share of
            unclipped units within [0, 1]. An absent unit counts as half a unit in f.
        Raises:
            ConfigurationError: an argument is out of range or not finite.
        """
        current = self.checked(clip)
        total = _number("coordinate_sum", coordinate_sum, _ANY)
        mean = total / (_count(denominator) * self.weight * check_clip_norm(clip_norm))
        fraction = min(1.0, max(0.0, (mean + 1.0) / 2.0))
        moved = current * math.exp(-self.learning_rate * (fraction - self.quantile))
        return min(self.high, max(self.low, moved))


def row_groups(
    num_parameters: int,
    *,
    clip_norm: float,
    critic: tuple[int, float | None] = (0, None),
    return_release: ReturnRelease | None = None,
    clip_quantile: ClipQuantile | None = None,
) -> tuple[ClipGroup, ...]:
    """The parts of a row in order; their sizes add up to its length, total_clip bounds its norm.

    Args:
        num_parameters: of the policy.
        critic: number of its parameters, 0 without one, and its clip norm.
    """
    bound = check_clip_norm(clip_norm)
    parts = [ClipGroup(name="policy", size=num_parameters, clip_norm=bound)]
    size, critic_clip = critic
    if size:
        if critic_clip is None:
            raise ConfigurationError("critic_clip_norm must be a number with a critic, got None")
        parts.append(ClipGroup(name="critic", size=size, clip_norm=critic_clip))
    metrics = (return_release, clip_quantile)
    return (*parts, *(metric.group(bound) for metric in metrics if metric is not None))


def return_coordinate(
    returns: NDArray[np.floating], release: ReturnRelease, *, clip_norm: float
) -> Float:
    """float64 [n], weight C clamp((R - middle) / half_width, -1, 1); zero if R is not finite."""
    position, _ = _positions(returns, release)
    return np.asarray(release.weight * clip_norm * position, dtype=np.float64)


def spread_coordinate(
    returns: NDArray[np.floating], release: ReturnRelease, *, clip_norm: float
) -> Float:
    """float64 [n], weight C (2 x^2 - 1), x as in :func:`return_coordinate`.

    Zero if R is not finite. Centred: 2 x^2 - 1 takes all of [-1, 1], so the same bound carries x^2
    at twice the resolution that x^2 itself, in [0, 1], would have.
    """
    position, finite = _positions(returns, release)
    centred = np.where(finite, 2.0 * position**2 - 1.0, 0.0)
    return np.asarray(release.weight * clip_norm * centred, dtype=np.float64)


def count_coordinate(
    norms: NDArray[np.floating], quantile: ClipQuantile, *, current_clip: float, clip_norm: float
) -> Float:
    """float64 [n], weight C where the norm is at most C_r, -weight C where it is above or NaN."""
    within = np.where(np.asarray(norms) <= current_clip, 1.0, -1.0)
    return np.asarray(quantile.weight * clip_norm * within, dtype=np.float64)


def _positions(
    returns: NDArray[np.floating], release: ReturnRelease
) -> tuple[Float, NDArray[np.bool_]]:
    values = np.asarray(returns, dtype=np.float64)
    finite = np.isfinite(values)
    clamped = np.clip(np.where(finite, values, release.middle), release.low, release.high)
    return np.clip((clamped - release.middle) / release.half_width, -1.0, 1.0), finite


def _number(name: str, value: object, limits: tuple[float, float]) -> float:
    low, high = limits
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise ConfigurationError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:  # False for NaN too
        raise ConfigurationError(f"{name} must be in [{low}, {high}], got {value!r}")
    return float(value)


def _count(denominator: int) -> int:
    whole = isinstance(denominator, int) and not isinstance(denominator, bool)
    if not whole or not 1 <= denominator <= _MAX_UNITS:
        raise ConfigurationError(
            f"denominator must be an integer in 1 .. {_MAX_UNITS}, got {denominator!r}"
        )
    return denominator
