"""The reference adapter with everything that an attack may ask for, and every claim.

Guarantee: a lie changes the named field and nothing else, and is signed by the packet's own sender;
parties are those of ``PairwiseAdapter``, with the guard against differencing switched on. Field
names are those of ``AggregationAdapter.forge``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec
import numpy as np

from privfedrl.parties import Outgoing
from privfedrl.parties.members import Members
from privfedrl.primitives.shamir import SHARE_BYTES
from privfedrl.secagg import SecAggClient, SecAggParameters, SecAggServer
from privfedrl.secagg.messages import Unmask, encode_frame, peek
from privfedrl.secagg.sizes import MessageType
from privfedrl.testing.adapter import Claim, Packet, RingVector, RoundSpec, Store
from privfedrl.testing.pairwise import PairwiseAdapter, _identity

__all__ = ["ChargingClient", "GuardedPairwiseAdapter", "LaxServer", "Lie", "lie_about"]

Lie = Callable[[Any], Any]
"""The present value of a field -> the false one."""


class LaxServer(SecAggServer):
    """A coordinator with the true key that goes on however few have answered."""

    def _answered(self, kind: MessageType, floor: int) -> tuple[str, ...]:
        names = tuple(sorted(self._answers[kind]))
        self._await(names)
        return names


class ChargingClient(SecAggClient):
    """A client that asks ``charge`` before its masked vector leaves."""

    charge: Callable[[], None]

    def start(self, config: bytes, vector: RingVector, **given: Any) -> list[Outgoing]:
        """As the plain client, with its own ``before_release``."""
        return super().start(config, vector, **given | {"before_release": self.charge})


class GuardedPairwiseAdapter(PairwiseAdapter):
    """Our own protocol with the guard against differencing; it claims everything."""

    name = "privfedrl pairwise masking, guarded"
    claims = frozenset(Claim)

    def parameters(self, spec: RoundSpec) -> SecAggParameters:
        """What everybody has pinned: two sums on one model may not isolate a few."""
        plain = super().parameters(spec)
        return SecAggParameters(
            num_clients=plain.num_clients,
            max_colluding=plain.max_colluding,
            vector_length=plain.vector_length,
            ring_bits=plain.ring_bits,
            threshold=plain.threshold if plain.graph is None else None,
            min_clients=plain.min_clients,
            min_honest=plain.min_honest,
            graph=plain.graph,
            differencing="model",
        )

    def make_lax_server(self, spec: RoundSpec) -> Any:
        server = self.make_server(spec)
        server.party.__class__ = LaxServer  # the same layout: it only overrides a method
        return server

    def make_charging_client(
        self,
        spec: RoundSpec,
        name: str,
        vector: RingVector,
        store: Store,
        charge: Callable[[], None],
    ) -> Any:
        client = self.make_client(spec, name, vector, store)
        party: Any = client.party
        party.__class__ = ChargingClient  # the same layout, and one attribute in its dictionary
        party.charge = charge
        return client

    def forge(self, spec: RoundSpec, packet: Packet, **changes: Any) -> Any:
        agents = self.client_names(spec)
        kind = MessageType(int.from_bytes(packet.data[6:8], "big"))
        message = lie_about(
            peek(packet.data, kind, limit=len(packet.data)),
            changes,
            agents=agents,
            modulus_bits=spec.modulus_bits,
        )
        if message is None:
            return None
        identity = _identity(packet.sender, impostor=packet.sender in spec.impostors)
        return replace(packet, data=encode_frame(message, identity))


@dataclass(frozen=True, slots=True)
class _Words:
    """How a named field is spelled: which fields of the message, read and written how."""

    fields: tuple[str, ...]
    read: Callable[[Sequence[Any], Sequence[str]], Any] = field(
        default=lambda values, agents: values[0]
    )
    write: Callable[[Any, Sequence[str]], Sequence[Any]] = field(
        default=lambda value, agents: (value,)
    )


def _names(values: Sequence[Any], agents: Sequence[str]) -> tuple[str, ...]:
    mask = int.from_bytes(values[0], "little")
    return tuple(name for index, name in enumerate(agents) if mask >> index & 1)


def _set(names: Sequence[str], agents: Sequence[str]) -> tuple[bytes]:
    return (Members.of([agents.index(name) for name in names], len(agents)).to_bytes(),)


def _shares(values: Sequence[Any], _: Sequence[str]) -> tuple[bytes, ...]:
    data = values[0]
    return tuple(data[at : at + SHARE_BYTES] for at in range(0, len(data), SHARE_BYTES))


_VOCABULARY: Final[dict[str, _Words]] = {
    "public_keys": _Words(
        ("share_key", "mask_key"), lambda values, _: tuple(values), lambda value, _: value
    ),
    "commitment": _Words(("commitment",)),
    "sealed": _Words(("sealed",)),
    "shares": _Words(("shares",), _shares, lambda value, _: (b"".join(value),)),
    "members": _Words(("members",), _names, _set),
    "adverts": _Words(("adverts",)),
    "consents": _Words(("consents",)),
}


def lie_about(
    message: Any, lies: Mapping[str, Lie], *, agents: Sequence[str], modulus_bits: int
) -> Any:
    """``message`` with ``lies`` told in it; None if it has no such field.

    Args:
        message: a struct of ``privfedrl.secagg.messages``. agents: all registered ones, sorted.
    Raises:
        ValueError: a lie that the format cannot carry.
    """
    changes: dict[str, Any] = {}
    for name, lie in lies.items():
        words = _vector_words(modulus_bits) if name == "vector" else _VOCABULARY.get(name)
        present = words is not None and all(hasattr(message, each) for each in words.fields)
        if words is None or not present or (name == "shares" and not isinstance(message, Unmask)):
            return None
        false = lie(words.read([getattr(message, each) for each in words.fields], agents))
        changes |= dict(zip(words.fields, words.write(false, agents), strict=True))
    return msgspec.structs.replace(message, **changes)


def _vector_words(modulus_bits: int) -> _Words:
    dtype = np.dtype(f"<u{modulus_bits // 8}")
    return _Words(
        ("vector",),
        lambda values, _: np.frombuffer(values[0], dtype),
        lambda value, _: (np.asarray(value, dtype).tobytes(),),
    )
