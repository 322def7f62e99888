from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from cvl_pipeline.api import ingest
from cvl_pipeline.environments.collection import Disturbances
from cvl_pipeline.environments.evaluation import evaluate
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import ActorShape, GaussianActor
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.sources.simulated import PRESETS, SETTINGS, SimulatedParameters, SimulatedSource
from cvl_pipeline.testing.builders import DATASET
from tests.sources.rows import assert_equal

SIMULATORS = ("metaworld", "pointmaze", "gymnasium")


def _parameters(**changes: Any) -> SimulatedParameters:
    parameters = SOURCES.validate(DATASET | changes)
    assert isinstance(parameters, SimulatedParameters)
    return parameters


def _load(seed: int = 0, **changes: Any) -> tuple[Transitions, Rewards]:
    return ingest(SOURCES.validate(DATASET | changes), seed=seed, workers=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "size", "reports_success"),
    [
        ({"task": "reach-v3"}, 39, True),
        ({"task": "MT10"}, 49, True),
        ({"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, 8, True),
        ({"source": "gymnasium", "task": "CartPole-v1"}, 4, False),
    ],
)
def test_the_seed_determines_what_a_simulator_collects(
    changes: dict[str, Any], size: int, reports_success: bool
) -> None:
    (one, labels), (same, same_labels), (other, _) = (_load(seed, **changes) for seed in (0, 0, 1))
    assert one.observations.shape[1] == size
    assert one.episodes == DATASET["episodes"]
    assert not labels.missing
    assert labels.reports_success == reports_success
    assert torch.equal(one.observations, same.observations)
    assert torch.equal(one.actions, same.actions)
    assert torch.equal(labels.rewards, same_labels.rewards)
    assert not torch.equal(one.observations[0], other.observations[0])


@pytest.mark.parametrize("source", SIMULATORS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("episodes", 1),
        ("episodes", 2.5),
        ("episode_steps", 0),
        ("noise_max", -0.1),
        ("noise_max", float("inf")),
        ("random_max", 1.01),
        ("random_max", -0.01),
        ("random_hold", 0),
    ],
)
def test_settings_out_of_range_are_refused(source: str, field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        SOURCES.validate({"source": source, field: value})


@pytest.mark.parametrize("source", SIMULATORS)
def test_a_simulator_disturbs_its_controller_by_its_settings(source: str) -> None:
    values = {"source": source, "noise_max": 0.2, "random_max": 0.6, "random_hold": 7}
    if source == "gymnasium":
        values["policy"] = "tests.sources.test_gymnasium:always_right"
    simulator = SOURCES.create(SOURCES.validate(values))
    assert isinstance(simulator, SimulatedSource)
    assert simulator.disturbances() == Disturbances(noise_max=0.2, random_max=0.6, random_hold=7)


PRESET_NAMES = tuple(PRESETS)


@pytest.mark.parametrize("preset", PRESET_NAMES)
def test_a_preset_gives_defaults_and_your_own_settings_win(preset: str) -> None:
    assert get_args(SimulatedParameters.model_fields["preset"].annotation) == PRESET_NAMES
    own = {"noise_max": 0.11, "random_max": 0.22, "random_hold": 3, "window": 4, "goal_steps": 5}
    for name in SETTINGS:
        if name in PRESETS[preset]:
            parameters = _parameters(preset=preset, **{name: own[name]})
            assert parameters.setting(name) == own[name]
            assert _parameters(preset=preset).setting(name) == PRESETS[preset][name]
        else:
            with pytest.raises(
                ValidationError, match=rf"preset {preset} does not use dataset\.{name}: leave it out"
            ):
                _parameters(preset=preset, **{name: own[name]})
    # What a run stores can be read again.
    assert _parameters(**_parameters(preset=preset).model_dump()) == _parameters(preset=preset)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("mixed", Disturbances(0.3, 1.0, 20)),
        ("noisy", Disturbances(0.3, 0.55, 10, random_min=0.55, noise_min=0.3)),
        ("fragments", Disturbances(0.3, 1.0, 20)),
        ("play", Disturbances(0.3, 0.0, 20)),
        ("sparse", Disturbances(0.3, 1.0, 20)),
        ("expert_few", Disturbances(0.0, 1.0, 20, random_min=1.0)),
    ],
)
def test_the_disturbances_of_a_preset(preset: str, expected: Disturbances) -> None:
    source = SOURCES.create(_parameters(preset=preset))
    assert isinstance(source, SimulatedSource)
    assert source.disturbances() == expected


