"""The rules of a toy of masked aggregation that owes nothing to this library.

Guarantee: imports nothing of ``privfedrl.secagg`` or ``privfedrl.primitives``, so a kit that only
knows our own protocol shows here. its "signatures" are MACs under keys that
everybody could compute, and its code is neither fast nor constant-time.

Course: keys -> Shamir shares of a seed b and a secret s -> y = x + G(b) + the sum of +-G(pair)
-> agreement on the survivors -> shares of b of the survivors and of s of the others.
Every step that a known fault is about is one method of :class:`Rules`.

Notation: t = threshold, U2/U3 = who dealt shares / sent a vector, G = keystream. Reference:
Bonawitz et al., CCS 2017, figure 4.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privfedrl.testing.adapter import RingVector, RoundSpec

if TYPE_CHECKING:
    from privfedrl.testing.simulacra_parties import Client, Server

__all__ = [
    "SERVER",
    "TAG_BYTES",
    "Rules",
    "ToyError",
    "frame_of",
    "hashed",
    "public_of",
    "require",
]

SERVER: Final = "server"
TAG_BYTES: Final = 32
_Body = dict[str, Any]


class ToyError(Exception):
    """All that the toy raises on purpose."""


def require(holds: bool, text: str) -> None:
    """Refuse with ``text`` unless ``holds``."""
    if not holds:
        raise ToyError(text)


def hashed(*parts: bytes | str) -> bytes:
    """SHA-256 of the parts, each after its length."""
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in encoded)).digest()


def public_of(secret: bytes) -> bytes:
    """The X25519 public key of a secret one."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def frame_of(name: str, key: bytes, body: _Body) -> bytes:
    """One length byte, the name, the body as JSON, and a MAC over all of it."""
    text = bytes([len(name)]) + name.encode() + json.dumps(body, sort_keys=True).encode()
    return text + hmac.digest(key, text, "sha256")


