from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import gymnasium
import gymnasium_robotics
import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.storage import remotes
from minari.storage.remotes.cloud_storage import CloudStorage

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.minari import Minari, environment_spec, load_minari
from cvl_pipeline.sources.minari_writer import save_minari
from cvl_pipeline.testing.builders import make_discrete_transitions, make_rewards, make_transitions, names_in
from tests.sources.rows import assert_equal

gymnasium.register_envs(gymnasium_robotics)
VECTOR = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.fixture(autouse=True)
def _no_home_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("MINARI_REMOTE", "nowhere://at-all")


def _laid_out(space: spaces.Space[Any], values: list[Any]) -> Any:
    """Elements of a space as in Minari's buffers, with lists in the leaves of the space."""
    if isinstance(space, spaces.Dict):
        return {key: _laid_out(part, [value[key] for value in values]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_laid_out(part, [value[i] for value in values]) for i, part in enumerate(space))
    return values


def _create(root: Path, name: str, buffers: list[EpisodeBuffer], **described: Any) -> None:
    """Let Minari write a dataset below a folder, without its warnings about missing authors."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(name, buffers, **described)


def _record(
    root: Path, name: str, environment: gymnasium.Env[Any, Any], episodes: int, **described: Any
) -> list[dict[str, Any]]:
    """Store random episodes of a real environment with Minari; return them step by step.

    It does the same as minari.DataCollector, which needs JAX.
    """
    environment.action_space.seed(0)
    seen: list[dict[str, Any]] = []
    for seed in range(episodes):
        observation, info = environment.reset(seed=seed)
        log: dict[str, Any] = {"observations": [observation], "infos": [info], "steps": []}
        while not log["steps"] or not (log["steps"][-1][2] or log["steps"][-1][3]):
            action = environment.action_space.sample()
            observation, *outcome, info = environment.step(action)
            log["observations"].append(observation)
            log["steps"].append((action, *outcome))
            log["infos"].append(info)
        seen.append(log)
    buffers = []
    for log in seen:
        actions, rewards, terminations, truncations = map(list, zip(*log["steps"], strict=True))
        buffers.append(
            EpisodeBuffer(
                observations=_laid_out(environment.observation_space, log["observations"]),
                actions=actions,
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
                infos={key: [info[key] for info in log["infos"]] for key in log["infos"][0]},
            )
        )
    _create(root, name, buffers, env=environment, **described)
    return seen


def _buffer(steps: int = 3, **changes: Any) -> EpisodeBuffer:
    """A truncated episode of VECTOR observations and actions."""
    values: dict[str, Any] = {
        "observations": np.linspace(-1, 1, 2 * (steps + 1), dtype=np.float32).reshape(-1, 2),
        "actions": np.linspace(-0.5, 0.5, 2 * steps, dtype=np.float32).reshape(-1, 2),
        "rewards": np.arange(steps, dtype=np.float64),
        "terminations": np.zeros(steps, dtype=bool),
        "truncations": np.arange(steps) == steps - 1,
    }
    return EpisodeBuffer(**(values | changes))


def _create_vectors(root: Path, name: str, *buffers: EpisodeBuffer, **described: Any) -> None:
    _create(root, name, list(buffers), **({"observation_space": VECTOR, "action_space": VECTOR} | described))


def _assert_as_seen(
    found: tuple[Transitions, Rewards], seen: list[dict[str, Any]], environment: gymnasium.Env[Any, Any]
) -> None:
    transitions, rewards = found
    validate_transitions(transitions)
    validate_rewards(rewards, transitions)
    observations = [o for log in seen for o in log["observations"]]
    steps = [step for log in seen for step in log["steps"]]
    flat = [spaces.flatten(environment.observation_space, o) for o in observations]
    torch.testing.assert_close(transitions.observations, torch.tensor(np.array(flat)).float(), rtol=0, atol=0)
    actions = [spaces.flatten(environment.action_space, step[0]) for step in steps]
    torch.testing.assert_close(transitions.actions, torch.tensor(np.array(actions)).float(), rtol=0, atol=0)
    torch.testing.assert_close(rewards.rewards, torch.tensor([float(step[1]) for step in steps]))
    assert transitions.lengths.tolist() == [len(log["steps"]) for log in seen]
    assert transitions.terminated.tolist() == [log["steps"][-1][2] for log in seen]
    assert transitions.truncated.tolist() == [log["steps"][-1][3] for log in seen]
    successes = [info.get("success", False) for log in seen for info in log["infos"][1:]]
    assert rewards.successes.tolist() == successes


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_cart_pole_is_loaded_as_it_was_recorded(tmp_path: Path, data_format: str) -> None:
    with gymnasium.make("CartPole-v1") as environment:
        seen = _record(tmp_path, "CartPole/random-v0", environment, 3, data_format=data_format)
        transitions, rewards = load_minari("CartPole/random-v0", tmp_path, download=False)
        _assert_as_seen((transitions, rewards), seen, environment)
    assert transitions.discrete
    assert transitions.terminated.all()
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([0, 0], [1, 1])


def test_pendulum_is_loaded_as_it_was_recorded(tmp_path: Path) -> None:
    with gymnasium.make("Pendulum-v1", max_episode_steps=20) as environment:
        seen = _record(tmp_path, "pendulum-v3", environment, 2)
        transitions, rewards = load_minari("pendulum-v3", tmp_path, download=False)
        _assert_as_seen((transitions, rewards), seen, environment)
    assert not transitions.discrete
    assert transitions.truncated.all()
    assert (transitions.action_low.tolist(), transitions.action_high.tolist()) == ([-2], [2])


class _NearGoal(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Starts one cell away from the goal and pushes towards it."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.env.reset(
            seed=seed, options={"reset_cell": np.array([1, 1]), "goal_cell": np.array([1, 2])}
        )

    def step(self, action: Any) -> Any:
        action[:] = [1.0, 0.0]  # in place, so that the log has the executed action
        return self.env.step(action)


def test_a_maze_with_goals_is_loaded_flat_with_its_successes(tmp_path: Path) -> None:
    with _NearGoal(gymnasium.make("PointMaze_UMaze-v3", continuing_task=False)) as environment:
        seen = _record(tmp_path, "maze/push-v0", environment, 2)
        transitions, rewards = load_minari("maze/push-v0", tmp_path, download=False)
        _assert_as_seen((transitions, rewards), seen, environment)
    assert transitions.observations.shape[1] == 8
    assert transitions.terminated.all()
    assert rewards.successes.nonzero().flatten().tolist() == (transitions.episode_starts[1:] - 1).tolist()


def _recorded_in(space: spaces.Space[Any], root: Path) -> tuple[Transitions, list[Any], np.ndarray]:
    """Store elements of a space; return the loaded data, the elements, and Gymnasium's flat versions."""
    space.seed(0)
    values = [space.sample() for _ in range(4)]
    buffer = _buffer(observations=_laid_out(space, values))
    _create_vectors(root, "flat-v0", buffer, observation_space=space)
    transitions, _ = load_minari("flat-v0", root, download=False)
    return transitions, values, np.array([spaces.flatten(space, value) for value in values])


def test_subspaces_keep_the_order_that_they_were_recorded_in(tmp_path: Path) -> None:
    space = spaces.Dict(
        [("goal", VECTOR), ("arm", spaces.Tuple([spaces.Dict([("b", spaces.Discrete(3)), ("a", VECTOR)])]))]
    )
    transitions, values, expected = _recorded_in(space, tmp_path)
    assert np.array_equal(transitions.observations.numpy(), expected)
    assert np.array_equal(transitions.observations[:, :2].numpy(), [value["goal"] for value in values])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (2, 3), np.float64),
        spaces.Box(-1.0, 1.0, ()),
        spaces.Box(0, 255, (4,), np.uint8),  # a vector, such as the memory of a game
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
        spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (1, 2))]),
    ],
    ids=str,
)
def test_observations_are_flattened_as_gymnasium_does_it(tmp_path: Path, space: spaces.Space[Any]) -> None:
    transitions, _, expected = _recorded_in(space, tmp_path)
    assert np.array_equal(transitions.observations.numpy(), expected.astype(np.float32))


