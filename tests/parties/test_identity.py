"""Identities and registries: files, refusals, and a digest that pins everybody."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from privfedrl.errors import ConfigurationError, LocalProtocolError, StorageError
from privfedrl.parties.identity import LAST_SECOND, Identity, Registry, RegistryEntry
from privfedrl.primitives.random import DeterministicEntropy
from privfedrl.primitives.signing import verify

ENTROPY = DeterministicEntropy(b"identity")
ALICE = Identity.generate("alice", ENTROPY)
BOB = Identity.generate("bob", ENTROPY)
COORDINATOR = Identity.generate("coordinator", ENTROPY)
TRUSTEE = Identity.generate("trustee", ENTROPY)
AUDITOR = Identity.generate("auditor", ENTROPY)
ENTRIES = (BOB.entry("agent"), COORDINATOR.entry("coordinator"), ALICE.entry("agent"))


class Hardware:
    """A signer whose key is elsewhere."""

    verify_key = ALICE.verify_key

    def sign(self, message: bytes) -> bytes:
        return ALICE.sign(message)


def test_an_identity_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    ALICE.save(path)
    ALICE.save(path)
    loaded = Identity.load(path)
    assert loaded.name == "alice"
    assert loaded.verify_key == ALICE.verify_key
    verify(ALICE.verify_key, loaded.sign(b"x"), b"x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["alice.key"]


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    ALICE.save(path)
    path.chmod(0o640)
    with pytest.raises(StorageError, match="0640"):
        Identity.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        '{"format":"pfrl-identity/1","name":"a","secret_key":"zz"}',
        '{"format":"pfrl-identity/1","name":"a","secret_key":"00"}',
        '{"format":"pfrl-identity/2","name":"a","secret_key":"' + "00" * 32 + '"}',
        '{"format":"pfrl-identity/1","name":"a b","secret_key":"' + "00" * 32 + '"}',
        '{"format":"pfrl-identity/1","name":"a","secret_key":"' + "00" * 32 + '","x":1}',
    ],
)
def test_other_files_are_no_identity_and_are_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as caught:
        Identity.load(path)
    assert "00" * 8 not in str(caught.value)


def test_missing_files_and_directories_are_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Identity.load(tmp_path / "absent")
    with pytest.raises(StorageError):
        ALICE.save(tmp_path / "absent" / "alice.key")
    with pytest.raises(StorageError):
        Registry.load(tmp_path / "absent")


def test_an_identity_hides_its_key_and_stays_in_this_process() -> None:
    secret = ALICE._signer.secret_bytes().hex()  # type: ignore[attr-defined]  # white box
    assert secret not in repr(ALICE)
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(LocalProtocolError):
            leave(ALICE)


def test_a_hardware_key_signs_and_cannot_be_saved(tmp_path: Path) -> None:
    identity = Identity("alice", Hardware())
    verify(ALICE.verify_key, identity.sign(b"x"), b"x")
    with pytest.raises(LocalProtocolError):
        identity.save(tmp_path / "key")


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a/b", "ä", "a\n", "a\x00", 7])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="name must"):
        Identity.generate(name, ENTROPY)


def test_a_registry_is_sorted_whatever_the_order_and_pins_everybody() -> None:
    registry = Registry(ENTRIES)
    assert [entry.name for entry in registry.entries] == ["alice", "bob", "coordinator"]
    assert registry == Registry(reversed(ENTRIES))
    assert registry.digest == Registry(reversed(ENTRIES)).digest
    assert hash(registry) == hash(Registry(reversed(ENTRIES)))
    assert registry.agents == ("alice", "bob")
    assert registry.coordinator == "coordinator"
    assert len(registry) == 3
    assert "alice" in registry
    assert "eve" not in registry
    assert registry.verify_key_of("bob") == BOB.verify_key
    assert registry.role_of("coordinator") == "coordinator"
    assert "2 agents" in repr(registry)
    swapped = [
        RegistryEntry(name="alice", verify_key=BOB.verify_key, role="agent"),
        RegistryEntry(name="bob", verify_key=ALICE.verify_key, role="agent"),
        ENTRIES[1],
    ]
    assert Registry(swapped).digest != registry.digest
    assert Registry(ENTRIES[1:]).digest != registry.digest


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="eve"):
        Registry(ENTRIES).verify_key_of("eve")


def test_a_registry_survives_json_and_its_file(tmp_path: Path) -> None:
    registry = Registry(ENTRIES)
    assert Registry.from_json(registry.to_json()) == registry
    registry.save(tmp_path / "registry.json")
    assert Registry.load(tmp_path / "registry.json") == registry


def test_duplicates_and_a_missing_coordinator_are_all_reported() -> None:
    twin = RegistryEntry(name="twin", verify_key=ALICE.verify_key, role="agent")
    with pytest.raises(ConfigurationError) as caught:
        Registry([ALICE.entry("agent"), twin, BOB.entry("agent"), BOB.entry("agent")])
    assert len(caught.value.problems) == 4  # bob's name, bob's key, alice's key, no coordinator
    with pytest.raises(ConfigurationError, match="one coordinator, got 2"):
        Registry([COORDINATOR.entry("coordinator"), ALICE.entry("coordinator")])


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short", "text"])
def test_unusable_keys_are_refused(key: bytes) -> None:
    with pytest.raises(ConfigurationError):
        RegistryEntry(name="eve", verify_key=key, role="agent")


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="role"):
        RegistryEntry(name="eve", verify_key=ALICE.verify_key, role="admin")  # type: ignore[arg-type]  # wrong on purpose


def _document() -> dict[str, object]:
    document: dict[str, object] = json.loads(Registry(ENTRIES).to_json())
    return document


@pytest.mark.parametrize(
    "change",
    [{"format": "x"}, {"extra": 1}, {"entries": [{"name": "a"}]}, {"entries": []}],
)
def test_other_documents_are_no_registry(change: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Registry.from_json(json.dumps(_document() | change))


def test_bad_hex_in_a_registry_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not a"):
        Registry.from_json(Registry(ENTRIES).to_json().replace(ALICE.verify_key.hex(), "zz"))


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [(-1, 5), (6, 5), (0, 2**53), (0.0, 5), (0, 5.0), (True, 5), (0, None), ("0", 5)],
)
def test_a_validity_is_two_whole_seconds_in_order(not_before: Any, not_after: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"not_(before|after)"):
        ALICE.entry("agent", not_before=not_before, not_after=not_after)


def test_both_ends_of_a_validity_belong_to_it() -> None:
    registry = Registry([ALICE.entry("agent", not_before=10, not_after=20), *ENTRIES[:2]])
    found = [registry.valid_at("alice", when) for when in (0, 9, 10, 20, 21, 2**60)]
    assert found == [False, False, True, True, False, False]
    assert registry.valid_at("bob", 0)
    assert registry.valid_at("bob", LAST_SECOND)
    with pytest.raises(ConfigurationError, match="eve"):
        registry.valid_at("eve", 0)


def test_a_validity_is_part_of_the_digest_and_of_the_file(tmp_path: Path) -> None:
    plain = Registry(ENTRIES)
    changes: list[dict[str, int]] = [{"not_before": 1}, {"not_after": 1}]
    others = [Registry([ALICE.entry("agent", **change), *ENTRIES[:2]]) for change in changes]
    assert len({registry.digest for registry in (plain, *others)}) == 3
    for registry in others:
        registry.save(tmp_path / "registry.json")
        assert Registry.load(tmp_path / "registry.json") == registry


def test_a_registry_without_validity_is_of_another_format() -> None:
    old = Registry(ENTRIES).to_json().replace("pfrl-registry/2", "pfrl-registry/1")
    with pytest.raises(ConfigurationError, match="pfrl-registry/2"):
        Registry.from_json(old)


@pytest.mark.parametrize(
    "change", [{"not_before": 1.5}, {"not_after": "9"}, {"not_after": 2**53}, {"not_before": None}]
)
def test_other_numbers_in_a_registry_file_are_refused(change: dict[str, object]) -> None:
    document = json.loads(Registry(ENTRIES).to_json())
    document["entries"][0] |= change
    with pytest.raises(ConfigurationError):
        Registry.from_json(json.dumps(document))


def test_an_entry_survives_its_line_and_nothing_else_is_one() -> None:
    entry = ALICE.entry("agent", not_before=3, not_after=4)
    text = entry.to_json()
    assert text.count("\n") == 1
    assert RegistryEntry.from_json(text) == entry
    for other in (
        "",
        "{}",
        Registry(ENTRIES).to_json(),
        text.replace("agent", "admin"),
        text.replace(ALICE.verify_key.hex(), "zz"),
        text.replace(ALICE.verify_key.hex(), "00" * 32),
        text.replace('"not_before":3', '"not_before":5'),
        text.replace("{", '{"x":1,', 1),
    ):
        with pytest.raises(ConfigurationError):
            RegistryEntry.from_json(other)


def test_an_agents_index_is_its_place_among_the_agents() -> None:
    """The coordinator has none, wherever its name would sort."""
    middle = Registry(
        [
            ALICE.entry("agent"),
            RegistryEntry(name="ann", verify_key=COORDINATOR.verify_key, role="coordinator"),
            BOB.entry("agent"),
        ]
    )
    assert [middle.index_of(name) for name in middle.agents] == [0, 1]
    for name in ("ann", "eve"):
        with pytest.raises(ConfigurationError, match="not an agent"):
            middle.index_of(name)


def test_a_registry_without_the_later_roles_has_the_digest_it_always_had() -> None:
    """Frozen from the version that knew agents and a coordinator only."""
    registry = Registry(ENTRIES)
    expected = "9b924dacc81dea0ab583af07ff13b6f080adc642d7ff50ef5c942bc6f63c8616"
    assert registry.digest.hex() == expected
    assert (registry.key_authority, registry.auditor) == (None, None)


def test_a_key_authority_and_an_auditor_are_named_and_are_no_agents(tmp_path: Path) -> None:
    registry = Registry([TRUSTEE.entry("key-authority"), AUDITOR.entry("auditor"), *ENTRIES])
    assert (registry.key_authority, registry.auditor) == ("trustee", "auditor")
    assert (registry.coordinator, registry.agents) == ("coordinator", ("alice", "bob"))
    assert registry.role_of("trustee") == "key-authority"
    assert registry.role_of("auditor") == "auditor"
    assert [registry.index_of(name) for name in registry.agents] == [0, 1]
    for name in ("trustee", "auditor"):
        with pytest.raises(ConfigurationError, match="not an agent"):
            registry.index_of(name)
    registry.save(tmp_path / "registry.json")
    assert Registry.load(tmp_path / "registry.json") == registry
    assert RegistryEntry.from_json(registry.entries[-1].to_json()).role == "key-authority"
    assert "2 agents" in repr(registry)


def test_each_of_the_later_roles_is_optional_on_its_own() -> None:
    authority_only = Registry([TRUSTEE.entry("key-authority"), *ENTRIES])
    auditor_only = Registry([TRUSTEE.entry("auditor"), *ENTRIES])
    assert (authority_only.key_authority, authority_only.auditor) == ("trustee", None)
    assert (auditor_only.key_authority, auditor_only.auditor) == (None, "trustee")


def test_a_role_is_part_of_the_digest() -> None:
    roles: tuple[Any, ...] = ("agent", "key-authority", "auditor")
    assert len({Registry([TRUSTEE.entry(role), *ENTRIES]).digest for role in roles}) == 3


def test_more_than_one_holder_of_a_single_role_is_refused_and_all_are_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Registry([TRUSTEE.entry("key-authority"), AUDITOR.entry("key-authority"), *ENTRIES])
    assert caught.value.problems == (
        "registry must name at most one key-authority, got 2: auditor, trustee",
    )
    with pytest.raises(ConfigurationError) as caught:
        Registry([TRUSTEE.entry("auditor"), AUDITOR.entry("auditor"), ALICE.entry("agent")])
    assert caught.value.problems == (
        "registry must name one coordinator, got 0",
        "registry must name at most one auditor, got 2: auditor, trustee",
    )
    with pytest.raises(ConfigurationError, match="one coordinator, got 2: alice, coordinator"):
        Registry([COORDINATOR.entry("coordinator"), ALICE.entry("coordinator")])


@pytest.mark.parametrize("role", ["key_authority", "Auditor", "", None, 1, [], "agent "])
def test_the_refusal_of_a_role_lists_those_there_are(role: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'agent', 'coordinator', 'key-authority'"):
        ALICE.entry(role)
