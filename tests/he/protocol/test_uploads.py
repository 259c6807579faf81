"""Adding uploads: each promised one once, or none of it."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import RemoteProtocolError
from privfedrl.he.agreement import FixedRoster
from privfedrl.he.digests import commitment
from privfedrl.he.frames import Kind, Upload
from privfedrl.he.residues import pack, unpack
from privfedrl.he.uploads import UploadSum
from privfedrl.parties.frames import Frame
from privfedrl.parties.members import Members

CFG, KEY, ROSTER = b"c" * 32, b"k" * 32, b"r" * 32


class Uploads:
    """Three members of five, with random residues in place of ciphertexts."""

    def __init__(self, world: Any) -> None:
        self.world, self.parameters = world, world.parameters
        chosen = self.parameters.parameter_set
        self.primes, self.degree = chosen.sent_primes, chosen.degree
        rng = np.random.default_rng(11)
        shape = self.parameters.ciphertexts, 2, len(self.primes), self.degree
        top = np.array(self.primes, dtype=np.uint64)[:, None]
        self.residues = {
            name: rng.integers(0, 2**60, shape, dtype=np.uint64) % top for name in world.names[:3]
        }
        self.data = {name: pack(part, self.primes) for name, part in self.residues.items()}
        self.promised = {name: commitment(CFG, KEY, name, data) for name, data in self.data.items()}
        self.roster = self.roster_of(self.promised)

    def roster_of(self, promised: dict[str, bytes]) -> FixedRoster:
        indices = [self.world.registry.index_of(name) for name in promised]
        return FixedRoster(
            members=Members.of(indices, self.world.n), commitments=promised, digest=ROSTER
        )

    def empty(self) -> UploadSum:
        return UploadSum(self.parameters, self.roster, self.world.registry)

    def upload(self, name: str, *, attachment: Any = None, **changes: Any) -> Frame:
        """A frame as a reader gives it: its commitment is to its own attachment."""
        data = self.data.get(name, b"") if attachment is None else attachment
        given: dict[str, Any] = {"cfg": CFG, "key": KEY, "sender": name, "roster": ROSTER} | changes
        made = commitment(given["cfg"], given["key"], name, data)
        return Frame(
            type=Kind.UPLOAD,
            message=Upload(**({"commitment": made} | given)),
            payload=memoryview(b""),
            digest=bytes(96),
            attachment=memoryview(data),
        )

    def sum(self, names: tuple[str, ...]) -> bytes:
        """By plain integers."""
        total = sum(self.residues[name].astype(object) for name in names)
        reduced = total % np.array(self.primes, dtype=object)[:, None]
        return bytes(pack(reduced.astype(np.uint64), self.primes))


@pytest.fixture
def uploads(world: Any) -> Uploads:
    return Uploads(world)


def test_the_sum_of_nothing_is_zero(uploads: Uploads) -> None:
    total = uploads.empty()
    assert total.names == frozenset()
    assert len(total.contributors) == 0
    assert not any(total.ciphertexts())
    assert len(total.ciphertexts()) == uploads.parameters.ciphertext_bytes


def test_the_sum_depends_on_the_set_alone(uploads: Uploads) -> None:
    names = tuple(uploads.data)
    found = set()
    for order in permutations(names):
        total = uploads.empty()
        for name in order:
            total.take(uploads.upload(name))
        assert total.names == frozenset(names)
        assert total.contributors.to_bytes() == uploads.world.members(names)
        found.add(total.ciphertexts())
    assert found == {uploads.sum(names)}


def test_asking_for_the_sum_changes_nothing(uploads: Uploads) -> None:
    first, second, _ = uploads.data
    total = uploads.empty()
    total.take(uploads.upload(first))
    assert total.ciphertexts() == total.ciphertexts() == uploads.sum((first,))
    total.take(uploads.upload(second))
    assert total.ciphertexts() == uploads.sum((first, second))


def unreduced(uploads: Uploads, name: str) -> bytes:
    """Residues of which one is its prime itself: the right length, and no ciphertext."""
    residues = uploads.residues[name].copy()
    residues[0, 1, 0, 7] = uploads.primes[0]
    return bytes(pack(residues, uploads.primes))


def test_what_is_refused_adds_nothing(uploads: Uploads) -> None:
    first, second, third = uploads.data
    for data in (unreduced(uploads, third), uploads.data[third][:-1], b""):
        uploads.roster = uploads.roster_of(
            uploads.promised | {third: commitment(CFG, KEY, third, data)}
        )
        total = uploads.empty()
        total.take(uploads.upload(first))
        before = total.ciphertexts()
        changed = bytearray(uploads.data[second])
        changed[0] ^= 1
        refused = [
            (uploads.upload(second, roster=b"q" * 32), "another roster"),
            (uploads.upload(second, cfg=b"q" * 32), "something else"),
            (uploads.upload(second, key=b"q" * 32), "something else"),
            (uploads.upload(second, attachment=bytes(changed)), "something else"),
            (uploads.upload(second, attachment=b""), "something else"),
            (uploads.upload(second, attachment=uploads.data[first]), "something else"),
            (uploads.upload(second, commitment=uploads.promised[first]), "something else"),
            (uploads.upload(first), "already"),
            (uploads.upload(first, attachment=b""), "already"),
            (uploads.upload(uploads.world.names[3]), "not in the roster"),
            (uploads.upload("coordinator"), "not in the roster"),
            (uploads.upload("nobody"), "not in the roster"),
            (uploads.upload(third, attachment=data), "residue|must be"),
        ]
        for frame, match in refused:
            with pytest.raises(RemoteProtocolError, match=match):
                total.take(frame)
            assert total.names == {first}
            assert total.ciphertexts() == before
        total.take(uploads.upload(second))
        assert total.ciphertexts() == uploads.sum((first, second))


def test_what_was_taken_is_not_kept(uploads: Uploads) -> None:
    """One accumulator, however many agents: the caller's bytes are not referred to."""
    total = uploads.empty()
    for name, data in uploads.data.items():
        held = bytearray(data)
        total.take(uploads.upload(name, attachment=held))
        held.append(0)  # BufferError if anything still looked at it
    kept = [value for value in vars(total).values() if isinstance(value, np.ndarray)]
    assert [array.shape for array in kept] == [
        (uploads.parameters.ciphertexts, 2, len(uploads.primes), uploads.degree)
    ]


def test_ciphertexts_that_were_added_can_be_read_back(uploads: Uploads) -> None:
    first = next(iter(uploads.data))
    total = uploads.empty()
    total.take(uploads.upload(first))
    again = unpack(
        total.ciphertexts(), uploads.primes, uploads.degree, uploads.parameters.ciphertexts
    )
    assert (again == uploads.residues[first]).all()
