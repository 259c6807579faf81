"""Seeded defects of keys, masks, shares and randomness.

Guarantee: as in ``mutant_client``. A defect that both ends share leaves sums exact: only what the
masks look like gives it away.
"""

# private names of the protocol are what a defect is made of

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from privfedrl.errors import RemoteProtocolError
from privfedrl.parties.binding import join, label
from privfedrl.primitives import key_agreement, shamir
from privfedrl.primitives.key_agreement import KeyPair
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.secagg import client as client_module
from privfedrl.secagg import masks as masks_module
from privfedrl.secagg import server as server_module
from privfedrl.secagg import unmasking as unmasking_module
from privfedrl.secagg.edges import OwnEdges
from privfedrl.secagg.sizes import MessageType
from privfedrl.secagg.suite import DEFAULT_SUITE
from privfedrl.testing import known_answers as known_answers_module
from privfedrl.testing import pairwise as pairwise_module
from privfedrl.testing.mutant_seeded import Patch, always, seeded, substituted

__all__ = ["MASK_MUTANTS"]

_PAIR: Final = ("client-000", "client-001")


def _unsalted(old: Any) -> Any:
    def key(cohort: Any, *given: Any) -> Any:
        return old(replace(cohort, roster=bytes(32)), *given)

    return key


def _one_sign(old: Any) -> Any:
    def mask(self: Any, vector: Any, *, add: Any, subtract: Any, **given: Any) -> None:
        old(self, vector, add={}, subtract={**add, **subtract}, **given)

    return mask


def _only_pairs(_: Any) -> Any:
    def mask(self: Any, vector: Any, *, suite: Any, add: Any, subtract: Any, **given: Any) -> None:
        suite.apply_keystreams(vector, add=tuple(add.values()), subtract=tuple(subtract.values()))

    return mask


def _strip_dropped(total: Any, recovered: Any, *, cohort: Any, survivors: Sequence[str]) -> None:
    alive = set(survivors)
    for name, pair in recovered.pairs.items():
        near = [peer for peer in cohort.neighbours(name) if peer in alive]
        masks_module.remove_masks_of_dropped(
            total, cohort=cohort, dropped=name, pair=pair, survivors=near
        )


def _unless_paired(old: Any) -> Any:
    def mask(self: Any, vector: Any, *, name: str, add: Any, subtract: Any, **given: Any) -> None:
        hidden = set(_PAIR) - {name} if name in _PAIR else set()
        kept = [
            {peer: key for peer, key in keys.items() if peer not in hidden}
            for keys in (add, subtract)
        ]
        old(self, vector, name=name, add=kept[0], subtract=kept[1], **given)

    return mask


def _unless_dropped_pair(old: Any) -> Any:
    def remove(
        total: Any, *, cohort: Any, dropped: str, pair: Any, survivors: Sequence[str]
    ) -> None:
        near = [name for name in survivors if {name, dropped} != set(_PAIR)]
        old(total, cohort=cohort, dropped=dropped, pair=pair, survivors=near)

    return remove


def _without_one(old: Any) -> Any:
    def mask(self: Any, vector: Any, *, name: str, add: Any, **given: Any) -> None:
        kept = dict(list(add.items())[1:]) if name == _PAIR[0] else add
        old(self, vector, name=name, add=kept, **given)

    return mask


def _no_pairs(_: Any) -> Any:
    def mask(self: Any, vector: Any, *, suite: Any, self_key: bytes, **given: Any) -> None:
        suite.apply_keystreams(vector, add=(self_key,))

    return mask


def _folded(size: int) -> Any:
    """Derived keys hold ``size`` bytes of secret only."""

    def make(old: Any) -> Any:
        def derive(secret: bytes, **given: Any) -> bytes:
            key: bytes = old(secret, **given)
            words = np.frombuffer(key[:32], np.uint8).reshape(-1, size)
            short = np.bitwise_xor.reduce(words, axis=0).tobytes()
            return bytes((short * len(key))[: len(key)])

        return derive

    return make


def _short_words(_: Any) -> Any:
    """Mask words whose highest byte is never 255."""

    def apply(acc: Any, *, add: Any = (), subtract: Any = (), **given: Any) -> None:
        bits = 8 * acc.itemsize
        for keys, combine in ((add, np.add), (subtract, np.subtract)):
            for key in keys:
                stream = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(acc.nbytes))
                words = np.frombuffer(stream, acc.dtype.newbyteorder("<"))
                low = words & acc.dtype.type(2 ** (bits - 8) - 1)
                high = (words >> acc.dtype.type(bits - 8)) % acc.dtype.type(255)
                combine(acc, low | high << acc.dtype.type(bits - 8), out=acc)

    return apply


