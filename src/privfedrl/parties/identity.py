"""Who takes part: long-term signing identities and the registry that names them.

Guarantee: a registry holds each name and each key once, every key is a usable Ed25519 point with a
span of validity, there is exactly one coordinator, at most one key authority and at most one
auditor, and its digest enters every key and signature of a round.

Names are 1 to 64 characters of A-Z, a-z, 0-9, dot, underscore and hyphen. Times are whole seconds
since 1970-01-01T00:00:00 UTC.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn, get_args

import msgspec

from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, LocalProtocolError, StorageError
from privfedrl.parties.binding import digest
from privfedrl.primitives.random import Entropy, system_entropy
from privfedrl.primitives.signing import Ed25519Signer, Signer, check_verify_key

__all__ = ["LAST_SECOND", "NAME_PATTERN", "Identity", "Registry", "RegistryEntry", "Role"]

NAME_PATTERN: Final = r"\A[A-Za-z0-9._-]{1,64}\Z"
LAST_SECOND: Final = 2**53 - 1
"""The end of a validity without end: the last integer that every JSON reader keeps exactly."""
Role = Literal["agent", "coordinator", "key-authority", "auditor"]
_IDENTITY_FORMAT: Final = "pfrl-identity/1"
_ENTRY_FORMAT: Final = "pfrl-registry-entry/1"
_REGISTRY_FORMAT: Final = "pfrl-registry/2"


class _IdentityFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["pfrl-identity/1"]
    name: str
    secret_key: str


class _EntryRecord(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    verify_key: str
    role: Role
    not_before: int
    not_after: int


class _EntryFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["pfrl-registry-entry/1"]
    entry: _EntryRecord


class _RegistryFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["pfrl-registry/2"]
    entries: list[_EntryRecord]


class Identity:
    """A name with its signing key. Signs, and does nothing else.

    Args:
        name: the participant's name in the registry.
        signer: holds the key; :class:`~privfedrl.primitives.signing.Ed25519Signer` for a file,
            anything with ``verify_key`` and ``sign`` for a hardware module.
    """

    __slots__ = ("_signer", "name")

    def __init__(self, name: str, signer: Signer) -> None:
        _check_name(name)
        check_verify_key(signer.verify_key)
        self.name = name
        self._signer = signer

    @classmethod
    def generate(cls, name: str, entropy: Entropy = system_entropy) -> Identity:
        """A fresh identity from 32 bytes of ``entropy``."""
        _check_name(name)
        return cls(name, Ed25519Signer.generate(entropy))

    @property
    def verify_key(self) -> bytes:
        """The 32-byte public key, for the registry."""
        return self._signer.verify_key

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of ``message``."""
        return self._signer.sign(message)

    def entry(
        self, role: Role, *, not_before: int = 0, not_after: int = LAST_SECOND
    ) -> RegistryEntry:
        """This identity's line in a registry; see :class:`RegistryEntry` for the arguments."""
        return RegistryEntry(
            name=self.name,
            verify_key=self.verify_key,
            role=role,
            not_before=not_before,
            not_after=not_after,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key to ``path`` with mode 0600, durably and all or nothing.

        Raises:
            LocalProtocolError: the key lives in hardware and cannot be written.
            StorageError: the file cannot be written.
        """
        if not isinstance(self._signer, Ed25519Signer):
            raise LocalProtocolError("this identity's key is not held in memory")
        secret = self._signer.secret_bytes().hex()
        record = _IdentityFile(format=_IDENTITY_FORMAT, name=self.name, secret_key=secret)
        write_atomically(Path(path), msgspec.json.encode(record) + b"\n", mode=0o600)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Read an identity written by :meth:`save`.

        Raises:
            StorageError: unreadable, or readable by others than its owner.
            ConfigurationError: not an identity file.
        """
        data = _read(Path(path), private=True)
        try:
            record = msgspec.json.decode(data, type=_IdentityFile)
            seed = bytes.fromhex(record.secret_key)
        except (msgspec.MsgspecError, ValueError):
            # from None: the decoder's message could quote the file, which holds the key
            raise ConfigurationError(f"{path} is not a {_IDENTITY_FORMAT} file") from None
        return cls(record.name, Ed25519Signer(seed))

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r}, verify_key={self.verify_key.hex()})"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("an identity refuses to be pickled or copied; use save and load")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryEntry:
    """One registered participant.

    Attributes:
        verify_key: its 32-byte Ed25519 public key.
        not_before, not_after: first and last second, both inclusive, at which a round that this
            participant takes part in may be opened. A participant that leaves is given an end.
    Raises:
        ConfigurationError: a field is not of this form.
    """

    name: str
    verify_key: bytes
    role: Role
    not_before: int = 0
    not_after: int = LAST_SECOND

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.verify_key, bytes):
            raise ConfigurationError(f"verify_key of {self.name} must be bytes")
        check_verify_key(self.verify_key)
        if self.role not in get_args(Role):
            raise ConfigurationError(f"role must be one of {get_args(Role)}, got {self.role!r}")
        _check_seconds(f"not_before of {self.name}", self.not_before)
        _check_seconds(f"not_after of {self.name}", self.not_after)
        if self.not_before > self.not_after:
            raise ConfigurationError(
                f"not_before of {self.name} must be <= not_after, "
                f"got {self.not_before} > {self.not_after}"
            )

    def to_json(self) -> str:
        """One canonical line of JSON: what a participant hands to whoever builds the registry."""
        return msgspec.json.encode(_EntryFile(_ENTRY_FORMAT, _record(self))).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RegistryEntry:
        """Inverse of :meth:`to_json`; raises ConfigurationError for anything else."""
        try:
            return _entry_of(msgspec.json.decode(text, type=_EntryFile).entry)
        except ConfigurationError:
            raise
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigurationError(f"not a {_ENTRY_FORMAT} document: {error}") from error


