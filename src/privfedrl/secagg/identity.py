"""Who takes part: long-term signing identities and the registry that names them.

Guarantee: a registry holds each name and each key once, every key is a usable Ed25519 point, there
is exactly one coordinator, and its digest enters every key and signature of a round.

Names are 1 to 64 characters of A-Z, a-z, 0-9, dot, underscore and hyphen.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn

import msgspec

from privfedrl.durable_files import write_atomically
from privfedrl.errors import ConfigurationError, LocalProtocolError, StorageError
from privfedrl.primitives.random import Entropy, system_entropy
from privfedrl.primitives.signing import Ed25519Signer, Signer, check_verify_key
from privfedrl.secagg.binding import digest

__all__ = ["NAME_PATTERN", "Identity", "Registry", "RegistryEntry", "Role"]

NAME_PATTERN: Final = r"\A[A-Za-z0-9._-]{1,64}\Z"
Role = Literal["agent", "coordinator"]
_IDENTITY_FORMAT: Final = "pfrl-identity/1"
_REGISTRY_FORMAT: Final = "pfrl-registry/1"


class _IdentityFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["pfrl-identity/1"]
    name: str
    secret_key: str


class _EntryRecord(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    verify_key: str
    role: Role


class _RegistryFile(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["pfrl-registry/1"]
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

    def entry(self, role: Role) -> RegistryEntry:
        """This identity's line in a registry."""
        return RegistryEntry(name=self.name, verify_key=self.verify_key, role=role)

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
    """One registered participant: ``verify_key`` is its 32-byte Ed25519 public key."""

    name: str
    verify_key: bytes
    role: Role

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.verify_key, bytes):
            raise ConfigurationError(f"verify_key of {self.name} must be bytes")
        check_verify_key(self.verify_key)
        if self.role not in ("agent", "coordinator"):
            raise ConfigurationError(f"role must be 'agent' or 'coordinator', got {self.role!r}")


class Registry:
    """The sorted, frozen list of everybody who may speak, distributed out of band.

    Raises:
        ConfigurationError: a name or key appears twice, a key is unusable, or there is not exactly
            one coordinator; ``problems`` has one line each.
    """

    __slots__ = ("_by_name", "agents", "coordinator", "digest", "entries")

    def __init__(self, entries: Iterable[RegistryEntry]) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.name))
        problems = [
            *_repeated("name", [entry.name for entry in self.entries]),
            *_repeated("verify_key", [entry.verify_key.hex() for entry in self.entries]),
        ]
        coordinators = [entry.name for entry in self.entries if entry.role == "coordinator"]
        if len(coordinators) != 1:
            problems.append(f"registry must name one coordinator, got {len(coordinators)}")
        if problems:
            raise ConfigurationError("; ".join(problems), problems=tuple(problems))
        self.coordinator: str = coordinators[0]
        self.agents = tuple(entry.name for entry in self.entries if entry.role == "agent")
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
        records = [
            _EntryRecord(name=entry.name, verify_key=entry.verify_key.hex(), role=entry.role)
            for entry in self.entries
        ]
        document = _RegistryFile(format=_REGISTRY_FORMAT, entries=records)
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Registry:
        """Inverse of :meth:`to_json`; anything unknown, missing or doubled is refused."""
        try:
            document = msgspec.json.decode(text, type=_RegistryFile)
            return cls(
                RegistryEntry(
                    name=record.name, verify_key=bytes.fromhex(record.verify_key), role=record.role
                )
                for record in document.entries
            )
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

    def _entry(self, name: str) -> RegistryEntry:
        if name not in self._by_name:
            raise ConfigurationError(f"{name!r} is not in the registry")
        return self._by_name[name]


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not re.search(NAME_PATTERN, name):
        raise ConfigurationError(
            f"name must be 1 to 64 characters of A-Z a-z 0-9 . _ -, got {name!r}"
        )


def _repeated(field: str, values: list[str]) -> list[str]:
    doubled = sorted({value for value in values if values.count(value) > 1})
    return [f"{field} must be unique in a registry, {value} is repeated" for value in doubled]


def _parts(entry: RegistryEntry) -> tuple[bytes, bytes, bytes]:
    return entry.name.encode("ascii"), entry.verify_key, entry.role.encode("ascii")


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