def _short_period(_: Any) -> Any:
    """A keystream that starts again after 1,000 words."""

    def apply(acc: Any, *, add: Any = (), subtract: Any = (), **given: Any) -> None:
        for keys, combine in ((add, np.add), (subtract, np.subtract)):
            for key in keys:
                stream = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(8000))
                words = np.frombuffer(stream, acc.dtype.newbyteorder("<"))[:1000]
                combine(acc, np.resize(words, acc.size), out=acc)

    return apply


def _open_unchecked(key: bytes, ciphertext: bytes, *, context: bytes) -> bytes:
    counter = bytes(12) + (2).to_bytes(4, "big")  # where GCM starts to encrypt
    return Cipher(AES256(key), CTR(counter)).decryptor().update(ciphertext[:-16])


def _unordered_info(sender: str, recipient: str) -> bytes:
    return label("share") + join(*sorted((sender.encode("ascii"), recipient.encode("ascii"))))


def _bare_context(cohort: Any, sender: str, recipient: str) -> bytes:
    return label("share") + join(cohort.cfg, cohort.roster)


def _next_point(old: Any) -> Any:
    def read(*given: Any, **named: Any) -> Any:
        cohort = old(*given, **named)
        return replace(cohort, points={name: x + 1 for name, x in cohort.points.items()})

    return read


def _two_suffice(old: Any) -> Any:
    split = shamir.split

    def handler(self: Any, message: Any) -> Any:
        def lower(secrets: Any, *, threshold: int, points: Any, entropy: Any) -> Any:
            return split(secrets, threshold=2, points=points, entropy=entropy)

        with substituted(shamir, "split", lower):
            return old(self, message)

    return handler


def _recover_from_two(old: Any) -> Any:
    def recover(answers: Any, *, cohort: Any, **given: Any) -> Any:
        lower = replace(cohort, topology=replace(cohort.topology, threshold=2))
        return old(answers, cohort=lower, **given)

    return recover


def _accept_seed(old: Any) -> Any:
    def accept(recovered: Any, secret: bytes, name: str, *given: Any) -> bool:
        if name in given[-1]:
            recovered.seeds[name] = secret
            return True
        return bool(old(recovered, secret, name, *given))

    return accept


def _accept_key(old: Any) -> Any:
    def accept(recovered: Any, secret: bytes, name: str, cohort: Any, *given: Any) -> bool:
        if name in given[-1]:
            return bool(old(recovered, secret, name, cohort, *given))
        recovered.pairs[name] = cohort.suite.restore(secret)
        return True

    return accept


def _agree_on_zero(old: Any) -> Any:
    def agree(self: Any, peer_public: bytes) -> bytes:
        try:
            found: bytes = old(self, peer_public)
        except RemoteProtocolError:
            return bytes(32)
        return found

    return agree


def _by_name_only(spec: Any, name: str) -> DeterministicEntropy:
    return DeterministicEntropy(b"always the same").fork(name.encode())


def _anything(*_: Any) -> None:
    """No check at all."""


