"""The vault: a secret key in a process of its own, used once; the same rules for the local one."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privfedrl.errors import (
    ConfigurationError,
    LocalProtocolError,
    MissingExtraError,
    RemoteProtocolError,
    RoundAborted,
)
from privfedrl.he import lattice, vault, vault_worker
from privfedrl.he.lattice import Decryptor, Encryptor, public_key_bytes
from privfedrl.he.parameter_sets import PARAMETER_SETS, ParameterSet
from privfedrl.he.residues import packed_bytes
from privfedrl.he.vault import LocalVault, SecretKey, Vault

STD = ParameterSet.named("bfv-4096-std")
STD_BYTES = packed_bytes(STD.sent_primes, STD.degree)
BOTH = pytest.mark.parametrize("kind", [Vault, LocalVault])
WAIT_S = 30.0  # far more than anything here takes; only a hang reaches it


def slots_of(parameters: ParameterSet, count: int = 2) -> Any:
    dtype, low = (np.uint64, 0) if parameters.exact else (np.int64, -1000)
    return (np.arange(count * parameters.slots) % 5003 + low).astype(dtype).reshape(count, -1)


def encrypted(parameters: ParameterSet, public_key: bytes, count: int = 2) -> bytes:
    return Encryptor(parameters, public_key).encrypt(slots_of(parameters, count))


def pid_of(one: Vault) -> int:
    return one._process.pid


def is_gone(pid: int) -> bool:
    """Not running: no such process, or one that only waits for somebody to note its end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def decryptors() -> list[object]:
    gc.collect()
    there = [found for found in gc.get_objects() if type(found) is Decryptor]
    return [found for found in there if not any(found is one for one in _OTHERS)]


_OTHERS: list[Decryptor] = []
"""Those of other tests of this process, which share theirs."""


@pytest.fixture(autouse=True)
def _forget_the_decryptors_of_other_tests() -> Iterator[None]:
    gc.collect()
    _OTHERS[:] = [found for found in gc.get_objects() if type(found) is Decryptor]
    yield
    _OTHERS.clear()


@contextlib.contextmanager
def vault_fault(text: str = "^VaultFault: ") -> Iterator[None]:
    with pytest.raises(RoundAborted, match=text) as caught:
        yield
    assert caught.value.code == "VaultFault"


# --- what it does -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PARAMETER_SETS))
def test_the_child_decrypts_what_was_encrypted_and_the_parent_never_holds_the_key(
    name: str,
) -> None:
    parameters = ParameterSet.named(name)
    assert decryptors() == []
    one = Vault()
    public_key = one.open(parameters)
    assert len(public_key) == public_key_bytes(parameters)
    assert one.alive
    assert decryptors() == []
    slots = one.decrypt(encrypted(parameters, public_key), 2)
    assert not one.alive
    assert is_gone(pid_of(one))
    assert slots.dtype == (np.uint64 if parameters.exact else np.int64)
    np.testing.assert_array_equal(slots, slots_of(parameters))
    assert decryptors() == []


def test_a_local_vault_gives_the_same_and_drops_its_decryptor() -> None:
    one: SecretKey = LocalVault()
    public_key = one.open(STD)
    assert len(decryptors()) == 1
    np.testing.assert_array_equal(one.decrypt(encrypted(STD, public_key), 2), slots_of(STD))
    assert decryptors() == []


def test_each_vault_has_a_key_of_its_own() -> None:
    first, second = Vault(), Vault()
    assert first.open(STD) != second.open(STD)
    first.destroy()
    second.destroy()


def test_a_vault_made_and_opened_by_a_thread_outlives_the_thread() -> None:
    made: list[tuple[Vault, bytes]] = []

    def make() -> None:
        one = Vault()
        made.append((one, one.open(STD)))

    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    ((one, public_key),) = made
    np.testing.assert_array_equal(one.decrypt(encrypted(STD, public_key), 2), slots_of(STD))


# --- single use ---------------------------------------------------------------------------------


@BOTH
def test_a_vault_opens_once_and_a_second_attempt_ends_it(kind: Callable[[], Any]) -> None:
    one = kind()
    one.open(STD)
    with pytest.raises(LocalProtocolError, match="fresh"):
        one.open(STD)
    assert not one.alive
    with pytest.raises(LocalProtocolError, match=r"open, got \w+\(ended\)"):
        one.decrypt(bytes(STD_BYTES), 1)


