"""A real trainer, rounding and charge as a function of the world: what the leak linter looks at.

Guarantee: worlds are played from copies of one pristine trainer, with the same rounding randomness
for equal rows and the same rotation; so what differs between two observations comes from the data.

    trainer -> rows -> FixedPoint.encode_units (row by row) -> integers, before any noise

Equal rows are rounded equally (the k-th of several as the k-th): then removing a unit from a sound
sum removes exactly its own integers, and nothing of the comparison is left to chance. A row that is
longer than the clip is rounded on the same grid by a wider encoder, so that it is measured and not
only refused.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from privfedrl.encoding import FixedPoint
from privfedrl.errors import ConfigurationError
from privfedrl.privacy.units import Unit
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.rollout.trajectory import TrajectoryBatch
from privfedrl.testing.isolation_values import Channel, Observation, RoundSeen
from privfedrl.testing.isolation_watch import Watched, snapshot, watched
from privfedrl.testing.isolation_worlds import RoundData, World

__all__ = ["Collect", "RoundUnderTest", "Step", "TrainerRounds", "UnitTrainer", "Update"]

Float = NDArray[np.float64]
IntArray = NDArray[np.int64]
Collect = Callable[[Float], TrajectoryBatch]
Step = Callable[[Any, Float, Collect], Any]

_RESOLUTION = 2**14  # one step is 6e-5 of the clip: even rewards scaled by a batch's deviation show
_WIDEST = 2**15  # a row this many times the clip, or longer, is cut to it: found all the same
_SEED = bytes(range(32))
# batches per round for a trainer that does not say how many local steps it makes
_COLLECTS = {Unit.TRAJECTORY: 2, Unit.PERSON: 2, Unit.AGENT: 5}
# what an update may hold of the data: it stays in the agent. Which of its own batches was the last
# one of an agent's round is inside the unit AGENT.
_ROWS = frozenset({"rows", "nonfinite_units"})
_PRIVATE_FIELDS = {
    Unit.TRAJECTORY: _ROWS,
    Unit.PERSON: _ROWS,
    Unit.AGENT: _ROWS,
}


class Update(Protocol):
    """What a training step returns: rows float [units, d], and public fields beside them."""

    @property
    def rows(self) -> Float: ...


class UnitTrainer(Protocol):
    """The public face of a trainer, as that of ``LocalTrainer``.

    It has ``local_update(parameters, batch)``, or for unit AGENT ``local_steps(parameters,
    collect)``, and states its unit as ``unit`` or ``settings.unit``. It may have

        charged_releases (int): releases of a round that are charged to one of its units; default
            ``settings.uses``, the updates that a batch may feed, or 1;
        receive(heard): called after a round with the noised mean that everybody hears;
        noise_share(length): its noise, int64 [length].
    """

    @property
    def policy(self) -> MlpPolicy: ...

    @property
    def dimension(self) -> int: ...

    @property
    def clip_norm(self) -> float: ...


class RoundUnderTest(Protocol):
    """Rounds as a function of the world: the one seam of the linter."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> Unit: ...

    def play(self, world: World) -> Observation:
        """Observe ``world`` from a pristine state; the same world gives the same observation."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainerRounds:
    """Rounds of a trainer with the real encoder.

    Attributes:
        trainer: never changed; every world is played by a copy.
        unit: of the guarantee that is tested.
        private: names of attributes of the trainer that may depend on the unit after the round
            (say why where you name them); those of the update are ``rows`` and ``nonfinite_units``.
        step: (trainer, parameters, collect) -> one update or a sequence of them; None = by unit.
    Raises:
        ConfigurationError: the trainer has no finite clip or cannot be copied.
    """

    trainer: UnitTrainer
    unit: Unit
    private: frozenset[str] = frozenset()
    step: Step | None = None
    _encoder: _Encoder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            copy.deepcopy(self.trainer)
        except (TypeError, copy.Error) as error:
            raise ConfigurationError(f"trainer must be copyable, got: {error}") from error
        object.__setattr__(self, "_encoder", _Encoder.of(self.trainer))

    @property
    def name(self) -> str:
        """The trainer's type."""
        return type(self.trainer).__name__

    @property
    def collects(self) -> int:
        """Batches to hold ready for a round: one more than the settings make of it, or a few."""
        settings = getattr(self.trainer, "settings", None)
        steps = getattr(settings, "local_steps", None)
        if steps is None:
            return _COLLECTS[self.unit]
        return max(int(steps), int(getattr(settings, "uses", 1))) + 1

    def play(self, world: World) -> Observation:
        """Both rounds, played by a copy of the trainer."""
        trainer = copy.deepcopy(self.trainer)
        return Observation(rounds=tuple(self._round(trainer, data) for data in world.rounds))

    def _round(self, trainer: UnitTrainer, data: RoundData) -> RoundSeen:
        asked: list[str] = []

        def collect(theta: Float) -> TrajectoryBatch:
            asked.append(str(snapshot(np.asarray(theta))))
            if len(asked) > len(data.batches):
                raise ConfigurationError(f"collect was called more than {len(data.batches)} times")
            return data.batches[len(asked) - 1]

        updates: Sequence[Any] = ()
        vectors: list[IntArray] = []
        with watched() as seen:
            updates = _several(
                (self.step or _step_of(self.unit))(trainer, data.parameters, collect)
            )
            vectors = [self._encoder.encode(update.rows) for update in updates]
        heard: dict[tuple[Channel, str], str] = {}
        if hasattr(trainer, "receive"):
            with watched() as after:
                _call(trainer, "receive", data.heard)
            heard = _written(after, " on receive")
        charge = self._encoder.codec.sensitivity(self.unit)
        return RoundSeen(
            vectors=tuple(vectors),
            charges=(charge,) * _charged(trainer),
            seen={
                **_written(seen, ""),
                **heard,
                **self._calls(asked),
                **self._shapes(updates, vectors),
                **self._fields(updates),
                **self._state(trainer),
            },
            noise=_call(trainer, "noise_share", self._encoder.codec.padded),
        )

    def _calls(self, asked: list[str]) -> dict[tuple[Channel, str], str]:
        """How often, and with which policy, experience was asked for.

        Within unit AGENT nobody else sees that: its environment is its own.
        """
        if self.unit is Unit.AGENT:
            return {}
        policies = {(Channel.CALLS, f"policy of collect {k}"): text for k, text in enumerate(asked)}
        return {(Channel.CALLS, "collect"): str(len(asked)), **policies}

    def _shapes(
        self, updates: Sequence[Any], vectors: list[IntArray]
    ) -> dict[tuple[Channel, str], str]:
        shapes = {
            (Channel.SHAPE, f"rows of update {k}"): f"{u.rows.dtype}{list(u.rows.shape)}"
            for k, u in enumerate(updates)
            if isinstance(getattr(u, "rows", None), np.ndarray)
        }
        sizes = {
            (Channel.SHAPE, f"bytes of message {k}"): str(
                len(self._encoder.codec.to_ring(v).tobytes())
            )
            for k, v in enumerate(vectors)
        }
        return {**shapes, **sizes}

    def _fields(self, updates: Sequence[Any]) -> dict[tuple[Channel, str], str]:
        return {
            (Channel.FIELD, f"update {k}: {path}"): text
            for k, update in enumerate(updates)
            for path, text in snapshot(update, private=_PRIVATE_FIELDS[self.unit]).items()
        }

    def _state(self, trainer: UnitTrainer) -> dict[tuple[Channel, str], str]:
        """What outlives the round; within unit AGENT only what is public by name."""
        return {
            (Channel.STATE, path): text
            for path, text in snapshot(trainer, private=self.private).items()
            if self.unit is not Unit.AGENT or not path.startswith("_")
        }


