"""``play``: figures that can be checked, pictures of what happened, and nothing left behind."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from privfedrl.cli.play import WARNING
from privfedrl.envs import EnvSpec, heterogeneous
from privfedrl.envs.rendering import render_env
from privfedrl.federation.run_directory import FORMAT, RunDirectory, RunHeader
from privfedrl.federation.setup import policy_of
from privfedrl.plan import Plan
from privfedrl.rollout import greedy_return
from privfedrl.training import save_policy

# logit of "right" less logit of "left", on position, velocity, angle and angular velocity
BALANCING = np.array([0.0, 0.0, 0.0, 0.0, 0.1, 0.3, 3.0, 1.0, 0.0, 0.0])
FALLING = -BALANCING
SEED = 11


@pytest.fixture
def finished(tmp_path: Path, plan_text: str) -> Callable[..., Path]:
    """A run directory as a finished run leaves it, with a policy of known parameters."""

    def make(
        parameters: np.ndarray = BALANCING, *changes: tuple[str, str], saved: bool = True
    ) -> Path:
        text = plan_text
        for old, new in (("hidden = [8]", "hidden = []"), *changes):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "source.toml").write_text(text)
        plan = Plan.from_toml(tmp_path / "source.toml")
        directory = RunDirectory(tmp_path / "run")
        directory.path.mkdir()
        header = RunHeader(
            format=FORMAT,
            plan_digest=plan.digest.hex(),
            task_id="00" * 32,
            seed=SEED,
            deterministic=False,
        )
        directory.create(header, plan)
        if saved:
            save_policy(directory.policy, policy_of(plan), parameters, plan_digest=plan.digest)
        return directory.path

    return make


def content(path: Path) -> Mapping[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_the_policy_of_a_trained_run_is_played_and_its_directory_stays_as_it_was(
    trained: Any, call: Callable[..., Any]
) -> None:
    _, out, _ = trained
    before = content(out)
    result = call("play", out, "--episodes", 3, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["episodes"] == 3
    assert 1 <= found["min_return"] <= found["mean_return"] <= found["max_return"] <= 60
    assert found["plan_digest"] == RunDirectory(out).plan().digest.hex()
    assert content(out) == before


def test_figures_are_those_of_greedy_episodes_on_the_nominal_environment(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    run = finished(FALLING)
    result = call("play", run, "--episodes", 7, "--seed", 5, "--json")
    found = json.loads(result.stdout)
    expected = greedy_return(
        policy_of(RunDirectory(run).plan()),
        FALLING,
        EnvSpec("CartPole-v1"),
        episodes=7,
        rng=5,
        horizon=60,
    )
    assert found["mean_return"] == expected == found["mean_length"]  # CartPole pays 1 a step
    assert (found["min_return"], found["max_return"]) == (found["min_length"], found["max_length"])
    assert 0 < found["std_return"] < found["max_return"] - found["min_return"]
    assert found["share_terminated"] == 1.0
    assert (found["actions"], found["film"], found["lost_episodes"]) == ("greedy", None, 0)
    assert found["environment"]["params"] == {}


def test_episodes_that_reach_the_horizon_did_not_end_by_themselves(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    found = json.loads(call("play", finished(), "--episodes", 4, "--json").stdout)
    assert (found["mean_return"], found["std_return"], found["share_terminated"]) == (60.0, 0, 0)


def test_a_policy_with_a_memory_is_played_and_filmed(
    finished: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    memory = np.random.default_rng(0).normal(size=6 * 4 + 6 + 6 * 2 + 6 + 2 * 2 + 2)
    run = finished(memory, ("actions = 2", "actions = 2\nrecurrent = 2"))
    arguments = ("--gif", tmp_path / "episode.gif", "--episodes", 3, "--json")
    found = json.loads(call("play", run, *arguments).stdout)
    expected = greedy_return(
        policy_of(RunDirectory(run).plan()),
        memory,
        EnvSpec("CartPole-v1"),
        episodes=3,
        rng=0,
        horizon=60,
    )
    assert found["mean_return"] == expected
    assert found["film"]["length"] > 5


def test_one_episode_has_no_deviation(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    found = json.loads(call("play", finished(), "--episodes", 1, "--json").stdout)
    assert found["std_return"] is None


def test_sampled_actions_are_another_policy(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    run = finished(0.01 * BALANCING)  # nearly uniform, yet its most likely action balances
    greedy, sampled = (
        json.loads(call("play", run, "--json", *more).stdout) for more in ((), ("--sampled",))
    )
    assert greedy["mean_return"] == 60.0
    assert sampled["mean_return"] < 40.0
    assert sampled["actions"] == "sampled"


def test_agent_k_plays_in_its_environment_of_the_runs_own_fleet(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    run = finished(FALLING, ("horizon = 60", "horizon = 60\nlevel = 0.5"))
    fleet = heterogeneous("CartPole-v1", level=0.5, agents=5, seed=SEED)
    for agent in (0, 3):
        found = json.loads(call("play", run, "--agent", agent, "--json").stdout)
        assert found["environment"] == json.loads(fleet[agent].to_json())
    assert len({spec.params for spec in fleet}) == 5


def test_a_level_deals_a_new_fleet_by_the_seed(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    run = finished()
    fleet = heterogeneous("CartPole-v1", level=1.0, agents=5, seed=3)
    found = json.loads(call("play", run, "--level", 1, "--seed", 3, "--json").stdout)
    assert found["environment"] == json.loads(fleet[0].to_json())
    found = json.loads(call("play", run, "--level", 1, "--seed", 3, "--agent", 4, "--json").stdout)
    assert found["environment"] == json.loads(fleet[4].to_json())


def test_everybody_is_told_that_the_figures_are_not_private(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    assert "NOT private to release" in " ".join(call("play", "--help").stdout.split())
    run = finished()
    people = call("play", run, "--episodes", 2)
    assert people.stdout == ""
    assert WARNING in people.stderr
    assert "not private to release" in WARNING
    machine = call("play", run, "--episodes", 2, "--json")
    assert json.loads(machine.stdout)["warning"] == WARNING


# --- pictures -----------------------------------------------------------------------------------


def replayed(run: Path, parameters: np.ndarray, *, seed: int) -> list[np.ndarray]:
    """The frames of the filmed episode, by Gymnasium and the policy's definition alone."""
    env = render_env(EnvSpec("CartPole-v1"))
    start = int(np.random.default_rng(seed).integers(2**31, size=1)[0])
    seen, frames = env.reset(seed=start)[0], []
    weights, bias = parameters[:8].reshape(2, 4), parameters[8:]
    frames.append(env.render())
    for _ in range(60):
        seen, _, terminated, truncated, _ = env.step(int(np.argmax(weights @ seen + bias)))
        frames.append(env.render())
        if terminated or truncated:
            break
    env.close()
    return frames


