"""Client and server of the toy: what a round does under given rules.

Guarantee: as in ``simulacra_rules``; a message that is refused leaves a server as it was, and ends
the round for a client only if the server did sign it.

Notation: as in ``simulacra_rules``. Shares are values of a polynomial mod 2^521 - 1 at the
positions of the cohort's members, from 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import numpy as np

from privfedrl.testing.adapter import RingVector, RoundSpec, Store
from privfedrl.testing.simulacra_rules import (
    SERVER,
    TAG_BYTES,
    Rules,
    ToyError,
    frame_of,
    hashed,
    public_of,
    require,
)

__all__ = ["Client", "Server", "config_of", "set_of", "shared_of"]

_PRIME: Final = 2**521 - 1
_SHARE: Final = 66
_Body = dict[str, Any]
_LEGS: Final = ("open", "cohort", "delivery", "survivors", "request")


class Client:
    """One client in one round: frames in, frames out."""

    def __init__(
        self, rules: Rules, spec: RoundSpec, name: str, vector: RingVector, store: Store
    ) -> None:
        form = (np.dtype(f"uint{spec.modulus_bits}"), (spec.vector_length,))
        require((vector.dtype, vector.shape) == form, "a vector of another form")
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
        require(not self.dead, "this client has left")
        if data in self._seen:
            return []
        sender, body = self.rules.read(data)
        kind = body["type"]
        again = kind in _LEGS[: self.leg] and self.rules.repeats(kind)
        require(again or _LEGS[self.leg : self.leg + 1] == (kind,), "not awaited")
        require(sender == SERVER and body["to"] == self.name, "not for this client")
        require(kind == "open" or body["cfg"] == self.cfg, "of another round")
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
        require(self.rules.fits(self.spec, body), "not what this client has pinned")
        self.threshold = self.rules.threshold(self.spec, body)
        self.floor = max(self.threshold, self.spec.min_clients)
        self.cfg = config_of(body)
        self._task, *point, _ = body["name"]
        self._point = tuple(point)
        keys = [public_of(secret).hex() for secret in (self._mask_secret, self._box_secret)]
        return {"type": "advert", "public_keys": keys}

    def _on_cohort(self, body: _Body) -> _Body:
        frames = [bytes.fromhex(text) for text in body["adverts"]]
        require(self._advert in frames, "the own advert is missing")
        found = {}
        for frame in frames:
            sender, advert = self.rules.read(frame)
            require(advert["type"] == "advert" and advert["cfg"] == self.cfg, "another round")
            self.rules.check_keys(advert["public_keys"])
            found[sender] = [bytes.fromhex(key) for key in advert["public_keys"]]
        require(len(found) == len(frames) >= self.floor, "too few, or one twice")
        require(list(found) == sorted(found) == body["members"], "not the members")
        require(len({key for keys in found.values() for key in keys}) == 2 * len(found), "equal")
        self._keys, self._cohort = found, hashed(*frames)
        return self._deal()

    def _deal(self) -> _Body:
        """Shares for everybody; the own one is kept."""
        polynomials = []
        for what, secret in (("b", self._seed), ("s", self._mask_secret)):
            higher = [
                int.from_bytes(hashed(self._seed, what, str(k)) * 2, "big") % _PRIME
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
        self._commitment = hashed("commitment", self._cohort, self.name, self._seed).hex()
        return {"type": "shares", "commitment": self._commitment, "sealed": sealed}

    def _box_key(self, sender: str, recipient: str) -> bytes:
        peer = recipient if sender == self.name else sender
        secret = self.rules.agree(self._box_secret, self._keys[peer][1])
        return hashed("box", secret, self._cohort, sender, recipient)

    def _on_delivery(self, body: _Body) -> _Body:
        names, commitments = body["members"], body["commitments"]
        require(names == sorted(set(names) & set(self._keys)), "not within the cohort")
        require(len(names) == len(commitments) >= self.floor, "too few")
        require(dict(zip(names, commitments, strict=True)).get(self.name) == self._commitment, "")
        peers = [name for name in names if name != self.name]
        for peer, box in zip(peers, body["sealed"], strict=True):
            pair = self.rules.open_box(self._box_key(peer, self.name), bytes.fromhex(box))
            require(len(pair) == 2 * _SHARE, "not a pair of shares")
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
        require(point > last and self._point == point, "this round is over")
        self._store[self._task] = point

    def _on_survivors(self, body: _Body) -> _Body:
        names, digests = body["members"], body["digests"]
        require(names == sorted(set(names) & set(self.sharers)), "not within the sharers")
        require(len(names) == len(digests) >= self.floor, "too few")
        own = hashed(self._sent_vector).hex()
        require(dict(zip(names, digests, strict=True)).get(self.name) == own, "not what was sent")
        self.survivors, self.agreed_set = set(names), set_of(self._shared, names, digests)
        return {"type": "consent", "set": self.agreed_set}

    def _on_request(self, body: _Body) -> _Body:
        require(self.rules.agreed(self, body["consents"]), "not agreed by enough")
        kinds = self.rules.kinds(self, body)
        parts = {"self": slice(0, _SHARE), "pair": slice(_SHARE, None), "both": slice(None)}
        shares = [
            self._held[owner][parts[kind]].hex()
            for owner, kind in zip(self.sharers, kinds, strict=True)
        ]
        return {"type": "reveal", "owners": self.sharers, "kinds": kinds, "shares": shares}


def config_of(body: _Body) -> str:
    """Digest of an opening, without its recipient."""
    return hashed(json.dumps({**body, "to": ""}, sort_keys=True)).hex()


def shared_of(cfg: str, names: Iterable[str], commitments: Iterable[str]) -> str:
    """Digest of U2 with its commitments."""
    return hashed(cfg, *names, *commitments).hex()


def set_of(shared: str, names: Iterable[str], digests: Iterable[str]) -> str:
    """Digest of U3 with its vectors."""
    return hashed(shared, *names, *digests).hex()


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
        require(self.phase < 0, "started before")
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
        require(self.phase >= 0, "not started")
        if data in self._taken:
            return {}
        sender, body = self.rules.read(data)
        require(not self.over and body["type"] == self._KINDS[self.phase], "not awaited")
        require(body["cfg"] == self.cfg and sender in self.expected, "not expected")
        require(sender not in self.got, "answered before")
        getattr(self, f"_take_{body['type']}")(body)
        self.got[sender], self._frames[sender] = body, data
        self._taken.add(data)
        return {} if len(self.got) < len(self.expected) else self.close()

    def close(self) -> dict[str, bytes]:
        """Go on with those who have answered, or give up."""
        require(not self.over and self.phase >= 0, "nothing is open")
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
        require(not known & set(body["public_keys"]), "somebody else's key")

    def _take_shares(self, body: _Body) -> None:
        require(len(body["sealed"]) == len(self.keys) - 1, "shares for too few or too many")
        lengths = {len(bytes.fromhex(box)) for box in body["sealed"]}
        require(lengths == {2 * _SHARE + TAG_BYTES} and len(body["commitment"]) == 64, "a length")

    def _take_vector(self, body: _Body) -> None:
        size = self.spec.vector_length * self.spec.modulus_bits // 8
        require(body["shared"] == self.shared and len(bytes.fromhex(body["vector"])) == size, "")

    def _take_consent(self, body: _Body) -> None:
        require(body["set"] == self.agreed, "another set")

    def _take_reveal(self, body: _Body) -> None:
        require(len(body["shares"]) == len(self.dealt), "shares of too few or too many")
        sizes = {len(bytes.fromhex(share)) for share in body["shares"]}
        require(sizes <= {_SHARE, 2 * _SHARE}, "a share has another length")

    def _after_advert(
        self, names: list[str], got: dict[str, _Body], frames: dict[str, bytes]
    ) -> Callable[[str], _Body]:
        self.keys = {name: got[name]["public_keys"] for name in names}
        self.cohort = hashed(*(frames[name] for name in names))
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
        digests = [hashed(got[name]["vector"]).hex() for name in names]
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
        salt = self.rules.salt(self.cohort)
        add: list[bytes] = []
        subtract: list[bytes] = []
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
            return bool(public_of(secret).hex() == self.keys[owner][0])
        expected = hashed("commitment", self.cohort, owner, secret).hex()
        return bool(self.dealt[owner]["commitment"] == expected)