@BOTH
def test_a_vault_decrypts_once(kind: Callable[[], Any]) -> None:
    one = kind()
    ciphertexts = encrypted(STD, one.open(STD))
    one.decrypt(ciphertexts, 2)
    with pytest.raises(LocalProtocolError):
        one.decrypt(ciphertexts, 2)
    with pytest.raises(LocalProtocolError):
        one.open(STD)


@BOTH
def test_a_vault_that_was_never_opened_decrypts_nothing_and_ends(kind: Callable[[], Any]) -> None:
    one = kind()
    assert one.alive
    with pytest.raises(LocalProtocolError):
        one.decrypt(bytes(STD_BYTES), 1)
    assert not one.alive


@BOTH
def test_destroying_is_final_and_idempotent(kind: Callable[[], Any]) -> None:
    one = kind()
    one.destroy()
    one.destroy()
    assert not one.alive
    assert repr(one) == f"{kind.__name__}(ended)"
    with pytest.raises(LocalProtocolError):
        one.open(STD)


def test_of_many_threads_at_most_one_gets_the_sum() -> None:
    one = LocalVault()
    ciphertexts = encrypted(STD, one.open(STD))
    barrier, got = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait()
        with contextlib.suppress(LocalProtocolError, RoundAborted):
            got.append(one.decrypt(ciphertexts, 2))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) <= 1
    assert not one.alive


@BOTH
def test_only_frozen_parameter_sets_are_opened(kind: Callable[[], Any]) -> None:
    one = kind()
    with pytest.raises(ConfigurationError, match="frozen"):
        one.open(dataclasses.replace(STD, max_clients=63))
    assert not one.alive


# --- bytes of a peer ----------------------------------------------------------------------------


@BOTH
def test_bytes_that_are_no_residues_are_the_peers_fault_and_end_the_vault(
    kind: Callable[[], Any],
) -> None:
    one = kind()
    one.open(STD)
    with pytest.raises(RemoteProtocolError, match="below its prime"):
        one.decrypt(b"\xff" * STD_BYTES, 1)
    assert not one.alive


@BOTH
@pytest.mark.parametrize("excess", [-1, 1])
def test_ciphertexts_of_another_length_are_the_peers_fault(
    kind: Callable[[], Any], excess: int
) -> None:
    one = kind()
    one.open(STD)
    with pytest.raises(RemoteProtocolError, match=f"{STD_BYTES} bytes, got {STD_BYTES + excess}"):
        one.decrypt(bytes(STD_BYTES + excess), 1)
    assert not one.alive


