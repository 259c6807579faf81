from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from privfedrl.errors import ConfigurationError, StorageError
from privfedrl.rollout.policies import MlpPolicy
from privfedrl.training.policy_file import load_policy, save_policy

POLICY = MlpPolicy(observation_size=3, hidden=(4,), action="gaussian", action_size=2)
DIGEST = bytes(range(32))
VECTOR = np.random.default_rng(0).normal(size=POLICY.num_parameters)


def test_a_saved_policy_loads_bit_for_bit_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "policy.safetensors"
    save_policy(path, POLICY, VECTOR, plan_digest=DIGEST)
    save_policy(path, POLICY, VECTOR * 2, plan_digest=DIGEST)
    assert np.array_equal(load_policy(path, POLICY, plan_digest=DIGEST), VECTOR * 2)
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]


def test_a_policy_of_another_plan_or_architecture_is_refused(tmp_path):
    path = tmp_path / "policy.safetensors"
    save_policy(path, POLICY, VECTOR, plan_digest=DIGEST)
    with pytest.raises(ConfigurationError, match="plan_digest"):
        load_policy(path, POLICY, plan_digest=bytes(32))
    with pytest.raises(ConfigurationError, match="policy"):
        load_policy(path, replace(POLICY, hidden=(2, 2)), plan_digest=DIGEST)


def test_a_missing_cut_or_foreign_file_is_a_storage_error(tmp_path):
    path = tmp_path / "policy.safetensors"
    with pytest.raises(StorageError):
        load_policy(path, POLICY, plan_digest=DIGEST)
    save_policy(path, POLICY, VECTOR, plan_digest=DIGEST)
    whole = path.read_bytes()
    for data in (b"", whole[:7], whole[:60], whole[:-8], b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(StorageError):
            load_policy(path, POLICY, plan_digest=DIGEST)


def test_a_safetensors_file_of_someone_else_is_a_storage_error(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "policy.safetensors"
    for tensors in ({"parameters": VECTOR}, {"other": VECTOR}):
        save_file(tensors, path)
        with pytest.raises(StorageError):
            load_policy(path, POLICY, plan_digest=DIGEST)


def test_a_failed_write_keeps_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "policy.safetensors"
    save_policy(path, POLICY, VECTOR, plan_digest=DIGEST)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space"):
        save_policy(path, POLICY, VECTOR * 2, plan_digest=DIGEST)
    assert np.array_equal(load_policy(path, POLICY, plan_digest=DIGEST), VECTOR)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StorageError):
        save_policy(tmp_path / "absent" / "p", POLICY, VECTOR, plan_digest=DIGEST)


@pytest.mark.parametrize("vector", [VECTOR[:-1], VECTOR * np.nan])
def test_impossible_parameters_are_not_written(tmp_path, vector):
    with pytest.raises(ConfigurationError):
        save_policy(tmp_path / "p", POLICY, vector, plan_digest=DIGEST)
    assert not list(tmp_path.iterdir())
