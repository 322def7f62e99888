from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from cvl_pipeline.api import ingest, load_episodes
from cvl_pipeline.environments.ogbench import OGBenchEnvironment, OGBenchGoals
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources import ogbench as source
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.ogbench import OGBench
from cvl_pipeline.testing.builders import names_in
from tests.sources.test_download import sending, serving

package = pytest.importorskip("ogbench")

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
FILE = "pointmaze-medium-navigate-v0"
GOAL = (20.0, 20.0)
"""Of the first task, in the maze's coordinates."""


def _log(lengths: tuple[int, ...] = (4, 2, 3), seed: int = 0) -> dict[str, Any]:
    """A log of a point that moves at random, and visits the goal in the second state of each episode."""
    generator = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    ends = np.cumsum(np.array(lengths) + 1) - 1
    places = generator.uniform(0.0, 8.0, (rows, 2)).astype(np.float32)
    places[[0, *(ends[:-1] + 1)]] = 0.0
    places[np.array([0, *(ends[:-1] + 1)]) + 1] = GOAL
    terminals = np.zeros(rows, dtype=bool)
    terminals[ends] = True
    return {
        "observations": places,
        "actions": generator.uniform(-1.0, 1.0, (rows, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": places,
        "qvel": np.zeros_like(places),
    }


def _write(folder: Path, log: dict[str, Any], end: str = "") -> Path:
    path = folder / f"{FILE}{end}.npz"
    np.savez_compressed(path, **log)
    return path


def _load(seed: int = 0, **settings: Any) -> tuple[Transitions, Rewards]:
    return ingest(SOURCES.validate({"source": "ogbench", **settings}), seed, 1)  # type: ignore[arg-type]


def test_an_episode_keeps_all_its_states_and_rewards_count_on_arrival(tmp_path: Path) -> None:
    path = _write(tmp_path, _log())
    transitions, rewards = _load(task=MAZE, path=str(path))
    theirs = package.load_dataset(str(path))
    assert torch.equal(transitions.states(), torch.from_numpy(theirs["observations"]))
    assert torch.equal(transitions.arrivals(), torch.from_numpy(theirs["next_observations"]))
    assert torch.equal(transitions.actions, torch.from_numpy(theirs["actions"]))
    assert transitions.lengths.tolist() == [4, 2, 3]
    assert transitions.truncated.all()
    assert not transitions.terminated.any()
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([-1.0, -1.0], [1.0, 1.0])
    # The first step of each episode leads to the goal.
    assert rewards.rewards.tolist() == [0.0, -1.0, -1.0, -1.0, 0.0, -1.0, 0.0, -1.0, -1.0]
    assert torch.equal(rewards.successes, rewards.rewards == 0.0)
    assert rewards.reports_success


def test_the_second_file_is_held_out(tmp_path: Path) -> None:
    _write(tmp_path, _log())
    alone = load_episodes("ogbench", task=MAZE, path=str(tmp_path))
    assert (alone.transitions.episodes, int(alone.transitions.held_out)) == (3, 0)
    _write(tmp_path, _log((2, 5), seed=1), source.HELD_OUT)
    for seed in (0, 1):
        both = load_episodes("ogbench", seed, task=MAZE, path=str(tmp_path))
        assert both.split.train.tolist() == [0, 1, 2]
        assert both.split.validation.tolist() == [3, 4]
    assert torch.equal(both.transitions.observations[:12], alone.transitions.observations)
    files = OGBench(OGBench.Parameters(task=MAZE, path=str(tmp_path))).files()
    assert [path.name for path in files] == [f"{FILE}.npz", f"{FILE}-val.npz"]


def test_a_dataset_without_a_single_task_has_goals_instead_of_rewards(tmp_path: Path) -> None:
    log = {name: values for name, values in _log().items() if not name.startswith("q")}
    _, rewards = _load(task=FILE, path=str(_write(tmp_path, log)))
    assert rewards.missing
    assert not rewards.reports_success
    goals, single = (OGBench(OGBench.Parameters(task=task)) for task in (FILE, MAZE))
    assert (goals.has_rewards, single.has_rewards) == (False, True)
    assert (goals.may_have_environment, single.may_have_environment) == (False, True)
    environment: Any = single.make_environment(30)
    assert (environment.func, environment.args) == (
        OGBenchEnvironment, ("pointmaze-medium-singletask-task1-v0", 30)
    )  # fmt: skip
    assert single.environment_name == environment.args[0]
    for source_of_goals in (goals, single):
        factory: Any = source_of_goals.make_goal_environment()
        assert (factory.func, factory.args) == (OGBenchGoals, ("pointmaze-medium-v0", None))
        assert len(source_of_goals.goals) == 5


def test_images_stay_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    path = _write(tmp_path, _log() | {"observations": images})
    transitions, rewards = _load(task="visual-antmaze-medium-navigate-v0", path=str(path))
    assert torch.equal(transitions.observations, torch.from_numpy(images))
    assert rewards.missing


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda log: log.pop(name)


def _with(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], object]:
    return lambda log: log.update({name: change(log[name].copy())})


def _put(index: Any, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[index] = value
        return values

    return change


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (_without("observations"), "no array 'observations', the file contains actions, qpos, qvel, terminals"),
        (_without("actions"), "no array 'actions'"),
        (_without("terminals"), "no array 'terminals'"),
        (_without("qpos"), "no array 'qpos', from which the rewards of dataset.task follow"),
        (_with("observations", lambda x: x[:, 0]), r"observations have shape \(12,\) and type float32"),
        (_with("observations", lambda x: x.reshape(12, 1, 2, 1)), r"observations have shape \(12, 1, 2, 1\)"),
        (_with("observations", lambda x: x.astype(str)), "observations have type <U"),
        (_with("observations", _put((3, 1), np.nan)), "observations have nan in row 3; remove or repair"),
        (_with("observations", lambda x: x.astype(object)), "holds Python objects, which are never unpickled"),
        (_with("actions", lambda x: x[:, 0]), r"actions have shape \(12,\), not \(rows, dimensions\)"),
        (_with("actions", lambda x: x[1:]), "11 rows of actions, but 12 of observations"),
        (_with("actions", _put((0, 0), 1.5)), "1 action is beyond the bounds"),
        (_with("actions", _put((2, 1), np.inf)), "actions have inf in row 2; remove or repair"),
        (_with("terminals", lambda x: x[:-1]), "11 rows of terminals, but 12 of observations"),
        (_with("terminals", _put(-1, False)), "the last of 12 terminals is not 1, so the last episode is cut short"),
        (_with("terminals", _put(3, True)), "the episode that ends in row 4 has no step"),
        (_with("terminals", _put(0, True)), "the episode that ends in row 0 has no step"),
        (_with("terminals", lambda x: 2.0 * x), "terminals have 2 in row 4; use 0 or 1"),
        (_with("terminals", lambda x: np.stack([x, x], 1)), r"terminals have shape \(12, 2\)"),
        (_with("qpos", lambda x: x[:, :1]), r"qpos have shape \(12, 1\), but pointmaze-medium-singletask-task1-v0"),
        (_with("qpos", lambda x: x[1:]), "11 rows of qpos, but 12 of observations"),
        (_with("qpos", _put((5, 0), np.nan)), "qpos have nan in row 5; remove or repair"),
        (_with("actions", lambda x: x[0, 0]), "array 'actions': is a single value or empty; save one row per state"),
    ],
)  # fmt: skip
def test_a_faulty_file_gives_one_line_that_names_it(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], fault: str
) -> None:
    log = _log()
    damage(log)
    path = _write(tmp_path, log)
    with pytest.raises(InputError, match=fault) as caught:
        _load(task=MAZE, path=str(path))
    assert "\n" not in str(caught.value)
    assert "ogbench" in str(caught.value) or FILE in str(caught.value) or MAZE in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (_without("qpos"), r"qpos are missing, but in .* they have shape \(2,\) per row"),
        (
            _with("actions", lambda x: x[:, :1]),
            r"actions have shape \(1,\) per row, but in .* \(2,\) per row",
        ),
        (_with("qpos", lambda x: x[:, :1]), r"qpos have shape \(1,\) per row"),
    ],
)
def test_a_second_file_that_differs_gives_one_line(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], fault: str
) -> None:
    second = _log()
    damage(second)
    path, other = _write(tmp_path, _log()), _write(tmp_path, second, source.HELD_OUT)
    with pytest.raises(InputError, match=f"{other.name}: {fault}.*; take both files from the same dataset"):
        _load(task=MAZE, path=str(path))


