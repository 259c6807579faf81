"""The vault: one key pair, one decryption, then the secret key is gone.

Guarantee: the secret key of a :class:`Vault` exists only in a child process with limited memory,
time and files, never in the process that owns the vault. The child decrypts at most once and ends
with its answer, with any error, with :meth:`Vault.destroy`, with the vault object and with the
parent, whichever comes first. Ending the process is destroying the key; pages that the system has
swapped out are the operator's concern.

What the child says is checked for status and exact length before it is used; no object is ever
rebuilt from bytes. Frames: ``privfedrl.he.vault_worker``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from privfedrl.errors import (
    ConfigurationError,
    LocalProtocolError,
    MissingExtraError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he.lattice import Decryptor, public_key_bytes
from privfedrl.he.parameter_sets import PARAMETER_SETS, ParameterSet
from privfedrl.he.residues import packed_bytes
from privfedrl.he.vault_worker import (
    CIPHERTEXT_BYTES,
    LENGTH,
    OK,
    OUT_OF_MEMORY,
    REMOTE_FAULT,
    STATUSES,
    TEXT_BYTES,
)

__all__ = ["LocalVault", "SecretKey", "Vault"]

Slots = NDArray[Any]
"""[count, slots]: uint64 for BFV, int64 for CKKS."""

_SLOT_BYTES: Final = 8
_CHUNK: Final = 2**20
_START: Final = (
    "import sys; at = sys.argv.index('--'); sys.path[:] = sys.argv[at + 1 :]; "
    "from privfedrl.he.vault_worker import main; main(sys.argv[1:at])"
)
_LIBRARY_PATHS: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""All that is kept of the environment: where numpy and TenSEAL may need it, the parent did too."""


class SecretKey(Protocol):
    """Where a round's secret key lives: :class:`Vault`, :class:`LocalVault` or a device."""

    def open(self, parameters: ParameterSet) -> bytes:
        """The packed public key of a fresh pair; once."""
        ...

    def decrypt(self, ciphertexts: bytes, count: int) -> Slots:
        """The slots of ``count`` packed ciphertexts; once, and the key is gone afterwards."""
        ...

    def destroy(self) -> None:
        """Forget the key; may be called at any time and repeatedly."""
        ...


class _SingleUse(ABC):
    """The rules that both vaults keep: fresh, then open, then ended; any error ends it."""

    def __init__(self) -> None:
        self._phase = "fresh"
        self._turn = threading.Lock()
        self._parameters: ParameterSet | None = None

    def open(self, parameters: ParameterSet) -> bytes:
        """Make the key pair.

        Returns:
            The public key, packed (``lattice.public_key_bytes(parameters)`` bytes).
        Raises:
            LocalProtocolError: this vault was opened before or has ended.
            ConfigurationError: this is none of the frozen PARAMETER_SETS.
            RoundAborted: "VaultFault": the child died, ran out of memory or time, or answered
                what it may not.
        """
        try:
            self._advance("fresh", "open")
            if PARAMETER_SETS.get(parameters.name) != parameters:
                raise ConfigurationError(
                    f"a vault opens frozen parameter sets, {parameters.name!r} is none of them"
                )
            self._parameters = parameters
            public_key = self._make_key(parameters)
            with self._turn:
                if self._phase == "ended":
                    raise _fault("the vault was destroyed while it was being opened")
            return public_key
        except BaseException:
            self.destroy()
            raise

    def decrypt(self, ciphertexts: bytes, count: int) -> Slots:
        """The slots of ``count`` packed ciphertexts; the key is destroyed, whatever happens.

        Returns:
            [count, slots]; uint64 below the plain modulus (BFV), int64 grid integers (CKKS).
        Raises:
            LocalProtocolError: this vault is not open, or count is not an integer >= 1.
            RemoteProtocolError: these are no residues modulo the set's primes, or not ``count``.
            RoundAborted: "VaultFault", as for :meth:`open`.
        """
        try:
            self._advance("open", "ended")
            assert self._parameters is not None
            _check_request(ciphertexts, count, self._parameters)
            return self._decrypt(ciphertexts, count, self._parameters)
        finally:
            self.destroy()

    def destroy(self) -> None:
        """End this vault and its key; idempotent, from any thread, also during a decryption."""
        with self._turn:
            self._phase = "ended"
        self._forget()

    def _advance(self, before: str, after: str) -> None:
        # of two threads that come at once, one finds the phase already changed
        with self._turn:
            if self._phase != before:
                raise LocalProtocolError(f"this needs a vault that is {before}, got {self!r}")
            self._phase = after

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._phase})"

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    @abstractmethod
    def _make_key(self, parameters: ParameterSet) -> bytes: ...

    @abstractmethod
    def _decrypt(self, ciphertexts: bytes, count: int, parameters: ParameterSet) -> Slots: ...

    @abstractmethod
    def _forget(self) -> None: ...