class Rules:
    """The rules that all parties of one toy follow. Each variant overrides what it gets wrong."""

    def key_of(self, name: str, *, impostor: bool = False) -> bytes:
        """The MAC key that is registered for ``name``, or another one."""
        return hashed("impostor" if impostor else "registered", name)

    def authentic(self, data: bytes) -> bool:
        """Whether the MAC is that of the name in front."""
        name = data[1 : 1 + data[0]].decode()
        expected = hmac.digest(self.key_of(name), data[:-TAG_BYTES], "sha256")
        return hmac.compare_digest(expected, data[-TAG_BYTES:])

    def read(self, data: bytes) -> tuple[str, _Body]:
        """Sender and body of an authentic frame."""
        require(len(data) > 2 + TAG_BYTES and len(data) > 1 + data[0] + TAG_BYTES, "too short")
        require(self.authentic(data), "not authentic")
        body = json.loads(data[1 + data[0] : -TAG_BYTES])
        require(isinstance(body, dict), "no object")
        return data[1 : 1 + data[0]].decode(), body

    def draw(self, spec: RoundSpec, name: str, what: str) -> bytes:
        """32 secret bytes of ``name`` for one purpose in one round."""
        return hashed(spec.seed, f"{spec.round}/{spec.attempt}/{name}/{what}")

    def agree(self, secret: bytes, public: bytes) -> bytes:
        """The common secret of two key pairs; ValueError for a key of low order."""
        pair = X25519PrivateKey.from_private_bytes(secret)
        return pair.exchange(X25519PublicKey.from_public_bytes(public))

    def check_keys(self, keys: Sequence[str]) -> None:
        """Two canonical keys of full order, not the same."""
        raw = [bytes.fromhex(key) for key in keys]
        require(len(set(raw)) == len(raw) == 2, "two different keys are expected")
        for key in raw:
            require(int.from_bytes(key, "little") < 2**255 - 19, "not canonical")
            self.agree(hashed("probe"), key)

    def salt(self, cohort: bytes) -> bytes:
        """What mask keys are bound to."""
        return cohort

    def stream(self, key: bytes, count: int, bits: int) -> RingVector:
        """G(key): ``count`` residues."""
        return np.frombuffer(hashlib.shake_256(key).digest(count * bits // 8), f"<u{bits // 8}")

    def pair_key(self, secret: bytes, public: bytes, salt: bytes) -> bytes:
        """The key of the mask that two clients have in common."""
        return hashed("pair", self.agree(secret, public), salt)

    def self_key(self, seed: bytes, salt: bytes) -> bytes:
        """The key of a client's own mask."""
        return hashed("self", seed, salt)

    def mask(self, vector: RingVector, add: list[bytes], subtract: list[bytes]) -> RingVector:
        """vector + the sum of G over ``add`` - that over ``subtract``."""
        bits, total = 8 * vector.itemsize, vector.copy()
        for key in add:
            total += self.stream(key, len(vector), bits)
        for key in subtract:
            total -= self.stream(key, len(vector), bits)
        return total

    def total(self, vectors: Sequence[RingVector]) -> RingVector:
        """The sum of masked vectors in the ring."""
        found: RingVector = np.sum(vectors, axis=0, dtype=vectors[0].dtype)
        return found

    def threshold(self, spec: RoundSpec, _: _Body) -> int:
        """t, whatever the server's opening says."""
        n, c = spec.num_clients, spec.max_colluding
        found = spec.threshold or max((n + c) // 2 + 1, spec.min_honest + c)
        require(n >= found > (n + c) / 2 and found - c >= spec.min_honest, "unsafe threshold")
        return found

    def opening(self, spec: RoundSpec) -> _Body:
        """What everybody has to hold alike, beside the round's name."""
        pinned = [spec.num_clients, spec.max_colluding, spec.min_clients, spec.min_honest]
        form = [spec.vector_length, spec.modulus_bits, spec.threshold]
        return {"model": spec.model.hex(), "plan": spec.plan.hex(), "numbers": pinned + form}

    def fits(self, spec: RoundSpec, body: _Body) -> bool:
        """Whether the server's opening is what a client has pinned."""
        return all(body[key] == value for key, value in self.opening(spec).items())

    def box(self, key: bytes, text: bytes) -> bytes:
        """Encrypt and authenticate a pair of shares."""
        stream = hashlib.shake_256(key).digest(len(text))
        sealed = bytes(a ^ b for a, b in zip(text, stream, strict=True))
        return sealed + hmac.digest(key, sealed, "sha256")

    def open_box(self, key: bytes, box: bytes) -> bytes:
        """The text of a box that was not changed."""
        tag = hmac.digest(key, box[:-TAG_BYTES], "sha256")
        require(hmac.compare_digest(tag, box[-TAG_BYTES:]), "a box was changed")
        stream = hashlib.shake_256(key).digest(len(box) - TAG_BYTES)
        return bytes(a ^ b for a, b in zip(box[:-TAG_BYTES], stream, strict=True))

    def agreed(self, client: Client, consents: Sequence[str]) -> bool:
        """Whether enough survivors have signed the very set that ``client`` has."""
        signers = []
        for text in consents:
            sender, body = self.read(bytes.fromhex(text))
            require(body["type"] == "consent" and body["cfg"] == client.cfg, "of another round")
            require(body["set"] == client.agreed_set, "of another set")
            signers.append(sender)
        distinct = set(signers)
        return len(distinct) == len(signers) >= client.threshold and distinct <= client.survivors

    def kinds(self, client: Client, _: _Body) -> list[str]:
        """Which share of each member of U2 leaves, in order: "self", "pair" or "both"."""
        return ["self" if owner in client.survivors else "pair" for owner in client.sharers]

    def extras(self, client: Client) -> _Body:
        """What else goes with a masked vector."""
        return {}

    def survivors_of(self, server: Server, names: Sequence[str]) -> Mapping[str, Any]:
        """The dealt shares of those who are asked for their vectors."""
        return {name: server.dealt[name] for name in names}

    repeats: Callable[[str], bool] = staticmethod(lambda kind: False)
    """Whether a client answers a further message of ``kind`` anew."""