def test_discrete_actions_count_from_the_start_of_their_space(tmp_path: Path) -> None:
    buffer = _buffer(actions=np.array([5, 7, 6]))
    _create_vectors(tmp_path, "five-v0", buffer, action_space=spaces.Discrete(3, start=5))
    transitions, _ = load_minari("five-v0", tmp_path, download=False)
    assert transitions.actions.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_an_infinite_bound_becomes_the_extreme_of_the_log(tmp_path: Path) -> None:
    space = spaces.Box(np.array([-np.inf, -3.0]), np.array([4.0, np.inf]), dtype=np.float64)
    _create_vectors(tmp_path, "endless-v0", _buffer(), _buffer(2), action_space=space)
    transitions, _ = load_minari("endless-v0", tmp_path, download=False)
    assert transitions.action_low.tolist() == [-0.5, -3.0]
    assert transitions.action_high.tolist() == [4.0, 0.5]


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("truncated", [False, True])
def test_the_last_step_says_how_an_episode_ended(tmp_path: Path, terminated: bool, truncated: bool) -> None:
    last = np.array([False, False, True])
    _create_vectors(tmp_path, "end-v0", _buffer(terminations=last & terminated, truncations=last & truncated))
    transitions, _ = load_minari("end-v0", tmp_path, download=False)
    assert transitions.terminated.tolist() == [terminated]
    assert transitions.truncated.tolist() == [truncated or not terminated]


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ({"success": np.array([True, False, False, True])}, [False, False, True]),
        ({"success": np.array([False, True, False])}, [False, True, False]),
        ({"is_success": np.array([[0.0], [0.0], [1.0], [0.0]])}, [False, True, False]),
        ({"goal_achieved": np.array([1, 0, 1])}, [True, False, True]),
        ({"is_success": np.zeros(3), "success": np.ones(3)}, [True, True, True]),
        ({"success": np.zeros(3)}, [False, False, False]),
        ({"success": np.full(4, np.nan), "is_success": np.array([0, 0, 1, 0])}, [False, True, False]),
        ({"success": np.array([np.nan, np.nan, 1.0])}, [False, False, True]),
        ({"success": np.array([0.0, np.nan, 0.0, 1.0])}, [False, False, True]),
        (
            {"success": np.array([0, *[np.nan] * 3]), "is_success": np.array([0, 0, 1, 0])},
            [False, True, False],
        ),
    ],
)
def test_successes_are_read_with_or_without_an_entry_of_the_reset(
    tmp_path: Path, infos: Any, expected: list[bool]
) -> None:
    _create_vectors(tmp_path, "solved-v0", _buffer(infos=infos))
    _, rewards = load_minari("solved-v0", tmp_path, download=False)
    assert rewards.successes.tolist() == expected
    assert rewards.reports_success


