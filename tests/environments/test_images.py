"""From images to a policy, with the functions that the stages call."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.environments.collection import Disturbances, collect
from cvl_pipeline.environments.evaluation import evaluate
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.preparation import episode_table, fit_normalisation, split_episodes
from cvl_pipeline.episodes.validation import validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.kedro.pipelines.data_ingestion import nodes
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.diagnostics import value_table
from cvl_pipeline.readout.parameters import ValueReportParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.readout.rewards import label
from cvl_pipeline.sources.minari import load_minari
from cvl_pipeline.sources.minari_writer import save_minari
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    policy_parameters,
    readout_parameters,
    reward_parameters,
)
from tests.environments.toys import DOT
from tests.sources.rows import assert_equal

RANDOM = Disturbances(0.0, 1.0, 4, random_min=1.0)


class Still:
    """Return zeros, so that only the disturbances act."""

    def __call__(self, observation: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.zeros(2)


@pytest.fixture(scope="module")
def log() -> tuple[Transitions, Rewards]:
    environment = partial(GymnasiumEnvironment, DOT)
    return collect(environment, Still, RANDOM, episodes=120, seed=0, workers=1, name="dots")


def test_images_are_kept_as_bytes(log: tuple[Transitions, Rewards], tmp_path: Path) -> None:
    transitions, _ = log
    assert transitions.observations.dtype == torch.uint8
    assert transitions.observations.shape == (120 * 21, 16, 16, 3)
    validate_transitions(transitions)
    save_artifact(tmp_path / "log.safetensors", "transitions", transitions)
    assert (tmp_path / "log.safetensors").stat().st_size < 1.05 * transitions.observations.nbytes
    loaded = load_artifact(tmp_path / "log.safetensors")
    assert torch.equal(loaded.observations, transitions.observations)


def test_images_are_saved_to_minari_and_loaded_again(
    log: tuple[Transitions, Rewards], tmp_path: Path
) -> None:
    short = log[0].select(torch.arange(3)), log[1].select(torch.arange(60))
    save_minari(*short, "dots-v0", tmp_path)
    assert_equal(load_minari("dots-v0", tmp_path, download=False), short)


def test_statistics_of_images_are_per_channel_over_all_pixels(log: tuple[Transitions, Rewards]) -> None:
    transitions, _ = log
    split = split_episodes(transitions, 0.2, 0)
    found = fit_normalisation(transitions, split, 1e-3)
    pixels = transitions.select(split.train).observations.double().reshape(-1, 3)
    np.testing.assert_allclose(found.observation_mean, pixels.mean(0), rtol=1e-6)
    # The third channel is always black, so it has the floor's standard deviation.
    np.testing.assert_allclose(found.observation_std[:2], pixels.std(0, unbiased=False)[:2], rtol=1e-6)
    assert float(found.observation_std[2]) == pytest.approx(1e-3)


def test_a_policy_learns_from_images_of_random_moves_to_reach_the_target(
    log: tuple[Transitions, Rewards],
) -> None:
    transitions, rewards = log
    data = EpisodeData.prepare(transitions, rewards)
    training = {"steps": 400, "batch_size": 128, "learning_rate": 1e-3, "validation_interval": 200}
    critic, history = train_dynamics(
        data,
        dynamics_parameters(hidden=(64,), representation_size=16, segments_per_episode=4, training=training),
        seed=0,
    )
    assert history["validation/mutual_information_bound"].iloc[-1] > 0.4
    q = QFunction(critic, build_readout(critic, transitions, rewards, data.split, readout_parameters(), 0))
    values = value_table(q, transitions, rewards, data.split, ValueReportParameters(), 0)
    assert values["q"].corr(values["return"]) > 0.6
    policy, _ = train_policy(data, policy_parameters(hidden=(64,), training=training), 0, values=q)
    environment = partial(GymnasiumEnvironment, DOT)
    _, labels = evaluate(policy, environment, episodes=20, seed=0, workers=1, name="CVL")
    successes = labels.successes.reshape(20, 20).any(1).double().mean()
    behaviour = rewards.successes.reshape(120, 20).any(1).double().mean()
    assert float(successes) > float(behaviour) + 0.3


def test_returns_are_regressed_on_encoded_images(log: tuple[Transitions, Rewards], tmp_path: Path) -> None:
    data = EpisodeData.prepare(*log)
    training = {"steps": 2, "batch_size": 16, "validation_interval": 2}
    critic, _ = train_dynamics(data, dynamics_parameters(training=training), seed=0)
    parameters = readout_parameters(
        references=64,
        discount=0.97,
        regression={"steps": 2, "value_steps": 2, "hidden": (8,), "batch_size": 16},
    )
    readout = build_readout(critic, *log, data.split, parameters, 0)
    assert isinstance(readout, RegressedReadout)
    size = critic.inputs(data.transitions.states(torch.arange(1)), data.transitions.actions[:1]).shape[1]
    assert readout.sizes == (size, 8, 1)
    save_artifact(tmp_path / "x.safetensors", "readout", readout)
    index = data.transitions.transition_index(data.split.validation)
    values, again = (
        QFunction(critic, one).of_transitions(data.transitions, index)[0]
        for one in (readout, load_artifact(tmp_path / "x.safetensors"))
    )
    assert torch.isfinite(values).all()
    torch.testing.assert_close(values, again)


def test_images_have_a_report_and_no_distance_to_a_goal(log: tuple[Transitions, Rewards]) -> None:
    transitions, rewards = log
    split = split_episodes(transitions, 0.1, 0)
    figure = nodes.plot(
        transitions,
        episode_table(transitions, rewards, split),
        fit_normalisation(transitions, split, 1e-3),
        0,
    )
    assert len(figure.axes) == 4
    goal = reward_parameters(
        source="goal_distance", name="x", indices=(0,), target=(0.0,), scale=1.0, tolerance=1.0
    )
    with pytest.raises(InputError, match=r"goal_distance: observations are images"):
        label(transitions, rewards, goal)


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), r"\(3, 16, 16\) have more channels than rows"),
        (torch.zeros(4, 16, 16, 3), r"torch.float32 of shape \(4, 16, 16, 3\); use vectors"),
        (torch.zeros(4, 3, dtype=torch.uint8), r"torch.uint8 of shape \(4, 3\); use vectors"),
    ],
)
def test_images_of_another_layout_are_refused(observations: torch.Tensor, message: str) -> None:
    transitions = Transitions(
        observations=observations,
        actions=torch.zeros(3, 1),
        episode_starts=torch.tensor([0, 3]),
        terminated=torch.tensor([False]),
        truncated=torch.tensor([True]),
        action_low=-torch.ones(1),
        action_high=torch.ones(1),
    )
    with pytest.raises(InputError, match=message):
        validate_transitions(transitions)