class Vault(_SingleUse):
    """A secret key in a child process of its own.

    The child starts at once and loads its libraries in the background, so a vault made before it is
    needed costs no waiting. Its address space is limited to ``memory_bytes``, or by default to
    1 GiB and, once the size of the request is known, 8 bytes more for each of its bytes.

    Args:
        memory_bytes: most address space of the child; None = in proportion to the request.
        timeout_s: most seconds for each of :meth:`open` and :meth:`decrypt`. The child gets twice
            as much processor time and a second.
    Raises:
        ConfigurationError: an argument is not positive and finite, or the platform starts no
            limited processes (use :class:`LocalVault`).
        MissingExtraError: TenSEAL or zstandard is absent.
        RoundAborted: "VaultFault": the system starts no process.
    """

    def __init__(self, *, memory_bytes: int | None = None, timeout_s: float = 60.0) -> None:
        super().__init__()
        if memory_bytes is not None and memory_bytes < 1:
            raise ConfigurationError(f"memory_bytes must be >= 1, got {memory_bytes}")
        if not 0 < timeout_s < math.inf:
            raise ConfigurationError(f"timeout_s must be > 0 and finite, got {timeout_s}")
        self._timeout_s = timeout_s
        self._process = _start(memory_bytes or 0, math.ceil(2 * timeout_s))
        self._pipes = threading.Lock()
        # also when nobody calls destroy: the vault is collected, the interpreter ends
        self._finalizer = weakref.finalize(self, _end, self._process, self._pipes)

    @property
    def alive(self) -> bool:
        """Whether the child, and with it the key, still exists."""
        return self._process.poll() is None

    def _make_key(self, parameters: ParameterSet) -> bytes:
        name = parameters.name.encode("ascii")
        return bytes(self._ask(LENGTH.pack(len(name)), name, due=public_key_bytes(parameters)))

    def _decrypt(self, ciphertexts: bytes, count: int, parameters: ParameterSet) -> Slots:
        head = LENGTH.pack(LENGTH.size + len(ciphertexts)) + LENGTH.pack(count)
        answer = self._ask(head, ciphertexts, due=_SLOT_BYTES * count * parameters.slots)
        wire, own = ("<u8", np.uint64) if parameters.exact else ("<i8", np.int64)
        out: Slots = np.frombuffer(answer, dtype=wire).astype(own)
        return out.reshape(count, parameters.slots)

    def _ask(self, *request: bytes, due: int) -> memoryview:
        """The body of the answer to ``request``, of ``due`` bytes; its errors are raised here."""
        with self._pipes:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            if self._process.stdin.closed:
                raise _fault("the vault was destroyed meanwhile")
            try:
                answer = _converse(
                    self._process.stdin, self._process.stdout, request, due, self._timeout_s
                )
            except EOFError:
                raise _fault(f"the child ended without an answer{self._exit()}") from None
        status, body = answer[LENGTH.size], memoryview(answer)[LENGTH.size + 1 :]
        if status == OK:
            return body
        text = bytes(body).decode("ascii", "replace")
        if status == REMOTE_FAULT:
            raise RemoteProtocolError(text)
        raise _fault("the child ran out of memory" if status == OUT_OF_MEMORY else text)

    def _exit(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return f" (exit status {self._process.wait(1.0)})"
        return ""

    def _forget(self) -> None:
        _end(self._process, self._pipes)


class LocalVault(_SingleUse):
    """A secret key in this very process, for platforms without limited processes and for tests.

    Single use like :class:`Vault`, but whoever reads this process's memory reads the key, and
    neither SEAL nor Python is known to wipe it. A key authority should use :class:`Vault`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._decryptor: Decryptor | None = None

    @property
    def alive(self) -> bool:
        """Whether this vault may still be used."""
        return self._phase != "ended"

    def _make_key(self, parameters: ParameterSet) -> bytes:
        self._decryptor = Decryptor(parameters)
        return self._decryptor.public_key

    def _decrypt(self, ciphertexts: bytes, count: int, parameters: ParameterSet) -> Slots:
        decryptor = self._decryptor
        if decryptor is None:
            raise _fault("the vault was destroyed meanwhile")
        return decryptor.decrypt(ciphertexts, count)

    def _forget(self) -> None:
        self._decryptor = None


def _check_request(ciphertexts: bytes, count: int, parameters: ParameterSet) -> None:
    size = packed_bytes(parameters.sent_primes, parameters.degree)
    if not isinstance(count, int) or not 1 <= count <= CIPHERTEXT_BYTES // size:
        raise LocalProtocolError(
            f"count must be an integer from 1 to {CIPHERTEXT_BYTES // size}, got {count!r}"
        )
    if len(ciphertexts) != count * size:
        raise RemoteProtocolError(
            f"ciphertexts must be {count * size} bytes, got {len(ciphertexts)}"
        )


def _start(memory_bytes: int, cpu_s: int) -> subprocess.Popen[bytes]:
    if sys.platform == "win32" or not sys.executable:
        raise ConfigurationError(
            "a Vault needs a POSIX system and a Python executable; LocalVault does without"
        )
    for package in ("tenseal", "zstandard"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra="he")
    by_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (os.getpid(), int(by_main_thread), memory_bytes, cpu_s)
    try:
        return subprocess.Popen(  # noqa: S603 - this interpreter, and arguments made here
            [sys.executable, *_options(), *map(str, numbers), "--", *_import_path()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            close_fds=True,
            start_new_session=True,
            cwd="/",
            env=_environment(),
        )
    except OSError as error:
        raise _fault(f"no child process: {error.strerror}") from error


def _options() -> tuple[str, ...]:
    # isolated, without site (its hooks run code that a key holder does not need), writing no caches
    return ("-I", "-S", "-B", "-c", _START)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ}
    return {"LC_ALL": "C", "OMP_NUM_THREADS": "1", **kept}


def _import_path() -> list[str]:
    """Where this process imports from, without what depends on the working directory."""
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    own = str(Path(os.path.abspath(__file__)).parents[2])
    # an editable install may have been found by a hook, a checkout through a relative entry
    return path if own in path else [own, *path]


def _converse(
    to_child: IO[bytes], from_child: IO[bytes], request: Sequence[bytes], due: int, timeout_s: float
) -> bytearray:
    """Send ``request`` and return the whole frame that answers it.

    Raises:
        EOFError: the child closed its end first.
        RoundAborted: no answer in time, or one that no child would give.
    """
    deadline = time.monotonic() + timeout_s
    rest, answer = deque(memoryview(part) for part in request), bytearray()
    with selectors.DefaultSelector() as ready:
        for pipe, event in ((to_child, selectors.EVENT_WRITE), (from_child, selectors.EVENT_READ)):
            os.set_blocking(pipe.fileno(), False)
            ready.register(pipe, event)
        while not _is_whole(answer, due):
            left = deadline - time.monotonic()
            if left <= 0:
                raise _fault(f"the child gave no answer within {timeout_s:g} s")
            for key, event in ready.select(left):
                if event == selectors.EVENT_READ:
                    answer += _receive(from_child)
                elif not _send_some(to_child, rest):
                    ready.unregister(key.fileobj)
    return answer


def _receive(pipe: IO[bytes]) -> bytes:
    data = os.read(pipe.fileno(), _CHUNK)
    if not data:
        raise EOFError
    return data


def _send_some(pipe: IO[bytes], rest: deque[memoryview]) -> bool:
    """Write what the pipe takes; whether anything is left to write."""
    try:
        written = os.write(pipe.fileno(), rest[0][:_CHUNK])
    except BrokenPipeError:  # the child has ended; what it may have answered says why
        return False
    rest[0] = rest[0][written:]
    if not rest[0]:
        rest.popleft()
    return bool(rest)


def _is_whole(answer: bytearray, due: int) -> bool:
    if len(answer) <= LENGTH.size:
        return False
    (length,), status = LENGTH.unpack_from(answer), answer[LENGTH.size]
    allowed = range(due + 1, due + 2) if status == OK else range(1, 1 + TEXT_BYTES + 1)
    total = LENGTH.size + length
    if status not in STATUSES or length not in allowed or len(answer) > total:
        raise _fault(f"the child answered status {status} and {length} bytes, which it may not")
    return bool(len(answer) == total)


def _end(process: subprocess.Popen[bytes], pipes: threading.Lock) -> None:
    """Kill, reap and close. In a fork of the parent this ends nothing: the child is not its own."""
    process.kill()
    process.wait()
    with pipes:  # whoever is waiting for an answer sees the end of the pipe first
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _fault(text: str) -> RoundAborted:
    return RoundAborted("VaultFault", text)
