"""Privacy filters: a budget that holds however the next release is chosen.

Guarantee: as long as every release passes :meth:`Filter.admits` before it happens, everything that
was released together is (epsilon, delta)-DP with the filter's own epsilon and delta, also when each
release, and whether there is one, was chosen after looking at all earlier outputs
(audits/proofs/privacy_filter.md). The filter must be fixed before the first release.

A filter gives every event one number, its loss, and admits a set whose losses sum to at most
``allowed``:

| kind | loss of an event       | allowed                                                   |
|------|------------------------|-----------------------------------------------------------|
| gdp  | 1 / sigma^2            | mu^2 of the Gaussian that is exactly (epsilon, delta)     |
| rdp  | its RDP at order alpha | epsilon - ln(1-1/alpha) + (ln delta + ln alpha)/(alpha-1) |

The first knows Gaussian releases only, the second every event.
There is one order, fixed with the filter. Choosing the best order afterwards, as a committed
schedule may, is not sound here. References: Feldman and Zrnic 2021 (arXiv 2008.11193); Koskela,
Tobaben and Honkela 2022 (arXiv 2209.15596).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt

from privfedrl.errors import ConfigurationError, UnsupportedMechanism, shown
from privfedrl.privacy.events import (
    DpEvent,
    GaussianEvent,
    NoReleaseEvent,
    UnboundedEvent,
    unit_of,
)
from privfedrl.privacy.gdp import check_delta, check_non_negative, gaussian_noise_multiplier
from privfedrl.privacy.rdp import ORDERS, event_rdp

__all__ = ["Filter", "FilterKind", "Part", "fixed_order", "sum_of_costliest"]

FilterKind = Literal["gdp", "rdp"]
Part = tuple[Mapping[DpEvent, int], int | None]
"""How often each event happened, and in how many of these releases a unit takes part at most."""
FloatArray = npt.NDArray[np.float64]

# relative slack for the rounding of sums over events and of the conversion at one order
_SUM_SLACK = 1e-12
_CONVERSION_SLACK = 1e-14
# where the Gaussian curve can be inverted; outside, the filter is tighter than it need be
_SMALLEST, _LARGEST = 1e-12, 1e12
_MAX_COUNT = 2**53
_INTEGER_ORDERS: FloatArray = ORDERS[np.mod(ORDERS, 1.0) == 0.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A budget in the one form that survives adaptive choices.

    Attributes:
        kind: see the table of the module.
        epsilon: >= 0; inf admits everything.
        delta: 0 < delta < 1.
        order: the Renyi order, > 1; None for ``gdp``.
    Raises:
        ConfigurationError: a field is out of range.
    """

    kind: FilterKind
    epsilon: float
    delta: float
    order: float | None

    def __post_init__(self) -> None:
        if self.kind not in get_args(FilterKind):
            raise ConfigurationError(f"kind must be one of {get_args(FilterKind)}: {self.kind!r}")
        check_non_negative("epsilon", self.epsilon)
        check_delta(self.delta)
        if (self.kind == "gdp") != (self.order is None):
            raise ConfigurationError(
                f"order must be given for kind 'rdp' and for no other, got {shown(self.order)}"
            )
        if self.order is not None and not (_is_number(self.order) and 1 < self.order <= ORDERS[-1]):
            raise ConfigurationError(
                f"order must lie above 1 and not above {ORDERS[-1]:g}, got {shown(self.order)}"
            )

    @classmethod
    def declare(cls, kind: FilterKind, epsilon: float, delta: float) -> Filter:
        """The filter of this kind with the order that :func:`fixed_order` gives."""
        order = fixed_order(epsilon, delta) if kind == "rdp" else None
        return cls(kind=kind, epsilon=epsilon, delta=delta, order=order)

    @property
    def allowed(self) -> float:
        """The largest sum of losses that is admitted, >= 0, rounded down."""
        return _allowed(self)

    def loss(self, event: DpEvent) -> float:
        """The loss of one release of ``event``, >= 0; inf without noise.

        Raises:
            UnsupportedMechanism: this kind has no number for the event.
        """
        unit_of(event)
        if self.order is not None:
            return _loss_at(event, self.order)
        match event:
            case NoReleaseEvent():
                return 0.0
            case UnboundedEvent():
                return math.inf
            case GaussianEvent(noise_multiplier=multiplier):
                return math.nextafter((1.0 / multiplier) * (1.0 / multiplier), math.inf)
        raise UnsupportedMechanism(
            f"a gdp filter admits Gaussian releases only, got {type(event).__name__}; declare the "
            "budget with kind 'rdp' before the first charge"
        )

    def total(self, parts: Iterable[Part]) -> float:
        """The summed losses of what one unit may have taken part in."""
        return sum((self._of(part) for part in parts), 0.0)

    def admits(self, parts: Iterable[Part]) -> bool:
        """Whether all of ``parts``, the next release included, stay within the budget."""
        # written so that a NaN refuses
        return self.total(parts) * (1.0 + _SUM_SLACK) <= self.allowed

    def _of(self, part: Part) -> float:
        counts, cap = part
        if not all(0 <= number <= _MAX_COUNT for number in counts.values()):
            raise ConfigurationError("counts must be integers in 0 .. 2^53")
        losses = np.array([[self.loss(event)] for event in counts]).reshape(-1, 1)
        return float(sum_of_costliest(losses, list(counts.values()), cap)[0])


