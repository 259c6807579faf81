"""A toy of masked aggregation that owes nothing to this library: the kit's second opinion.

Guarantee: imports nothing of ``privfedrl.secagg`` or ``privfedrl.primitives``, so a kit that only
knows our own protocol shows here. The kit only: its "signatures" are MACs under keys that
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from privfedrl.testing.adapter import RingVector, RoundSpec, Store

__all__ = ["SERVER", "Client", "Rules", "Server", "ToyError", "frame_of"]

SERVER: Final = "server"
_PRIME: Final = 2**521 - 1
_SHARE: Final = 66
_TAG: Final = 32
_Body = dict[str, Any]


class ToyError(Exception):
    """All that the toy raises on purpose."""


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ToyError(text)


def _hash(*parts: bytes | str) -> bytes:
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "big") + p for p in encoded)).digest()


def _public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def frame_of(name: str, key: bytes, body: _Body) -> bytes:
    """One length byte, the name, the body as JSON, and a MAC over all of it."""
    text = bytes([len(name)]) + name.encode() + json.dumps(body, sort_keys=True).encode()
    return text + hmac.digest(key, text, "sha256")


class Rules:
    """The rules that all parties of one toy follow. Each variant overrides what it gets wrong."""

    def key_of(self, name: str, *, impostor: bool = False) -> bytes:
        """The MAC key that is registered for ``name``, or another one."""
        return _hash("impostor" if impostor else "registered", name)

    def authentic(self, data: bytes) -> bool:
        """Whether the MAC is that of the name in front."""
        name = data[1 : 1 + data[0]].decode()
        expected = hmac.digest(self.key_of(name), data[:-_TAG], "sha256")
        return hmac.compare_digest(expected, data[-_TAG:])

    def read(self, data: bytes) -> tuple[str, _Body]:
        """Sender and body of an authentic frame."""
        _require(len(data) > 2 + _TAG and len(data) > 1 + data[0] + _TAG, "too short")
        _require(self.authentic(data), "not authentic")
        body = json.loads(data[1 + data[0] : -_TAG])
        _require(isinstance(body, dict), "no object")
        return data[1 : 1 + data[0]].decode(), body

    def draw(self, spec: RoundSpec, name: str, what: str) -> bytes:
        """32 secret bytes of ``name`` for one purpose in one round."""
        return _hash(spec.seed, f"{spec.round}/{spec.attempt}/{name}/{what}")

    def agree(self, secret: bytes, public: bytes) -> bytes:
        """The common secret of two key pairs; ValueError for a key of low order."""
        pair = X25519PrivateKey.from_private_bytes(secret)
        return pair.exchange(X25519PublicKey.from_public_bytes(public))

    def check_keys(self, keys: Sequence[str]) -> None:
        """Two canonical keys of full order, not the same."""
        raw = [bytes.fromhex(key) for key in keys]
        _require(len(set(raw)) == len(raw) == 2, "two different keys are expected")
        for key in raw:
            _require(int.from_bytes(key, "little") < 2**255 - 19, "not canonical")
            self.agree(_hash("probe"), key)

    def salt(self, cohort: bytes) -> bytes:
        """What mask keys are bound to."""
        return cohort

    def stream(self, key: bytes, count: int, bits: int) -> RingVector:
        """G(key): ``count`` residues."""
        return np.frombuffer(hashlib.shake_256(key).digest(count * bits // 8), f"<u{bits // 8}")

    def pair_key(self, secret: bytes, public: bytes, salt: bytes) -> bytes:
        """The key of the mask that two clients have in common."""
        return _hash("pair", self.agree(secret, public), salt)

    def self_key(self, seed: bytes, salt: bytes) -> bytes:
        """The key of a client's own mask."""
        return _hash("self", seed, salt)

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
        _require(n >= found > (n + c) / 2 and found - c >= spec.min_honest, "unsafe threshold")
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
        tag = hmac.digest(key, box[:-_TAG], "sha256")
        _require(hmac.compare_digest(tag, box[-_TAG:]), "a box was changed")
        stream = hashlib.shake_256(key).digest(len(box) - _TAG)
        return bytes(a ^ b for a, b in zip(box[:-_TAG], stream, strict=True))

    def agreed(self, client: Client, consents: Sequence[str]) -> bool:
        """Whether enough survivors have signed the very set that ``client`` has."""
        signers = []
        for text in consents:
            sender, body = self.read(bytes.fromhex(text))
            _require(body["type"] == "consent" and body["cfg"] == client.cfg, "of another round")
            _require(body["set"] == client.agreed_set, "of another set")
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