class Registry:
    """The sorted, frozen list of everybody who may speak, distributed out of band.

    Attributes:
        agents: the names of all agents, sorted.
        coordinator: the name of the one coordinator.
        key_authority, auditor: the names of those who hold these roles; None where nobody does.
        digest: SHA-256 over every field of every entry.
    Raises:
        ConfigurationError: a name or key appears twice, a key is unusable, there is not exactly
            one coordinator, or more than one key authority or auditor; ``problems`` has one line
            each.
    """

    __slots__ = (
        "_by_name",
        "_index",
        "agents",
        "auditor",
        "coordinator",
        "digest",
        "entries",
        "key_authority",
    )

    def __init__(self, entries: Iterable[RegistryEntry]) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.name))
        problems = [
            *_repeated("name", [entry.name for entry in self.entries]),
            *_repeated("verify_key", [entry.verify_key.hex() for entry in self.entries]),
        ]
        holders = {role: self._names(role) for role in get_args(Role)}
        if len(holders["coordinator"]) != 1:
            problems.append(
                f"registry must name one coordinator, got {_list(holders['coordinator'])}"
            )
        for role in ("key-authority", "auditor"):
            if len(holders[role]) > 1:
                problems.append(
                    f"registry must name at most one {role}, got {_list(holders[role])}"
                )
        if problems:
            raise ConfigurationError("; ".join(problems), problems=tuple(problems))
        self.coordinator: str = holders["coordinator"][0]
        self.key_authority: str | None = next(iter(holders["key-authority"]), None)
        self.auditor: str | None = next(iter(holders["auditor"]), None)
        self.agents = holders["agent"]
        self._index = {name: index for index, name in enumerate(self.agents)}
        self._by_name = {entry.name: entry for entry in self.entries}
        self.digest = digest(
            "registry", *(part for entry in self.entries for part in _parts(entry))
        )

    def verify_key_of(self, name: str) -> bytes:
        """The 32-byte verify key of ``name``.

        Raises:
            ConfigurationError: nobody of that name is registered.
        """
        return self._entry(name).verify_key

    def role_of(self, name: str) -> Role:
        """The role of ``name``; raises as :meth:`verify_key_of` does."""
        return self._entry(name).role

    def index_of(self, agent_name: str) -> int:
        """The position of an agent in ``agents``, from 0; its bit in every bitmap of a round.

        Raises:
            ConfigurationError: no agent of that name is registered.
        """
        if agent_name not in self._index:
            raise ConfigurationError(f"{agent_name!r} is not an agent of the registry")
        return self._index[agent_name]

    def valid_at(self, name: str, when: int) -> bool:
        """Whether ``name`` may take part in a round that is opened at second ``when``.

        Raises:
            ConfigurationError: nobody of that name is registered.
        """
        entry = self._entry(name)
        return entry.not_before <= when <= entry.not_after

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Registry) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Registry({len(self.agents)} agents, digest={self.digest.hex()[:16]})"

    def to_json(self) -> str:
        """One canonical JSON document; equal registries give equal text."""
        document = _RegistryFile(_REGISTRY_FORMAT, [_record(entry) for entry in self.entries])
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Registry:
        """Inverse of :meth:`to_json`; anything unknown, missing or doubled is refused."""
        try:
            document = msgspec.json.decode(text, type=_RegistryFile)
            return cls(_entry_of(record) for record in document.entries)
        except ConfigurationError:
            raise
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigurationError(f"not a {_REGISTRY_FORMAT} document: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to ``path``, durably and all or nothing."""
        write_atomically(Path(path), self.to_json().encode(), mode=0o644)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Registry:
        """Read a registry written by :meth:`save`."""
        return cls.from_json(_read(Path(path), private=False))

    def _names(self, role: Role) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.entries if entry.role == role)

    def _entry(self, name: str) -> RegistryEntry:
        if name not in self._by_name:
            raise ConfigurationError(f"{name!r} is not in the registry")
        return self._by_name[name]


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not re.search(NAME_PATTERN, name):
        raise ConfigurationError(
            f"name must be 1 to 64 characters of A-Z a-z 0-9 . _ -, got {name!r}"
        )


def _check_seconds(what: str, value: int) -> None:
    # bool is an int to Python, and neither a time nor a canonical JSON number
    if type(value) is not int or not 0 <= value <= LAST_SECOND:
        raise ConfigurationError(f"{what} must be whole seconds in 0..2^53 - 1, got {value!r}")


def _repeated(field: str, values: list[str]) -> list[str]:
    doubled = sorted(value for value, times in Counter(values).items() if times > 1)
    return [f"{field} must be unique in a registry, {value} is repeated" for value in doubled]


def _list(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "0"


def _parts(entry: RegistryEntry) -> tuple[bytes, ...]:
    span = entry.not_before.to_bytes(8, "big"), entry.not_after.to_bytes(8, "big")
    return entry.name.encode("ascii"), entry.verify_key, entry.role.encode("ascii"), *span


def _record(entry: RegistryEntry) -> _EntryRecord:
    return _EntryRecord(
        name=entry.name,
        verify_key=entry.verify_key.hex(),
        role=entry.role,
        not_before=entry.not_before,
        not_after=entry.not_after,
    )


def _entry_of(record: _EntryRecord) -> RegistryEntry:
    return RegistryEntry(
        name=record.name,
        verify_key=bytes.fromhex(record.verify_key),
        role=record.role,
        not_before=record.not_before,
        not_after=record.not_after,
    )


def _read(path: Path, *, private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if private and os.name == "posix" and mode & 0o077:
                raise StorageError(f"{path} must not be accessible to others, mode is {mode:04o}")
            return file.read()
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