def test_frames_are_what_gymnasium_draws_of_the_policys_episode(
    finished: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    run = finished(FALLING)
    folder = tmp_path / "frames"
    arguments = ("--episodes", 1, "--seed", 2, "--frames", folder, "--json")
    found = json.loads(call("play", run, *arguments).stdout)["film"]
    expected = replayed(run, FALLING, seed=2)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"frame_{index:05d}.png" for index in range(found["length"] + 1)]
    assert len(expected) == len(names)
    for name, frame in zip(names, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / name)), frame)
    assert (found["return"], found["terminated"]) == (found["length"], True)
    assert not np.array_equal(expected[0], expected[-1])


def test_the_gif_runs_at_the_environments_own_speed(
    finished: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    run, path = finished(FALLING), tmp_path / "episode.gif"
    result = call("play", run, "--episodes", 1, "--gif", path, "--json")
    film = json.loads(result.stdout)["film"]
    assert film["files"] == [str(path)]
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        # 50 steps a second: every other frame, 40 ms each
        assert picture.info["duration"] == 40
        assert getattr(picture, "n_frames", 1) == math.ceil((film["length"] + 1) / 2)
        assert picture.size == (480, 320)
        first = np.asarray(picture.convert("RGB"))
        assert len(np.unique(first.reshape(-1, 3), axis=0)) >= 4  # track, cart, pole and air
        picture.seek(getattr(picture, "n_frames", 1) - 1)
        assert not np.array_equal(np.asarray(picture.convert("RGB")), first)


class Pictureless(gymnasium.Env):
    """CartPole's spaces and no way to draw it."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's interface
    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> Any:
        return np.zeros(4, np.float32), 2.0, False, False, {}


def test_an_environment_without_pictures_is_evaluated_and_not_filmed(
    finished: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    gymnasium.register("Pictureless-v0", Pictureless)
    try:
        run = finished(BALANCING, ("CartPole-v1", "Pictureless-v0"))
        assert json.loads(call("play", run, "--json").stdout)["mean_return"] == 120.0
        result = call("play", run, "--gif", tmp_path / "no.gif", "--json")
    finally:
        gymnasium.registry.pop("Pictureless-v0")
    assert result.exit_code == 2
    error = json.loads(result.stdout)
    assert error["error"] == "ConfigurationError"
    assert "Pictureless-v0 cannot render" in error["message"]
    assert not (tmp_path / "no.gif").exists()


def test_a_missing_pillow_names_its_extra(
    finished: Callable[..., Path],
    call: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = finished()
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = call("play", run, "--gif", tmp_path / "no.gif")
    assert result.exit_code == 2
    assert "privfedrl[report]" in result.stderr


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--agent", 5), "agent must be in 0..4, got 5"),
        (("--agent", -1), "agent"),
        (("--level", 1.5), "level"),
        (("--episodes", 0), "episodes"),
        (("--seed", -1), "seed"),
        (("--gif", "absent/x.gif"), "--gif"),
        (("--frames", "absent/x"), "--frames"),
    ],
)
def test_bad_options_exit_with_2_and_name_the_parameter(
    finished: Callable[..., Path], call: Callable[..., Any], arguments: tuple, word: str
) -> None:
    result = call("play", finished(), *arguments, "--json")
    assert result.exit_code == 2
    assert word in json.loads(result.stdout)["message"]


def test_a_folder_with_something_in_it_is_not_drawn_into(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    run = finished()
    before = content(run.parent)
    result = call("play", run, "--frames", run.parent)
    assert result.exit_code == 2
    assert "new or empty" in " ".join(result.stderr.split())
    assert content(run.parent) == before


def test_what_is_no_finished_run_exits_with_2(
    finished: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    result = call("play", tmp_path / "absent", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]) == (2, "StorageError")
    result = call("play", finished(saved=False), "--json")
    assert result.exit_code == 2
    assert "not finished" in json.loads(result.stdout)["message"]


def test_a_policy_of_another_plan_is_not_played(
    finished: Callable[..., Path], call: Callable[..., Any]
) -> None:
    run = finished()
    directory = RunDirectory(run)
    policy = policy_of(directory.plan())
    save_policy(directory.policy, policy, BALANCING, plan_digest=b"\x01" * 32)
    result = call("play", run, "--json")
    assert result.exit_code == 2
    assert "plan_digest" in json.loads(result.stdout)["message"]
    plan = (run / "plan.toml").read_text()
    (run / "plan.toml").write_text(plan.replace("epsilon = 5.0", "epsilon = 4.0"))
    result = call("play", run, "--json")
    assert result.exit_code == 2
    assert "cannot change its plan" in json.loads(result.stdout)["message"]


@pytest.mark.parametrize("option", ["--gif", "--frames"])
@pytest.mark.parametrize("inside", ["ledger.db", "film", "sub/../policy.safetensors"])
def test_pictures_never_go_into_the_run_directory(
    finished: Callable[..., Path], call: Callable[..., Any], option: str, inside: str
) -> None:
    run = finished()
    (run / "ledger.db").write_bytes(b"evidence")
    (run / "sub").mkdir()
    before = content(run)
    result = call("play", run, option, run / inside)
    assert result.exit_code == 2
    assert "outside the run directory" in result.output
    assert content(run) == before


def test_only_a_gif_is_overwritten_by_a_gif(
    finished: Callable[..., Path], call: Callable[..., Any], tmp_path: Path
) -> None:
    run, target = finished(FALLING), tmp_path / "notes.txt"
    target.write_text("two years of work")
    result = call("play", run, "--gif", target, "--episodes", 1)
    assert result.exit_code == 2
    assert target.read_text() == "two years of work"
    film = tmp_path / "film.gif"
    for _ in range(2):
        assert call("play", run, "--gif", film, "--episodes", 1).exit_code == 0