_LEGS: Final = ("open", "cohort", "delivery", "survivors", "request")


class Client:
    """One client in one round: frames in, frames out."""

    def __init__(
        self, rules: Rules, spec: RoundSpec, name: str, vector: RingVector, store: Store
    ) -> None:
        form = (np.dtype(f"uint{spec.modulus_bits}"), (spec.vector_length,))
        _require((vector.dtype, vector.shape) == form, "a vector of another form")
        self.rules, self.spec, self.name, self._vector = rules, spec, name, vector
        self.cfg, self.agreed_set, self.leg, self.dead = "", "", 0, False
        self.threshold = self.floor = 0
        self.survivors: set[str] = set()
        self.sharers: list[str] = []
        self._seen: set[bytes] = set()
        self._store = store
        self._keys: dict[str, list[bytes]] = {}
        self._held: dict[str, bytes] = {}
        secrets = [rules.draw(spec, name, what) for what in ("mask", "box", "seed")]
        self._mask_secret, self._box_secret, self._seed = secrets

    @property
    def finished(self) -> bool:
        return self.dead or self.leg == len(_LEGS)

    def receive(self, data: bytes) -> list[bytes]:
        """The answer to one frame of the server; nothing to a repeated one."""
        _require(not self.dead, "this client has left")
        if data in self._seen:
            return []
        sender, body = self.rules.read(data)
        kind = body["type"]
        again = kind in _LEGS[: self.leg] and self.rules.repeats(kind)
        _require(again or _LEGS[self.leg : self.leg + 1] == (kind,), "not awaited")
        _require(sender == SERVER and body["to"] == self.name, "not for this client")
        _require(kind == "open" or body["cfg"] == self.cfg, "of another round")
        try:
            answer = getattr(self, f"_on_{kind}")(body)
        except Exception:
            self.dead = True
            raise
        self._seen.add(data)
        self.leg = max(self.leg, _LEGS.index(kind) + 1)
        impostor = self.name in self.spec.impostors
        key = self.rules.key_of(self.name, impostor=impostor)
        self._sent = frame_of(self.name, key, {"cfg": self.cfg, **answer})
        if kind == "open":
            self._advert = self._sent
        return [self._sent]

    def _on_open(self, body: _Body) -> _Body:
        _require(self.rules.fits(self.spec, body), "not what this client has pinned")
        self.threshold = self.rules.threshold(self.spec, body)
        self.floor = max(self.threshold, self.spec.min_clients)
        self.cfg = config_of(body)
        self._task, *point, _ = body["name"]
        self._point = tuple(point)
        keys = [_public(secret).hex() for secret in (self._mask_secret, self._box_secret)]
        return {"type": "advert", "public_keys": keys}

    def _on_cohort(self, body: _Body) -> _Body:
        frames = [bytes.fromhex(text) for text in body["adverts"]]
        _require(self._advert in frames, "the own advert is missing")
        found = {}
        for frame in frames:
            sender, advert = self.rules.read(frame)
            _require(advert["type"] == "advert" and advert["cfg"] == self.cfg, "another round")
            self.rules.check_keys(advert["public_keys"])
            found[sender] = [bytes.fromhex(key) for key in advert["public_keys"]]
        _require(len(found) == len(frames) >= self.floor, "too few, or one twice")
        _require(list(found) == sorted(found) == body["members"], "not the members")
        _require(len({key for keys in found.values() for key in keys}) == 2 * len(found), "equal")
        self._keys, self._cohort = found, _hash(*frames)
        return self._deal()

    def _deal(self) -> _Body:
        """Shares for everybody; the own one is kept."""
        polynomials = []
        for what, secret in (("b", self._seed), ("s", self._mask_secret)):
            higher = [
                int.from_bytes(_hash(self._seed, what, str(k)) * 2, "big") % _PRIME
                for k in range(1, self.threshold)
            ]
            polynomials.append([int.from_bytes(secret, "big"), *higher])
        sealed = []
        for x, peer in enumerate(self._keys, start=1):
            pair = b"".join(_at(poly, x).to_bytes(_SHARE, "big") for poly in polynomials)
            if peer == self.name:
                self._held[peer] = pair
            else:
                sealed.append(self.rules.box(self._box_key(self.name, peer), pair).hex())
        self._commitment = _hash("commitment", self._cohort, self.name, self._seed).hex()
        return {"type": "shares", "commitment": self._commitment, "sealed": sealed}

    def _box_key(self, sender: str, recipient: str) -> bytes:
        peer = recipient if sender == self.name else sender
        secret = self.rules.agree(self._box_secret, self._keys[peer][1])
        return _hash("box", secret, self._cohort, sender, recipient)

    def _on_delivery(self, body: _Body) -> _Body:
        names, commitments = body["members"], body["commitments"]
        _require(names == sorted(set(names) & set(self._keys)), "not within the cohort")
        _require(len(names) == len(commitments) >= self.floor, "too few")
        _require(dict(zip(names, commitments, strict=True)).get(self.name) == self._commitment, "")
        peers = [name for name in names if name != self.name]
        for peer, box in zip(peers, body["sealed"], strict=True):
            pair = self.rules.open_box(self._box_key(peer, self.name), bytes.fromhex(box))
            _require(len(pair) == 2 * _SHARE, "not a pair of shares")
            self._held[peer] = pair
        self.sharers, self._shared = names, shared_of(self.cfg, names, commitments)
        salt = self.rules.salt(self._cohort)
        keys = {
            peer: self.rules.pair_key(self._mask_secret, self._keys[peer][0], salt)
            for peer in peers
        }
        add = [key for peer, key in keys.items() if peer > self.name]
        subtract = [key for peer, key in keys.items() if peer < self.name]
        add.append(self.rules.self_key(self._seed, salt))
        masked = self.rules.mask(self._vector, add, subtract)
        self._spend()
        self._sent_vector = masked.astype(masked.dtype.newbyteorder("<")).tobytes().hex()
        extras = self.rules.extras(self)
        return {"type": "vector", "shared": self._shared, "vector": self._sent_vector} | extras

    def _spend(self) -> None:
        """Note on disk that the masked vector of this round leaves now, or refuse."""
        point, last = (self.spec.round, self.spec.attempt), self._store.get(self._task, (-1, 0))
        _require(point > last and self._point == point, "this round is over")
        self._store[self._task] = point

    def _on_survivors(self, body: _Body) -> _Body:
        names, digests = body["members"], body["digests"]
        _require(names == sorted(set(names) & set(self.sharers)), "not within the sharers")
        _require(len(names) == len(digests) >= self.floor, "too few")
        own = _hash(self._sent_vector).hex()
        _require(dict(zip(names, digests, strict=True)).get(self.name) == own, "not what was sent")
        self.survivors, self.agreed_set = set(names), set_of(self._shared, names, digests)
        return {"type": "consent", "set": self.agreed_set}

    def _on_request(self, body: _Body) -> _Body:
        _require(self.rules.agreed(self, body["consents"]), "not agreed by enough")
        kinds = self.rules.kinds(self, body)
        parts = {"self": slice(0, _SHARE), "pair": slice(_SHARE, None), "both": slice(None)}
        shares = [
            self._held[owner][parts[kind]].hex()
            for owner, kind in zip(self.sharers, kinds, strict=True)
        ]
        return {"type": "reveal", "owners": self.sharers, "kinds": kinds, "shares": shares}