def test_episodes_that_do_not_report_success_beside_others_give_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _create_vectors(tmp_path, "mixed-v0", _buffer(infos={"success": np.ones(3)}), _buffer(infos=None))
    _, rewards = load_minari("mixed-v0", tmp_path, download=False)
    assert rewards.successes.tolist() == [True] * 3 + [False] * 3
    assert "mixed-v0: 1 of 2 episodes do not report success; they count as not solved" in caplog.text


@pytest.mark.parametrize(
    ("changes", "described", "part"),
    [
        ({"rewards": np.array([0.0, 1e60, 0.0])}, {}, r"rewards: 1e\+60 at row 1 is too large"),
        (
            {"observations": np.arange(8, dtype=np.int64).reshape(4, 2) + 2**53},
            {"observation_space": spaces.Box(0, 2**60, (2,), np.int64)},
            r"observations, dimension 0: 4 different numbers from 9007199254740992 to 9007199254740998 become",
        ),
        (
            {"observations": np.full((4, 2), 1e60)},
            {"observation_space": spaces.Box(-np.inf, np.inf, (2,), np.float64)},
            r"observations: 1e\+60 at row 0, dimension 0 is too large",
        ),
    ],
)
def test_numbers_beyond_single_precision_are_refused(
    tmp_path: Path, changes: dict[str, Any], described: dict[str, Any], part: str
) -> None:
    _create_vectors(tmp_path, "odd-v0", _buffer(**changes), **described)
    with pytest.raises(InputError, match=f"odd-v0: {part}"):
        load_minari("odd-v0", tmp_path, download=False)


@pytest.mark.parametrize("kind", [spaces.Dict, spaces.Tuple])
def test_integers_beside_fractions_are_compared_as_they_are_stored(tmp_path: Path, kind: Any) -> None:
    parts = {"pos": spaces.Box(-1.0, 1.0, (1,), np.float64), "id": spaces.Box(0, 2**62, (1,), np.int64)}
    space = kind(parts if kind is spaces.Dict else tuple(parts.values()))
    buffers = []
    for number in range(3):
        rows = [np.zeros((4, 1)), np.full((4, 1), 2**60 + 100 * number)]
        values = dict(zip(parts, rows, strict=True)) if kind is spaces.Dict else tuple(rows)
        buffers.append(_buffer(observations=values))
    _create_vectors(tmp_path, "odd-v0", *buffers, observation_space=space)
    part = r"\['id'\]" if kind is spaces.Dict else r"\[1\]"
    with pytest.raises(
        InputError, match=f"odd-v0: observations{part}: 3 different numbers from 1152921504606846976"
    ):
        load_minari("odd-v0", tmp_path, download=False)


@pytest.mark.parametrize("infos", [{"speed": np.ones(4)}, {"success": np.array([0, *[np.nan] * 3])}, None])
def test_without_success_in_infos_success_is_not_reported(tmp_path: Path, infos: Any) -> None:
    _create_vectors(tmp_path, "walk-v0", _buffer(infos=infos))
    loaded = load_minari("walk-v0", tmp_path, download=False)
    assert loaded[1].successes.tolist() == [False, False, False]
    assert not loaded[1].reports_success
    folder = save_minari(*loaded, "copy-v0", tmp_path)
    assert "success" not in (minari.MinariDataset(folder / "data")[0].infos or {})
    assert_equal(load_minari("copy-v0", tmp_path, download=False), loaded)


def test_without_a_root_datasets_live_where_minari_keeps_them(tmp_path: Path) -> None:
    with gymnasium.make("CartPole-v1") as environment:
        _record(tmp_path, "own/cart-v0", environment, 2)
    assert_equal(load_minari("own/cart-v0"), load_minari("own/cart-v0", tmp_path, download=False))
    data = make_transitions([2], [True])
    assert save_minari(data, make_rewards(data), "own/mine-v0") == tmp_path / "own" / "mine-v0"
    assert not (tmp_path / "home").exists()


