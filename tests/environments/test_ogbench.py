from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cvl_pipeline.environments.base import Array
from cvl_pipeline.environments.ogbench import (
    GOALS,
    DatasetName,
    OGBenchEnvironment,
    OGBenchGoals,
    OracleEnvironment,
    task_rewards,
)
from cvl_pipeline.errors import InputError

pytest.importorskip("ogbench")


@pytest.mark.parametrize(
    ("name", "parts", "environment_id", "file"),
    [
        ("cube-single-play-v0", ("cube-single", "play", ""), "cube-single-v0", "cube-single-play-v0"),
        (
            "visual-scene-noisy-singletask-v0",
            ("visual-scene", "noisy", "-singletask"),
            "visual-scene-singletask-v0",
            "visual-scene-noisy-v0",
        ),
        (
            "pointmaze-medium-stitch-singletask-task3-v0",
            ("pointmaze-medium", "stitch", "-singletask-task3"),
            "pointmaze-medium-singletask-task3-v0",
            "pointmaze-medium-stitch-v0",
        ),
    ],
)
def test_a_name_has_an_environment_a_kind_and_perhaps_a_task(
    name: str, parts: tuple[str, str, str], environment_id: str, file: str
) -> None:
    parsed = DatasetName.parse(name)
    assert parsed == DatasetName(*parts)
    assert (parsed.environment_id, parsed.file) == (environment_id, file)
    assert parsed.images == name.startswith("visual")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("cube-single-v0", "is not a name of OGBench's; it must be <environment>-<kind>-v0"),
        ("cube-single-play-singletask-task6-v0", "is not a name"),
        ("cube-single-play", "is not a name"),
        ("cube-sinlge-play-v0", "unknown OGBench environment 'cube-sinlge': did you mean cube-single"),
        ("powderworld-easy-play-v0", "unknown OGBench environment 'powderworld-easy'"),
        ("online-ant-play-v0", "unknown OGBench environment"),
    ],
)
def test_names_of_no_dataset_are_refused(name: str, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        DatasetName.parse(name)


@pytest.mark.parametrize(
    ("python", "advice"),
    [
        ((3, 12), r"^ogbench needs ogbench: pip install 'cvl-pipeline\[ogbench\]'"),
        ((3, 13), "^OGBench cannot be installed for Python 3.13: .*; use Python 3.11 or 3.12$"),
    ],
)
def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, python: tuple[int, int], advice: str
) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", None)
    monkeypatch.setattr(sys, "version_info", python)
    with pytest.raises(InputError, match=advice):
        DatasetName.parse("cube-single-play-v0")


def test_no_graphics_library_is_needed_and_none_warns() -> None:
    program = (
        "import os; from cvl_pipeline.environments.ogbench import OGBenchEnvironment as E; "
        "E('cube-single-v0').reset(seed=1); print(os.environ['MUJOCO_GL'])"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "MUJOCO_GL": "nothing"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (finished.stdout, finished.stderr) == ("nothing\n", "")


def _play(environment: Any, seed: int, steps: int) -> tuple[list[Array], dict[str, Any]]:
    observation, info = environment.reset(seed=seed)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, *environment.action_space.shape))
    return [observation, *(environment.step(action)[0] for action in actions)], info


@pytest.mark.parametrize(
    ("kind", "environment_id"),
    [(OGBenchEnvironment, "pointmaze-teleport-singletask-v0"), (OGBenchGoals, "cube-single-v0")],
)
def test_the_seed_alone_determines_the_episode(kind: type[OGBenchEnvironment], environment_id: str) -> None:
    used, fresh = kind(environment_id), kind(environment_id)
    _play(used, 5, 20)
    np.random.seed(0)
    first, first_info = _play(used, 7, 20)
    drawn = np.random.uniform()
    np.random.seed(0)
    assert np.random.uniform() == drawn  # the generator of others was left alone
    second, second_info = _play(fresh, 7, 20)
    assert np.array_equal(first, second)
    assert np.array_equal(first_info["goal"], second_info["goal"])
    assert not np.array_equal(first, _play(fresh, 9, 20)[0])


def test_seeds_take_turns_over_the_goals_and_show_them() -> None:
    environment = OGBenchGoals("pointmaze-medium-v0")
    tasks = []
    for seed in (1, 3, 5, 7, 9, 11):
        _, info = environment.reset(seed=seed)
        tasks.append(environment.core.cur_task_id)
        goal, centre = np.array(environment.core.cur_goal_xy), environment.core.cur_task_info["goal_xy"]
        assert np.linalg.norm(info["goal"] - goal) < 0.5
        assert np.linalg.norm(goal - centre) < 2.0
    assert tasks == [1, 2, 3, 4, 5, 1]
    assert len(GOALS) == environment.core.num_tasks


def test_rewards_of_states_are_those_of_the_environment() -> None:
    name = DatasetName.parse("scene-play-singletask-task2-v0")
    environment = OGBenchEnvironment(name.environment_id)
    environment.reset(seed=1)
    core, states, rewards = environment.core, [], []
    for step in range(8):
        if step == 4:
            core._cur_button_states[0] = 1 - core._cur_button_states[0]
        states.append({"qpos": core.data.qpos.copy(), "button_states": core._cur_button_states.copy()})
        # OGBench gives the reward of the state in which a step starts.
        _, reward, *_ = environment.step(np.zeros(5))
        rewards.append(float(reward))
    rows = {field: np.stack([state[field] for state in states]) for field in states[0]}
    labels, solved = task_rewards(name, rows)
    assert labels.tolist() == rewards
    assert len(set(rewards)) > 1
    assert not solved.any()
    with pytest.raises(
        InputError, match=r"qpos have shape \(8, 24\), but scene-singletask-task2-v0 needs 25"
    ):
        task_rewards(name, {"qpos": rows["qpos"][:, 1:]})
    with pytest.raises(InputError, match="no array 'button_states', from which the rewards"):
        task_rewards(name, {"qpos": rows["qpos"]})


@pytest.mark.parametrize("task", ["pointmaze-medium-navigate-v0", "scene-noisy-v0"])
def test_an_oracle_does_the_same_in_a_used_simulation(task: str) -> None:
    used, fresh = (OracleEnvironment(DatasetName.parse(task), 500) for _ in range(2))

    def follow(environment: OracleEnvironment, seed: int) -> list[Array]:
        rows = [environment.reset(seed=seed)[0]]
        for _ in range(60):
            rows.append(environment.step(rows[-1][-environment.sizes["actions"] :])[0])
        return rows

    follow(used, 2)
    rows = follow(used, 4)
    assert np.array_equal(rows, follow(fresh, 4))
    assert rows[0].shape == fresh.observation_space.shape
    actions = np.stack(rows)[:, -fresh.sizes["actions"] :]
    assert (abs(actions) <= 1.0).all()
    assert (actions.std(0) > 0.0).all()