@pytest.mark.parametrize("count", [0, -1, 2**32 // STD_BYTES + 1, 1.0])
def test_a_count_out_of_range_is_the_callers_fault(count: Any) -> None:
    one = LocalVault()
    one.open(STD)
    with pytest.raises(LocalProtocolError, match="count must be"):
        one.decrypt(b"", count)
    assert decryptors() == []


# --- a child that dies, hangs or starves --------------------------------------------------------


def test_a_child_killed_before_it_is_opened_aborts_the_round() -> None:
    one = Vault()
    os.kill(pid_of(one), signal.SIGKILL)
    with vault_fault("exit status -9"):
        one.open(STD)
    assert not one.alive


def test_a_child_killed_between_the_two_requests_aborts_the_round() -> None:
    one = Vault()
    ciphertexts = encrypted(STD, one.open(STD))
    os.kill(pid_of(one), signal.SIGKILL)
    with vault_fault("exit status -9"):
        one.decrypt(ciphertexts, 2)


@pytest.mark.parametrize("how", ["killed", "destroyed"])
def test_a_vault_that_is_ended_while_it_decrypts_aborts_the_round(how: str) -> None:
    one = Vault()
    ciphertexts = encrypted(STD, one.open(STD)) * 8  # more than a pipe holds
    os.kill(pid_of(one), signal.SIGSTOP)  # so that it cannot answer first
    caught: list[Exception] = []

    def ask() -> None:
        try:
            one.decrypt(ciphertexts, 16)
        except RoundAborted as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: one._phase == "ended")
    if how == "killed":
        os.kill(pid_of(one), signal.SIGKILL)
    else:
        one.destroy()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert [getattr(error, "code", None) for error in caught] == ["VaultFault"]
    assert not one.alive


def test_a_vault_that_is_destroyed_before_its_request_leaves_aborts_the_round() -> None:
    one = Vault()
    one._forget()  # as another thread's destroy() does between the phase change and the request
    with vault_fault("destroyed"):
        one.open(STD)


def test_a_child_that_does_not_answer_in_time_is_ended() -> None:
    one = Vault(timeout_s=0.05)
    os.kill(pid_of(one), signal.SIGSTOP)
    with vault_fault("no answer within 0.05 s"):
        one.open(STD)
    assert not one.alive
    assert is_gone(pid_of(one))


def test_a_child_without_memory_for_a_key_aborts_the_round() -> None:
    # less than it has used when the limit is set: it fails, or spins until its time is up
    one = Vault(memory_bytes=2**20, timeout_s=3.0)
    with vault_fault():
        one.open(STD)
    assert not one.alive


def test_a_child_without_memory_for_the_request_aborts_the_round() -> None:
    one = Vault(memory_bytes=2**28)
    ciphertexts = encrypted(STD, one.open(STD), 1) * 2500
    with vault_fault("out of memory"):
        one.decrypt(ciphertexts, 2500)
    assert not one.alive


LIARS = {
    "says nothing": "",
    "stops within the length": "say(b'1234567')",
    "stops within the body": "say(frame(0, b'x' * DUE)[:-1])",
    "claims a huge length": "say(b'\\x7f' + b'\\xff' * 7 + b'\\x00')",
    "sends a body that is too short": "say(frame(0, b'x' * (DUE - 1)))",
    "sends a body that is too long": "say(frame(0, b'x' * (DUE + 1)))",
    "sends more than its frame": "say(frame(1, b'x') + b'y')",
    "sends an empty frame": "say(bytes(9))",
    "knows a status that does not exist": "say(frame(9, b''))",
    "explains an error at length": "say(frame(1, b'x' * 501))",
    "trickles for ever": (
        "say((501).to_bytes(8, 'big') + b'\\x03')\n"
        "import time\n"
        "while True: time.sleep(0.01); say(b'x')"
    ),
}
LIAR = """
import os
def say(data):
    while data: data = data[os.write(1, data):]
def frame(status, body): return (1 + len(body)).to_bytes(8, "big") + bytes([status]) + body
DUE = {due}
{lie}
"""


@pytest.mark.parametrize("lie", LIARS.values(), ids=LIARS)
def test_a_child_that_breaks_the_protocol_is_ended(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = LIAR.format(due=public_key_bytes(STD), lie=lie)
    monkeypatch.setattr(vault, "_options", lambda: ("-I", "-S", "-c", script))
    slow = "sleep" in lie  # five seconds until its answer is whole
    one = Vault(timeout_s=0.5 if slow else WAIT_S)
    with vault_fault("no answer within" if slow else "ended without|may not"):
        one.open(STD)
    assert not one.alive


def test_a_child_that_closes_its_end_and_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import os, time; os.close(1); time.sleep(600)"
    monkeypatch.setattr(vault, "_options", lambda: ("-I", "-S", "-c", script))
    one = Vault()
    with vault_fault("without an answer$"):
        one.open(STD)
    assert not one.alive


def test_an_error_that_the_child_explains_before_it_has_read_everything_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lie = (
        f"os.read(0, 8); os.read(0, {len(STD.name)}); say(frame(0, b'k' * DUE)); "
        "os.read(0, 1); os.close(0); say(frame(1, b'b\\xe4d'))"
    )
    script = LIAR.format(due=public_key_bytes(STD), lie=lie)
    monkeypatch.setattr(vault, "_options", lambda: ("-I", "-S", "-c", script))
    one = Vault()
    one.open(STD)
    with pytest.raises(RemoteProtocolError, match=r"^b\ufffdd$"):
        one.decrypt(bytes(64 * STD_BYTES), 64)


def test_what_the_childs_libraries_print_does_not_reach_the_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loud = (
        "import os; from privfedrl.he import lattice; quiet = lattice.Decryptor; "
        "lattice.Decryptor = lambda chosen: (os.write(1, b'warning'), quiet(chosen))[1]; "
    )
    options = list(vault._options())
    options[-1] = options[-1].replace("main(sys", f"{loud}main(sys")
    monkeypatch.setattr(vault, "_options", lambda: options)
    one = Vault()
    public_key = one.open(STD)
    np.testing.assert_array_equal(one.decrypt(encrypted(STD, public_key), 2), slots_of(STD))


# --- its end ------------------------------------------------------------------------------------


def test_a_vault_that_nobody_holds_has_no_child() -> None:
    one = Vault()
    pid = pid_of(one)
    del one
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = """
import os, subprocess, sys, threading
from privfedrl.he.parameter_sets import ParameterSet
from privfedrl.he.vault import Vault
def make():
    global one
    one = Vault()
    one.open(ParameterSet.named("bfv-4096-std"))
    pipe = one._process.stdin.fileno()
    os.set_inheritable(pipe, True)
    heir = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"],
        close_fds=False, stdout=subprocess.DEVNULL,
    )
    print(one._process.pid, heir.pid, flush=True)
    sys.stdin.read()
    os._exit(0)
if sys.argv[1] == "main": make()
threading.Thread(target=make).start()
"""


@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_child_ends_with_its_parent_even_if_somebody_inherited_the_pipe(thread: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, thread],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert parent.stdout is not None
    child, heir = (int(pid) for pid in parent.stdout.readline().split())
    try:
        assert not is_gone(child)
        parent.communicate()  # closes its standard input, at which it ends without a clean-up
        wait_until(lambda: is_gone(child))
        assert not is_gone(heir)
    finally:
        os.kill(heir, signal.SIGKILL)


# --- its confinement ----------------------------------------------------------------------------


def test_the_child_that_holds_a_key_has_its_limits_and_no_environment() -> None:
    one = Vault(timeout_s=7.0)
    one.open(STD)
    lines = Path(f"/proc/{pid_of(one)}/limits").read_text().splitlines()[1:]
    limits = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}
    assert limits["Max core file size"] == ("0", "0")
    assert limits["Max file size"] == ("4194304", "4194304")
    assert limits["Max open files"] == ("32", "32")
    assert limits["Max address space"][0] == str(2**30)
    assert 15 <= int(limits["Max cpu time"][1]) <= 75  # 2 x 7 s and what the start has taken
    # not dumpable: to others than root, the process looks like root's
    if os.getuid() != 0:
        assert not os.access(f"/proc/{pid_of(one)}/mem", os.R_OK)
    one.destroy()


def test_a_confined_process_cannot_be_dumped_or_traced() -> None:
    script = (
        "import ctypes, resource; from privfedrl.he.vault_worker import confine; "
        "confine(0, memory_bytes=0, cpu_s=60); "
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)); "
        "confine(2**20, memory_bytes=0, cpu_s=60); print(resource.getrlimit(resource.RLIMIT_AS)[0])"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=path, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == ["0 (0, 0)", str(2**30 + 8 * 2**20)]