def config_of(body: _Body) -> str:
    """Digest of an opening, without its recipient."""
    return _hash(json.dumps({**body, "to": ""}, sort_keys=True)).hex()


def shared_of(cfg: str, names: Iterable[str], commitments: Iterable[str]) -> str:
    """Digest of U2 with its commitments."""
    return _hash(cfg, *names, *commitments).hex()


def set_of(shared: str, names: Iterable[str], digests: Iterable[str]) -> str:
    """Digest of U3 with its vectors."""
    return _hash(shared, *names, *digests).hex()


def _at(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % _PRIME
    return value


def _at_zero(points: Mapping[int, int]) -> bytes:
    """The 32-byte secret of Shamir shares by point; all ones where it is no such secret."""
    total = 0
    for x, y in points.items():
        for other in points:
            if other != x:
                y = y * other * pow(other - x, -1, _PRIME) % _PRIME
        total = (total + y) % _PRIME
    return total.to_bytes(_SHARE, "big")[-32:] if total < 2**256 else b"\xff" * 32


class Server:
    """The server of one round; ``lax``: without thresholds and floors of its own."""

    _KINDS: Final = ("advert", "shares", "vector", "consent", "reveal")

    def __init__(self, rules: Rules, spec: RoundSpec, names: Sequence[str], *, lax: bool) -> None:
        self.rules, self.spec, self.phase, self.over = rules, spec, -1, False
        self.threshold = rules.threshold(spec, rules.opening(spec))
        self.floor = 1 if lax else max(self.threshold, spec.min_clients)
        self.expected = list(names)
        self.got: dict[str, _Body] = {}
        self.dealt: dict[str, _Body] = {}
        self.survivors: list[str] = []
        self.sum: RingVector | None = None
        self._taken: set[bytes] = set()
        self._frames: dict[str, bytes] = {}

    def start(self) -> dict[str, bytes]:
        """The opening for everybody."""
        _require(self.phase < 0, "started before")
        spec, self.phase = self.spec, 0
        self.opening: _Body = {
            "type": "open",
            "name": [spec.task.hex(), spec.round, spec.attempt, spec.previous.hex()],
            **self.rules.opening(spec),
        }
        self.cfg = config_of(self.opening)
        return self._to_all(lambda _: self.opening)

    def receive(self, data: bytes) -> dict[str, bytes]:
        """Take one frame; the next messages if everybody has answered."""
        _require(self.phase >= 0, "not started")
        if data in self._taken:
            return {}
        sender, body = self.rules.read(data)
        _require(not self.over and body["type"] == self._KINDS[self.phase], "not awaited")
        _require(body["cfg"] == self.cfg and sender in self.expected, "not expected")
        _require(sender not in self.got, "answered before")
        getattr(self, f"_take_{body['type']}")(body)
        self.got[sender], self._frames[sender] = body, data
        self._taken.add(data)
        return {} if len(self.got) < len(self.expected) else self.close()

    def close(self) -> dict[str, bytes]:
        """Go on with those who have answered, or give up."""
        _require(not self.over and self.phase >= 0, "nothing is open")
        names, got, frames = sorted(self.got), self.got, self._frames
        need = self.floor if self.phase < 3 else min(self.floor, self.threshold)
        if len(names) < need:
            self.over = True
            return {}
        try:
            message = getattr(self, f"_after_{self._KINDS[self.phase]}")(names, got, frames)
        except ToyError:
            self.over = True
            return {}
        self.phase, self.expected, self.got, self._frames = self.phase + 1, names, {}, {}
        self.over = self.phase == len(self._KINDS)
        return {} if self.over else self._to_all(message)

    def _to_all(self, message: Callable[[str], _Body]) -> dict[str, bytes]:
        key = self.rules.key_of(SERVER, impostor=SERVER in self.spec.impostors)
        head = {} if self.phase == 0 else {"cfg": self.cfg}
        return {
            name: frame_of(SERVER, key, {**message(name), **head, "to": name})
            for name in self.expected
        }

    def _take_advert(self, body: _Body) -> None:
        self.rules.check_keys(body["public_keys"])
        known = {key for other in self.got.values() for key in other["public_keys"]}
        _require(not known & set(body["public_keys"]), "somebody else's key")

    def _take_shares(self, body: _Body) -> None:
        _require(len(body["sealed"]) == len(self.keys) - 1, "shares for too few or too many")
        lengths = {len(bytes.fromhex(box)) for box in body["sealed"]}
        _require(lengths == {2 * _SHARE + _TAG} and len(body["commitment"]) == 64, "a length")

    def _take_vector(self, body: _Body) -> None:
        size = self.spec.vector_length * self.spec.modulus_bits // 8
        _require(body["shared"] == self.shared and len(bytes.fromhex(body["vector"])) == size, "")

    def _take_consent(self, body: _Body) -> None:
        _require(body["set"] == self.agreed, "another set")

    def _take_reveal(self, body: _Body) -> None:
        _require(len(body["shares"]) == len(self.dealt), "shares of too few or too many")
        sizes = {len(bytes.fromhex(share)) for share in body["shares"]}
        _require(sizes <= {_SHARE, 2 * _SHARE}, "a share has another length")

    def _after_advert(
        self, names: list[str], got: dict[str, _Body], frames: dict[str, bytes]
    ) -> Callable[[str], _Body]:
        self.keys = {name: got[name]["public_keys"] for name in names}
        self.cohort = _hash(*(frames[name] for name in names))
        shown = [frames[name].hex() for name in names]
        return lambda _: {"type": "cohort", "members": names, "adverts": shown}

    def _after_shares(
        self, names: list[str], got: dict[str, _Body], _: object
    ) -> Callable[[str], _Body]:
        self.dealt = got
        commitments = [got[name]["commitment"] for name in names]
        self.shared = shared_of(self.cfg, names, commitments)

        def boxes_for(recipient: str) -> list[str]:
            found = []
            for name in names:
                others = [other for other in self.keys if other != name]
                if name != recipient:
                    found.append(got[name]["sealed"][others.index(recipient)])
            return found

        return lambda name: {
            "type": "delivery",
            "members": names,
            "commitments": commitments,
            "sealed": boxes_for(name),
        }

    def _after_vector(
        self, names: list[str], got: dict[str, _Body], _: object
    ) -> Callable[[str], _Body]:
        digests = [_hash(got[name]["vector"]).hex() for name in names]
        self.agreed, self.survivors = set_of(self.shared, names, digests), names
        word = f"<u{self.spec.modulus_bits // 8}"
        raw = [np.frombuffer(bytes.fromhex(got[name]["vector"]), word) for name in names]
        self._total = self.rules.total(raw)
        return lambda _: {"type": "survivors", "members": names, "digests": digests}

    def _after_consent(
        self, names: list[str], _: object, frames: dict[str, bytes]
    ) -> Callable[[str], _Body]:
        consents = [frames[name].hex() for name in names]
        alive = {"alive": self.survivors, "gone": sorted(set(self.dealt) - set(self.survivors))}
        return lambda _: {"type": "request", "consents": consents, **alive}

    def _after_reveal(
        self, names: list[str], got: dict[str, _Body], _: object
    ) -> Callable[[str], _Body]:
        self.survivors_dealt = self.rules.survivors_of(self, self.survivors)
        salt, subtract, add = self.rules.salt(self.cohort), [], []
        for place, owner in enumerate(sorted(self.dealt)):
            wanted = "self" if owner in self.survivors else "pair"
            secret = self._recover(owner, wanted, place, names, got)
            if wanted == "self":
                subtract.append(self.rules.self_key(secret, salt))
                continue
            for peer in self.survivors:
                key = self.rules.pair_key(secret, bytes.fromhex(self.keys[peer][0]), salt)
                (add if peer > owner else subtract).append(key)
        # what survivors masked against the lost one has the opposite sign of its own
        self.sum = self.rules.mask(self._total, add, subtract)
        return lambda _: {}

    def _recover(
        self, owner: str, kind: str, place: int, names: list[str], got: dict[str, _Body]
    ) -> bytes:
        points = {}
        for name in names:
            share = bytes.fromhex(got[name]["shares"][place])
            part = share[:_SHARE] if kind == "self" else share[-_SHARE:]
            points[list(self.keys).index(name) + 1] = int.from_bytes(part, "big") % _PRIME
        for chosen in combinations(points.items(), self.threshold):
            secret = _at_zero(dict(chosen))
            if self.is_right(owner, kind, secret):
                return secret
        raise ToyError("the shares do not fit together")

    def is_right(self, owner: str, kind: str, secret: bytes) -> bool:
        """Whether ``secret`` is what its owner committed to or advertised."""
        if kind == "pair":
            return _public(secret).hex() == self.keys[owner][0]
        expected = _hash("commitment", self.cohort, owner, secret).hex()
        return bool(self.dealt[owner]["commitment"] == expected)