def test_only_controllers_that_can_pursue_other_goals_play() -> None:
    for source in ("metaworld", "pointmaze"):
        SOURCES.validate({"source": source, "preset": "play"})
    with pytest.raises(ValidationError, match=r"other goals, which dataset\.source gymnasium does not have"):
        SOURCES.validate({"source": "gymnasium", "preset": "play"})


def test_a_window_must_be_shorter_than_an_episode() -> None:
    with pytest.raises(ValidationError, match=r"window is 10, but episodes have only 10 steps"):
        _parameters(preset="fragments", window=10)


def test_each_preset_but_mixed_has_a_folder_of_its_own() -> None:
    assert _parameters().folder == "door-open-v3"
    assert _parameters(preset="play").folder == "door-open-v3-play"
    assert _parameters(preset="play", name="{task}-smoke").folder == "door-open-v3-play-smoke"
    assert _parameters(preset="play", name="mine").folder == "mine"


@pytest.mark.parametrize(
    ("values", "preset"),
    [
        *(({"task": "reach-v3", "episode_steps": 60}, preset) for preset in PRESETS),
        ({"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, "play"),
        ({"task": "MT10"}, "play"),
    ],
)
def test_every_preset_gives_the_same_bytes_in_any_number_of_processes(
    values: dict[str, Any], preset: str
) -> None:
    parameters = _parameters(episodes=12, preset=preset, **values)
    one, two = (ingest(parameters, seed=0, workers=workers) for workers in (1, 2))
    assert_equal(one, two)
    mixed, _ = _load(episodes=12, **values)
    same = len(one[0]) == len(mixed) and torch.equal(one[0].actions, mixed.actions)
    assert same == (preset in ("mixed", "sparse"))


def test_sparse_rewards_are_successes_in_the_log_and_in_the_evaluation() -> None:
    values: dict[str, Any] = {"task": "reach-v3", "episodes": 12, "episode_steps": 60}
    (mixed, dense), (transitions, sparse) = (_load(**values, preset=preset) for preset in ("mixed", "sparse"))
    assert torch.equal(transitions.observations, mixed.observations)
    assert torch.equal(sparse.rewards, dense.successes.float())
    assert 0 < sparse.rewards.sum() < len(sparse.rewards)
    actor = GaussianActor(ActorShape((39,), 4, (8,)))
    for preset in ("mixed", "sparse"):
        place = environment_for(_parameters(**values, preset=preset), EvaluationParameters())
        _, rewards = evaluate(actor, place.make, episodes=2, seed=0, workers=1, name="test")
        assert torch.equal(rewards.rewards, rewards.successes.float()) == (preset == "sparse")


def test_a_simulator_that_reports_no_success_has_no_sparse_reward() -> None:
    with pytest.raises(InputError, match="preset sparse: CartPole-v1 reported no success in 4 episodes"):
        _load(source="gymnasium", task="CartPole-v1", preset="sparse")


def test_a_simulator_that_reports_no_success_needs_a_window() -> None:
    values: dict[str, Any] = {"source": "gymnasium", "task": "CartPole-v1", "preset": "fragments"}
    with pytest.raises(InputError, match=r"of CartPole-v1 solves the task.*set dataset\.window"):
        _load(**values)
    transitions, rewards = _load(**values, window=3)
    assert transitions.lengths.max() == 3
    assert rewards.dropped_steps > 0
