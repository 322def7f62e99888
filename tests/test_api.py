"""The Python interface, from arrays to a policy, at small size."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import cvl_pipeline as cvl
from cvl_pipeline import api
from cvl_pipeline.deploy.runner import load_policy
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.iql import IQL
from cvl_pipeline.networks.actor import ActorShape, CategoricalActor, GaussianActor
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.base import OBJECTIVES, TrainedPolicy
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.parameters import ExactParameters
from cvl_pipeline.readout.readouts import ExactReadout, FeatureReadout, Readout
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.schema import validated
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_for, environment_named
from cvl_pipeline.sources.files import Files
from cvl_pipeline.training import launch
from tests import own
from tests.artifacts import NAMES, assert_alike, make_artifacts

TRAINING: dict[str, Any] = {"steps": 12, "batch_size": 16, "validation_interval": 6, "accelerator": "cpu"}
CRITIC: dict[str, Any] = {
    "discount": 0.9, "representation_size": 4, "hidden": (8,), "validation_batches": 1, "training": TRAINING,
}  # fmt: skip
READOUT: dict[str, Any] = {"references": 64, "regression": {"steps": 10, "value_steps": 10, "hidden": (8,)}}
POLICY: dict[str, Any] = {"hidden": (8,), "training": TRAINING}
STEPS = 15
"""Steps per episode of ``pendulum``."""


def _pendulum(episodes: int = 6) -> dict[str, Any]:
    """Random actions in Pendulum, as a user would record them."""
    rng, rows = np.random.default_rng(0), []
    with gymnasium.make("Pendulum-v1", max_episode_steps=STEPS) as environment:
        for seed in range(episodes):
            observation, _ = environment.reset(seed=seed)
            truncated = False
            while not truncated:
                action = rng.uniform(-2.0, 2.0, 1)
                following, reward, terminated, truncated, _ = environment.step(action)
                rows.append((observation, action, reward, terminated, truncated, following))
                observation = following
    names = ("observations", "actions", "rewards", "terminated", "truncated", "next_observations")
    return {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def _cartpole(episodes: int = 8) -> dict[str, Any]:
    """Random actions in CartPole, which end by a fall."""
    rng, rows = np.random.default_rng(0), []
    with gymnasium.make("CartPole-v1") as environment:
        for seed in range(episodes):
            observation, _ = environment.reset(seed=seed)
            terminated = False
            while not terminated:
                action = rng.integers(2)
                following, reward, terminated, _, _ = environment.step(action)
                rows.append((observation, action, reward, terminated))
                observation = following
    names = ("observations", "actions", "rewards", "terminated")
    return {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


class Run(NamedTuple):
    """Everything that the interface makes of some arrays."""

    data: cvl.EpisodeData
    critic: ContrastiveCritic
    history: pd.DataFrame
    readout: Readout
    trained: TrainedPolicy


def _run(data: cvl.EpisodeData, objective: str = "awr", **settings: Any) -> Run:
    critic, history = cvl.train_critic(data, **CRITIC)
    readout = cvl.read_out(critic, data, **READOUT)
    trained = cvl.extract_policy(critic, readout, data, objective, **POLICY, **settings)
    return Run(data, critic, history, readout, trained)


@pytest.fixture(scope="module")
def continuous() -> Run:
    return _run(cvl.episodes_from_arrays(**_pendulum(), action_low=[-2.0], action_high=[2.0]))


@pytest.fixture(scope="module")
def discrete() -> Run:
    return _run(cvl.episodes_from_arrays(**_cartpole()))


def _same(one: Any, other: Any) -> bool:
    """Whether two networks have the same weights to the bit."""
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


# The package.


def _fresh(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return result.stdout.strip()


def test_importing_the_package_is_fast_and_loads_no_torch() -> None:
    heavy = "torch", "lightning", "pandas", "numpy", "pydantic", "gymnasium", "kedro", "matplotlib"
    code = f"import sys, cvl_pipeline; print([name for name in {heavy} if name in sys.modules])"
    assert _fresh(code) == "[]"
    seconds = []
    for _ in range(3):  # the machine may be busy
        start = time.perf_counter()
        _fresh("import cvl_pipeline")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5


def test_functions_are_imported_when_they_are_used() -> None:
    code = "import sys, cvl_pipeline as cvl; cvl.load; print('torch' in sys.modules)"
    assert _fresh(code) == "True"


def test_the_package_lists_its_functions() -> None:
    assert set(cvl.__all__) <= set(dir(cvl))
    assert set(cvl.__all__) <= set(api.__all__)
    assert "__version__" in dir(cvl)
    for name in cvl.__all__:
        assert getattr(cvl, name) is getattr(api, name)
    assert "episodes_from_arrays" in _fresh("import cvl_pipeline; print(dir(cvl_pipeline))")


def test_every_function_documents_its_arguments_and_errors() -> None:
    for name in api.__all__:
        function = getattr(api, name)
        assert function.__doc__, name
        if inspect.isfunction(function):
            for argument in inspect.signature(function).parameters:
                assert f"{argument}: " in function.__doc__, (name, argument)
            assert "Raises:" in function.__doc__, name


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cvl_pipeline' has no attribute 'train_critik'"):
        cvl.train_critik  # noqa: B018


# Episodes.


def test_arrays_become_episodes(continuous: Run, discrete: Run) -> None:
    data, arrays = continuous.data, _pendulum()
    assert data.transitions.lengths.tolist() == [STEPS] * 6
    assert data.transitions.truncated.all()
    assert (data.transitions.action_low.tolist(), data.transitions.action_high.tolist()) == ([-2.0], [2.0])
    np.testing.assert_allclose(data.transitions.states(), arrays["observations"], rtol=1e-6)
    np.testing.assert_allclose(data.transitions.arrivals(), arrays["next_observations"], rtol=1e-6)
    assert data.rewards is not None
    np.testing.assert_allclose(data.rewards.rewards, arrays["rewards"], rtol=1e-6)
    assert not data.rewards.reports_success
    assert len(data.split.validation) == 1
    assert data.normalisation.observation_mean.shape == (3,)

    data, arrays = discrete.data, _cartpole()
    assert data.transitions.discrete
    assert data.transitions.terminated.all()
    assert len(data.transitions) == len(arrays["actions"])  # a fall needs no next observation
    assert data.transitions.actions.argmax(1).tolist() == arrays["actions"].tolist()


def test_the_seed_chooses_the_episodes_that_are_held_out() -> None:
    splits = [cvl.episodes_from_arrays(**_cartpole(), seed=seed).split for seed in range(8)]
    assert len({tuple(split.validation.tolist()) for split in splits}) > 1
    again = cvl.episodes_from_arrays(**_cartpole(), seed=3).split
    assert torch.equal(again.train, splits[3].train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((5, 1))}, "actions have 5 rows, but observations 90"),
        ({"rewards": np.full(90, np.nan)}, r"rewards\[0\] is nan, not a finite number"),
        ({"actions": ["left"] * 90}, "actions are <U4, not numbers"),
        ({"actions": np.zeros(90)}, r"actions are float64 of shape \(90,\), which means discrete actions"),
        ({"truncated": None, "terminated": None, "next_observations": None}, "1 episode cannot be split"),
    ],
)
def test_faulty_arrays_are_named(changes: dict[str, Any], message: str) -> None:
    """More of them are in tests/sources/test_arrays.py."""
    with pytest.raises(InputError, match=message) as caught:
        cvl.episodes_from_arrays(**(_pendulum() | changes))
    assert "\n" not in str(caught.value)


def test_a_missing_action_of_the_log_is_counted() -> None:
    arrays = _cartpole() | {"actions": np.zeros(len(_cartpole()["actions"]), dtype=int)}
    data = cvl.episodes_from_arrays(**arrays, action_count=2)
    policy, _ = cvl.train_method(data, "bc", **POLICY)
    assert len(cvl.evaluate(policy, "CartPole-v1", episodes=1)) == 1


def test_a_file_gives_the_same_episodes_as_its_arrays(tmp_path: Path) -> None:
    arrays = _cartpole()
    table = {f"x_{i}": arrays["observations"][:, i] for i in range(4)}
    table |= {"push": arrays["actions"], "fell": arrays["terminated"].astype(int), "r": arrays["rewards"]}
    path = tmp_path / "log.csv"
    pd.DataFrame(table).to_csv(path, index=False)
    columns: dict[str, Any] = {
        "observations": "x_*", "actions": "push", "rewards": "r", "terminated": "fell", "truncated": None,
        "discrete": True,
    }  # fmt: skip
    expected = cvl.episodes_from_arrays(**arrays, seed=4)
    source = Files.Parameters(path=str(path), columns=columns)
    for data in (
        cvl.episodes_from_file(path, seed=4, **columns),
        cvl.episodes_from_file(str(path), seed=4, **columns),
        cvl.load_episodes("files", seed=4, path=str(path), columns=columns),
        cvl.load_episodes(source, seed=4),
    ):
        for kind, part in expected.parts().items():
            assert_alike(data.parts()[kind], part)
    with pytest.raises(InputError, match=r"log\.csv: no column 'obs_0' \(dataset\.columns\.observations\)"):
        cvl.episodes_from_file(path, **columns | {"observations": "obs_0"})
    with pytest.raises(InputError, match=r"'columns\.observation': did you mean 'observations'\?"):
        cvl.episodes_from_file(path, observation="x_*")


def test_episodes_are_collected_by_the_name_of_their_source() -> None:
    settings: dict[str, Any] = {"task": "CartPole-v1", "episodes": 3, "episode_steps": 12}
    data, same, other = (cvl.load_episodes("gymnasium", seed=seed, **settings) for seed in (0, 0, 1))
    assert data.transitions.episodes == 3
    assert data.rewards is not None
    assert not data.rewards.reports_success
    assert torch.equal(data.transitions.observations, same.transitions.observations)
    assert not torch.equal(data.transitions.observations[0], other.transitions.observations[0])


# Training.


def _check_history(history: pd.DataFrame, *columns: str) -> None:
    assert history["step"].tolist() == [6, 12]
    for name in ("train/loss", *columns):
        assert np.isfinite(history[name]).all(), name


def test_a_critic_is_trained(continuous: Run) -> None:
    assert isinstance(continuous.critic, ContrastiveCritic)
    assert continuous.critic.shape.representation_size == 4
    assert continuous.critic.shape.discount == 0.9
    assert not any(value.is_cuda for value in continuous.critic.state_dict().values())
    _check_history(continuous.history, "validation/loss", "validation/mutual_information_bound")


def test_the_seed_determines_the_critic(continuous: Run) -> None:
    again, _ = cvl.train_critic(continuous.data, DynamicsParameters.model_validate(CRITIC))
    other, _ = cvl.train_critic(continuous.data, **CRITIC, seed=1)
    assert _same(again, continuous.critic)
    assert not _same(other, continuous.critic)


def test_rewards_never_reach_the_critic(continuous: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []
    train = launch.train

    def recorded(job: Any, *arguments: Any) -> Any:
        jobs.append(job)
        return train(job, *arguments)

    monkeypatch.setattr(launch, "train", recorded)
    data = continuous.data
    assert data.rewards is not None
    for other in (replace(data.rewards, rewards=-9.0 * data.rewards.rewards), None):
        critic, _ = cvl.train_critic(replace(data, rewards=other), **CRITIC)
        assert _same(critic, continuous.critic)
    assert [job.data.rewards for job in jobs] == [None, None]
    assert all("rewards" not in job.artifacts() for job in jobs)


def test_training_is_watched_logged_and_resumed(continuous: Run, tmp_path: Path) -> None:
    rows: list[Any] = []
    folders: dict[str, Any] = {"checkpoints": tmp_path / "checkpoints", "logs": tmp_path / "logs"}
    training = TRAINING | {"loggers": (), "checkpoint_seconds": 1e-9}

    class StopError(Exception):
        pass

    def stop(row: Any) -> None:
        rows.append(row)
        if row["step"] == 12:
            raise StopError

    settings = CRITIC | {"training": training}
    with pytest.raises(StopError):
        cvl.train_critic(continuous.data, **folders, watch=stop, **settings)
    critic, history = cvl.train_critic(continuous.data, **folders, watch=rows.append, **settings)
    assert [row["step"] for row in rows] == [6, 12], "the second call repeats no step"
    assert _same(critic, continuous.critic)
    assert history["step"].tolist() == [6, 12]
    assert (tmp_path / "logs/metrics.csv").is_file()


@pytest.mark.parametrize(
    ("method", "settings", "kind"),
    [
        ("exact", {"references": None}, ExactReadout),
        ("exact", {"references": 32, "prototypes": 4}, ExactReadout),
        ("random_fourier", {"features": 16}, FeatureReadout),
        ("positive_random", {"features": 16}, FeatureReadout),
        ("exact", READOUT, RegressedReadout),
    ],
)
def test_values_are_read_out(
    continuous: Run, method: str, settings: dict[str, Any], kind: type[Readout]
) -> None:
    critic, data = continuous.critic, continuous.data
    settings = {"regression": None} | settings
    one, same, other = (cvl.read_out(critic, data, method, seed, **settings) for seed in (0, 0, 1))
    assert isinstance(one, kind)
    assert one.discount == 0.97, "the default, longer than the critic's"
    states, actions = data.transitions.states(), data.transitions.actions
    values = cvl.QFunction(critic, one)(states, actions)
    assert values.shape == (len(data.transitions),)
    assert torch.isfinite(values).all()
    assert torch.equal(cvl.QFunction(critic, same)(states, actions), values)
    differs = not torch.equal(cvl.QFunction(critic, other)(states, actions), values)
    assert differs == (settings.get("references", 1) is not None)


def test_the_readout_follows_the_rewards(continuous: Run) -> None:
    critic, data = continuous.critic, continuous.data
    assert data.rewards is not None
    states, actions = data.transitions.states(), data.transitions.actions
    doubled = data.with_rewards(replace(data.rewards, rewards=2.0 * data.rewards.rewards))
    one, two = (
        cvl.QFunction(critic, cvl.read_out(critic, part, **READOUT))(states, actions)
        for part in (data, doubled)
    )
    torch.testing.assert_close(two, 2.0 * one, rtol=1e-4, atol=1e-4)


def test_without_rewards_there_is_nothing_to_read_out(continuous: Run) -> None:
    data = continuous.data
    missing = replace(data, rewards=Rewards(torch.full((90,), torch.nan), torch.zeros(90, dtype=torch.bool)))
    for part in (data.without_rewards(), missing):
        with pytest.raises(InputError, match=r"read_out: the data have no rewards; .* data\.with_rewards"):
            cvl.read_out(continuous.critic, part)
        for method in ("iql", "cvl"):
            with pytest.raises(InputError, match=f"method '{method}' needs data with rewards"):
                cvl.train_method(part, method)
    with pytest.raises(
        InputError, match=r"value_readout\.discount is 0\.5, but the critic was trained for 0\.9"
    ):
        cvl.read_out(continuous.critic, data, discount=0.5)


def test_a_policy_is_extracted(continuous: Run, discrete: Run) -> None:
    policy, history = continuous.trained
    assert isinstance(policy, GaussianActor)
    _check_history(history, "validation/action_error")
    arrays = _pendulum()
    actions = policy.act(arrays["observations"])
    assert actions.shape == (90, 1)
    assert np.abs(actions).max() <= 2.0
    assert policy.act(arrays["observations"][0]).shape == (1,)

    policy, history = discrete.trained
    assert isinstance(policy, CategoricalActor)
    _check_history(history)
    actions = policy.act(_cartpole()["observations"])
    assert set(actions.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("awr", {"beta": 3.0}),
        ("ddpg_bc", {}),
        ("best_of_n", {"proposals": 4}),
        ("published", {}),
        ("bc", {}),
        ("awr", {"state_value": {"name": "fitted_value", "steps": 5}}),
    ],
)
def test_every_objective_extracts_a_policy(
    continuous: Run, discrete: Run, objective: str, settings: dict[str, Any]
) -> None:
    for run in (continuous, discrete):
        policy, _ = cvl.extract_policy(run.critic, run.readout, run.data, objective, **POLICY, **settings)
        assert isinstance(policy, BestOfN) == (objective == "best_of_n")
        observations = run.data.transitions.states(torch.arange(5)).numpy()
        assert len(policy.act(observations)) == 5  # type: ignore[operator]


def test_the_seed_determines_the_policy(continuous: Run) -> None:
    run = continuous
    parameters = AdvantageWeightedRegression.Parameters(**POLICY)
    again = cvl.extract_policy(run.critic, run.readout, run.data, parameters)
    other = cvl.extract_policy(run.critic, run.readout, run.data, parameters, seed=1)
    assert _same(again.policy, run.trained.policy)
    assert not _same(other.policy, run.trained.policy)


@pytest.mark.parametrize(("method", "steps"), [("bc", 2000), ("iql", 7500), ("sarsa", 7500)])
def test_methods_take_the_gradient_steps_of_the_pipeline(
    continuous: Run, monkeypatch: pytest.MonkeyPatch, method: str, steps: int
) -> None:
    jobs: list[Any] = []

    def noted(job: Any, *_: Any) -> tuple[None, None]:
        jobs.append(job)
        return None, None

    monkeypatch.setattr(launch, "train", noted)
    cvl.train_method(continuous.data, method, hidden=(8,))
    cvl.train_method(continuous.data, method, training={"batch_size": 8, "steps": 3})
    assert [job.parameters.training.steps for job in jobs] == [steps, 3]
    assert (jobs[0].parameters.hidden, jobs[1].parameters.training.batch_size) == ((8,), 8)
    assert StageParameters(baselines={"it": {"method": method}}).baselines["it"].training.steps == steps


@pytest.mark.parametrize("method", ["bc", "iql"])
def test_other_methods_train_a_policy(continuous: Run, discrete: Run, method: str) -> None:
    for run in (continuous, discrete):
        policy, history = cvl.train_method(run.data, method, **POLICY)
        again, _ = cvl.train_method(run.data, method, **POLICY)
        other, _ = cvl.train_method(run.data, method, seed=1, **POLICY)
        assert isinstance(policy, CategoricalActor if run is discrete else GaussianActor)
        _check_history(history, "validation/action_error")
        assert _same(policy, again)
        assert not _same(policy, other)


def test_only_methods_that_need_rewards_see_them(continuous: Run) -> None:
    data = continuous.data
    assert data.rewards is not None
    other = data.with_rewards(replace(data.rewards, rewards=data.rewards.rewards.flip(0)))
    bc, iql = (
        [cvl.train_method(part, method, **POLICY).policy for part in (data, other)]
        for method in ("bc", "iql")
    )
    assert _same(*bc)
    assert not _same(*iql)
    assert _same(cvl.train_method(data.without_rewards(), "bc", **POLICY).policy, bc[0])


def test_cvl_is_a_method_with_a_critic(continuous: Run) -> None:
    values = cvl.QFunction(continuous.critic, continuous.readout)
    extraction = {"objective": "awr", **POLICY}
    policy, _ = cvl.train_method(continuous.data, "cvl", values=values, extraction=extraction)
    assert _same(policy, continuous.trained.policy)
    with pytest.raises(InputError, match="method 'cvl' needs a critic and a readout"):
        cvl.train_method(continuous.data, "cvl", extraction=extraction)


# Rewards.


def just_the_angle(observations: Tensor, actions: Tensor, next_observations: Tensor) -> Tensor:
    return next_observations[:, 0]


def never_solved(observations: Tensor, actions: Tensor, next_observations: Tensor) -> tuple[Tensor, Tensor]:
    return next_observations[:, 0], next_observations[:, 0] > 2.0


GOAL: dict[str, Any] = {"reward": "goal_distance", "indices": [0], "scale": 1.0, "tolerance": 0.1}


def _label(run: Run, **settings: Any) -> Rewards:
    assert run.data.rewards is not None
    return cvl.label_rewards(run.data.transitions, run.data.rewards, **settings)


def test_a_goal_that_the_log_hardly_reaches_gives_a_warning(
    continuous: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        labels = _label(continuous, **GOAL, target=[50.0])
    assert not labels.successes.any()
    (message,) = caplog.messages
    assert message.startswith("0 of 90 logged states count as success under this reward")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert not _label(continuous, reward="tests.test_api:never_solved").successes.any()
    (message,) = caplog.messages
    assert message.startswith("0 of 90")
    caplog.clear()
    never = Rewards(torch.zeros(90), torch.zeros(90, dtype=torch.bool))
    with caplog.at_level(logging.WARNING):
        cvl.label_rewards(continuous.data.transitions, never, "success")
    (message,) = caplog.messages
    assert message.startswith("0 of 90")


def test_other_rewards_give_no_warning(continuous: Run, caplog: pytest.LogCaptureFixture) -> None:
    never = Rewards(torch.zeros(90), torch.zeros(90, dtype=torch.bool))
    with caplog.at_level(logging.WARNING):
        assert _label(continuous) is continuous.data.rewards
        transitions = continuous.data.transitions
        assert cvl.label_rewards(transitions, never) is never, (
            "the log's own reward is no choice of the user's"
        )
        reached = float(transitions.arrivals()[:, 0].median())
        assert _label(continuous, **GOAL, target=[reached]).successes.any()
        assert not _label(continuous, reward="tests.test_api:just_the_angle").reports_success
    assert caplog.messages == []


def test_another_reward_needs_no_new_critic(continuous: Run) -> None:
    data = continuous.data.with_rewards(_label(continuous, reward="tests.test_api:just_the_angle"))
    readout = cvl.read_out(continuous.critic, data, **READOUT)
    policy, _ = cvl.extract_policy(continuous.critic, readout, data, **POLICY)
    assert not _same(policy, continuous.trained.policy)


# Evaluation.


def test_a_policy_is_evaluated_by_the_id_of_an_environment(discrete: Run) -> None:
    table = cvl.evaluate(discrete.trained.policy, "CartPole-v1", episodes=3, seed=5)
    assert list(table.columns) == ["length", "return", "success", "episode_seed"]
    assert len(table) == 3
    assert (table["return"] == table["length"]).all()
    assert table["success"].isna().all(), "CartPole reports none"
    assert table.equals(cvl.evaluate(discrete.trained.policy, "CartPole-v1", episodes=3, seed=5))
    other = cvl.evaluate(discrete.trained.policy, "CartPole-v1", episodes=3, seed=6)
    assert other["episode_seed"].tolist() != table["episode_seed"].tolist()


@pytest.mark.parametrize("seed", [True, 1.0, -1, 2**64, "1", None])
def test_a_seed_is_a_whole_number_that_the_generators_take(seed: Any, discrete: Run) -> None:
    data, policy = discrete.data, discrete.trained.policy
    for use in (
        lambda: cvl.train_critic(data, seed=seed),
        lambda: cvl.train_method(data, "bc", seed=seed),
        lambda: cvl.evaluate(policy, "CartPole-v1", episodes=1, seed=seed),
        lambda: cvl.load_episodes("gymnasium", seed=seed),
        lambda: cvl.episodes_from_arrays(np.zeros((2, 1)), np.zeros((2, 1)), seed=seed),
        lambda: cvl.read_out(discrete.critic, data, seed=seed),
    ):
        with pytest.raises(InputError, match=r"^seed is .*: give a whole number from 0"):
            use()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 745. GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 768 bytes."),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB."),
    ],
)
def test_memory_that_runs_out_is_one_line_with_what_to_lower(error: Exception, discrete: Run) -> None:
    message = r"^not enough memory \(.*allocate.*\); lower training\.batch_size"
    with patch.object(launch, "train", side_effect=error), pytest.raises(InputError, match=message) as caught:
        cvl.train_method(discrete.data, "bc")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_other_errors_of_training_are_passed_on(discrete: Run) -> None:
    with (
        patch.object(launch, "train", side_effect=RuntimeError("shapes do not match")),
        pytest.raises(RuntimeError, match="shapes do not match"),
    ):
        cvl.train_method(discrete.data, "bc")


def test_an_environment_without_a_time_limit_needs_one() -> None:
    policy = make_artifacts()["policy"]
    with pytest.raises(InputError, match=r"'CliffWalking-v1' has no time limit.*in Python: episode_steps"):
        cvl.evaluate(policy, "CliffWalking-v1", episodes=1)
    with pytest.raises(InputError, match="does not fit"):  # the limit is accepted
        cvl.evaluate(policy, "CliffWalking-v1", episodes=1, episode_steps=3)
    with pytest.raises(InputError, match="episode_steps is for an environment that is given by its id"):
        cvl.evaluate(policy, environment_named("CartPole-v1"), episodes=1, episode_steps=3)


def test_success_is_in_the_table_of_an_environment_that_reports_it() -> None:
    bounds = torch.ones(2)
    policy = make_artifacts()["policy"]
    with pytest.raises(InputError, match=r"its observations have shape \(8,\), the dataset's \(3,\)"):
        cvl.evaluate(policy, "PointMaze_UMaze-v3", episodes=1)
    still = GaussianActor(replace(policy.shape, observation_shape=(8,)), None, (-bounds, bounds))
    table = cvl.evaluate(still, "PointMaze_UMaze-v3", episodes=2)
    assert table["success"].notna().all()


@pytest.mark.parametrize(
    ("environment", "episodes", "message"),
    [
        ("CartPol-v1", 1, "Gymnasium environment 'CartPol-v1': "),
        ("Pendulum-v1", 1, r"its observations have shape \(3,\), the dataset's \(4,\)"),
        ("CartPole-v1", 0, "episodes is 0; give at least 1"),
    ],
)
def test_a_faulty_evaluation_is_refused(discrete: Run, environment: str, episodes: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cvl.evaluate(discrete.trained.policy, environment, episodes=episodes)
    assert "\n" not in str(caught.value)


# Files.


@pytest.mark.parametrize("name", NAMES)
def test_every_artifact_is_saved_and_loaded(tmp_path: Path, name: str) -> None:
    artifact = make_artifacts()[name]
    cvl.save(artifact, tmp_path / "folder" / "x.safetensors")
    assert_alike(cvl.load(str(tmp_path / "folder" / "x.safetensors")), artifact)


def test_a_loaded_policy_acts_like_the_trained_one(continuous: Run, discrete: Run, tmp_path: Path) -> None:
    for name, run in (("continuous", continuous), ("discrete", discrete)):
        path = tmp_path / f"{name}.safetensors"
        cvl.save(run.trained.policy, path)
        observations = run.data.transitions.states().numpy()
        np.testing.assert_array_equal(
            cvl.load(path).act(observations),
            run.trained.policy.act(observations),  # type: ignore[operator]
        )


def test_other_objects_and_files_are_refused(continuous: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="EpisodeData is several artifacts: save its transitions, split"):
        cvl.save(continuous.data, tmp_path / "x.safetensors")
    for other in (continuous.trained, {"a": 1}):
        with pytest.raises(
            InputError, match=f"{type(other).__name__} is not an artifact; known: transitions"
        ):
            cvl.save(other, tmp_path / "x.safetensors")
    with pytest.raises(
        InputError, match=r"critic does not end in .safetensors; name the file .*/critic\.safetens"
    ):
        cvl.save(continuous.critic, tmp_path / "critic")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        cvl.load(tmp_path / "missing.safetensors")
    (tmp_path / "x.safetensors").write_text("nothing")
    with pytest.raises(InputError, match=r"x\.safetensors"):
        cvl.load(tmp_path / "x.safetensors")


# Unknown names and settings.


def test_a_policy_is_exported_with_its_values_and_a_card(continuous: Run, tmp_path: Path) -> None:
    policy: Any = continuous.trained.policy
    data = continuous.data
    rollouts = cvl.evaluate(policy, environment_named("Pendulum-v1", STEPS), episodes=2)
    folder = cvl.export_policy(
        policy, data, tmp_path / "exported", values=cvl.QFunction(continuous.critic, continuous.readout),
        rollouts=rollouts, environment="Pendulum-v1", task="swing up", seed=np.int64(3),  # type: ignore[arg-type]
        control_hz=20.0, action_names=("torque",),
    )  # fmt: skip
    loaded = load_policy(folder, outside="ignore")
    states = _pendulum()["observations"]
    np.testing.assert_allclose(loaded.select_action(states), policy.act(states), atol=1e-5)
    assert np.isfinite(loaded.value(states[0], [0.5]))
    assert (loaded.contract["control_hz"], loaded.contract["action"]["names"]) == (20.0, ["torque"])
    assert loaded.contract["about"]["judged"]["policy"]["return_mean"] == pytest.approx(
        rollouts["return"].mean()
    )
    card = (folder / "README.md").read_text()
    assert all(
        words in card for words in ("# CVL for swing up", "judged in Pendulum-v1 alone", "6 logged episodes")
    )


def test_a_policy_is_exported_into_the_home_folder(
    continuous: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written: list[Any] = []
    monkeypatch.setattr(api, "exported_files", lambda *_, **__: {})
    monkeypatch.setattr(api, "write_folder", lambda location, _: written.append(Path(location.path).parent))
    policy: Any = continuous.trained.policy
    assert [cvl.export_policy(policy, continuous.data, "~/exports")] == written == [tmp_path / "exports"]


def test_an_export_replaces_a_former_one_and_no_files_of_the_users_own(
    continuous: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[bytes] = []

    def export(*_: Any, **__: Any) -> dict[str, bytes]:
        exported.append(b"card %d" % len(exported))
        return {"README.md": exported[-1], "policy.json": b'{"files": {"README.md": ""}, "checksum": ""}'}

    monkeypatch.setattr(api, "exported_files", export)
    policy: Any = continuous.trained.policy
    notes = tmp_path / "lab" / "README.md"
    notes.parent.mkdir()
    notes.write_text("my notes")
    with pytest.raises(InputError, match=r"lab has files of its own, such as README\.md; give a new folder"):
        cvl.export_policy(policy, continuous.data, notes.parent)
    assert (notes.read_text(), exported) == ("my notes", [])
    for _ in range(2):
        folder = cvl.export_policy(policy, continuous.data, tmp_path / "exported")
        assert (folder / "README.md").read_bytes() == exported[-1]
    assert len(exported) == 2


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    continuous: Run, discrete: Run, tmp_path: Path
) -> None:
    trained: Any = continuous.trained
    data, folder = continuous.data, tmp_path / "exported"
    calls: list[tuple[Any, str]] = [
        (lambda: cvl.export_policy(trained, data, folder), "TrainedPolicy .* give its field `policy`"),
        (
            lambda: cvl.export_policy(trained.policy, discrete.data, folder),
            r"observations of shape \(3,\), and the episodes have \(4,\)",
        ),
        (lambda: cvl.export_policy(trained.policy, data, "s3://lab/exported"), "s3://lab/exported is a URL"),
        (lambda: cvl.export_policy(trained.policy, data, folder, methods=("bc",)), "give method"),
        (lambda: cvl.export_policy(trained.policy, data, folder, control_hz=0.0), "control_hz"),
    ]
    for call, words in calls:
        with pytest.raises(InputError, match=words):
            call()
    assert not folder.exists()


def test_unknown_names_and_settings_give_one_clear_line(continuous: Run) -> None:
    critic, readout, data = continuous.critic, continuous.readout, continuous.data
    calls: list[tuple[Any, str]] = [
        (lambda: cvl.load_episodes("minary"), "unknown source 'minary': did you mean minari?"),
        (lambda: cvl.load_episodes("gymnasium", tsk="x"), "unknown field 'tsk': did you mean 'task'?"),
        (lambda: cvl.load_episodes("gymnasium", episodes=1), "'episodes' is 1: "),
        (lambda: cvl.load_episodes("files"), "dataset.source files needs the path of your log"),
        (lambda: cvl.train_critic(data, hiden=(8,)), "unknown field 'hiden': did you mean 'hidden'?"),
        (
            lambda: cvl.train_critic(data, training={"step": 1}),
            "unknown field 'training.step': did you mean 'steps'?",
        ),
        (lambda: cvl.train_critic(data, discount=1.5), "'discount' is 1.5: "),
        (lambda: cvl.read_out(critic, data, "exakt"), "unknown readout 'exakt': did you mean exact?"),
        (lambda: cvl.read_out(critic, data, features=8), "unknown field 'features': "),
        (
            lambda: cvl.extract_policy(critic, readout, data, "ddpg"),
            "unknown objective 'ddpg': did you mean ddpg_bc?",
        ),
        (
            lambda: cvl.extract_policy(critic, readout, data, bta=1.0),
            "unknown field 'bta': did you mean 'beta'?",
        ),
        (lambda: cvl.train_method(data, "bcc"), "unknown method 'bcc': did you mean bc?"),
        (
            lambda: cvl.train_method(data, "iql", expectil=0.7),
            "unknown field 'expectil': did you mean 'expectile'?",
        ),
        (
            lambda: _label(continuous, reward="datast"),
            "unknown reward source 'datast': did you mean dataset?",
        ),
        (lambda: _label(continuous, reward="goal_distance", tolerence=1), "did you mean 'tolerance'?"),
        (lambda: _label(continuous, reward="success"), "the log does not report successes"),
        (lambda: _label(continuous, reward="nowhere:f"), "'nowhere:f' cannot be imported"),
        (lambda: cvl.train_method(data, "tests.test_api:Run"), "is not a subclass of cvl_pipeline.methods"),
    ]
    for call, part in calls:
        with pytest.raises(InputError) as caught:
            call()
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_settings_come_as_parameters_or_one_by_one(continuous: Run) -> None:
    critic, readout, data = continuous.critic, continuous.readout, continuous.data
    assert data.rewards is not None
    calls: dict[str, Any] = {
        "dataset": lambda: cvl.load_episodes(Files.Parameters(path="x.csv"), columns={}),
        "value_readout": lambda: cvl.read_out(critic, data, ExactParameters(), references=8),
        "policy_extraction": lambda: cvl.extract_policy(
            critic, readout, data, AdvantageWeightedRegression.Parameters(), beta=1.0
        ),
        "method": lambda: cvl.train_method(data, IQL.Parameters(), expectile=0.6),
        "contrastive_dynamics": lambda: cvl.train_critic(data, DynamicsParameters(), discount=0.5),
    }
    for section, call in calls.items():
        with pytest.raises(InputError, match=f"{section}: give parameters, or .*settings, not both"):
            call()


def test_a_file_has_bounds_of_its_actions(tmp_path: Path) -> None:
    path, log = tmp_path / "log.npz", _pendulum(episodes=2)
    np.savez(path, allow_pickle=False, **log)
    columns: dict[str, Any] = {"next_observations": "next_observations"}
    bounds = (np.array([-1.0], dtype=np.float32), [1])
    with pytest.raises(InputError, match=r"is outside \[-1, 1\]"):
        cvl.episodes_from_file(path, action_low=bounds[0], action_high=bounds[1], **columns)
    data = cvl.episodes_from_file(
        path, action_low=bounds[0], action_high=bounds[1], actions_out_of_bounds="clip", **columns
    ).transitions
    assert (data.action_low.item(), data.action_high.item(), data.actions.abs().max().item()) == (-1, 1, 1)
    with pytest.raises(InputError, match=r"memory_limit is no longer needed"):
        cvl.load_episodes("files", path=str(path), memory_limit=1.0)
    with pytest.raises(InputError, match=r"set null \(None in Python\) if the log has none"):
        cvl.episodes_from_file(path, terminated="fell")


# Classes of the user's own.


@pytest.mark.parametrize("name", ["MyAWR", "ShyAWR"])
def test_a_subclass_of_a_built_in_objective_is_chosen_by_its_name(name: str, continuous: Run) -> None:
    chosen = f"tests.own:{name}"
    settings: dict[str, Any] = {"beta": 2.0, **({"shyness": 0.25} if name == "ShyAWR" else {})}
    parameters = OBJECTIVES.validate({"objective": chosen, **settings})
    assert OBJECTIVES.of(parameters) is getattr(own, name)
    dumped = parameters.model_dump(mode="json")
    assert dumped.items() >= {"objective": chosen, **settings}.items()
    assert OBJECTIVES.validate(dumped) == pickle.loads(pickle.dumps(parameters)) == parameters  # noqa: S301
    readout = cvl.read_out(continuous.critic, continuous.data, **READOUT)
    policy, _ = cvl.extract_policy(continuous.critic, readout, continuous.data, chosen, **POLICY | settings)
    theirs, _ = cvl.extract_policy(
        continuous.critic, readout, continuous.data, "awr", **POLICY | {"beta": 2.0}
    )
    # Networks are torch's modules with code of the user's own, which rounds otherwise.
    torch.testing.assert_close(policy.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_subclass_leaves_the_settings_of_the_class_that_it_extends_alone() -> None:
    OBJECTIVES.validate("tests.own:MyAWR")
    with pytest.raises(InputError, match=r"'policy_extraction\.objective' is 'tests.own:nowhere'"):
        validated(StageParameters, {"policy_extraction": {"objective": "tests.own:nowhere"}})
    assert OBJECTIVES.validate("awr").model_dump()["objective"] == "awr"
    with pytest.raises(ValidationError):
        AdvantageWeightedRegression.Parameters(objective="tests.own:MyAWR")


def test_subclasses_of_built_in_methods_and_sources_are_chosen_by_their_names(discrete: Run) -> None:
    own_bc, bc = (cvl.train_method(discrete.data, name, **POLICY)[0] for name in ("tests.own:MyBC", "bc"))
    assert _same(own_bc, bc)
    settings = {"episodes": 2, "episode_steps": 5}
    mine, theirs = (cvl.load_episodes(name, **settings) for name in ("tests.own:MyGymnasium", "gymnasium"))
    assert torch.equal(mine.transitions.observations, theirs.transitions.observations)
    stages = validated(StageParameters, {"baselines": {"mine": {"method": "tests.own:MyBC"}}})
    assert stages.baselines["mine"].method == "tests.own:MyBC"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda run: cvl.load_episodes("tests.own:Emptyhanded"),
            r"Emptyhanded\.load returned list, not \(Tran",
        ),
        (
            lambda run: cvl.train_method(run.data, "tests.own:Forgetful"),
            r"Forgetful\.train returned NoneType, not Tr",
        ),
        (
            lambda run: _extracted(run, "tests.own:BareLoss"),
            r"BareLoss\.loss returned Tensor \(\), not a scalar tensor and",
        ),
        (
            lambda run: cvl.load_episodes("tests.own:Swapped", episodes=2, episode_steps=5),
            r"Swapped\.load returned \(Rewards, Transitions\), not \(Transitions, Rewards\)",
        ),
        (
            lambda run: cvl.train_method(run.data, "tests.own:PolicyAlone", **POLICY),
            r"PolicyAlone\.train returned CategoricalActor, not Tr",
        ),
        (
            lambda run: _extracted(run, "tests.own:VectorLoss"),
            r"VectorLoss\.loss returned \(Tensor \(2,\), \{\}\), not a scalar tensor and",
        ),
        (
            lambda run: _extracted(run, "tests.own:DetachedLoss"),
            r"DetachedLoss\.loss returned .*, not a loss that depends on the actor",
        ),
        (
            lambda run: _extracted(run, "tests.own:NumberMetric"),
            r"NumberMetric\.loss returned \(Tensor \(\), \{'loss': float\}\), not a scalar tensor and",
        ),
        (
            lambda run: _extracted(run, "tests.own:OneBatch"),
            r"OneBatch\.draw returned \(Tensor \(16,\)\), not 64 batches",
        ),
        (
            lambda run: _extracted(run, "tests.own:NoPolicy"),
            r"NoPolicy\.policy returned NoneType, not a policy",
        ),
        (
            lambda run: _environment_of("tests.own:Ready"),
            r"Ready\.make_environment returned Walk, not a function that makes one",
        ),
    ],
)
def test_a_class_of_the_users_own_that_returns_something_else_is_named(
    use: Any, message: str, discrete: Run
) -> None:
    with pytest.raises(InputError, match=rf"^tests\.own:{message}"):
        use(discrete)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Undeclared", r"setting\.q is for an objective that needs a critic: set needs_critic = True"),
        (
            "OwnStart",
            r"objective 'tests\.own:OwnStart': its __init__ must call super\(\)\.__init__\(parameters\)",
        ),
    ],
)
def test_an_objective_of_the_users_own_that_breaks_its_contract_is_refused(
    name: str, message: str, discrete: Run
) -> None:
    with pytest.raises(InputError, match=message):
        _extracted(discrete, f"tests.own:{name}")


def test_an_objective_need_not_call_its_bases_prepare(discrete: Run) -> None:
    assert _same(*(_extracted(discrete, name).policy for name in ("tests.own:PreparesItself", "bc")))


def test_a_bare_gymnasium_environment_is_refused() -> None:
    environment, policy = _environment_of("tests.own:Bare"), GaussianActor(ActorShape((3,), 1, (8,)))
    for use in (environment.check, lambda: cvl.evaluate(policy, environment, episodes=1)):
        with pytest.raises(InputError, match=r"the environment is \w+, which has no discrete: a source's"):
            use()


def test_a_method_without_a_title_is_refused_by_the_interface(discrete: Run) -> None:
    with pytest.raises(InputError, match=r"^method 'tests\.own:NoTitle' does not define title"):
        cvl.train_method(discrete.data, "tests.own:NoTitle")


def _extracted(run: Run, objective: str) -> TrainedPolicy:
    readout = cvl.read_out(run.critic, run.data, **READOUT)
    return cvl.extract_policy(run.critic, readout, run.data, objective, **POLICY)


def _environment_of(source: str) -> EvaluationEnvironment:
    return environment_for(SOURCES.validate(source), EvaluationParameters())  # type: ignore[arg-type]