@dataclass(frozen=True, slots=True)
class _Encoder:
    """The real encoder, row by row, with randomness that belongs to the row's content."""

    codec: FixedPoint
    known: dict[tuple[bytes, int], IntArray] = field(default_factory=dict)

    @classmethod
    def of(cls, trainer: UnitTrainer) -> _Encoder:
        return cls(
            FixedPoint(
                ring_bits=64,
                dimension=trainer.dimension,
                resolution=_RESOLUTION,
                clip_norm=trainer.clip_norm,
                max_units=2**16,
                noise_variance=0,
            )
        )

    def encode(self, rows: Float) -> IntArray:
        """int64 [p]; raises EncodingError for rows that no pipeline could send."""
        array = np.asarray(rows, dtype=np.float64)
        total = self.codec.encode_units(array[:0], rotation_seed=_SEED)  # checks the width
        counts: Counter[bytes] = Counter()
        for row in array:
            key = row.tobytes()
            total = total + self._row(row, key, counts[key])
            counts[key] += 1
        return total

    def _row(self, row: Float, key: bytes, number: int) -> IntArray:
        if (key, number) not in self.known:
            self.known[key, number] = self._rounded(row, key + number.to_bytes(8, "big"))
        return self.known[key, number]

    def _rounded(self, row: Float, content: bytes) -> IntArray:
        calls = iter(range(2**32))

        def entropy(size: int) -> bytes:
            material = b"privfedrl/isolation" + next(calls).to_bytes(4, "big") + content
            return hashlib.shake_256(material).digest(size)

        codec, row = self._wide_enough(row)
        return codec.encode_units(row[None], rotation_seed=_SEED, entropy=entropy)

    def _wide_enough(self, row: Float) -> tuple[FixedPoint, Float]:
        """An encoder with the same grid and room for ``row``; NaN and infinity it will refuse."""
        largest = float(np.abs(row).max(initial=0.0))
        if not math.isfinite(largest) or not largest:
            return self.codec, row
        times = largest / self.codec.clip_norm * float(np.linalg.norm(row / largest))
        if times <= 1.0 + 1e-9:  # the leeway of the encoder itself
            return self.codec, row
        if times > _WIDEST:
            row, times = row * (_WIDEST / times * (1.0 - 1e-9)), float(_WIDEST)
        width = 2 ** math.ceil(math.log2(times))
        wide = replace(
            self.codec,
            clip_norm=self.codec.clip_norm * width,
            resolution=_RESOLUTION * width,
            max_units=1,
        )
        return wide, row