@st.composite
def _episodes(draw: st.DrawFn) -> tuple[Transitions, Rewards]:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    steps, episodes, size = sum(lengths), len(lengths), draw(st.integers(1, 3))
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    ends = draw(st.lists(st.sampled_from([(True, False), (False, True), (True, True)]), min_size=episodes))
    choices = draw(hnp.arrays(np.int64, steps, elements=st.integers(0, size - 1)))
    discrete = draw(st.booleans())
    actions = draw(hnp.arrays(np.float32, (steps, size), elements=numbers))
    if discrete:
        actions = np.eye(size, dtype=np.float32)[choices]
    transitions = Transitions(
        observations=torch.tensor(draw(hnp.arrays(np.float32, (steps + episodes, size), elements=numbers))),
        actions=torch.tensor(actions),
        episode_starts=torch.tensor([0, *np.cumsum(lengths).tolist()]),
        terminated=torch.tensor([end[0] for end in ends[:episodes]]),
        truncated=torch.tensor([end[1] for end in ends[:episodes]]),
        action_low=torch.zeros(size) if discrete else torch.tensor(actions).amin(0),
        action_high=torch.ones(size) if discrete else torch.tensor(actions).amax(0),
        discrete=torch.tensor(discrete),
    )
    rewards = draw(hnp.arrays(np.float32, steps, elements=numbers))
    reported = draw(st.booleans())
    successes = draw(hnp.arrays(np.bool_, steps)) & reported
    return transitions, Rewards(torch.tensor(rewards), torch.tensor(successes), torch.tensor(reported))


@given(_episodes())
def test_any_saved_episodes_are_loaded_unchanged(
    tmp_path_factory: pytest.TempPathFactory, episodes: tuple[Transitions, Rewards]
) -> None:
    root = tmp_path_factory.mktemp("minari")
    save_minari(*episodes, "any/thing-v0", root)
    assert_equal(load_minari("any/thing-v0", root, download=False), episodes)


def test_minari_reads_saved_datasets(tmp_path: Path) -> None:
    data = make_discrete_transitions([4, 2], [True, False], action_size=2)
    rewards = make_rewards(data)
    folder = save_minari(data, rewards, "a_b/c_d/mine-v1", tmp_path, "CartPole-v1", "A walk.")
    assert folder == tmp_path / "a_b/c_d/mine-v1"
    dataset = minari.load_dataset("a_b/c_d/mine-v1")
    assert dataset.action_space == spaces.Discrete(2)
    assert dataset.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert dataset.storage.metadata["description"] == "A walk."
    first = dataset[0]
    assert first.observations.shape == (5, 3)
    assert first.actions.tolist() == data.actions[:4].argmax(1).tolist()
    assert first.terminations.tolist() == [False, False, False, True]
    assert first.infos["success"].tolist() == [False, *rewards.successes[:4].tolist()]
    assert list(minari.list_local_datasets()) == ["a_b/c_d/mine-v1"]
    with dataset.recover_environment() as environment:
        assert environment.spec == gymnasium.make("CartPole-v1").spec
    assert (tmp_path / "a_b/c_d/namespace_metadata.json").exists()  # Minari needs it to share the dataset
    assert names_in(tmp_path / "a_b/c_d") == ["mine-v1", "namespace_metadata.json"]