def test_an_array_of_hdf5_that_was_never_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{FILE}.h5"
    with h5py.File(path, "w") as file:
        for name, values in _log().items():
            file[name] = values
        del file["actions"]
        file.create_dataset("actions", (12, 2), "f4", chunks=(3, 2))
    with pytest.raises(InputError, match=r"array 'actions': 4 of its 4 parts .* were never written"):
        _load(task=MAZE, path=str(path))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "cannot be read"),
        (lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        (lambda path: path.rename(path.with_suffix(".npx")), "does not exist"),
    ],
)
def test_a_damaged_file_gives_one_line_that_names_it(
    tmp_path: Path, damage: Callable[[Path], object], fault: str
) -> None:
    path = _write(tmp_path, _log())
    damage(path)
    with pytest.raises(InputError, match=fault) as caught:
        _load(task=FILE, path=str(path))
    assert path.name in str(caught.value)


def test_a_second_file_of_another_environment_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, _log())
    _write(tmp_path, _log() | {"observations": np.zeros((12, 3), np.float32)}, source.HELD_OUT)
    with pytest.raises(InputError, match=r"-val\.npz: observations have shape \(3,\) per row, but in"):
        _load(task=FILE, path=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"task": "antmaze-medium-navigate-v0"}, "no oracle that collects 'antmaze-medium-navigate-v0'; download it"),
        ({"task": "pointmaze-medium-play-v0"}, "for pointmaze, it has navigate and stitch"),
        ({"task": "visual-cube-single-play-v0"}, "no oracle that collects 'visual-cube-single-play-v0'"),
    ],
)  # fmt: skip
def test_what_no_oracle_collects_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        _load(collect=True, **settings)