def test_the_environment_of_the_child_holds_nothing_of_the_parents_but_library_paths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    monkeypatch.delenv("DYLD_LIBRARY_PATH", raising=False)
    assert vault._environment() == {
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": "/opt/lib",
    }


def test_the_child_imports_from_where_the_parent_does_but_not_from_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = str(Path(vault.__file__).parents[2])
    monkeypatch.setattr(sys, "path", ["", "src", "/lib", own])
    assert vault._import_path() == ["/lib", own]
    monkeypatch.setattr(sys, "path", ["", "src", "/lib"])
    assert vault._import_path() == [own, "/lib"]


class Limits:
    """What ``confine`` asks of the system, without limiting the tests themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inherited: int) -> None:
        self.set: dict[int, tuple[int, int]] = {}
        self.asked: list[tuple[int, int]] = []
        self.refuse = False
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, inherited))
        monkeypatch.setattr(resource, "setrlimit", self.setrlimit)
        monkeypatch.setattr(vault_worker, "_prctl", lambda *asked: self.asked.append(asked))

    def setrlimit(self, kind: int, limit: tuple[int, int]) -> None:
        if self.refuse:
            raise ValueError("not here")
        self.set[kind] = limit


@pytest.mark.parametrize("inherited", [resource.RLIM_INFINITY, 2**40, 20])
def test_no_limit_is_above_what_was_asked_or_inherited(
    inherited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(monkeypatch, inherited)
    most = 2**62 if inherited == resource.RLIM_INFINITY else inherited
    vault_worker.confine(0, memory_bytes=2**27, cpu_s=3)
    assert limits.set[resource.RLIMIT_AS] == (min(2**27, most),) * 2
    assert limits.set[resource.RLIMIT_NOFILE] == (min(32, most),) * 2
    assert limits.set[resource.RLIMIT_FSIZE] == (min(2**22, most),) * 2
    assert limits.set[resource.RLIMIT_CORE] == (0, 0)
    assert resource.RLIMIT_CPU in limits.set
    assert limits.asked == [(vault_worker._SET_DUMPABLE, 0)]
    limits.set.clear()
    vault_worker.confine(100, memory_bytes=0, cpu_s=3)
    assert limits.set == {resource.RLIMIT_AS: (min(2**30 + 800, most), inherited)}


def test_a_refused_limit_is_an_error_on_linux_and_passed_over_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits(monkeypatch, resource.RLIM_INFINITY)
    limits.refuse = True
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ValueError, match="not here"):
        vault_worker.confine(0, memory_bytes=0, cpu_s=3)
    monkeypatch.setattr(sys, "platform", "darwin")
    vault_worker.confine(0, memory_bytes=0, cpu_s=3)


def test_a_refused_process_option_is_an_error_on_linux_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(OSError, match="prctl"):
        vault_worker._prctl(-1, 0)
    monkeypatch.setattr(sys, "platform", "darwin")
    vault_worker._prctl(-1, 0)


@pytest.fixture
def death_signal() -> Iterator[Callable[[], int]]:
    handler = signal.getsignal(signal.SIGUSR1)

    def current() -> int:
        value = ctypes.c_int(-1)
        assert ctypes.CDLL(None).prctl(2, ctypes.byref(value), 0, 0, 0) == 0
        return value.value

    yield current
    vault_worker._prctl(vault_worker._SET_DEATH_SIGNAL, 0)
    signal.signal(signal.SIGUSR1, handler)


@pytest.mark.parametrize(("main_thread", "sent"), [(True, signal.SIGKILL), (False, signal.SIGUSR1)])
def test_the_end_of_a_thread_that_is_not_the_main_one_does_not_kill(
    main_thread: bool, sent: signal.Signals, death_signal: Callable[[], int]
) -> None:
    vault_worker.end_with_parent(os.getppid(), main_thread=main_thread)
    assert death_signal() == sent
    os.kill(os.getpid(), signal.SIGUSR1)  # as when a thread of a living parent has ended


def test_a_child_whose_parent_ended_during_its_start_ends(
    death_signal: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    vault_worker.end_with_parent(os.getpid(), main_thread=False)  # anybody but the parent
    assert ended == [1]


# --- the child's side of the protocol, in this process ------------------------------------------


def answers_to(request: bytes, limit: Callable[[int], None] = lambda size: None) -> list[Any]:
    """What ``serve`` says to ``request``: (status, body) of each answer."""
    to_child, from_child = os.pipe(), os.pipe()
    said = bytearray()

    def listen() -> None:
        with open(from_child[0], "rb") as pipe:
            said.extend(pipe.read())

    def talk() -> None:
        with contextlib.suppress(BrokenPipeError), open(to_child[1], "wb") as pipe:
            pipe.write(request)

    threads = [threading.Thread(target=work) for work in (listen, talk)]
    for thread in threads:
        thread.start()
    with open(to_child[0], "rb") as requests:
        vault_worker.serve(requests, from_child[1], limit)
    os.close(from_child[1])
    for thread in threads:
        thread.join(WAIT_S)
    answers = []
    while said:
        length = int.from_bytes(said[:8], "big")
        answers.append((said[8], bytes(said[9 : 8 + length])))
        del said[: 8 + length]
    return answers


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(8, "big") + body


OPEN = framed(STD.name.encode())


def test_the_child_answers_a_key_and_the_slots_of_a_sum() -> None:
    sizes: list[int] = []
    zeros = framed((1).to_bytes(8, "big") + bytes(STD_BYTES))
    (first, key), (second, body) = answers_to(OPEN + zeros, sizes.append)
    assert (first, second) == (vault_worker.OK, vault_worker.OK)
    assert len(key) == public_key_bytes(STD)
    assert body == bytes(8 * STD.slots)  # the zero ciphertext is zero under every key
    assert sizes == [0, STD_BYTES]


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"", []),
        (OPEN[:-1], []),
        (framed(b"bfv-1"), [vault_worker.FAULT]),
        (framed(b"\xff"), [vault_worker.FAULT]),
        (framed(b"x" * 65), [vault_worker.REMOTE_FAULT]),
        (OPEN, [vault_worker.OK]),
        (OPEN + framed(b"short"), [vault_worker.OK]),
        (OPEN + framed(bytes(8)), [vault_worker.OK, vault_worker.REMOTE_FAULT]),
        (
            OPEN + framed(bytes(7) + b"\x01" + bytes(9)),
            [vault_worker.OK, vault_worker.REMOTE_FAULT],
        ),
        (OPEN + b"\xff" * 8, [vault_worker.OK, vault_worker.REMOTE_FAULT]),
        (OPEN + (8 + STD_BYTES).to_bytes(8, "big") + bytes(7) + b"\x01", [vault_worker.OK]),
    ],
    ids=[
        "nothing",
        "cut",
        "unknown set",
        "no text",
        "long name",
        "nothing more",
        "too short for a count",
        "no ciphertexts",
        "another size",
        "a huge size",
        "no bytes",
    ],
)
def test_the_child_stops_at_the_first_request_that_it_does_not_understand(
    request_bytes: bytes, statuses: list[int]
) -> None:
    answers = answers_to(request_bytes)
    assert [status for status, _ in answers] == statuses
    for status, body in answers:
        assert status == vault_worker.OK or len(body) <= 500


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RuntimeError("words of another library"), vault_worker.FAULT, b"RuntimeError"),
        (ConfigurationError("x" * 501), vault_worker.FAULT, b"x" * 500),
        (MemoryError(), vault_worker.OUT_OF_MEMORY, b""),
    ],
)
def test_without_its_limits_the_child_makes_no_key(
    error: Exception, status: int, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ParameterSet] = []
    monkeypatch.setattr(lattice, "Decryptor", made.append)

    def refuse(size: int) -> None:
        raise error

    assert answers_to(OPEN, refuse) == [(status, text)]
    assert made == []


def test_a_child_whose_parent_reads_no_more_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    requests = os.pipe()
    os.write(requests[1], OPEN)
    with open(requests[0], "rb") as pipe:
        vault_worker.serve(pipe, write, lambda size: None)
    os.close(requests[1])
    os.close(write)
    assert decryptors() == []


# --- its construction ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"timeout_s": 0.0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")},
     {"memory_bytes": 0}],
)  # fmt: skip
def test_limits_must_be_positive_and_finite(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Vault(**arguments)


@pytest.mark.parametrize(("name", "value"), [("platform", "win32"), ("executable", "")])
def test_a_platform_without_limited_processes_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, value)
    with pytest.raises(ConfigurationError, match="LocalVault"):
        Vault()


def test_a_system_that_starts_no_process_aborts_the_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with vault_fault("no child process"):
        Vault()


@pytest.mark.parametrize("package", ["tenseal", "zstandard"])
def test_a_missing_extra_is_named_before_anything_starts(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*privfedrl\[he\]"):
        Vault()


def test_a_local_vault_destroyed_meanwhile_keeps_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    one = LocalVault()

    def slow(parameters: ParameterSet) -> Decryptor:
        one.destroy()  # as another thread may
        return Decryptor(parameters)

    monkeypatch.setattr(vault, "Decryptor", slow)
    with vault_fault("while it was being opened"):
        one.open(STD)
    assert decryptors() == []


def test_a_local_vault_destroyed_before_it_decrypts_aborts_the_round() -> None:
    one = LocalVault()
    ciphertexts = encrypted(STD, one.open(STD))
    one._forget()  # as another thread's destroy() does after the phase change
    with vault_fault("destroyed"):
        one.decrypt(ciphertexts, 2)


def test_no_object_is_rebuilt_from_bytes() -> None:
    for module in (vault, vault_worker):
        source = Path(str(module.__file__)).read_text()
        assert not re.search(r"pickle|marshal|shelve|\beval\(|\bexec\(|multiprocessing", source)
