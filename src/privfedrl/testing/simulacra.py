"""Protocols of nobody's: a correct toy and the faults that secure aggregation had in the field.

Guarantee: each variant differs from the correct toy in the one method that its class overrides and
claims exactly what the correct toy claims. None imports the protocol that this library ships.

The faults are of a kind that was public before: folded seeds, ranges that stop short, no agreement
on survivors, masks that form no group. References: Bonawitz et al., CCS 2017 (what goes wrong
without each step); RFC 7748, section 6.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from privfedrl.testing.adapter import (
    Aggregate,
    AggregationAdapter,
    Claim,
    Packet,
    Reveal,
    RingVector,
    RoundSpec,
    Store,
)
from privfedrl.testing.mutant import Mutant
from privfedrl.testing.simulacra_parties import Client, Server
from privfedrl.testing.simulacra_rules import SERVER, Rules, ToyError, frame_of

__all__ = ["TOY_MUTANTS", "Simulacrum"]

_HEX_FIELDS: Final = ("public_keys", "sealed", "shares", "adverts", "consents")
_UNCLAIMED: Final = {
    Claim.BOUNDED_MEMORY,
    Claim.DIFFERENCING,
    Claim.TRANSCRIPT,
    Claim.VALIDITY,
}


class Simulacrum(AggregationAdapter):
    """The correct toy. ``rules`` is what the variants replace."""

    name = "correct toy"
    server = SERVER
    claims = frozenset(Claim) - _UNCLAIMED
    errors = (ToyError,)
    rules: Rules = Rules()

    def guard(self, act: Callable[[], Any]) -> Any:
        """What ``act`` gives; whatever malformed input did to it is a ToyError."""
        try:
            return act()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ToyError(f"malformed: {type(error).__name__}") from error

    def make_client(self, spec: RoundSpec, name: str, vector: RingVector, store: Store) -> Client:
        if spec.modulus_bits not in (8, 16, 32, 64):
            raise ToyError("modulus_bits must be 8, 16, 32 or 64")
        return Client(self.rules, spec, name, vector, store)

    def make_server(self, spec: RoundSpec) -> Server:
        return Server(self.rules, spec, self.client_names(spec), lax=False)

    def make_lax_server(self, spec: RoundSpec) -> Server:
        return Server(self.rules, spec, self.client_names(spec), lax=True)

    def start(self, server: Server) -> list[Packet]:
        return _packets(server.start())

    def deliver(self, party: Client | Server, packet: Packet) -> list[Packet]:
        found = self.guard(lambda: party.receive(packet.data))
        if isinstance(party, Server):
            return _packets(found)
        return [Packet(party.name, SERVER, data, _kind(data)) for data in found]

    def close_phase(self, server: Server) -> list[Packet]:
        return _packets(self.guard(server.close))

    def finished(self, party: Client | Server) -> bool:
        return party.over if isinstance(party, Server) else party.finished

    def result(self, server: Server) -> Aggregate:
        if server.sum is None:
            raise ToyError("there is no sum")
        return Aggregate(total=server.sum, survivors=tuple(server.survivors))

    def waiting_for(self, server: Server) -> tuple[str, ...]:
        return () if server.over else tuple(set(server.expected) - set(server.got))

    def quorum(self, spec: RoundSpec) -> int:
        return max(self.rules.threshold(spec, self.rules.opening(spec)), spec.min_clients)

    def residues(self, spec: RoundSpec, packet: Packet) -> RingVector | None:
        body = _body(packet.data)
        if body["type"] != "vector":
            return None
        return np.frombuffer(bytes.fromhex(body["vector"]), f"<u{spec.modulus_bits // 8}")

    def reveals(self, spec: RoundSpec, server: Server, packet: Packet) -> tuple[Reveal, ...]:
        body = _body(packet.data)
        if body["type"] != "reveal":
            return ()
        return tuple(
            Reveal(owner, packet.sender, kind)
            for owner, said in zip(body["owners"], body["kinds"], strict=True)
            for kind in (("self", "pair") if said == "both" else (said,))
        )

    def forge(self, spec: RoundSpec, packet: Packet, **changes: Any) -> Packet | None:
        body = _body(packet.data)
        if not {"gone" if name == "dropped" else name for name in changes} <= set(body):
            return None
        for name, lie in changes.items():
            name = {"dropped": "gone"}.get(name, name)
            body[name] = _lied(name, body[name], lie, spec)
        key = self.rules.key_of(packet.sender, impostor=packet.sender in spec.impostors)
        return replace(packet, data=frame_of(packet.sender, key, body))


def _packets(frames: Mapping[str, bytes]) -> list[Packet]:
    return [Packet(SERVER, name, data, _kind(data)) for name, data in frames.items()]


def _body(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data[1 + data[0] : -32])
    return found


def _kind(data: bytes) -> str:
    return str(_body(data)["type"])


def _lied(name: str, value: Any, lie: Callable[[Any], Any], spec: RoundSpec) -> Any:
    """The lie about a field, from and to the form that it has in a frame."""
    if name == "vector":
        word = f"<u{spec.modulus_bits // 8}"
        raw = np.frombuffer(bytes.fromhex(value), word)
        return np.asarray(lie(raw)).astype(word).tobytes().hex()
    if name == "commitment":
        return lie(bytes.fromhex(value)).hex()
    if name in _HEX_FIELDS:
        return [part.hex() for part in lie(tuple(map(bytes.fromhex, value)))]
    return list(lie(tuple(value)))


def _fold(key: bytes, size: int) -> int:
    """XOR of the key's words of ``size`` bytes."""
    folded = 0
    for at in range(0, len(key), size):
        folded ^= int.from_bytes(key[at : at + size], "big")
    return folded