def test_a_collection_has_no_file() -> None:
    with pytest.raises(ValidationError, match=r"dataset\.collect is true, but dataset\.path names a file"):
        OGBench.Parameters(collect=True, path="log.npz")


@pytest.mark.parametrize(
    ("task", "size"), [(MAZE, (2, 2)), ("cube-single-play-singletask-task1-v0", (28, 5))]
)
def test_the_seed_determines_what_the_oracles_collect(task: str, size: tuple[int, int]) -> None:
    settings = {"task": task, "collect": True, "episodes": 2, "episode_steps": 30}
    (one, labels), (same, same_labels) = _load(4, **settings), _load(4, **settings)
    assert (one.observations.shape[1], one.actions.shape[1]) == size
    assert one.lengths.tolist() == [30, 30]
    assert torch.equal(one.observations, same.observations)
    assert torch.equal(one.actions, same.actions)
    assert torch.equal(labels.rewards, same_labels.rewards)
    assert labels.reports_success
    first, second = one.observations[:31], one.observations[31:]
    assert not torch.equal(first, second)


def test_published_files_are_downloaded_once_and_must_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("cvl_pipeline.sources.ogbench.pooch.os_cache", lambda name: tmp_path / "cache" / name)
    contents = [
        _write(tmp_path, _log(seed=seed), end).read_bytes() for seed, end in enumerate(("", source.HELD_OUT))
    ]
    with serving(*(sending(content, len(content)) for content in contents)) as server:
        monkeypatch.setattr(source, "URL", f"http://127.0.0.1:{server.server_port}/ogbench")
        transitions, _ = _load(task=FILE)
        assert server.requests == 2
    assert (transitions.episodes, int(transitions.held_out)) == (6, 3)
    cache = tmp_path / "cache" / "ogbench"
    files = [f"{FILE}-val.npz", f"{FILE}.npz"]
    assert names_in(cache) == sorted([*files, *(f"{name}.sha256" for name in files)])
    digest = hashlib.sha256(contents[0]).hexdigest()
    assert (cache / f"{FILE}.npz.sha256").read_text() == f"{digest}  {FILE}.npz\n"
    again, _ = _load(task=FILE)  # the server is stopped
    assert torch.equal(again.observations, transitions.observations)
    (cache / f"{FILE}.npz").write_bytes(contents[1])
    with pytest.raises(InputError, match=rf"{FILE}\.npz: its SHA-256 is .* not that of its first download"):
        _load(task=FILE)
