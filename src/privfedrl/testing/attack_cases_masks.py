"""Attacks on what masks are made of: A8 keys, seeds and generators, A13 who masks with whom.

Everything here is seen from outside, by *leaving one out*: if a client vanishes just before the
keys of the masks are fixed, the masked vectors of the others lose exactly the mask that they had in
common with it. The differences are the keystreams themselves.

Notation: y_a = masked vector of client a, y_a^b = the same in a round that b has left before the
masks were fixed, V = the leg whose answers are the masked vectors. Reference: Matsumoto and
Nishimura, Mersenne Twister, 1998 (the recurrence and its tempering).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privfedrl.testing.adapter import Claim, RingVector
from privfedrl.testing.adversaries import record, vector_leg
from privfedrl.testing.bench import Attack, Bench, Finding, NotApplicable, claims
from privfedrl.testing.scene import Scene

__all__ = [
    "MASK_ATTACKS",
    "generators",
    "paired_masks",
    "repeated_keys",
    "repeated_seeds",
    "short_ranges",
]

_ALPHA: Final = 1e-9
_Words = NDArray[np.uint32]
_N, _M, _MATRIX = 624, 397, 0x9908B0DF


def _masked(bench: Bench, leg: int, without: str = "", **changes: Any) -> dict[str, RingVector]:
    """y_a by name in an honest round up to leg V = ``leg``; ``without`` leaves one leg earlier."""
    scene = bench.scene(**changes)
    zeros = np.zeros(scene.spec.vector_length, f"uint{scene.spec.modulus_bits}")
    server, clients = scene.server(), scene.clients(vector=zeros)
    drop = {without: leg - 1} if without else {}
    scene.run(server, clients, drop=drop, legs=leg + 1)
    return {client.name: np.frombuffer(data, zeros.dtype) for client, _, data in scene.masked}


def _leg_before_masks(bench: Bench) -> int:
    """V, if a client can vanish after its keys are known and before the masks are fixed.

    Raises:
        NotApplicable: there is no such leg, or who vanishes there is still masked against.
    """
    leg = vector_leg(bench, record(bench.scene()))
    if leg < 2:
        raise NotApplicable("no leg lies between the keys and the masks")
    scene = bench.scene()
    gone = scene.names[0]
    server = scene.server()
    scene.run(server, scene.clients(), drop={gone: leg - 1})
    asked = {reveal.owner for _, _, reveal in scene.revealed}
    if scene.result(server) is None or not asked or gone in asked:
        raise NotApplicable("whoever vanishes before the masks are fixed is masked against")
    return leg


def _streams(bench: Bench, leg: int, gone: str, **changes: Any) -> dict[str, RingVector]:
    """y_a - y_a^gone for every other a: the keystream of each pair, up to sign."""
    full, less = _masked(bench, leg, **changes), _masked(bench, leg, gone, **changes)
    return {name: full[name] - vector for name, vector in less.items()}


def paired_masks(bench: Bench) -> None:
    """Every two clients have a mask in common: if one is not there, the other's vector differs."""
    leg = _leg_before_masks(bench)
    names = bench.scene().names
    found = {gone: _streams(bench, leg, gone) for gone in names}
    missing = [
        (one, two)
        for one in names
        for two, stream in found[one].items()
        if not stream.any() and one < two
    ]
    bench.expect(not missing, f"{len(missing)} pairs of clients have no mask in common")


def generators(bench: Bench) -> None:
    """A keystream does not follow the recurrence of a Mersenne Twister."""
    leg = _leg_before_masks(bench)
    scene = bench.scene(vector_length=4 * _N)
    streams = _streams(bench, leg, scene.names[0], vector_length=4 * _N)
    for name, stream in streams.items():
        for words in (stream.astype(np.uint32), (-stream).astype(np.uint32)):
            if _follows_twister(words):
                raise Finding(f"the mask of {name} is the output of a Mersenne Twister")


def _follows_twister(words: _Words) -> bool:
    """Whether half of the words or more are what 624 words before them predict."""
    state = _untempered(words)
    mixed = (state[:-1] & np.uint32(0x80000000)) | (state[1:] & np.uint32(0x7FFFFFFF))
    turned = mixed >> np.uint32(1) ^ (mixed & np.uint32(1)) * np.uint32(_MATRIX)
    count = len(state) - _N
    predicted = state[_M : _M + count] ^ turned[:count]
    return bool(np.mean(predicted == state[_N:]) > 0.5)