def _written(seen: Watched, when: str) -> dict[tuple[Channel, str], str]:
    records = {(Channel.LOG, f"record {k}{when}"): text for k, text in enumerate(seen.records)}
    warned = {(Channel.WARNING, f"warning {k}{when}"): text for k, text in enumerate(seen.warned)}
    return {
        **records,
        **warned,
        (Channel.OUTPUT, f"stdout{when}"): repr(seen.output[0]),
        (Channel.OUTPUT, f"stderr{when}"): repr(seen.output[1]),
        (Channel.EXCEPTION, f"raised{when}"): seen.raised,
        (Channel.STATE, f"global generators{when}"): seen.generators,
    }


def _step_of(unit: Unit) -> Step:
    if unit is Unit.AGENT:
        return lambda trainer, parameters, collect: trainer.local_steps(parameters, collect)
    return lambda trainer, parameters, collect: trainer.local_update(
        parameters, collect(parameters)
    )


def _charged(trainer: UnitTrainer) -> int:
    """Releases that a unit of this round is charged for; the later ones may not hold it."""
    uses = getattr(getattr(trainer, "settings", None), "uses", 1)
    return int(getattr(trainer, "charged_releases", uses))


def _several(updates: Any) -> Sequence[Any]:
    return tuple(updates) if isinstance(updates, list | tuple) else (updates,)


def _call(trainer: object, name: str, argument: Any) -> Any:
    method = getattr(trainer, name, None)
    return None if method is None else method(argument)
