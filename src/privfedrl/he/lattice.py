"""The only module that touches TenSEAL: keys, encryption and decryption over packed residues.

Guarantee: nothing but residues that ``residues.unpack`` has checked ever enters SEAL from outside:
its headers, sizes, scales and parameter identifiers are written here, from the parameter set. A
:class:`Encryptor` holds no secret key. The key of a :class:`Decryptor` never leaves its process.

SEAL draws its randomness from the operating system (std::random_device) whatever the caller's
entropy is; a BFV sum does not depend on it.

SEAL reads and writes files only; what is written there is public. Format: SEAL 4.3,
``native/src/seal/serialization.h`` and ``Ciphertext::save_members``.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import ConfigurationError, LocalProtocolError, MissingExtraError
from privfedrl.he.parameter_sets import CKKS_GRID_BITS, ParameterSet
from privfedrl.he.residues import Residues, pack, packed_bytes, unpack

__all__ = ["SEAL_VERSION", "Decryptor", "Encryptor", "load_libraries", "public_key_bytes"]

SEAL_VERSION: Final = "4.3"
"""Wire version of the SEAL that this module writes for; named in every transcript.

SEAL 4.4.0 is labelled by its authors a critical security update of its deserialisation. What it
mends cannot be reached from here: no byte of a SEAL header comes from a peer.
"""

_HEADER: Final = struct.Struct("<HBBBBHQ")
_MAGIC, _HEADER_BYTES = 0xA15E, 16
_PLAIN, _ZSTD = 0, 2
_MEMBERS: Final = struct.Struct("<4QB3QdQ")
"""Parameter identifier, NTT form, polynomials, degree, primes, scale, correction factor."""
_OWN_FILES: Final = "/proc/self/fd/"
_COUNT: Final = struct.Struct("<Q")

Slots = NDArray[Any]
"""uint64 for BFV, int64 for CKKS."""


def public_key_bytes(parameters: ParameterSet) -> int:
    """Size of a packed public key; it has residues of the special prime too."""
    return packed_bytes(parameters.primes, parameters.degree)


class _Scheme:
    """SEAL's context for one parameter set, and the way in and out of it."""

    def __init__(self, parameters: ParameterSet) -> None:
        self.parameters = parameters
        self.seal = seal = _sealapi()
        exact = parameters.exact
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV if exact else seal.SCHEME_TYPE.CKKS)
        chosen.set_poly_modulus_degree(parameters.degree)
        chosen.set_coeff_modulus([seal.Modulus(prime) for prime in parameters.primes])
        if exact:
            chosen.set_plain_modulus(seal.Modulus(parameters.plain_modulus))
        self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ConfigurationError(
                f"SEAL refuses {parameters.name}: {self.context.parameters_error_message()}"
            )
        self._encoder = (seal.BatchEncoder if exact else seal.CKKSEncoder)(self.context)
        self._lock, self._process = threading.Lock(), os.getpid()
        self._file, self._path = _scratch()

    def __del__(self) -> None:
        if hasattr(self, "_path"):
            os.close(self._file)
            if not self._path.startswith(_OWN_FILES) and os.getpid() == self._process:
                os.unlink(self._path)

    def encode(self, slots: Slots) -> Any:
        plain = self.seal.Plaintext()
        if self.parameters.exact:
            self._encoder.encode(slots.tolist(), plain)
        else:
            values = slots.astype(np.float64) / 2.0**CKKS_GRID_BITS
            self._encoder.encode(values.tolist(), 2.0 ** (self.parameters.scale_bits or 0), plain)
        return plain

    def decode(self, plain: Any) -> Slots:
        if self.parameters.exact:
            return np.array(self._encoder.decode_uint64(plain), dtype=np.uint64)
        values = np.array(self._encoder.decode_double(plain), dtype=np.float64)
        return np.rint(values * 2.0**CKKS_GRID_BITS).astype(np.int64)

    def ciphertext(self, residues: Residues) -> Any:
        """A SEAL ciphertext around checked residues, [2, primes, N]."""
        scale = 1.0 if self.parameters.exact else 2.0 ** (self.parameters.scale_bits or 0)
        # BFV ciphertexts are kept in coefficient form, CKKS ones in NTT form
        members = self._members(
            self.context.first_parms_id(), residues, ntt=not self.parameters.exact, scale=scale
        )
        return self._load(self.seal.Ciphertext(), members, residues)

    def public_key(self, residues: Residues) -> Any:
        """A SEAL public key around checked residues, [2, all primes, N]."""
        members = self._members(self.context.key_parms_id(), residues, ntt=True, scale=1.0)
        return self._load(self.seal.PublicKey(), members, residues)

    def residues(self, saved: Any, primes: int) -> Residues:
        """The residues of an object that this process made."""
        with self._own_file():
            os.ftruncate(self._file, 0)
            saved.save(self._path)
            data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        body = _inflate(data, most=_MEMBERS.size + 64 + 16 * primes * self.parameters.degree)
        shape = (2, primes, self.parameters.degree)
        words = np.frombuffer(body[-8 * int(np.prod(shape)) :], dtype="<u8")
        return words.reshape(shape).astype(np.uint64, copy=False)

    def _members(self, identifier: list[int], residues: Residues, **form: Any) -> bytes:
        polynomials, primes, degree = residues.shape
        return _MEMBERS.pack(
            *identifier, form["ntt"], polynomials, degree, primes, form["scale"], 1
        )

    def _load(self, target: Any, members: bytes, residues: Residues) -> Any:
        words = residues.astype("<u8", copy=False).tobytes()
        array = _COUNT.pack(residues.size) + words
        body = members + _header(len(array)) + array
        with self._own_file():
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _header(len(body)) + body, 0)
            target.load(self.context, self._path)
        return target

    @contextmanager
    def _own_file(self) -> Iterator[None]:
        """One thread at a time, and none of a forked child, which shares the file."""
        if os.getpid() != self._process:
            raise LocalProtocolError("keys are not carried over a fork: make new ones in the child")
        with self._lock:
            yield


