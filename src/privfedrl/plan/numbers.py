"""One check of a number in a plan, for all of its rules."""

from __future__ import annotations

__all__ = ["number"]


def number(
    path: str, value: float, *, low: float, high: float, open_low: bool = False
) -> list[str]:
    """The problem with ``value``, if it is not in [low, high], or (low, high] if ``open_low``."""
    # false for NaN; the bounds are finite, so infinity is outside
    if (low < value if open_low else low <= value) and value <= high:
        return []
    left = "(" if open_low else "["
    return [f"{path} must lie in {left}{low:g}, {high:g}], got {value!r}"]