def _untempered(words: _Words) -> _Words:
    """The state words that the tempering of MT19937 turns into ``words``."""
    state = words ^ words >> np.uint32(18)
    state = state ^ (state << np.uint32(15) & np.uint32(0xEFC60000))
    found = state.copy()
    for _ in range(4):
        found = state ^ (found << np.uint32(7) & np.uint32(0x9D2C5680))
    first = found ^ found >> np.uint32(11)
    result: _Words = found ^ first >> np.uint32(11)
    return result


def repeated_seeds(bench: Bench) -> None:
    """No two pairs of clients, in any round, have the same keystream.

    N streams from seeds of b bits meet with probability 1 - exp(-N^2 / 2^(b + 1)): the quick
    profile sees seeds of 8 bits, the thorough one those of 16 (900 streams: 99.8 %).
    """
    leg = _leg_before_masks(bench)
    seen: dict[bytes, str] = {}
    for index in range(60 if bench.thorough else 3):
        for what, stream in _of_round(bench, leg, index).items():
            for data in {stream.tobytes(), (-stream).tobytes()}:
                other = seen.setdefault(data, what)
                bench.expect(other == what, f"{what} and {other} have the same mask")


def _of_round(bench: Bench, leg: int, index: int) -> dict[str, RingVector]:
    seed = f"seed {index}".encode()
    full = _masked(bench, leg, seed=seed)
    return {
        f"{gone}-{name} with {seed.decode()}": full[name] - vector
        for gone in full
        for name, vector in _masked(bench, leg, gone, seed=seed).items()
        if gone < name
    }


def repeated_keys(bench: Bench) -> None:
    """One-round public keys are never the same for other entropy, nor for two clients."""
    seen: dict[bytes, str] = {}
    for index in range(3):
        scene = bench.scene(seed=f"seed {index}".encode())
        for answer in record(scene).answers[0]:
            for key in _keys(bench, scene, answer):
                what = f"{answer.sender} in run {index}"
                other = seen.setdefault(key, what)
                bench.expect(other == what, f"{what} has a key of {other}", scene)


def _keys(bench: Bench, scene: Scene, advert: Any) -> tuple[bytes, ...]:
    seen: list[tuple[bytes, ...]] = []

    def look(keys: Any) -> Any:
        seen.append(tuple(keys))
        return keys

    if bench.adapter.forge(scene.spec, advert, public_keys=look) is None:
        raise NotApplicable("the adapter shows no public keys")
    return seen[0]


def short_ranges(bench: Bench) -> None:
    """A single mask takes every value equally often: mod 256 on a ring of 8 bits if there is one.

    On longer rings the highest byte is looked at. Sums of several masks hide a range that is short:
    a bias of 1/128 in each of six gives 1e-13. False alarms: 1e-9 per test, four tests.
    """
    leg = _leg_before_masks(bench)
    refused: tuple[type[Exception], ...] = (*bench.adapter.errors, ValueError, TypeError)
    for bits in (8, bench.scene().spec.modulus_bits):
        for gone in (bench.scene().names[0], bench.scene().names[-1]):  # one sign in each
            try:
                streams = _streams(bench, leg, gone, modulus_bits=bits, vector_length=20_000)
            except refused:
                continue  # no ring of 8 bits
            pooled = np.concatenate(list(streams.values()))
            counts = np.bincount((pooled >> (bits - 8)).astype(np.intp), minlength=256)
            p = float(stats.chisquare(counts).pvalue)
            bench.expect(p > _ALPHA, f"one mask of {bits} bits is not uniform, p = {p:.3g}")


_MASKS: Final = claims(Claim.UNIFORM_MASKS, Claim.FRESH_MASKS, Claim.DETERMINISTIC, Claim.DROPOUTS)

MASK_ATTACKS: Final = (
    Attack(
        id="A8-generator",
        title="masks come from a generator that their own words predict",
        needs=_MASKS,
        run=generators,
    ),
    Attack(
        id="A8-seeds",
        title="the seeds of masks have so few bits that they meet",
        needs=_MASKS,
        run=repeated_seeds,
        cost=2,
    ),
    Attack(
        id="A8-keys",
        title="public keys of one round appear again",
        needs=claims(Claim.FRESH_MASKS),
        run=repeated_keys,
    ),
    Attack(
        id="A8-range",
        title="masks do not take every value of the ring equally often",
        needs=_MASKS,
        run=short_ranges,
    ),
    Attack(
        id="A13-pairs",
        title="two clients have no mask in common",
        needs=_MASKS,
        run=paired_masks,
    ),
)