MASK_MUTANTS: Final = (
    seeded(
        "unbound-masks",
        "mask keys are not bound to the roster",
        "masks that repeat over tasks and rounds; attack A8",
        ("A8-rounds",),
        Patch(masks_module, "self_key", _unsalted),
        Patch(masks_module, "pair_key", _unsalted),
        Patch(unmasking_module, "self_key", _unsalted),
    ),
    seeded(
        "constant-entropy",
        "every round draws the same keys",
        "a generator seeded by the client's name; attack A8",
        ("A8-keys",),
        Patch(pairwise_module, "_entropy", always(_by_name_only)),
    ),
    seeded(
        "one-sign",
        "pairwise masks are subtracted on both sides",
        "a wrong order of names",
        ("A13-view",),
        Patch(OwnEdges, "mask", _one_sign),
    ),
    seeded(
        "one-mask-missing",
        "one client leaves out the mask of one neighbour",
        "a loop that starts one late",
        ("A13-view",),
        Patch(OwnEdges, "mask", _without_one),
    ),
    seeded(
        "no-self-mask",
        "vectors have pairwise masks only",
        "what a late vector of a dropped client gives away without b; attack A14",
        ("U5-subsets",),
        Patch(OwnEdges, "mask", _only_pairs),
        Patch(server_module, "strip_masks", always(_strip_dropped)),
    ),
    seeded(
        "no-pair-masks",
        "vectors have self masks only, which the server recovers one by one",
        "a mask that protects from everybody but the server; attack A13",
        ("A13-pairs",),
        Patch(OwnEdges, "mask", _no_pairs),
        Patch(unmasking_module, "remove_masks_of_dropped", always(lambda *_, **__: None)),
    ),
    seeded(
        "bare-pair",
        "two clients have no mask in common",
        "a graph with a missing edge; attack A13",
        ("A13-pairs",),
        Patch(OwnEdges, "mask", _unless_paired),
        Patch(unmasking_module, "remove_masks_of_dropped", _unless_dropped_pair),
    ),
    seeded(
        "keys-of-32-bits",
        "derived keys are folded to 32 bits",
        "the XOR fold to a 32-bit seed in SecAgg+ of Flower",
        ("hkdf-case-1",),
        Patch(DEFAULT_SUITE, "derive", _folded(4)),
        Patch(known_answers_module, "hkdf_sha256", _folded(4)),
    ),
    seeded(
        "keys-of-8-bits",
        "derived keys are folded to 8 bits",
        "a generator with few states",
        ("A8-seeds",),
        Patch(DEFAULT_SUITE, "derive", _folded(1)),
    ),
    seeded(
        "keys-of-16-bits",
        "derived keys are folded to 16 bits",
        "the pair seed of 16 bits in the prototype of Flamingo",
        ("A8-seeds",),
        Patch(DEFAULT_SUITE, "derive", _folded(2)),
        thorough=True,
    ),
    seeded(
        "short-range",
        "mask words never take the highest part of the ring",
        "the top ring values that SecAgg+ of Flower never takes",
        ("A8-range",),
        Patch(DEFAULT_SUITE, "apply_keystreams", _short_words),
    ),
    seeded(
        "short-period",
        "keystreams repeat after 1,000 words",
        "a counter that starts again for each tile",
        ("U6-lags",),
        Patch(DEFAULT_SUITE, "apply_keystreams", _short_period),
    ),
    seeded(
        "unchecked-boxes",
        "the tag of encrypted shares is not checked",
        "the GCM tag that the prototype of Flamingo skips; attack A16",
        ("A17-delivered",),
        Patch(DEFAULT_SUITE, "open_sealed", always(_open_unchecked)),
    ),
    seeded(
        "reflected-boxes",
        "encrypted shares name neither sender nor recipient",
        "associated data without names: own boxes come back as another's; attack A5",
        ("A17-delivered",),
        Patch(masks_module, "_box_info", always(_unordered_info)),
        Patch(masks_module, "_context", always(_bare_context)),
    ),
    seeded(
        "next-point",
        "clients evaluate shares one point further than the server",
        "points that count from one on one side; attack A17",
        ("A13-view",),
        Patch(client_module, "read_roster", _next_point),
    ),
    seeded(
        "two-shares-suffice",
        "two shares recover every secret",
        "a sum although fewer than t answered; attack A17",
        ("A17-few",),
        Patch(client_module._HANDLERS, MessageType.ROSTER, _two_suffice),
        Patch(server_module, "recover", _recover_from_two),
    ),
    seeded(
        "unchecked-seeds",
        "recovered self masks are not compared with their commitments",
        "one liar changes the sum; attack A17",
        ("A17-shares", "A17-outvoted"),
        Patch(unmasking_module, "_accept", _accept_seed),
    ),
    seeded(
        "unchecked-keys",
        "recovered keys of dropped clients are not compared with the advertised ones",
        "one liar changes the sum; attack A17",
        ("A17-shares",),
        Patch(unmasking_module, "_accept", _accept_key),
    ),
    seeded(
        "low-order",
        "public keys of low order are accepted",
        "secrets that are all zero; attack A6",
        ("A6-low-order",),
        Patch(DEFAULT_SUITE, "check_public_key", always(_anything)),
        Patch(key_agreement, "_refuse_low_order", always(_anything)),
        Patch(KeyPair, "agree", _agree_on_zero),
    ),
)
"""What can be wrong with masks."""