def fixed_order(epsilon: float, delta: float) -> float:
    """The order of ``rdp.ORDERS`` whose filter admits the most Gaussian noise curves.

    Those grow linearly in alpha, so it is the integer order with the largest allowed RDP per
    alpha; the Skellam bound has nothing between integers.
    """
    check_non_negative("epsilon", epsilon)
    allowed = _allowed_rdp(min(epsilon, _LARGEST), check_delta(delta), _INTEGER_ORDERS)
    return float(_INTEGER_ORDERS[int(np.argmax(allowed / _INTEGER_ORDERS))])


def sum_of_costliest(losses: FloatArray, counts: Iterable[int], cap: int | None) -> FloatArray:
    """Column by column, the sum of the ``cap`` largest losses of a multiset.

    Args:
        losses: [m, k], the loss of event i at order j; inf allowed.
        counts: [m], how often each event happened.
        cap: how many count; None for all.
    Returns:
        float64 [k]: at least the sum over any choice of ``cap`` releases.
    """
    numbers = np.array(list(counts), dtype=np.float64)
    if cap is None or numbers.sum() <= cap:
        taken = numbers[:, None]
    else:
        ranking = np.argsort(-losses, axis=0, kind="stable")
        losses, ranked = np.take_along_axis(losses, ranking, axis=0), numbers[ranking]
        # exact as long as it is below the cap, and what is above it takes nothing
        costlier = np.cumsum(np.vstack([np.zeros_like(ranked[:1]), ranked[:-1]]), axis=0)
        taken = np.clip(cap - costlier, 0.0, ranked)
    with np.errstate(over="ignore", invalid="ignore"):
        # nothing of an infinite loss is nothing
        summed: FloatArray = np.where(taken > 0.0, taken * losses, 0.0).sum(axis=0)
    return summed


@lru_cache(maxsize=4096)
def _loss_at(event: DpEvent, order: float) -> float:
    return float(event_rdp(event, orders=(order,))[0])


@lru_cache(maxsize=1024)
def _allowed(declared: Filter) -> float:
    epsilon, delta = float(declared.epsilon), declared.delta
    if math.isinf(epsilon):
        return math.inf
    epsilon = min(epsilon, _LARGEST)
    if declared.order is not None:
        orders = np.array([declared.order])
        return max(0.0, float(_allowed_rdp(epsilon, delta, orders)[0]))
    if epsilon < _SMALLEST:
        return 0.0
    # the multiplier is rounded up, so mu^2 is rounded down
    multiplier = gaussian_noise_multiplier(epsilon=epsilon, delta=delta)
    return math.nextafter((1.0 / multiplier) * (1.0 / multiplier), 0.0)


def _allowed_rdp(epsilon: float, delta: float, orders: FloatArray) -> FloatArray:
    """The inverse of ``rdp.rdp_to_epsilon`` at each order, rounded down; may be negative."""
    gain = -np.log1p(-1.0 / orders)
    price = (math.log(delta) + np.log(orders)) / (orders - 1.0)
    rounded: FloatArray = epsilon + gain + price
    rounded -= _CONVERSION_SLACK * (epsilon + gain + np.abs(price))
    return rounded


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
