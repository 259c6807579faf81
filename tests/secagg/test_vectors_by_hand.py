"""The files of tests/vectors, recomputed without the library's code.

Frames are read with a msgpack reader of this file, digests are built with hashlib, trees by the
recursive definition of RFC 9162, shares with Python integers and masks with the cryptography
library, as another implementation of docs/protocol.md would do it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privfedrl.secagg import SecAggParameters
from privfedrl.secagg.sizes import MessageType

FOLDER = Path(__file__).parents[1] / "vectors"
ROUNDS = ("secagg_round_complete.json", "secagg_round_sparse.json")


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_bytes())


def _frame(event: dict[str, Any]) -> bytes:
    return bytes.fromhex(event["frame"])


def unpack(data: bytes) -> Any:
    """A msgpack value of the kinds that the protocol uses; refuses a remainder."""
    value, rest = _unpack(data)
    assert rest == b""
    return value


def _unpack(data: bytes) -> tuple[Any, bytes]:
    head, rest = data[0], data[1:]
    if head < 0x80:
        return head, rest
    if 0x90 <= head <= 0x9F or head in (0xDC, 0xDD):
        width = {0xDC: 2, 0xDD: 4}.get(head, 0)
        count = int.from_bytes(rest[:width], "big") if width else head & 15
        values, rest = [], rest[width:]
        for _ in range(count):
            value, rest = _unpack(rest)
            values.append(value)
        return values, rest
    if 0xA0 <= head <= 0xBF:
        return rest[: head & 31].decode(), rest[head & 31 :]
    if 0xCC <= head <= 0xCF:
        width = 1 << head - 0xCC
        return int.from_bytes(rest[:width], "big"), rest[width:]
    if head in (0xC4, 0xC5, 0xC6, 0xD9):
        width = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1}[head]
        end = width + int.from_bytes(rest[:width], "big")
        value = rest[width:end]
        return (value.decode() if head == 0xD9 else value), rest[end:]
    raise AssertionError(hex(head))


def _fields(frame: bytes) -> list[Any]:
    magic, version, kind, length = struct.unpack(">4sHHI", frame[:12])
    assert (magic, version) == (b"PFRL", 0x0101)
    assert len(frame) == 12 + length + 64
    values = unpack(frame[12:-64])
    assert values[0] == kind
    return values


def L(name: str) -> bytes:
    text = b"pfrl-sa/1/" + name.encode()
    return struct.pack(">H", len(text)) + text


def joined(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


def H(name: str, *parts: bytes) -> bytes:
    return hashlib.sha256(L(name) + joined(*parts)).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, as it is written there."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def proof_of(leaves: Sequence[bytes], known: set[int], start: int = 0) -> list[bytes]:
    """The digests that somebody with the ``known`` leaves lacks, in pre-order."""
    if not any(start <= index < start + len(leaves) for index in known):
        return [root(leaves)]
    if len(leaves) == 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left = proof_of(leaves[:split], known, start)
    return left + proof_of(leaves[split:], known, start + split)


def members(encoded: bytes, agents: Sequence[str]) -> list[str]:
    return [name for i, name in enumerate(agents) if encoded[i // 8] >> i % 8 & 1]


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret)


def agree(secret: bytes, public: bytes) -> bytes:
    peer = X25519PublicKey.from_public_bytes(public)
    return X25519PrivateKey.from_private_bytes(secret).exchange(peer)


def keystream(key: bytes, count: int, bits: int) -> list[int]:
    data = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(count * bits // 8))
    width = bits // 8
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


def words(data: bytes, bits: int) -> list[int]:
    width = bits // 8
    return [int.from_bytes(data[i : i + width], "little") for i in range(0, len(data), width)]


class Reader:
    """A round file, read as another implementation would."""

    def __init__(self, file: str) -> None:
        self.document = load(file)
        world = self.document["world"]
        entries = sorted(world["registry"]["entries"], key=lambda entry: entry["name"])
        self.entries = entries
        self.keys = {entry["name"]: bytes.fromhex(entry["verify_key"]) for entry in entries}
        self.agents = [entry["name"] for entry in entries if entry["role"] == "agent"]
        numbers = struct.unpack(">12Q", bytes.fromhex(world["parameters"]))
        self.length, self.bits, self.server = numbers[2], numbers[3], numbers[10]
        self.frames: dict[tuple[str, str], bytes] = {}
        for event in self.document["coordinator"]["events"]:
            if "frame" in event:
                self.frames[event["peer"], event["type"]] = _frame(event)
        self.shown = {
            (entry["peer"], entry["type"]): _frame(entry)
            for entry in self.document["coordinator"]["sent"]
        }
        self.config = next(frame for (_, kind), frame in self.shown.items() if kind == "config")
        self.cfg = H("config", self.config[12:-64])
        self.drawn = {
            name: [bytes.fromhex(text) for text in draws] for name, draws in world["drawn"].items()
        }
        self.u1 = self.senders("advertise")
        self.adverts = [self.frames[name, "advertise"] for name in self.u1]
        self.mask_keys = {name: _fields(self.frames[name, "advertise"])[4] for name in self.u1}
        self.share_keys = {name: _fields(self.frames[name, "advertise"])[3] for name in self.u1}
        self.roster = H("roster", self.cfg, self.bitmap(self.u1), root(self.adverts))
        self.u2, self.u3 = self.senders("shares"), self.senders("masked")
        self.u4 = self.senders("consistency")
        self.vectors = {name: _fields(self.frames[name, "masked"])[6] for name in self.u3}
        self.commitments = {name: _fields(self.frames[name, "shares"])[4] for name in self.u2}
        self.shared = H(
            "shared",
            self.roster,
            self.bitmap(self.u2),
            root([self.commitments[name] for name in self.u2]),
        )
        digests = [H("vector", self.roster, n.encode(), self.vectors[n]) for n in self.u3]
        self.agreed = H("survivors", self.roster, self.shared, self.bitmap(self.u3), root(digests))
        self.digests = digests

    def senders(self, kind: str) -> list[str]:
        return sorted(name for name, other in self.frames if other == kind)

    def bitmap(self, names: Sequence[str]) -> bytes:
        value = sum(1 << self.agents.index(name) for name in names)
        return value.to_bytes((len(self.agents) + 7) // 8, "little")

    def neighbours(self, name: str) -> list[str]:
        if not self.server:
            return [other for other in self.u1 if other != name]
        n, degree = len(self.u1), self.document["degree"]
        stream = hashlib.shake_256(L("graph") + self.roster).digest(16 * n)
        keys = [
            (int.from_bytes(stream[16 * i : 16 * i + 8], "little"),
             int.from_bytes(stream[16 * i + 8 : 16 * i + 16], "little"))
            for i in range(n)
        ]  # fmt: skip
        rank_at = sorted(range(n), key=lambda rank: keys[rank])
        place = rank_at.index(self.u1.index(name))
        steps = [s for o in _offsets(n, degree) for s in (o, -o)]
        return sorted(self.u1[rank_at[(place + step) % n]] for step in steps)

    def holders(self, name: str) -> list[str]:
        near = self.neighbours(name)
        return near if self.server else sorted([*near, name])

    def mask(self, name: str) -> list[int]:
        """x_i to y_i, from the secrets that were drawn."""
        secret, seed = self.drawn[name][1], self.drawn[name][2]
        total = [0] * self.length
        info = L("self") + joined(name.encode())
        streams = [(1, keystream(hkdf(seed, self.roster, info), self.length, self.bits))]
        for peer in self.neighbours(name):
            if peer in self.u2:
                streams.append((1 if peer > name else -1, self.pair_stream(secret, name, peer)))
        for sign, stream in streams:
            total = [(a + sign * b) % 2**self.bits for a, b in zip(total, stream, strict=True)]
        return total

    def pair_stream(self, secret: bytes, name: str, peer: str) -> list[int]:
        low, high = sorted((name.encode(), peer.encode()))
        key = hkdf(agree(secret, self.mask_keys[peer]), self.roster, L("pair") + joined(low, high))
        return keystream(key, self.length, self.bits)


@cache
def _offsets(n: int, degree: int) -> tuple[int, ...]:
    """The public offsets of the malicious server's graph, by the search that is written down."""
    half, unit = (n - 1) // 2, 1 << 30
    name = L("offsets") + struct.pack(">QQ", n, degree)
    stream = hashlib.shake_256(name).digest(8 * (half + 2 * 4096))
    drawn = struct.unpack(f"<{half + 2 * 4096}Q", stream)
    first = sorted(range(half), key=lambda index: drawn[index])[: degree // 2]
    offsets = [index + 1 for index in first]
    cosines = [round(2 * unit * math.cos(min(j, n - j) * (2 * math.pi / n))) for j in range(n)]
    values = [sum(cosines[m * o % n] for o in offsets) for m in range(1, n // 2 + 1)]
    for leaving, entering in zip(drawn[half::2], drawn[half + 1 :: 2], strict=True):
        place, entrant = leaving % len(offsets), entering % half + 1
        worst = max(range(len(values)), key=lambda index: abs(values[index]))
        leaver = offsets[place]
        change = cosines[(worst + 1) * entrant % n] - cosines[(worst + 1) * leaver % n]
        if entrant in offsets or change * (1 if values[worst] > 0 else -1) > -unit // 2:
            continue
        moved = [
            value + cosines[m * entrant % n] - cosines[m * leaver % n]
            for m, value in enumerate(values, 1)
        ]
        if max(map(abs, moved)) < abs(values[worst]):
            values, offsets[place] = moved, entrant
    return tuple(sorted(offsets))


def _tails(population: int, marked: int, draws: int) -> list[int]:
    """Entry a: in how many of the C(population, draws) ways at least a marked ones are drawn."""
    ways = [
        math.comb(marked, hits) * math.comb(population - marked, draws - hits)
        for hits in range(min(marked, draws) + 1)
    ]
    return [sum(ways[least:]) for least in range(draws + 2)]


def _smallest_degree(row: dict[str, Any]) -> tuple[int, int]:
    """The least even degree that meets the three bounds, and its threshold."""
    n, c, d = row["num_clients"], row["corrupt"], row["dropouts"]
    sigma, eta = row["security_bits"], row["correctness_bits"]
    for k in range(4, n - 1, 2):
        total = math.comb(n - 1, k)
        corrupt, dropped = _tails(n - 1, c, k), _tails(n - 1, d, k)
        a = next(a for a in range(1, k + 2) if n * corrupt[a] << sigma + 1 <= total)
        t = a if row["server"] == "semi-honest" else -(-(k + a) // 2)
        connected = n * (n - 1) * math.perm(c + d, k) << sigma <= math.perm(n, k)
        if t <= k and connected and n * dropped[k - t + 1] << eta <= total:
            return k, t
    raise AssertionError("no degree fits")


def _smallest_opened(row: dict[str, Any]) -> int:
    n, c, k, t = (row[name] for name in ("num_clients", "corrupt", "degree", "threshold"))
    if row["server"] == "semi-honest":
        return int(n - c - row["dropouts"])
    cosines = [round(2**31 * math.cos(min(j, n - j) * (2 * math.pi / n))) for j in range(n)]
    offsets = _offsets(n, k)
    values = [sum(cosines[f * o % n] for o in offsets) for f in range(1, n // 2 + 1)]
    mixing = (max(map(abs, values)) + k) / 2**30
    for size in range(min(k - t + 2, n - c), n - c + 1):
        s, x = size / n, (size + c) / n
        inside = (k * s + mixing * (1 - s)) * (1 + 1e-9)
        reached = (k * x + mixing * math.sqrt(x * (1 - x) * (1 - s) / s)) * (1 + 1e-9)
        if inside >= k - t + 1 and reached >= t:
            return size
    return int(n - c)


def test_degrees_are_the_smallest_that_meet_the_documented_bounds() -> None:
    document = load("secagg_graphs.json")
    for row in [*document["finder"], *document["published"]]:
        if row["num_clients"] == 100 or (row["num_clients"], row["corrupt"]) == (1000, 50):
            assert _smallest_degree(row) == (row["degree"], row["threshold"]), row
        if row["num_clients"] == 100:
            assert _smallest_opened(row) == row["smallest_opened"], row


def test_offsets_come_from_the_documented_search() -> None:
    for row in load("secagg_graphs.json")["offsets"]:
        if row["num_clients"] <= 100:
            assert list(_offsets(row["num_clients"], row["degree"])) == row["offsets"]


@pytest.fixture(scope="module", params=ROUNDS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return Reader(request.param)


def test_every_signature_covers_label_and_hash_of_header_and_payload(reader: Reader) -> None:
    for (peer, kind), frame in [*reader.frames.items(), *reader.shown.items()]:
        sender = _fields(frame)[2]
        assert sender == (peer if (peer, kind) in reader.frames else "hub")
        key = Ed25519PublicKey.from_public_bytes(reader.keys[sender])
        key.verify(frame[-64:], L(kind) + hashlib.sha256(frame[:-64]).digest())


def test_the_config_holds_the_digests_of_registry_and_parameters(reader: Reader) -> None:
    values = _fields_of_config(reader.config)
    parts: list[bytes] = []
    for entry in reader.entries:
        parts += [entry["name"].encode(), bytes.fromhex(entry["verify_key"])]
        parts += [entry["role"].encode()]
        parts += [entry[key].to_bytes(8, "big") for key in ("not_before", "not_after")]
    assert values["registry_digest"] == H("registry", *parts)
    assert values["parameters"].hex() == reader.document["world"]["parameters"]
    named = reader.document["config"]
    assert {
        key: value.hex() if isinstance(value, bytes) else value for key, value in values.items()
    } == named


def _fields_of_config(frame: bytes) -> dict[str, Any]:
    names = (
        *("suite", "sender", "task_id", "round", "attempt", "opened_at", "plan_digest"),
        *("model_digest", "registry_digest", "previous_transcript", "parameters", "round_seed"),
    )
    values = unpack(frame[12:-64])
    return dict(zip(names, values[1:], strict=True))


def test_rosters_show_adverts_and_a_multi_proof(reader: Reader) -> None:
    for name in reader.u1:
        cfg, _, recipient, encoded, adverts, proof = _fields(reader.shown[name, "roster"])[1:]
        assert (cfg, recipient) == (reader.cfg, name)
        assert members(encoded, reader.agents) == reader.u1
        shown = sorted([*reader.neighbours(name), name])
        assert adverts == [reader.frames[other, "advertise"] for other in shown]
        known = {reader.u1.index(other) for other in shown}
        assert proof == b"".join(proof_of(reader.adverts, known))


def test_boxes_hold_shares_under_the_documented_key_and_context(reader: Reader) -> None:
    for name in reader.u2:
        frame = _fields(reader.frames[name, "shares"])
        assert frame[3] == reader.roster
        seed = reader.drawn[name][2]
        assert frame[4] == H("b", reader.roster, name.encode(), seed)
        coefficients = iter(words(b"".join(reader.drawn[name][3:]), 16))
        rows = _split([seed, reader.drawn[name][1]], reader.document["threshold"], coefficients)
        for peer, box in zip(reader.neighbours(name), frame[5], strict=True):
            ends = name.encode(), peer.encode()
            point = reader.u1.index(peer) + 1
            key = hkdf(
                agree(reader.drawn[name][0], reader.share_keys[peer]),
                reader.roster,
                L("share") + joined(*ends),
            )
            context = L("share") + joined(
                reader.cfg, reader.roster, *ends, point.to_bytes(4, "big")
            )
            plaintext = AESGCM(key).decrypt(bytes(12), box, context)
            assert plaintext == b"".join(_share_at(row, point) for row in rows)


def _split(
    secrets: Sequence[bytes], threshold: int, stream: Iterator[int]
) -> list[list[list[int]]]:
    """Per secret and limb the coefficients, lowest first, from the listed random words."""
    limbs = [
        [int.from_bytes(secret, "little") >> 15 * k & 0x7FFF for k in range(18)]
        for secret in secrets
    ]
    flat = [limb for row in limbs for limb in row]
    accepted = (word for word in stream if word < 65521)
    higher = [[next(accepted) for _ in flat] for _ in range(threshold - 1)]
    columns = [[flat[i], *(row[i] for row in higher)] for i in range(len(flat))]
    return [columns[:18], columns[18:]]


def _share_at(columns: Sequence[Sequence[int]], x: int) -> bytes:
    values = [sum(c * pow(x, k, 65521) for k, c in enumerate(row)) % 65521 for row in columns]
    return struct.pack("<18H", *values)


def test_deliveries_and_survivors_prove_what_their_reader_sent(reader: Reader) -> None:
    leaves = [reader.commitments[name] for name in reader.u2]
    for name in reader.u2:
        _, _, _, roster, encoded, top, proof, sealed = _fields(reader.shown[name, "delivery"])[1:]
        assert (roster, top) == (reader.roster, root(leaves))
        assert members(encoded, reader.agents) == reader.u2
        assert proof == b"".join(proof_of(leaves, {reader.u2.index(name)}))
        expected = []
        for peer in reader.neighbours(name):
            if peer in reader.u2:
                boxes = _fields(reader.frames[peer, "shares"])[5]
                expected.append(boxes[reader.neighbours(peer).index(name)])
        assert sealed == expected
    for name in reader.u3:
        _, _, _, roster, encoded, top, proof = _fields(reader.shown[name, "survivors"])[1:]
        assert (roster, top) == (reader.roster, root(reader.digests))
        assert members(encoded, reader.agents) == reader.u3
        assert proof == b"".join(proof_of(reader.digests, {reader.u3.index(name)}))


def test_masked_vectors_are_inputs_plus_documented_masks(reader: Reader) -> None:
    for name in reader.u3:
        frame = _fields(reader.frames[name, "masked"])
        assert frame[3:5] == [reader.roster, reader.shared]
        clear = words(bytes.fromhex(reader.document["world"]["vectors"][name]), reader.bits)
        expected = [(x + m) % 2**reader.bits for x, m in zip(clear, reader.mask(name), strict=True)]
        assert words(frame[6], reader.bits) == expected


def test_receipts_are_signatures_on_u2(reader: Reader) -> None:
    text = L("receipt") + joined(reader.cfg, reader.roster, reader.shared)
    for name in reader.u3:
        key = Ed25519PublicKey.from_public_bytes(reader.keys[name])
        key.verify(_fields(reader.frames[name, "masked"])[5], text)


def test_consents_are_to_one_digest_and_requests_show_them(reader: Reader) -> None:
    for name in reader.u4:
        assert _fields(reader.frames[name, "consistency"])[3:] == [reader.roster, reader.agreed]
        fields = _fields(reader.shown[name, "unmask-request"])
        recipient, roster, consents, receipts = fields[3:]
        assert (recipient, roster) == (name, reader.roster)
        assert consents == [
            reader.frames[other, "consistency"]
            for other in reader.holders(name)
            if other in reader.u4
        ]
        assert receipts == [
            [other, _fields(reader.frames[other, "masked"])[5]]
            for other in reader.holders(name)
            if other in reader.u3 and other not in reader.u4
        ]


def test_the_sum_follows_from_the_frames_alone(reader: Reader) -> None:
    """Lagrange at 0 over the integers mod 65521, then masks off the sum of the masked vectors."""
    shares: dict[str, dict[int, bytes]] = {}
    for name in reader.senders("unmask"):
        data = _fields(reader.frames[name, "unmask"])[4]
        owners = [owner for owner in reader.holders(name) if owner in reader.u2]
        for i, owner in enumerate(owners):
            shares.setdefault(owner, {})[reader.u1.index(name) + 1] = data[36 * i : 36 * i + 36]
    total = [0] * reader.length
    for vector in reader.vectors.values():
        total = [a + b for a, b in zip(total, words(vector, reader.bits), strict=True)]
    for owner in reader.u2:
        secret = _combine(shares[owner], reader.document["threshold"])
        if owner in reader.u3:
            assert H("b", reader.roster, owner.encode(), secret) == reader.commitments[owner]
            info = L("self") + joined(owner.encode())
            stream = keystream(hkdf(secret, reader.roster, info), reader.length, reader.bits)
            total = [a - b for a, b in zip(total, stream, strict=True)]
            continue
        public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        assert public == reader.mask_keys[owner]
        for peer in reader.neighbours(owner):
            if peer in reader.u3:
                stream = reader.pair_stream(secret, owner, peer)
                sign = 1 if peer > owner else -1
                total = [a + sign * b for a, b in zip(total, stream, strict=True)]
    found = [value % 2**reader.bits for value in total]
    inputs = reader.document["world"]["vectors"]
    clear = [words(bytes.fromhex(inputs[name]), reader.bits) for name in reader.u3]
    assert found == [sum(column) % 2**reader.bits for column in zip(*clear, strict=True)]
    assert found == words(bytes.fromhex(reader.document["sum"]), reader.bits)
    assert reader.u3 == reader.document["survivors"]


def _combine(shares: dict[int, bytes], threshold: int) -> bytes:
    points = sorted(shares)[:threshold]
    value = 0
    for limb in range(18):
        found = 0
        for x in points:
            weight = 1
            for other in points:
                if other != x:
                    weight = weight * other * pow(other - x, -1, 65521) % 65521
            found += weight * int.from_bytes(shares[x][2 * limb : 2 * limb + 2], "little")
        value |= found % 65521 << 15 * limb
    return value.to_bytes(32, "little")


def test_the_transcript_is_the_record_of_these_frames(reader: Reader) -> None:
    frame = bytes.fromhex(reader.document["transcript"])
    values = _fields(frame)
    record = _fields(frame)[2:]
    assert values[1] == "hub"
    data = bytes.fromhex(reader.document["sum"])
    assert record == [
        reader.config,
        reader.bitmap(reader.u1),
        reader.adverts,
        reader.bitmap(reader.u2),
        b"".join(reader.commitments[name] for name in reader.u2),
        reader.bitmap(reader.u3),
        b"".join(reader.digests),
        [reader.frames[name, "consistency"] for name in reader.u4],
        H("sum", reader.cfg, data),
        bytes.fromhex(reader.document["ledger_head"]),
    ]
    for name in reader.u2:
        signed = set(reader.u4) & set(reader.holders(name))
        assert len(signed) >= reader.document["threshold"]


def test_single_steps_are_what_the_document_says() -> None:
    steps = load("secagg_derivations.json")
    assert {name: L(name).hex() for name in steps["labels"]} == steps["labels"]
    for row in steps["join"]:
        assert joined(*map(bytes.fromhex, row["parts"])).hex() == row["joined"]
    for row in steps["digest"]:
        assert H(row["label"], *map(bytes.fromhex, row["parts"])).hex() == row["digest"]
    for row in steps["members"]:
        value = sum(1 << index for index in row["indices"])
        assert value.to_bytes((row["num_agents"] + 7) // 8, "little").hex() == row["bytes"]
    for tree in steps["merkle"]:
        leaves = [bytes.fromhex(leaf) for leaf in tree["leaves"]]
        assert root(leaves).hex() == tree["root"]
        for row in tree["proofs"]:
            assert b"".join(proof_of(leaves, set(row["known"]))).hex() == row["proof"]


def test_the_key_schedule_is_what_the_document_says() -> None:
    keys = load("secagg_derivations.json")["keys"]
    at: Callable[..., bytes] = lambda *path: bytes.fromhex(_at(keys, path))  # noqa: E731
    roster, low, high = at("roster"), keys["low"].encode(), keys["high"].encode()
    agreed = agree(at("low_secrets", "share"), at("high_public", "share"))
    assert agreed == at("share", "agreed")
    assert at("share", "info") == L("share") + joined(low, high)
    key = hkdf(agreed, roster, at("share", "info"))
    assert key == at("share", "key")
    context = L("share") + joined(at("cfg"), roster, low, high, b"\0\0\0\x02")
    assert context == at("share", "context")
    sealed = AESGCM(key).encrypt(bytes(12), at("share", "plaintext"), context)
    assert sealed == at("share", "sealed")
    pair = agree(at("low_secrets", "mask"), at("high_public", "mask"))
    pair_key = hkdf(pair, roster, L("pair") + joined(low, high))
    assert (pair, pair_key) == (at("pair", "agreed"), at("pair", "key"))
    self_key = hkdf(at("self", "seed"), roster, L("self") + joined(low))
    assert self_key == at("self", "key")
    assert H("b", roster, low, at("self", "seed")) == at("commitment")
    streams = {"self": keystream(self_key, 6, 32), "pair": keystream(pair_key, 6, 32)}
    assert streams == keys["keystreams"]
    rows = zip(keys["vector"], streams["self"], streams["pair"], strict=True)
    masked = [sum(row) % 2**32 for row in rows]
    assert masked == keys["masked"]
    assert H("vector", roster, low, struct.pack("<6I", *masked)) == at("vector_digest")


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_shares_are_polynomials_over_the_prime_field() -> None:
    for row in load("secagg_derivations.json")["shamir"]:
        secrets = [bytes.fromhex(text) for text in row["secrets"]]
        stream = iter(words(bytes.fromhex(row["entropy"]), 16))
        columns = _split(secrets, row["threshold"], stream)
        for x, shares in zip(row["points"], row["shares"], strict=True):
            assert [_share_at(column, x).hex() for column in columns] == shares


def test_graphs_are_permuted_circulants() -> None:
    document = load("secagg_graphs.json")
    listed = {(row["num_clients"], row["degree"]): row["offsets"] for row in document["offsets"]}
    for row in document["graphs"]:
        n, k, roster = row["num_clients"], row["degree"], bytes.fromhex(row["roster"])
        stream = hashlib.shake_256(L("graph") + roster).digest(16 * n)
        keys = [struct.unpack_from("<QQ", stream, 16 * rank) for rank in range(n)]
        rank_at = sorted(range(n), key=lambda rank: keys[rank])
        if k == n - 1:
            offsets = list(range(1, n))
        elif row["server"] == "semi-honest":
            offsets = [o for step in range(1, k // 2 + 1) for o in (step, n - step)]
        else:
            offsets = [o for step in listed[n, k] for o in (step, n - step)]
        for rank, near in row["neighbours"].items():
            place = rank_at.index(int(rank))
            assert near == sorted(rank_at[(place + offset) % n] for offset in offsets)


def test_the_finder_gives_the_published_degrees() -> None:
    """The table of the design, and three vectors of Google's graph_parameter_finder, exactly."""
    document = load("secagg_graphs.json")
    for row in document["published"]:
        assert [row["degree"], row["threshold"]] == row["published"]
    found = {
        (row["num_clients"], row["corrupt"], row["server"]): (row["degree"], row["threshold"])
        for row in document["finder"]
    }
    assert found[100, 10, "semi-honest"] == (22, 11)
    assert found[1000, 100, "malicious"] == (128, 86)
    assert found[10_000, 2000, "malicious"] == (244, 175)
    assert found[1000, 333, "malicious"] == (272, 209)


def test_sizes_are_those_of_the_vectors() -> None:
    for row in load("secagg_derivations.json")["parameters"]:
        data = bytes.fromhex(row["bytes"])
        assert H("parameters", data).hex() == row["digest"]
        parameters = SecAggParameters.from_canonical_bytes(data)
        assert {kind.name: parameters.frame_limit(kind) for kind in MessageType} == row["limits"]
