"""What everybody in a homomorphic round must agree on, checked once.

Guarantee: a sum of at most ``num_clients`` vectors, each reduced modulo 2^value_bits, fits its lane
whatever the vectors are, and every lane fits the plaintext slot, so the opened sum is the sum
modulo 2^value_bits of what was encrypted: the same integer that masking gives. And for values in
[-2^(value_bits - 1), 2^(value_bits - 1)) a decrypted lane is a function of their sum and number.

Notation: n = num_clients, w0 = value_bits, w = w0 + ceil(log2 n) = bits of a lane, L = lanes in a
slot, D = vector_length, W = ceil(D / L) slots. Lane l of slot k holds coordinate l W + k; the last
slot of a BFV ciphertext stays empty.

A lane holds (x + 2^(w0 - 1)) mod 2^w0 for the value x ("offset binary"). With plain residues, lanes
would add up to the sum plus 2^w0 for every negative value, and whoever decrypts would count those.
What belongs to no coordinate is zero. CKKS slots hold signed numbers, which add up to the sum.

A slot is never full: what an honest sum can be is at most 2^-guard of what a slot can hold, guard
>= 3. A malformed ciphertext can add a multiple of the secret key to the sum; it lands anywhere in
each slot that it touches, and the key authority opens nothing that is out of range
(audits/proofs/homomorphic_aggregation.md).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, LocalProtocolError
from privfedrl.he.parameter_sets import PARAMETER_SETS, ParameterSet
from privfedrl.he.residues import packed_bytes
from privfedrl.parties.binding import digest

__all__ = [
    "MAX_LIFETIME_S",
    "MAX_VECTOR_LENGTH",
    "MIN_GUARD_BITS",
    "PARAMETER_BYTES",
    "HEParameters",
    "Readding",
]

MAX_VECTOR_LENGTH: Final = 2**26
"""The widest ciphertexts of so many coordinates still fit the 32-bit length field of a frame."""

MAX_LIFETIME_S: Final = 366 * 24 * 3600
"""The key of one round is not kept for longer than a year."""

MIN_GUARD_BITS: Final = 3
"""log2 of how many times more a slot can hold than an honest sum can be, at least."""

Readding = Literal["key-authority", "auditor", "none"]
"""Who adds the uploads up again before anything is decrypted; see :class:`HEParameters`."""

Differencing = Literal["off", "model", "task"]
RingVector = NDArray[np.unsignedinteger]

_FORMAT: Final = struct.Struct(">32s12Q")
PARAMETER_BYTES: Final = _FORMAT.size
_NUMBERS: Final = (
    "num_clients",
    "max_colluding",
    "vector_length",
    "ring_bits",
    "value_bits",
    "sum_bits",
    "threshold",
    "min_clients",
    "min_honest",
    "lifetime_s",
)
_RANGES: Final = {
    "num_clients": (2, 64),  # the largest max_clients of any set
    "max_colluding": (0, 63),
    "vector_length": (1, MAX_VECTOR_LENGTH),
    "ring_bits": (32, 64),
    "value_bits": (0, 64),  # 0: by default
    "sum_bits": (0, 64),
    "threshold": (1, 64),
    "min_clients": (2, 64),
    "min_honest": (2, 64),
    "lifetime_s": (1, MAX_LIFETIME_S),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HEParameters:
    """Parameters of a homomorphic round.

    Attributes:
        num_clients: n, registered agents, 2 to the parameter set's max_clients.
        max_colluding: c, how many of them may collude with the aggregator.
        vector_length: D, 1 to 2^26.
        ring_bits: 32 or 64: the vectors are uint32 or uint64, and so is their sum.
        parameter_set: the lattice; ``ParameterSet.named("bfv-4096-std")`` unless another is given.
        value_bits: w0: sums are exact modulo 2^w0, and come back centred, as residues modulo
            2^ring_bits. At most ring_bits. By default ring_bits, or what one lane holds.
        sum_bits: sums outside [-2^(sum_bits - 1), 2^(sum_bits - 1)) are not opened; at most
            value_bits, and that by default, which refuses nothing that is well-formed.
        threshold: fewest contributors of a sum that is decrypted.
        min_clients: the same from the agents' point of view; the larger of both counts.
        min_honest: fewest of them that are honest.
        lifetime_s: seconds after its opening during which a round may be finished.
        readding: who re-adds the uploads and compares before decryption. "key-authority" holds
            against an aggregator that lies about the sum, but the authority then holds what it
            could decrypt one by one; "auditor" leaves that to a third party without a key; "none"
            trusts the aggregator to have added.
        differencing: as in the pairwise protocol: what the key authority's journal compares.
    Raises:
        ConfigurationError: with one line per problem in ``problems``.
    """

    num_clients: int
    max_colluding: int
    vector_length: int
    ring_bits: int = 32
    parameter_set: ParameterSet = field(default_factory=lambda: ParameterSet.named("bfv-4096-std"))
    value_bits: int = 0
    sum_bits: int = 0
    threshold: int
    min_clients: int = 2
    min_honest: int = 2
    lifetime_s: int = 6 * 3600
    readding: Readding = "key-authority"
    differencing: Differencing = "off"

    def __post_init__(self) -> None:
        # each step computes with what the one before has bounded: the numbers may be a stranger's
        problems = self._type_problems()
        if not problems:
            self._fill_in()
            problems = self._value_problems() or self._room_problems()
        if problems:
            raise ConfigurationError("; ".join(problems), problems=tuple(problems))

    def _fill_in(self) -> None:
        """The defaults that depend on other fields."""
        if self.value_bits == 0:
            guard = MIN_GUARD_BITS if self.parameter_set.exact else 0
            one_lane = self.parameter_set.plain_bits - _carry_bits(self.num_clients) - guard
            object.__setattr__(self, "value_bits", min(self.ring_bits, max(1, one_lane)))
        if self.sum_bits == 0:
            object.__setattr__(self, "sum_bits", self.value_bits)

    def _type_problems(self) -> list[str]:
        problems = []
        for name in _NUMBERS:
            value, (low, high) = getattr(self, name), _RANGES[name]
            if not _is_integer(value) or not low <= value <= high:
                problems.append(f"{name} must be an integer in {low} .. {high}, got {value!r}")
        chosen = self.parameter_set
        # its name stands for it in plans and digests: no other set may bear it
        if not isinstance(chosen, ParameterSet) or PARAMETER_SETS.get(chosen.name) != chosen:
            problems.append(f"parameter_set must be one of the named sets, got {chosen!r}")
        if self.ring_bits not in (32, 64):
            problems.append(f"ring_bits must be 32 or 64, got {self.ring_bits!r}")
        for name, allowed in (("readding", Readding), ("differencing", Differencing)):
            if getattr(self, name) not in get_args(allowed):
                problems.append(
                    f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}"
                )
        return problems

    def _value_problems(self) -> list[str]:
        problems, chosen = [], self.parameter_set
        if self.num_clients > chosen.max_clients:
            problems.append(
                f"num_clients must be <= {chosen.max_clients} with {chosen.name}, "
                f"got {self.num_clients}"
            )
        if self.value_bits > self.ring_bits:
            problems.append(
                f"value_bits must be <= ring_bits = {self.ring_bits}, got {self.value_bits}"
            )
        if self.sum_bits > self.value_bits:
            problems.append(
                f"sum_bits must be <= value_bits = {self.value_bits}, got {self.sum_bits}"
            )
        if not max(self.max_colluding + 1, self.min_clients) <= self.num_clients:
            problems.append(
                "max_colluding must be < num_clients and min_clients <= num_clients = "
                f"{self.num_clients}, got {self.max_colluding} and {self.min_clients}"
            )
        if not self.threshold <= self.num_clients:
            problems.append(
                f"threshold must be <= num_clients = {self.num_clients}, got {self.threshold}"
            )
        if self.floor - self.max_colluding < self.min_honest:
            problems.append(
                f"threshold - max_colluding must be >= min_honest = {self.min_honest}, "
                f"got {self.floor} - {self.max_colluding}"
            )
        return problems

    def _room_problems(self) -> list[str]:
        chosen, values = self.parameter_set, f"{self.num_clients} values of {self.value_bits} bits"
        if self.lane_bits > chosen.plain_bits:
            return [
                f"a lane of {chosen.name} has at most {chosen.plain_bits} bits, a sum of {values} "
                f"takes {self.lane_bits}"
            ]
        if self.lanes == 0:
            return [
                f"a slot of {chosen.name} has no {MIN_GUARD_BITS} bits to spare beside a sum of "
                f"{values}: fewer value_bits or sum_bits"
            ]
        return []

    @property
    def floor(self) -> int:
        """Fewest contributors of a sum that is decrypted."""
        return max(self.threshold, self.min_clients)

    @property
    def lane_bits(self) -> int:
        """w, bits of a lane."""
        return self.value_bits + _carry_bits(self.num_clients)

    @property
    def lanes(self) -> int:
        """L, lanes in a slot: as many as leave the guard; CKKS has one."""
        if not self.parameter_set.exact:
            return 1
        most = self.parameter_set.plain_bits // self.lane_bits
        return next((n for n in range(most, 0, -1) if self._guard(n) >= MIN_GUARD_BITS), 0)

    @property
    def guard_bits(self) -> float:
        """log2 of what a slot can hold over what an honest sum in it can be; 0 for CKKS.

        CKKS has no such guard: a perturbation can be as small as its maker likes.
        """
        return self._guard(self.lanes) if self.parameter_set.exact else 0.0

    def _guard(self, lanes: int) -> float:
        t, n = self.parameter_set.plain_modulus or 1, self.num_clients
        honest = min(n * (2**self.value_bits - 1) + 1, (n + 1) * 2**self.sum_bits)
        return math.log2(t) - lanes * math.log2(honest)

    @property
    def slots(self) -> int:
        """W, slots that a vector fills."""
        return -(-self.vector_length // self.lanes)

    @property
    def slots_per_ciphertext(self) -> int:
        """Slots of a ciphertext that a vector fills: BFV leaves the last one empty.

        A malformed ciphertext can add 0 or 1, as a coefficient of the key is, to all slots alike;
        that is in range everywhere but in a slot that must be zero.
        """
        chosen = self.parameter_set
        return chosen.slots - 1 if chosen.exact else chosen.slots

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of one vector."""
        return -(-self.slots // self.slots_per_ciphertext)

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of all ciphertexts of one vector."""
        chosen = self.parameter_set
        return self.ciphertexts * packed_bytes(chosen.sent_primes, chosen.degree)

    def to_slots(self, vector: RingVector) -> NDArray[np.uint64] | NDArray[np.int64]:
        """Plaintext slots [ciphertexts, slots] of a vector, uint32 or uint64 [D] by ring_bits.

        Guarantees:
            two sets of equally many vectors, all within the range of a lane and with equal integer
            sums, have slots with equal sums. Lanes behind the vector's end and empty slots are 0.
        Raises:
            LocalProtocolError: another dtype or shape.
        """
        dtype = np.dtype(f"uint{self.ring_bits}")
        if vector.dtype != dtype or vector.shape != (self.vector_length,):
            raise LocalProtocolError(
                f"vector must be {dtype} [{self.vector_length}], got {vector.dtype} {vector.shape}"
            )
        values = vector.astype(np.uint64) & np.uint64(self._value_mask)
        if not self.parameter_set.exact:
            return self._padded(_centred(values, self.value_bits))
        values += np.uint64(self._half)
        values &= np.uint64(self._value_mask)
        slots = np.zeros(self.slots, dtype=np.uint64)
        for lane in range(self.lanes):
            part = values[lane * self.slots : (lane + 1) * self.slots]
            slots[: part.size] |= part << np.uint64(lane * self.lane_bits)
        return self._padded(slots)

    def from_slots(self, slots: NDArray[Any], contributors: int) -> RingVector:
        """The sum that opened slots hold: uint32 or uint64 [D], the centred residue mod 2^w0.

        Args:
            contributors: how many vectors were added, 1 to num_clients: each brought its offset.
        Raises:
            LocalProtocolError: another number of contributors.
        """
        if not _is_integer(contributors) or not 1 <= contributors <= self.num_clients:
            raise LocalProtocolError(
                f"contributors must be an integer in 1 .. {self.num_clients}, got {contributors!r}"
            )
        flat = slots[:, : self.slots_per_ciphertext].reshape(-1)[: self.slots]
        values = np.empty(self.vector_length, dtype=np.uint64)
        if not self.parameter_set.exact:
            values[:] = flat.view(np.uint64)
        else:
            for lane in range(self.lanes):
                part = values[lane * self.slots : (lane + 1) * self.slots]
                np.right_shift(flat[: part.size], np.uint64(lane * self.lane_bits), out=part)
            values -= np.uint64(contributors * self._half & self._value_mask)
        values &= np.uint64(self._value_mask)
        centred = _centred(values, self.value_bits)
        return centred.view(np.uint64).astype(np.dtype(f"uint{self.ring_bits}"))

    @property
    def _half(self) -> int:
        """What is added to each value of a lane, so that negative ones do not show."""
        return 1 << (self.value_bits - 1)

    @property
    def _value_mask(self) -> int:
        return (1 << self.value_bits) - 1

    def _padded(self, slots: NDArray[Any]) -> NDArray[Any]:
        room, per = self.ciphertexts, self.slots_per_ciphertext
        filled = np.zeros(room * per, dtype=slots.dtype)
        filled[: slots.size] = slots
        out = np.zeros((room, self.parameter_set.slots), dtype=slots.dtype)
        out[:, :per] = filled.reshape(room, per)
        return out

    def canonical_bytes(self) -> bytes:
        """The same bytes for equal parameters, different ones for different parameters."""
        return _FORMAT.pack(
            self.parameter_set.name.encode("ascii"),
            *(getattr(self, name) for name in _NUMBERS),
            get_args(Readding).index(self.readding),
            get_args(Differencing).index(self.differencing),
        )

    @classmethod
    def from_canonical_bytes(cls, data: bytes) -> HEParameters:
        """Inverse of :meth:`canonical_bytes`; ConfigurationError for anything else."""
        if len(data) != PARAMETER_BYTES:
            raise ConfigurationError(f"parameters must be {PARAMETER_BYTES} bytes, got {len(data)}")
        name, *numbers, readding, differencing = _FORMAT.unpack(data)
        try:
            found = cls(
                **dict(zip(_NUMBERS, numbers, strict=True)),
                parameter_set=ParameterSet.named(name.rstrip(b"\x00").decode("ascii")),
                readding=get_args(Readding)[readding],
                differencing=get_args(Differencing)[differencing],
            )
        except (IndexError, UnicodeDecodeError) as error:
            raise ConfigurationError("parameters name an unknown choice") from error
        if found.canonical_bytes() != data:
            raise ConfigurationError("parameters are not in canonical form")
        return found

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical bytes, all moduli behind the set's name, and the lanes' code.

        Sums of plain residues and of offset ones would be taken for each other without the last.
        """
        chosen = self.parameter_set
        moduli = (*chosen.primes, chosen.plain_modulus or 0, chosen.scale_bits or 0, chosen.degree)
        return digest(
            "he-parameters",
            self.canonical_bytes(),
            *(number.to_bytes(8, "big") for number in moduli),
            b"offset-binary",
        )


def _carry_bits(clients: int) -> int:
    return max(0, (clients - 1).bit_length())


def _centred(values: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """Residues mod 2^bits as the integers in [-2^(bits-1), 2^(bits-1))."""
    shift = np.uint64(64 - bits)
    return (values << shift).view(np.int64) >> np.int64(64 - bits)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