class Encryptor:
    """Encrypts under one public key.

    Args:
        parameters: the set that the key was made for.
        public_key: packed residues, as :attr:`Decryptor.public_key` gives them.
    Raises:
        RemoteProtocolError: these are no residues modulo the set's primes.
        MissingExtraError: TenSEAL is absent.
    """

    def __init__(self, parameters: ParameterSet, public_key: bytes | memoryview) -> None:
        (residues,) = unpack(public_key, parameters.primes, parameters.degree, 1)
        self._scheme = _Scheme(parameters)
        key = self._scheme.public_key(residues)
        self._encryptor = self._scheme.seal.Encryptor(self._scheme.context, key)

    def encrypt(self, slots: Slots) -> bytes:
        """Packed ciphertexts, one per row.

        Args:
            slots: [count, slots]; BFV: uint64 below the plain modulus; CKKS: int64 in
                [-2^27, 2^27), a grid integer each.
        Raises:
            LocalProtocolError: a value is out of range; SEAL would wrap it silently.
        """
        parameters = self._scheme.parameters
        _check_slots(slots, parameters)
        primes = parameters.sent_primes
        out = np.empty((len(slots), 2, len(primes), parameters.degree), dtype=np.uint64)
        ciphertext = self._scheme.seal.Ciphertext()
        for index, row in enumerate(slots):
            self._encryptor.encrypt(self._scheme.encode(row), ciphertext)
            out[index] = self._scheme.residues(ciphertext, len(primes))
        return pack(out, primes)


