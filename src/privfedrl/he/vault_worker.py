"""The vault's child process: makes one key pair, decrypts one sum, ends.

Guarantee: before a key exists, the process has given up core dumps, tracing and most memory, time
and files; it dies with its parent; and nothing that it writes but the public key and the slots of
one sum depends on the secret key.

Started by ``privfedrl.he.vault`` only. Frames on standard input and output, lengths big-endian:

    request 1   length | name of the parameter set
    answer 1    length | status | packed public key, or the text of an error
    request 2   length | count (8 bytes) | packed ciphertexts
    answer 2    length | status | slots, 8 bytes each, little-endian, or the text of an error

No object travels: names, residues and integers only. This module loads the standard library alone;
numpy and TenSEAL come when the process knows where their prints go.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final

from privfedrl.errors import PrivfedrlError, RemoteProtocolError

__all__ = ["confine", "end_with_parent", "main", "serve"]

LENGTH: Final = struct.Struct(">Q")
OK: Final = 0
REMOTE_FAULT: Final = 1
"""The ciphertexts are no residues."""
OUT_OF_MEMORY: Final = 2
FAULT: Final = 3
STATUSES: Final = (OK, REMOTE_FAULT, OUT_OF_MEMORY, FAULT)

NAME_BYTES: Final = 64
TEXT_BYTES: Final = 500
CIPHERTEXT_BYTES: Final = 2**32
"""Most bytes in one request: what the 32-bit length field of a round's frame can carry."""

BASE_MEMORY_BYTES: Final = 2**30
"""Address space without a request: interpreter, numpy, SEAL and a key take 0.12 GiB on Linux."""
MEMORY_FACTOR: Final = 8
"""Address space per byte of ciphertexts: they and all that is made of them take 5 (measured)."""

OPEN_FILES: Final = 32
FILE_BYTES: Final = 4 * 2**20
"""Largest file: SEAL's objects pass through files in memory, at most 1.8 MB each (N = 16384)."""

_SET_DEATH_SIGNAL, _SET_DUMPABLE = 1, 4  # linux/prctl.h


def main(arguments: Sequence[str]) -> None:
    """Serve one request of each kind on standard input and output, and end the process.

    Args:
        arguments: process number of the parent, 1 if its main thread starts this process and else
            0, memory limit in bytes (0 = in proportion to the request), seconds of processor time.
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # SEAL and TenSEAL may print; standard output belongs to the protocol
    parent, main_thread, memory_bytes, cpu_s = (int(argument) for argument in arguments)
    end_with_parent(parent, main_thread=bool(main_thread))
    with open(0, "rb", closefd=False) as requests:
        serve(requests, answers, lambda size: confine(size, memory_bytes=memory_bytes, cpu_s=cpu_s))
    os._exit(0)  # no clean-up that could still touch the key; the system wipes the pages


def serve(requests: BinaryIO, answers: int, limit: Callable[[int], None]) -> None:
    """Answer a request for a key and one for a decryption; stop at the first that fails.

    Args:
        answers: file descriptor.
        limit: called with 0 before the key exists, and with the size of the ciphertexts before
            they are read; what it raises ends the service.
    """
    try:
        _serve(requests, answers, limit)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone or wants no more
    except RemoteProtocolError as error:
        _send(answers, REMOTE_FAULT, _text(error))
    except MemoryError:
        _send(answers, OUT_OF_MEMORY, b"")
    except PrivfedrlError as error:
        _send(answers, FAULT, _text(error))
    except Exception as error:  # noqa: BLE001 - the name only: a foreign text might quote the key
        _send(answers, FAULT, type(error).__name__.encode())


def _serve(requests: BinaryIO, answers: int, limit: Callable[[int], None]) -> None:
    from privfedrl.he.lattice import Decryptor, load_libraries
    from privfedrl.he.parameter_sets import ParameterSet
    from privfedrl.he.residues import packed_bytes

    load_libraries()  # takes files and memory that a key holder must not have
    limit(0)
    name = _read(requests, _length(requests, NAME_BYTES)).decode("ascii")
    parameters = ParameterSet.named(name)
    decryptor = Decryptor(parameters)
    _send(answers, OK, decryptor.public_key)
    size = _length(requests, LENGTH.size + CIPHERTEXT_BYTES) - LENGTH.size
    (count,) = LENGTH.unpack(_read(requests, LENGTH.size))
    if not count or size != count * packed_bytes(parameters.sent_primes, parameters.degree):
        raise RemoteProtocolError(f"{count} ciphertexts cannot be {size} bytes")
    limit(size)
    slots = decryptor.decrypt(_read(requests, size), count)
    _send(answers, OK, slots.astype(slots.dtype.newbyteorder("<"), copy=False).data.cast("B"))


def confine(request_bytes: int, *, memory_bytes: int, cpu_s: int) -> None:
    """Limit this process; a second call may only move the soft memory limit.

    Args:
        request_bytes: ciphertexts that will be held.
        memory_bytes: most address space; 0 = BASE_MEMORY_BYTES + MEMORY_FACTOR * request_bytes.
        cpu_s: seconds of processor time from the first call on.
    Raises:
        OSError, ValueError: the system refuses (on Linux; elsewhere a limit that is unknown to the
            system is left out).
    """
    import resource

    memory = memory_bytes or BASE_MEMORY_BYTES + MEMORY_FACTOR * request_bytes
    if request_bytes:
        _limit(resource.RLIMIT_AS, memory, None)
        return
    most = memory_bytes or BASE_MEMORY_BYTES + MEMORY_FACTOR * CIPHERTEXT_BYTES
    seconds = cpu_s + int(time.process_time()) + 1
    _limit(resource.RLIMIT_CORE, 0, 0)
    _limit(resource.RLIMIT_CPU, seconds, seconds)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    _limit(resource.RLIMIT_FSIZE, FILE_BYTES, FILE_BYTES)
    _limit(resource.RLIMIT_AS, memory, most)
    _prctl(_SET_DUMPABLE, 0)


def end_with_parent(parent: int, *, main_thread: bool) -> None:
    """End this process when process ``parent`` ends, however that ends.

    The end of standard input says so too, but not while somebody else has inherited its other end.
    Linux sends the death signal when the *thread* that started this process ends. A main thread
    ends with its process, so it may kill; after any other, the signal has to look.
    """

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGUSR1, look)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL if main_thread else signal.SIGUSR1)
    look()  # the parent may have ended before this line


def _limit(kind: int, soft: int, hard: int | None) -> None:
    """Set a limit, never above what this process has inherited; None keeps the hard limit."""
    import resource

    _, inherited = resource.getrlimit(kind)
    most = inherited if hard is None else _least(hard, inherited)
    try:
        resource.setrlimit(kind, (_least(soft, most), most))
    except (OSError, ValueError):
        if sys.platform == "linux":
            raise


def _least(wanted: int, allowed: int) -> int:
    import resource

    return wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _length(requests: BinaryIO, most: int) -> int:
    (length,) = LENGTH.unpack(_read(requests, LENGTH.size))
    if length > most:
        raise RemoteProtocolError(f"a request of at most {most} bytes was due, got {length}")
    return int(length)


def _read(requests: BinaryIO, size: int) -> bytes:
    data = requests.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _send(answers: int, status: int, body: bytes | memoryview) -> None:
    for part in (LENGTH.pack(1 + len(body)) + bytes([status]), body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(answers, rest) :]


def _text(error: Exception) -> bytes:
    return str(error).encode("ascii", "replace")[:TEXT_BYTES]