class _Twister(Rules):
    def stream(self, key: bytes, count: int, bits: int) -> RingVector:
        generator = np.random.RandomState(_fold(key, 4))
        words = generator.randint(0, 2**32, (count * bits + 31) // 32, dtype=np.uint32)
        return words.view(f"u{bits // 8}")[:count]


class _Short(Rules):
    def stream(self, key: bytes, count: int, bits: int) -> RingVector:
        generator = np.random.default_rng(list(key))
        return generator.integers(0, 2**bits - 2, count, dtype=f"u{bits // 8}")


class _Overlap(Rules):
    def kinds(self, client: Client, body: dict[str, Any]) -> list[str]:
        return [
            "both"
            if owner in body["alive"] and owner in body["gone"]
            else ("self" if owner in body["alive"] else "pair")
            for owner in client.sharers
        ]


class _NoAgreement(Rules):
    repeats: Callable[[str], bool] = staticmethod(lambda kind: kind in ("survivors", "request"))

    def agreed(self, client: Client, consents: Sequence[str]) -> bool:
        return True


class _Obedient(Rules):
    """The server says how many have to agree, and who may be how few."""

    def fits(self, spec: RoundSpec, body: dict[str, Any]) -> bool:
        own = self.opening(spec)
        same = all(body[key] == own[key] for key in ("model", "plan"))
        return same and body["numbers"][4:6] == own["numbers"][4:6]

    def threshold(self, spec: RoundSpec, body: dict[str, Any]) -> int:
        n, c, _, honest, *_, given = body["numbers"]
        return int(given) if given else int(max((n + c) // 2 + 1, honest + c))


class _NoTag(Rules):
    def open_box(self, key: bytes, box: bytes) -> bytes:
        stream = hashlib.shake_256(key).digest(len(box) - 32)
        return bytes(a ^ b for a, b in zip(box[:-32], stream, strict=True))


class _Float(Rules):
    def mask(self, vector: RingVector, add: list[bytes], subtract: list[bytes]) -> RingVector:
        total = vector.astype(np.float64)
        for sign, keys in ((1, add), (-1, subtract)):
            for key in keys:
                total += sign * np.random.default_rng(list(key)).uniform(0, 2**40, len(vector))
        wrapped: RingVector = np.mod(np.rint(total), 2.0 ** (8 * vector.itemsize)).astype(
            vector.dtype
        )
        return wrapped


class _Reused(Rules):
    def draw(self, spec: RoundSpec, name: str, what: str) -> bytes:
        return hashlib.sha256(spec.seed + f"{name}/{what}".encode()).digest()

    def salt(self, cohort: bytes) -> bytes:
        return b""


class _Weight(Rules):
    def extras(self, client: Client) -> dict[str, Any]:
        return {"num_examples": int(client._vector[0])}


class _LostAtSetup(Rules):
    def survivors_of(self, server: Server, names: Sequence[str]) -> Mapping[str, Any]:
        return {name: server.dealt[name] for name in server.keys}


class _ShortSeed(Rules):
    def pair_key(self, secret: bytes, public: bytes, salt: bytes) -> bytes:
        full = super().pair_key(secret, public, salt)
        return _fold(full, 2).to_bytes(2, "big")


class _Saturating(Rules):
    def total(self, vectors: Sequence[RingVector]) -> RingVector:
        top = np.iinfo(vectors[0].dtype).max
        exact = np.sum([vector.astype(object) for vector in vectors], axis=0)
        stopped: RingVector = np.minimum(exact, top).astype(vectors[0].dtype)
        return stopped


class _Unsigned(Rules):
    def authentic(self, data: bytes) -> bool:
        return True


class _Untyped(Simulacrum):
    """As the fault is seen: the KeyError goes through to the caller."""

    def guard(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except KeyError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ToyError(f"malformed: {type(error).__name__}") from error


def _toy(
    id: str,  # noqa: A002 - the field's own name
    title: str,
    fault: str,
    expected: tuple[str, ...],
    rules: type[Rules],
    *,
    base: type[Simulacrum] = Simulacrum,
    thorough: bool = False,
) -> Mutant:
    made = type(
        f"mutant_{id.replace('-', '_')}",
        (base,),
        {"rules": rules(), "name": f"toy, {title}", "__module__": "privfedrl.testing.mutants"},
    )
    return Mutant(id=id, title=title, fault=fault, expected=expected, make=made, thorough=thorough)


TOY_MUTANTS: Final = (
    _toy(
        "toy-twister",
        "masks come from MT19937 with a folded 32-bit seed",
        "SecAgg+ of Flower 1.41, read and run; its issue 7522",
        ("A8-generator",),
        _Twister,
    ),
    _toy(
        "toy-short-range",
        "masks never take the two highest values of the ring",
        "SecAgg+ of Flower",
        ("A8-range",),
        _Short,
    ),
    _toy(
        "toy-overlap",
        "both shares leave for whom the server lists as alive and as gone",
        "SecAgg+ of Flower, with overlapping lists",
        ("A3-overlap",),
        _Overlap,
    ),
    _toy(
        "toy-no-agreement",
        "clients agree with any survivor set and any number of them",
        "the semi-honest version of the protocol against a malicious server; attack A4",
        ("A4-borrowed", "A4-consents", "A3-both-shares"),
        _NoAgreement,
    ),
    _toy(
        "toy-server-threshold",
        "threshold and floors are the server's",
        "SecAgg+ of Flower accepts threshold 0",
        ("A10-parameters",),
        _Obedient,
    ),
    _toy(
        "toy-no-tag",
        "the tag of encrypted shares is not checked",
        "the prototype of Flamingo",
        ("A17-delivered",),
        _NoTag,
    ),
    _toy(
        "toy-float-masks",
        "masks are floating-point numbers",
        "FATE 2: float64 is no group, so masks neither hide nor cancel",
        ("A13-view",),
        _Float,
    ),
    _toy(
        "toy-reused-masks",
        "keys are the same in every round",
        "long-term pair keys; attack A8",
        ("A8-rounds",),
        _Reused,
    ),
    _toy(
        "toy-clear-weight",
        "a number that depends on the input goes beside the masked vector",
        "num_examples in SecAgg+ of Flower, weights in FATE 2; attack A20",
        ("A20-sizes",),
        _Weight,
    ),
    _toy(
        "toy-lost-at-setup",
        "one client lost at set-up ends the round in a KeyError",
        "SecAgg+ of Flower; attack A18",
        ("A18-dropouts",),
        _LostAtSetup,
        base=_Untyped,
    ),
    _toy(
        "toy-short-seed",
        "pair seeds have 16 bits",
        "the prototype of Flamingo",
        ("A8-seeds",),
        _ShortSeed,
        thorough=True,
    ),
    _toy(
        "toy-saturating",
        "the sum stops at the top of the ring",
        "silent overflow in SecAgg+ of Flower above its capacity; attack A15",
        ("A15-wrap",),
        _Saturating,
    ),
    _toy(
        "toy-unsigned",
        "nothing is authenticated",
        "unsigned keys in SecAgg+ of Flower; attack A5",
        ("A5-impostor-client",),
        _Unsigned,
    ),
)
"""The toy with one fault each."""