def test_continuous_actions_are_saved_with_their_bounds(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    wide = replace(transitions, action_high=torch.tensor([1.5, 2.5]))
    save_minari(wide, rewards, "wide-v0", tmp_path)
    space = minari.load_dataset("wide-v0").action_space
    assert space == spaces.Box(np.full(2, -1, np.float32), np.array([1.5, 2.5], np.float32))


def test_the_environment_for_evaluation_precedes_that_of_the_log(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    with gymnasium.make("Pendulum-v1", max_episode_steps=5, g=9.0) as environment:
        _record(tmp_path, "logged-v0", environment, 1)
        _record(tmp_path, "evaluated-v0", environment, 1, eval_env="Pendulum-v1")
    logged = environment_spec("logged-v0", tmp_path)
    assert logged is not None
    assert (logged.id, logged.max_episode_steps, logged.kwargs) == ("Pendulum-v1", 5, {"g": 9.0})
    assert environment_spec("evaluated-v0", tmp_path) == gymnasium.spec("Pendulum-v1")
    save_minari(transitions, rewards, "saved-v0", tmp_path)
    assert environment_spec("saved-v0", tmp_path) is None
    name = "gymnasium_robotics:PointMaze_UMaze-v3"
    save_minari(transitions, rewards, "saved-v1", tmp_path, environment=name)
    saved = environment_spec("saved-v1", tmp_path)
    assert saved is not None
    assert saved.id == "PointMaze_UMaze-v3"


@pytest.mark.parametrize(
    ("environment", "part"), [("CartPoole-v1", "CartPoole"), ("no_such_package:Thing-v0", "no_such_package")]
)
def test_an_unknown_environment_is_refused(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, environment: str, part: str
) -> None:
    with pytest.raises(InputError, match=f"environment '{environment}'.*{part}.*package:id"):
        save_minari(transitions, rewards, "mine-v0", tmp_path, environment=environment)
    assert names_in(tmp_path) == []


def test_an_environment_that_cannot_be_serialised_is_refused(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    gymnasium.register("ByItsClass-v0", entry_point=cast("Any", lambda: None))
    try:
        with pytest.raises(InputError, match="environment 'ByItsClass-v0' cannot be stored"):
            save_minari(transitions, rewards, "mine-v0", tmp_path, environment="ByItsClass-v0")
    finally:
        del gymnasium.registry["ByItsClass-v0"]


def test_a_dataset_is_never_overwritten(tmp_path: Path, transitions: Transitions, rewards: Rewards) -> None:
    save_minari(transitions, rewards, "mine-v0", tmp_path)
    other = make_transitions([2], [True])
    with pytest.raises(InputError, match=r"mine-v0 exists already; delete it first, or save another version"):
        save_minari(other, make_rewards(other), "mine-v0", tmp_path)
    assert_equal(load_minari("mine-v0", tmp_path, download=False), (transitions, rewards))


def test_episodes_that_are_not_sound_are_not_saved(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    with pytest.raises(InputError, match=r"transitions\.actions"):
        save_minari(replace(transitions, action_high=-torch.ones(2)), rewards, "mine-v0", tmp_path)
    with pytest.raises(InputError, match=r"rewards\.rewards"):
        save_minari(transitions, replace(rewards, rewards=rewards.rewards[1:]), "mine-v0", tmp_path)
    assert names_in(tmp_path) == []


def _die_while_saving(root: Path) -> None:
    """The system kills this process when its file exceeds 64 KiB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    data = make_transitions([5000] * 4, [True] * 4)
    save_minari(data, make_rewards(data), "mine/big-v0", root)


def test_a_process_that_dies_while_it_saves_leaves_nothing_that_loads(tmp_path: Path) -> None:
    process = get_context("fork").Process(target=_die_while_saving, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGXFSZ
    assert list(tmp_path.glob("mine/.partial-*/big-v0/data/main_data.hdf5"))
    with pytest.raises(InputError, match="contains no dataset"):
        load_minari("mine/big-v0", tmp_path, download=False)
    assert minari.list_local_datasets() == {}
    data = make_transitions([2], [True])
    save_minari(data, make_rewards(data), "mine/big-v0", tmp_path)
    assert len(load_minari("mine/big-v0", tmp_path, download=False)[0]) == 2


def test_a_name_that_is_too_long_is_reported(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    name = "x" * 300 + "-v0"
    with pytest.raises(InputError, match=r"-v0 cannot be written: .*too long"):
        save_minari(transitions, rewards, name, tmp_path)
    with pytest.raises(InputError, match=r"-v0: Minari cannot read it .*too long"):
        load_minari(name, tmp_path, download=False)
    assert names_in(tmp_path) == []


def test_a_root_that_is_a_file_is_reported(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    root = tmp_path / "file"
    root.write_text("")
    for name in ("mine-v0", "name/space-v0"):
        with pytest.raises(InputError, match="is a file, not a folder of Minari datasets"):
            save_minari(transitions, rewards, name, root)
    with pytest.raises(InputError, match="is a file, not a folder of Minari datasets"):
        load_minari("mine-v0", root, download=False)


@pytest.mark.parametrize(
    "name",
    ["", "mine", "mine-v", "../mine-v0", "/mine-v0", "mine v0", "mine-v0/", "hf://farama-minari/mine-v0"],
)
def test_a_malformed_id_is_refused(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, name: str
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: load_minari(name, tmp_path),
        lambda: environment_spec(name, tmp_path),
        lambda: save_minari(transitions, rewards, name, tmp_path),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"an id has the form name-v0 or namespace/name-v0"):
            call()


def test_an_unknown_id_is_refused_with_the_nearest_ones(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    with pytest.raises(InputError, match=r"contains no dataset; run `minari download pen/cloned-v0`"):
        load_minari("pen/cloned-v0", tmp_path, download=False)
    for name in ("pen/cloned-v1", "pen/human-v1", "door-v0"):
        save_minari(transitions, rewards, name, tmp_path)
    with pytest.raises(InputError, match=r"'pen/cloned-v0': did you mean pen/cloned-v1") as caught:
        environment_spec("pen/cloned-v0", tmp_path)
    assert "`minari download pen/cloned-v0`" in str(caught.value)
    assert f"copy the downloaded folder to {tmp_path / 'pen/cloned-v0'}" in str(caught.value)
    with pytest.raises(InputError, match=r"known: door-v0, pen/cloned-v1, pen/human-v1"):
        load_minari("zzz-v0", tmp_path, download=False)


def test_without_minari_the_error_says_how_to_install_it(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "minari"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "minari", None)
    calls: list[Callable[[], Any]] = [
        lambda: load_minari("mine-v0", tmp_path),
        lambda: environment_spec("mine-v0", tmp_path),
        lambda: save_minari(transitions, rewards, "mine-v0", tmp_path),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r'pip install "cvl-pipeline\[minari\]"'):
            call()


class _Elsewhere(CloudStorage):
    """A remote in a folder of this machine; without a folder, a server that refuses connections."""

    def __init__(self, name: str, token: str | None = None) -> None:
        self._folder = Path(name)

    def list_datasets(self, prefix: str | None = None) -> Iterable[str]:
        if not self._folder.exists():
            urllib.request.urlopen("http://127.0.0.1:1")  # no server listens on this port
        return [
            path.parents[1].relative_to(self._folder).as_posix()
            for path in self._folder.glob("**/data/metadata.json")
        ]

    def get_dataset_metadata(self, dataset_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._folder / dataset_id / "data/metadata.json").read_text())
        return found

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        shutil.copytree(self._folder / dataset_id, path / dataset_id)

    def list_namespaces(self) -> Iterable[str]:
        return []

    def download_namespace_metadata(self, namespace: str, path: Path) -> None:
        raise NotImplementedError

    def upload_dataset(self, dataset_id: str) -> None:
        raise NotImplementedError

    def upload_namespace(self, namespace: str) -> None:
        raise NotImplementedError


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "remote"
    monkeypatch.setitem(remotes._registry, "folder", lambda: _Elsewhere)
    monkeypatch.setenv("MINARI_REMOTE", f"folder://{folder}")
    return folder


def test_a_dataset_that_is_not_there_is_downloaded_to_the_root(
    tmp_path: Path, remote: Path, transitions: Transitions, rewards: Rewards
) -> None:
    save_minari(transitions, rewards, "far-v0", remote)
    with pytest.raises(InputError, match="contains no dataset"):
        load_minari("far-v0", tmp_path / "here", download=False)
    assert_equal(load_minari("far-v0", tmp_path / "here"), (transitions, rewards))
    assert (tmp_path / "here" / "far-v0" / "data").is_dir()
    assert os.environ["MINARI_DATASETS_PATH"] == str(tmp_path)
    remote.rename(tmp_path / "gone")
    assert_equal(load_minari("far-v0", tmp_path / "here"), (transitions, rewards))


@pytest.mark.usefixtures("remote")
def test_a_failed_download_is_reported_with_a_workaround(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be downloaded \(URLError: .*refused") as caught:
        load_minari("pen/human-v2", tmp_path / "here")
    assert "\n" not in str(caught.value)
    assert "run `minari download pen/human-v2` on a machine with a network" in str(caught.value)
    assert f"to {tmp_path / 'here/pen/human-v2'}" in str(caught.value)
    assert os.environ["MINARI_DATASETS_PATH"] == str(tmp_path)


def test_an_interrupted_download_is_repeated(
    tmp_path: Path, remote: Path, transitions: Transitions, rewards: Rewards, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_minari(transitions, rewards, "far-v0", remote)

    def half(self: _Elsewhere, dataset_id: str, path: Path) -> None:
        (path / dataset_id / "data").mkdir(parents=True)
        raise ConnectionError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(_Elsewhere, "download_dataset", half)
        with pytest.raises(InputError, match=r"could not be downloaded .*cut off"):
            load_minari("far-v0", tmp_path / "here")
    monkeypatch.setattr(
        _Elsewhere,
        "download_dataset",
        lambda self, name, path: shutil.copytree(self._folder / name, path / name, dirs_exist_ok=True),
    )
    assert_equal(load_minari("far-v0", tmp_path / "here"), (transitions, rewards))
    remote.rename(tmp_path / "gone")
    assert_equal(load_minari("far-v0", tmp_path / "here"), (transitions, rewards))


def test_an_id_that_the_remote_lacks_is_reported(
    tmp_path: Path, remote: Path, transitions: Transitions, rewards: Rewards
) -> None:
    save_minari(transitions, rewards, "far-v1", remote)
    with pytest.raises(InputError, match=r"'far-v0'.* could not be downloaded .*far-v1"):
        load_minari("far-v0", tmp_path)


IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Text(5), r"observation space is Text\(.*only Box, Discrete"),
        (spaces.Dict(mission=spaces.Text(5), place=VECTOR), r"observation space\['mission'\] is Text\("),
        (
            spaces.Dict(place=VECTOR, eye=spaces.Tuple([IMAGE])),
            r"observation space\['eye'\]\[0\] contains images",
        ),
    ],
)
def test_observations_that_make_no_vector_are_refused(
    tmp_path: Path, space: spaces.Space[Any], part: str
) -> None:
    values = _laid_out(space, [space.sample() for _ in range(4)])
    _create_vectors(tmp_path, "odd-v0", _buffer(observations=values), observation_space=space)
    with pytest.raises(InputError, match=f"odd-v0: {part}"):
        load_minari("odd-v0", tmp_path, download=False)


def test_actions_of_another_kind_are_refused(tmp_path: Path) -> None:
    buffer = _buffer(actions=np.ones((3, 2), dtype=np.int64))
    _create_vectors(tmp_path, "odd-v0", buffer, action_space=spaces.MultiDiscrete([2, 2]))
    with pytest.raises(InputError, match=r"odd-v0: action space MultiDiscrete.*only Box and Discrete"):
        load_minari("odd-v0", tmp_path, download=False)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"terminations": np.array([False, True, False])},
            "step 1 of 3 is terminated, but the episode goes",
        ),
        (
            {"truncations": np.array([True, False, True])},
            "step 0 of 3 is truncated, but the episode goes on",
        ),
        (
            {"terminations": np.zeros(2, dtype=bool)},
            r"terminations: bool of shape \(2,\), but there are 3 rew",
        ),
        ({"rewards": np.zeros((3, 2))}, r"rewards: float64 of shape \(3, 2\)"),
        (
            {"observations": np.zeros((3, 2), np.float32)},
            r"observations: float32 of shape \(3, 2\).*\(4, 2\)",
        ),
        ({"actions": np.zeros((3, 1), np.float32)}, r"actions: float32 of shape \(3, 1\).*\(3, 2\)"),
        (
            {"infos": {"success": np.zeros(2)}},
            r"infos\['success'\]: float64 of shape \(2,\), but 3 steps need",
        ),
        ({"infos": {"is_success": np.zeros((4, 2))}}, r"infos\['is_success'\]: float64 of shape \(4, 2\)"),
        (
            {"infos": {"is_success": np.array([0, 0.5, 1])}},
            r"infos\['is_success'\]: 0.5 at step 1 .* not a flag",
        ),
        ({"terminations": np.array([0, 0, np.nan])}, r"terminated is nan at step 2 .* not a flag"),
        ({"rewards": np.array([0.0, np.nan, 1.0])}, "rewards: nan at step 1 .* not a finite number; remove"),
        ({"rewards": np.full(3, np.nan)}, "rewards: all are nan, but other episodes have rewards"),
        (
            {"observations": np.array([[0, 0], [0, 0], [0, np.inf], [0, 0]], np.float32)},
            "observations: inf at row 2 .* not a finite number",
        ),
        ({"actions": np.array([[0, 0], [np.nan, 0], [0, 0]], np.float32)}, "actions: nan at row 1"),
        ({"infos": {"success": True}}, r"infos\['success'\]: bool of shape \(\)"),
        ({"infos": {"success": {"left": np.zeros(4)}}}, r"infos\['success'\]: object of shape \(\)"),
        ({"infos": {"success": ["no", "no", "no", "yes"]}}, r"infos\['success'\]: object of shape \(4,\)"),
    ],
)
def test_a_faulty_episode_is_refused_by_number_field_and_shape(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    _create_vectors(tmp_path, "odd-v0", _buffer(), _buffer(**changes))
    with pytest.raises(InputError, match=rf"odd-v0: episode 1[:,] {part}"):
        load_minari("odd-v0", tmp_path, download=False)


@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_outside_its_choices_is_refused(tmp_path: Path, action: int) -> None:
    buffer = _buffer(actions=np.array([0, 2, action]))
    _create_vectors(tmp_path, "odd-v0", buffer, action_space=spaces.Discrete(3))
    with pytest.raises(InputError, match=rf"episode 0, actions: {action} at row 2 is outside Discrete\(3\)"):
        load_minari("odd-v0", tmp_path, download=False)


def test_a_dataset_without_episodes_is_refused(tmp_path: Path) -> None:
    _create_vectors(tmp_path, "none-v0")
    with pytest.raises(InputError, match="none-v0: no episode"):
        load_minari("none-v0", tmp_path, download=False)


def _main(root: Path) -> Path:
    return root / "odd-v0" / "data" / "main_data.hdf5"


def _without_steps(root: Path) -> None:
    with h5py.File(_main(root), "a") as file:
        for name in ("actions", "rewards", "terminations", "truncations"):
            file["episode_1"][name].resize(0, axis=0)


def _without(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with h5py.File(_main(root), "a") as file:
            del file[name]

    return change


def _metadata(root: Path) -> Path:
    return root / "odd-v0" / "data" / "metadata.json"


def _described(**changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        values = json.loads(_metadata(root).read_text()) | changes
        kept = {key: value for key, value in values.items() if value is not None}
        _metadata(root).write_text(json.dumps(kept))

    return change


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (_without_steps, "episode 1 has no steps; remove it"),
        (_without("episode_1/actions"), "Minari cannot read it .*delete the folder"),
        (_without("episode_1"), "Minari cannot read it .*episode_1.*delete the folder"),
        (
            lambda root: os.truncate(_main(root), 3000),
            "Minari cannot read it .*truncated file.*delete the folder",
        ),
        (lambda root: _main(root).unlink(), "Minari cannot read it .*No data found.*delete the folder"),
        (
            lambda root: _metadata(root).write_text("{"),
            "Minari cannot read it .*JSONDecodeError.*delete the folder",
        ),
        (_described(total_episodes=1), "3 steps, but its metadata says 5; it is damaged"),
        (_described(minari_version="9.0.0"), "Minari cannot read it .*does not support"),
        (_described(data_format="zarr"), "Minari cannot read it .*zarr"),
        (_described(action_space="{}"), "Minari cannot read it"),
    ],
)
def test_a_damaged_dataset_gives_a_one_line_error(
    tmp_path: Path, damage: Callable[[Path], None], part: str
) -> None:
    _create_vectors(tmp_path, "odd-v0", _buffer(), _buffer(2))
    damage(tmp_path)
    with pytest.raises(InputError, match=f"^{tmp_path}/odd-v0: {part}") as caught:
        load_minari("odd-v0", tmp_path, download=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["observation_space", "action_space"])
def test_a_dataset_cannot_have_its_environment_made_by_leaving_out_a_space(
    tmp_path: Path, field: str
) -> None:
    made = tmp_path / "made"
    spec = {"id": "Evil-v0", "entry_point": "os:mkdir", "additional_wrappers": []}
    _create_vectors(tmp_path, "odd-v0", _buffer())
    _described(**{field: None, "env_spec": json.dumps(spec | {"kwargs": {"path": str(made)}})})(tmp_path)
    with pytest.raises(TypeError):
        MinariStorage.read(tmp_path / "odd-v0" / "data")
    made.rmdir()  # Minari by itself creates the folder that the file names
    for call in (lambda: load_minari("odd-v0", tmp_path), lambda: environment_spec("odd-v0", tmp_path)):
        with pytest.raises(InputError, match=f"its metadata has no {field}"):
            call()
    assert not made.exists()


def test_the_source_reads_its_folder(tmp_path: Path, transitions: Transitions, rewards: Rewards) -> None:
    save_minari(transitions, rewards, "mine/walk-v0", tmp_path)
    source = Minari(Minari.Parameters(task="mine/walk-v0", path=str(tmp_path)))
    assert_equal(source.load(0, None), (transitions, rewards))
    assert source.files() == [tmp_path / "mine/walk-v0"]
    assert source.environment_name == "mine/walk-v0"
    assert Minari(Minari.Parameters(task="mine/walk-v0")).files() == []


def test_values_from_other_files_or_never_written_are_refused(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    def refused(change: Callable[[h5py.File], None]) -> str:
        shutil.rmtree(tmp_path / "mine-v0", ignore_errors=True)
        folder = save_minari(transitions, rewards, "mine-v0", tmp_path)
        with h5py.File(folder / "data/main_data.hdf5", "a") as file:
            del file["episode_0/rewards"]
            change(file)
        with pytest.raises(InputError) as caught:
            load_minari("mine-v0", tmp_path)
        assert "main_data.hdf5" in str(caught.value)
        return str(caught.value)

    steps = int(transitions.lengths[0])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(steps)
    link = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    assert "takes values from " in refused(lambda file: file.__setitem__("episode_0/rewards", link))
    late = refused(lambda file: file.create_dataset("episode_0/rewards", (steps,), "f4"))
    assert "array 'episode_0/rewards': 1 of its 1 parts (chunks) were never written" in late
    raw = [("raw.bin", 0, 4 * steps)]
    outside = refused(lambda file: file.create_dataset("episode_0/rewards", (steps,), "f4", external=raw))
    assert "'raw.bin' (external storage)" in outside
    zeros = {"episode_0/kept": np.zeros(steps), "episode_0/rewards": h5py.SoftLink("/episode_0/kept")}
    shutil.rmtree(tmp_path / "mine-v0")
    folder = save_minari(transitions, rewards, "mine-v0", tmp_path)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        for name, value in zeros.items():
            file[name] = value
    assert load_minari("mine-v0", tmp_path)[1].rewards[:steps].tolist() == [0.0] * steps


@pytest.mark.parametrize("name", ["metadata.json", "main_data.hdf5", "beside"])
def test_a_pipe_in_the_folder_of_a_dataset_is_refused(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, name: str
) -> None:
    path = save_minari(transitions, rewards, "mine-v0", tmp_path) / "data" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(InputError, match=rf"data/{name} is a pipe, not a file; delete or move it"):
        load_minari("mine-v0", tmp_path)
    os.mkfifo(tmp_path / "root")
    with pytest.raises(InputError, match="root is a pipe, not a folder of Minari datasets"):
        load_minari("mine-v0", tmp_path / "root")
