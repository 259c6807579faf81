"""How a learner inside an agent is copied and saved: what survives a round, never its buffers.

Guarantee: a copy learns bit for bit as the original would, and shares no array with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["LearnerState"]


class LearnerState(ABC):
    """Attributes of ``survives`` are the state; ``_build`` makes all others from them."""

    survives: ClassVar[tuple[str, ...]]

    @abstractmethod
    def _build(self) -> None:
        """Make the buffers, and the networks that are views of them."""

    def __getstate__(self) -> dict[str, object]:
        """What survives a round; a copy of views would no longer be views of one vector."""
        return {name: getattr(self, name) for name in self.survives}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name in self.survives:
            setattr(self, name, state[name])
        self._build()