class Decryptor:
    """A fresh key pair, and what can be done with its secret half.

    Raises:
        MissingExtraError: TenSEAL is absent.
    """

    def __init__(self, parameters: ParameterSet) -> None:
        self._scheme = scheme = _Scheme(parameters)
        generator = scheme.seal.KeyGenerator(scheme.context)
        public = scheme.seal.PublicKey()
        generator.create_public_key(public)
        self.public_key: bytes = pack(
            scheme.residues(public, len(parameters.primes))[None], parameters.primes
        )
        """Packed residues of the public half."""
        self._decryptor = scheme.seal.Decryptor(scheme.context, generator.secret_key())

    def decrypt(self, ciphertexts: bytes, count: int) -> Slots:
        """The slots of ``count`` packed ciphertexts: uint64 (BFV) or int64 (CKKS) [count, slots].

        Raises:
            RemoteProtocolError: these are no residues modulo the set's primes.
        """
        parameters = self._scheme.parameters
        residues = unpack(ciphertexts, parameters.sent_primes, parameters.degree, count)
        dtype = np.uint64 if parameters.exact else np.int64
        plain = self._scheme.seal.Plaintext()
        rows = []
        for pair in residues:
            self._decryptor.decrypt(self._scheme.ciphertext(pair), plain)
            rows.append(self._scheme.decode(plain))
        out: Slots = np.array(rows, dtype=dtype).reshape(count, parameters.slots)
        return out

    def noise_budget(self, ciphertexts: bytes, count: int) -> int:
        """Fewest bits of noise budget left in any of the BFV ciphertexts; 0 = may be wrong.

        It is about accidents: a malformed ciphertext can have budget and open to anything.

        Raises:
            ConfigurationError: the set is of CKKS, which has no such budget.
        """
        parameters = self._scheme.parameters
        if not parameters.exact:
            raise ConfigurationError(f"{parameters.name} has no noise budget, only BFV has")
        residues = unpack(ciphertexts, parameters.sent_primes, parameters.degree, count)
        return min(
            int(self._decryptor.invariant_noise_budget(self._scheme.ciphertext(pair)))
            for pair in residues
        )

    def __repr__(self) -> str:
        return f"Decryptor({self._scheme.parameters.name})"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a decryptor holds a secret key and refuses to be pickled")


def _check_slots(slots: Slots, parameters: ParameterSet) -> None:
    dtype = np.dtype(np.uint64 if parameters.exact else np.int64)
    if slots.dtype != dtype or slots.ndim != 2 or slots.shape[1] != parameters.slots:
        raise LocalProtocolError(
            f"slots must be {dtype} [count, {parameters.slots}], got {slots.dtype} {slots.shape}"
        )
    if not slots.size:
        return
    bound = parameters.plain_modulus or 2 ** (parameters.plain_bits - 1)
    if int(slots.max()) >= bound or int(slots.min()) < (0 if parameters.exact else -bound):
        raise LocalProtocolError(f"a slot is outside the range of {parameters.name}")


def _header(length: int) -> bytes:
    """SEAL's own header of an uncompressed object with ``length`` bytes after it."""
    major, minor = (int(part) for part in SEAL_VERSION.split("."))
    total = _HEADER_BYTES + length
    return _HEADER.pack(_MAGIC, _HEADER_BYTES, major, minor, _PLAIN, 0, total)


def _inflate(data: bytes, *, most: int) -> bytes:
    """What follows the header of an object that SEAL saved here, decompressed."""
    if len(data) < _HEADER_BYTES:
        raise ConfigurationError("SEAL wrote nothing; is there room for its file?")
    magic, size, major, minor, mode, _, total = _HEADER.unpack_from(data)
    version = f"{major}.{minor}"
    form = magic, size, total, mode in (_PLAIN, _ZSTD)
    if form != (_MAGIC, _HEADER_BYTES, len(data), True) or version != SEAL_VERSION:
        raise ConfigurationError(
            f"TenSEAL must embed SEAL {SEAL_VERSION}, it writes version {version}"
        )
    body = data[_HEADER_BYTES:]
    if mode == _ZSTD:
        body = _zstandard().ZstdDecompressor().decompressobj().decompress(body)
    if len(body) > most:
        raise ConfigurationError("SEAL wrote a larger object than its parameters allow")
    return body


def _scratch() -> tuple[int, str]:
    """A file for SEAL to read and write: without a name and in memory where the system has such."""
    if hasattr(os, "memfd_create") and os.path.isdir(_OWN_FILES):
        file = os.memfd_create("privfedrl-he", os.MFD_CLOEXEC)
        return file, f"{_OWN_FILES}{file}"
    return tempfile.mkstemp(prefix="privfedrl-he-")


def load_libraries() -> None:
    """Import what this module needs now rather than at first use; MissingExtraError if absent."""
    _sealapi()
    _zstandard()


def _sealapi() -> Any:
    try:
        import tenseal.sealapi as seal
    except ModuleNotFoundError as error:
        raise MissingExtraError("tenseal", extra="he") from error
    return seal


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtraError("zstandard", extra="he") from error
    return zstandard
