"""Comparison of the tasks with the package ``d4rl``: its source text, and its models in the same MuJoCo."""

from __future__ import annotations

import ast
import pickle
import sys
import xml.etree.ElementTree as ET
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from cvl_pipeline.environments.d4rl_tasks import (
    D4RL_TASKS,
    KITCHEN_TASKS,
    MAPS,
    MAZE2D_GOALS,
    AntMaze,
    Kitchen,
    Maze2D,
)
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.d4rl import read_tables
from tests.environments.d4rl_package import (
    ant_maze_xml,
    class_constants,
    definitions,
    kitchen_model,
    package_path,
    point_maze_xml,
    registrations,
)
from tests.environments.play import play

Floats = NDArray[np.float64]
Task = Maze2D | AntMaze | Kitchen

MAZE2D = registrations("pointmaze/__init__.py")
ANTMAZE = registrations("locomotion/__init__.py")
KITCHEN = registrations("kitchen/__init__.py")
MODELS = sorted({MAZE2D[name]["maze_spec"] for name in Maze2D.datasets()})


def _make(dataset_id: str, steps: int | None = None) -> Task:
    return D4RL_TASKS[dataset_id.split("-")[0]](dataset_id, steps)


def _held_actions(size: int, steps: int, seed: int = 0, hold: int = 25) -> Floats:
    """Random actions, each long enough to cause collisions."""
    drawn = np.random.default_rng(seed).uniform(-1.3, 1.3, (steps // hold + 1, size))
    return np.repeat(drawn, hold, axis=0)[:steps]


# Ids, limits and seeds of all tasks.


def test_every_dataset_of_these_families_has_its_task_and_no_other() -> None:
    published = {name for name in read_tables().urls if name.split("-")[0] in D4RL_TASKS}
    assert {*Maze2D.datasets(), *AntMaze.datasets(), *KITCHEN_TASKS} == published


def test_episodes_last_as_long_as_d4rls_and_then_are_truncated() -> None:
    task = Maze2D("maze2d-umaze-v1")
    for _ in range(2):  # the count restarts
        task.reset(seed=0)
        ends = [task.step(np.zeros(2))[2:4] for _ in range(MAZE2D["maze2d-umaze-v1"]["max_episode_steps"])]
        assert ends == [(False, False)] * 299 + [(False, True)]


@pytest.mark.parametrize("dataset_id", ["maze2d-large-v1", "antmaze-umaze-v2", "kitchen-partial-v0"])
def test_the_seed_determines_the_episode_in_any_process(dataset_id: str) -> None:
    make = pickle.loads(pickle.dumps(partial(_make, dataset_id, 12)))  # noqa: S301, as a worker gets it
    with closing(make()) as used, closing(make()) as fresh:
        first = play(used, 3, 12)
        other = play(used, 4, 12)
        play(used, 5, 7)  # an unfinished episode
        np.testing.assert_array_equal(play(used, 3, 12), first)
        np.testing.assert_array_equal(play(fresh, 3, 12), first)
    assert first[:, -1].tolist() == [False] * 12 + [True], "truncated at the given length"
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("dataset_id", "near"),
    [
        ("maze2d-umase-v1", "maze2d-umaze-v1"),
        ("antmaze-umaze-v1", "antmaze-umaze-v"),
        ("kitchen-complet-v0", "kitchen-complete-v0"),
    ],
)
def test_an_unknown_dataset_is_refused_with_the_nearest_ones(dataset_id: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"'{dataset_id}': did you mean .*{near}"):
        _make(dataset_id)


@pytest.mark.parametrize(
    ("dataset_id", "package", "fix"),
    [
        ("maze2d-umaze-v1", "gymnasium_robotics", r"pip install 'cvl-pipeline\[robotics\]'"),
        ("kitchen-mixed-v0", "gymnasium_robotics", r"pip install 'cvl-pipeline\[robotics\]'"),
        ("antmaze-umaze-v2", "d4rl", r"pip install --no-deps d4rl==1\.1"),
        ("antmaze-umaze-v2", "mujoco", r"pip install 'cvl-pipeline\[robotics\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, dataset_id: str, package: str, fix: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf"^dataset\.task '{dataset_id}' needs the package {package}: {fix}$"
    ):
        _make(dataset_id)


def test_neither_d4rl_nor_its_simulators_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gym", "mujoco_py"):  # importable, so that the test would notice an import
        (tmp_path / f"{name}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for dataset_id in ("maze2d-umaze-v1", "antmaze-umaze-v2", "kitchen-mixed-v0"):
        with closing(_make(dataset_id)) as task:
            task.reset(seed=0)
    assert not {"d4rl", "gym", "mujoco_py"} & set(sys.modules)


# maze2d


@pytest.mark.parametrize("dataset_id", Maze2D.datasets())
def test_maps_goals_rewards_and_lengths_are_those_of_the_package(dataset_id: str) -> None:
    registered, task = MAZE2D[dataset_id], Maze2D(dataset_id)
    assert task._episode_steps == registered["max_episode_steps"]
    rows = definitions("pointmaze/maze_model.py")[registered["maze_spec"]].split("\\")
    maze, dense = Maze2D.datasets()[dataset_id]
    assert ["".join("#" if cell == "#" else "." for cell in row) for row in rows] == list(MAPS[maze])
    goals = [(i, row.index("G")) for i, row in enumerate(rows) if "G" in row]
    assert goals == [MAZE2D_GOALS[maze]]
    assert registered["reward_type"] == ("dense" if dense else "sparse")
    assert not registered["reset_target"]


@pytest.mark.parametrize("maze_spec", MODELS)
def test_the_point_moves_as_in_d4rls_own_model(maze_spec: str) -> None:
    dataset_id = next(name for name in Maze2D.datasets() if MAZE2D[name]["maze_spec"] == maze_spec)
    model = mujoco.MjModel.from_xml_string(point_maze_xml(maze_spec))
    data = mujoco.MjData(model)
    task, touched, fast = Maze2D(dataset_id), 0, 0.0
    for seed in range(3):
        observation, _ = task.reset(seed=seed)
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = observation[:2], observation[2:]
        for action in _held_actions(2, 400, seed):
            observation = task.step(action)[0]
            data.qvel[:] = np.clip(data.qvel, -5.0, 5.0)
            data.ctrl[:] = np.clip(action, -1.0, 1.0)
            mujoco.mj_step(model, data)
            touched += data.ncon > 1  # the floor is always touched
            np.testing.assert_allclose(observation, [*data.qpos, *data.qvel], rtol=0.0, atol=1e-6)
            fast = max(fast, np.abs(observation[2:]).max())
    assert touched > 100
    assert fast > 5.0  # the limit has an effect


def test_pushes_move_along_the_axes_that_they_name() -> None:
    task = Maze2D("maze2d-open-v0")
    for axis in (0, 1):
        for sign in (-1.0, 1.0):
            start = task._simulation.place(np.array([2.0, 3.0]), np.zeros(2))
            for _ in range(10):
                moved = task.step(sign * np.eye(2)[axis])[0] - start
            assert sign * moved[axis] > 0.05
            assert abs(moved[1 - axis]) < 1e-9


def test_walls_stop_the_point_where_d4rl_has_them() -> None:
    # Cells reach 0.7 below and 0.3 above their indices, and the point's radius is 0.1.
    task = Maze2D("maze2d-open-v0")  # free cells: rows 1..3, columns 1..5
    for action, entry, expected in (
        ([1.0, 0.0], 0, 3.2), ([-1.0, 0.0], 0, 0.4), ([0.0, 1.0], 1, 5.2), ([0.0, -1.0], 1, 0.4),
    ):  # fmt: skip
        task._simulation.place(np.array([2.0, 3.0]), np.zeros(2))
        for _ in range(400):
            observation = task.step(np.array(action))[0]
        assert observation[entry] == pytest.approx(expected, abs=0.02)


def test_episodes_start_in_every_free_cell_a_tenth_around_its_indices() -> None:
    task = Maze2D("maze2d-umaze-v1")
    starts = np.stack([task.reset(seed=seed)[0] for seed in range(300)])
    cells = starts[:, :2].round()
    free = [[i, j] for i, row in enumerate(MAPS["umaze"]) for j, cell in enumerate(row) if cell == "."]
    assert np.unique(cells, axis=0).tolist() == free  # including the goal's cell, as in D4RL
    offsets = starts[:, :2] - cells
    assert 0.095 < np.abs(offsets).max() <= 0.1
    assert starts[:, 2:].std() == pytest.approx(0.1, rel=0.1)
    assert abs(starts[:, 2:].mean()) < 0.02


@pytest.mark.parametrize("distance", [0.0, 0.4, 0.499, 0.52, 2.0])
def test_the_goal_is_rewarded_and_ends_nothing(distance: float) -> None:
    for dataset_id in ("maze2d-large-v1", "maze2d-large-dense-v1"):
        task = Maze2D(dataset_id)
        task.reset(seed=0)
        task._simulation.place(np.array([7.0, 9.0 - distance]), np.zeros(2))
        _, reward, terminated, truncated, info = task.step(np.zeros(2))
        assert (terminated, truncated, info) == (False, False, {"success": distance <= 0.5})
        wanted = np.exp(-distance) if "dense" in dataset_id else float(distance <= 0.5)
        assert reward == pytest.approx(wanted, abs=1e-9)


def test_random_actions_score_near_zero() -> None:
    """D4RL's reference score of a random policy would differ with another map, goal or force."""
    low = read_tables().min_scores["maze2d-umaze-dense-v1"]
    task, actions, returns = Maze2D("maze2d-umaze-dense-v1"), np.random.default_rng(0), []
    for seed in range(100):
        task.reset(seed=seed)
        returns.append(sum(float(task.step(actions.uniform(-1.0, 1.0, 2))[1]) for _ in range(300)))
    assert np.mean(returns) == pytest.approx(low, abs=3.0 * np.std(returns) / np.sqrt(100))


# antmaze


@pytest.mark.parametrize("dataset_id", AntMaze.datasets())
def test_the_ants_maps_goals_starts_and_lengths_are_those_of_the_package(dataset_id: str) -> None:
    registered = ANTMAZE[dataset_id]
    assert registered["reward_type"] == "sparse"
    assert registered["eval"]
    assert not registered["non_zero_reset"]
    maze = definitions("locomotion/maze_env.py")[registered["maze_map"]]
    size = float(registered["maze_size_scaling"])
    places = {kind: [(i, j) for i, row in enumerate(maze) for j, cell in enumerate(row) if cell == kind]
              for kind in (1, "r", "g")}  # fmt: skip
    (start,), (goal,) = places["r"], places["g"]

    def xy(cell: tuple[int, int]) -> Floats:
        offset: Floats = np.array([cell[1] - start[1], cell[0] - start[0]], dtype=np.float64)
        return offset * size

    task = AntMaze(dataset_id)
    assert task._episode_steps == registered["max_episode_steps"]
    model = task._simulation.model
    boxes = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    walls = np.stack([[*xy(cell), size / 4.0] for cell in places[1]])
    np.testing.assert_allclose(model.geom_pos[boxes], walls)
    np.testing.assert_allclose(model.geom_size[boxes], [[size / 2.0, size / 2.0, size / 4.0]] * len(boxes))
    offsets = []
    for seed in range(50):
        task.reset(seed=seed)
        offsets.append(task._goal - xy(goal))
    low, high = np.min(offsets), np.max(offsets)  # the sum of samples from [0, 1] and [0, 0.5] metres
    assert 0.0 <= low < 0.3
    assert 1.2 < high <= 1.5


def test_the_ant_is_d4rls() -> None:
    model = AntMaze("antmaze-umaze-v2")._simulation.model
    theirs = mujoco.MjModel.from_xml_path(str(package_path("locomotion/assets/ant.xml")))
    assert model.opt.timestep == theirs.opt.timestep == 0.02
    assert model.opt.integrator == theirs.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    np.testing.assert_array_equal(model.actuator_ctrlrange, [[-30.0, 30.0]] * 8)
    np.testing.assert_array_equal(model.actuator_gear[:, 0], 1.0)
    for name in ("body_mass", "jnt_range", "dof_damping", "dof_armature", "actuator_trnid", "qpos0"):
        np.testing.assert_array_equal(getattr(model, name), getattr(theirs, name))
    ours = model.geom_type != mujoco.mjtGeom.mjGEOM_BOX  # the walls
    for name in ("geom_friction", "geom_solimp", "geom_solref", "geom_margin", "geom_size"):
        np.testing.assert_array_equal(getattr(model, name)[ours], getattr(theirs, name))


@pytest.mark.parametrize("dataset_id", ["antmaze-umaze-v2", "antmaze-large-play-v2"])
def test_the_ant_moves_as_in_d4rls_own_model(dataset_id: str) -> None:
    registered = ANTMAZE[dataset_id]
    model = mujoco.MjModel.from_xml_string(
        ant_maze_xml(registered["maze_map"], registered["maze_size_scaling"])
    )
    data, task, touched = mujoco.MjData(model), AntMaze(dataset_id), False
    walls = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_BOX)
    observation, _ = task.reset(seed=1)
    place, speed = observation[:15], observation[15:]
    speed[1] = -8.0  # towards the wall behind the start
    task._simulation.place(place, speed)
    data.qpos[:], data.qvel[:] = place, speed
    for action in _held_actions(8, 100, hold=2):
        observation = task.step(action)[0]
        data.ctrl[:] = 30.0 * np.clip(action, -1.0, 1.0)
        for _ in range(5):
            mujoco.mj_step(model, data)
        touched |= bool(np.isin(data.contact.geom, walls).any())
        np.testing.assert_allclose(observation, [*data.qpos, *data.qvel], atol=1e-9)
        assert observation[1] > -2.0
    assert touched


def test_an_ants_episode_starts_upright_at_the_origin() -> None:
    task = AntMaze("antmaze-large-diverse-v2")
    starts = np.stack([task.reset(seed=seed)[0] for seed in range(100)])
    np.testing.assert_allclose(np.linalg.norm(starts[:, 3:7], axis=1), 1.0)
    offsets = np.delete(starts[:, :15] - [0.0, 0.0, 0.75, 1.0, *[0.0] * 11], [3, 4, 5, 6], axis=1)
    assert 0.095 < np.abs(offsets).max() <= 0.1
    assert np.abs(starts[:, 4:7]).max() < 0.12
    assert starts[:, 15:].std() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(("distance", "reached"), [(0.0, True), (0.45, True), (0.55, False)])
def test_the_ants_goal_is_rewarded_and_ends_the_episode(distance: float, reached: bool) -> None:
    task = AntMaze("antmaze-umaze-v2")
    task.reset(seed=2)
    place = task._simulation.model.qpos0.copy()
    place[:2] = task._goal + np.array([0.0, distance])
    task._simulation.place(place, np.zeros(14))
    _, reward, terminated, truncated, info = task.step(np.zeros(8))
    assert (reward, terminated, truncated, info["success"]) == (float(reached), reached, False, reached)


# kitchen


@pytest.fixture
def kitchen() -> Any:
    with closing(Kitchen("kitchen-mixed-v0")) as task:
        yield task


@pytest.mark.parametrize("dataset_id", KITCHEN_TASKS)
def test_the_things_to_do_and_the_length_are_those_of_the_package(dataset_id: str) -> None:
    theirs = definitions("kitchen/kitchen_envs.py")
    entry = KITCHEN[dataset_id]["entry_point"].split(":")[1]
    elements = class_constants("kitchen/kitchen_envs.py", entry)["TASK_ELEMENTS"]
    goal = np.zeros(30)
    for element in elements:
        goal[theirs["OBS_ELEMENT_INDICES"][element]] = theirs["OBS_ELEMENT_GOALS"][element]
    with closing(Kitchen(dataset_id)) as task:
        assert task._episode_steps == KITCHEN[dataset_id]["max_episode_steps"]
        np.testing.assert_array_equal(task.reset(seed=0)[0][30:], goal)
        np.testing.assert_array_equal(task.step(np.zeros(9))[0][30:], goal)
        for element in elements:
            np.testing.assert_array_equal(task._entries[element], theirs["OBS_ELEMENT_INDICES"][element])
    assert set(KITCHEN_TASKS[dataset_id]) == set(elements)
    assert theirs["BONUS_THRESH"] == Kitchen.NEAR
    flags = class_constants("kitchen/kitchen_envs.py", "KitchenBase")
    assert flags["REMOVE_TASKS_WHEN_COMPLETE"]
    assert flags["TERMINATE_ON_TASK_COMPLETE"]


def test_the_kitchen_starts_and_is_disturbed_as_in_the_package(kitchen: Kitchen) -> None:
    module = ast.parse(package_path("kitchen/adept_envs/franka/kitchen_multitask_v0.py").read_text())
    lists = [node for node in ast.walk(module) if isinstance(node, ast.List) and len(node.elts) == 30]
    start = np.array(ast.literal_eval(lists[0]))
    config = ET.parse(package_path("kitchen/adept_envs/franka/robot/franka_config.xml")).getroot()
    size = np.array([0.1 * float(config[i].attrib["pos_noise_amp"]) for i in range(30)])
    seen = np.stack([kitchen.reset(seed=seed)[0][:30] for seed in range(60)])
    np.testing.assert_allclose(kitchen._robot.data.qpos, start)
    noise = (seen - start) / size
    assert np.abs(noise).max() <= 1.0
    assert (np.abs(noise).max(0) > 0.8).all()
    correlations = np.corrcoef(noise.T) - np.eye(30)
    assert np.abs(correlations).max() < 0.6  # 60 independent samples


def test_actions_are_joint_velocities_of_two_a_second(kitchen: Kitchen) -> None:
    config = ET.parse(package_path("kitchen/adept_envs/franka/robot/franka_config.xml")).getroot()
    low, high = np.array([config[i].attrib["pos_bound"].split() for i in range(9)], dtype=np.float64).T
    observation, _ = kitchen.reset(seed=0)
    for action in _held_actions(9, 20, hold=4):
        wanted = observation[:9] + 2.0 * np.clip(action, -1.0, 1.0) * 40 * 0.002
        observation = kitchen.step(action)[0]
        np.testing.assert_allclose(kitchen._robot.data.ctrl, np.clip(wanted, low, high), atol=1e-12)
    assert np.abs(observation[:9] - kitchen._robot.data.qpos[:9]).max() <= 0.01


def test_the_kitchen_moves_as_in_d4rls_own_model(kitchen: Kitchen, tmp_path: Path) -> None:
    model = mujoco.MjModel.from_xml_path(str(kitchen_model(tmp_path)))
    data = mujoco.MjData(model)
    kitchen.reset(seed=0)
    data.qpos[:] = kitchen._robot.data.qpos
    for action in _held_actions(9, 150, seed=4, hold=10):
        kitchen.step(action)
        data.ctrl[:] = kitchen._robot.data.ctrl
        mujoco.mj_step(model, data, 40)
        np.testing.assert_allclose(kitchen._robot.data.qpos, data.qpos, rtol=0.0, atol=1e-9)
    theirs = np.flatnonzero(model.geom_bodyid != 1)  # without the controller of D4RL's human demonstrators
    for name in ("geom_contype", "geom_conaffinity"):
        np.testing.assert_array_equal(
            getattr(kitchen._robot.model, name) != 0, getattr(model, name)[theirs] != 0, err_msg=name
        )


def test_every_subtask_is_rewarded_once_and_all_four_end_the_episode(kitchen: Kitchen) -> None:
    for _ in range(2):  # a new episode starts with all subtasks open
        kitchen.reset(seed=0)
        qpos = kitchen._robot.data.qpos
        rest = qpos.copy()
        seen = []
        for thing in ("microwave", "kettle", None, "bottom burner", "light switch"):
            if thing is not None:
                entries = kitchen._entries[thing]
                qpos[entries] = kitchen._goal[entries]
            _, reward, terminated, _, info = kitchen.step(np.zeros(9))
            seen.append((reward, terminated, info["success"]))
            if thing == "microwave":
                qpos[kitchen._entries[thing]] = rest[
                    kitchen._entries[thing]
                ]  # closed again, but still counted
        assert seen == [
            *[(1.0, False, False)] * 2,
            (0.0, False, False),
            (1.0, False, False),
            (1.0, True, True),
        ]
