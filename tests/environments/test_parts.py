"""From observations of several parts to a policy, with the functions that the stages call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.spaces import Box, Dict, Sequence

from cvl_pipeline import api
from cvl_pipeline.environments.base import SuccessRewarded, parts_of
from cvl_pipeline.environments.goals import GoalEnvironment
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.metaworld import MetaWorldGoals
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parts import Part
from cvl_pipeline.episodes.preparation import coverage, episode_table
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_for, environment_named
from tests.environments.toys import DOT, SEEN_DOT, SeenDot, SeenDotGoals

POLICY = "tests.environments.toys:to_the_target"
TOP, PLACE = Part("images.top", (16, 16, 3), "uint8"), Part("place", (2,), "float32")


@pytest.fixture(scope="module")
def data() -> EpisodeData:
    return api.load_episodes(
        "gymnasium",
        task=SEEN_DOT,
        policy=POLICY,
        random_max=0.3,
        noise_max=0.1,
        episodes=40,
        episode_steps=20,
    )


def test_a_dictionary_with_images_is_packed() -> None:
    ours, theirs = GymnasiumEnvironment(SEEN_DOT), SeenDot()
    assert ours.parts is not None
    assert ours.parts.parts == (PLACE, TOP)
    observation, expected = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    for _ in range(3):
        parts = ours.parts.unpack(torch.from_numpy(observation))
        np.testing.assert_array_equal(parts["images.top"], expected["images"]["top"])
        np.testing.assert_array_equal(parts["place"], expected["place"].astype(np.float32))
        action = np.array([0.5, -1.0], dtype=np.float32)
        observation, expected = ours.step(action)[0], theirs.step(action)[0]
    assert SuccessRewarded(partial(GymnasiumEnvironment, SEEN_DOT)).parts == ours.parts


def test_a_dictionary_of_vectors_is_one_vector_as_before() -> None:
    space = Dict({"a": Box(-1.0, 1.0, (2,)), "b": Box(-1.0, 1.0, (3,))})
    gymnasium.register(
        "tests/Vectors-v0", "tests.environments.toys:Spaces", max_episode_steps=3, disable_env_checker=True,
        kwargs={"observations": space, "actions": Box(-1.0, 1.0, (1,))},
    )  # fmt: skip
    environment = GymnasiumEnvironment("tests/Vectors-v0")
    assert environment.parts is None
    assert environment.observation_space.shape == (5,)
    gymnasium.registry.pop("tests/Vectors-v0")


def test_an_entry_that_is_no_vector_is_refused() -> None:
    space = Dict({"eye": Box(0, 255, (8, 8, 3), np.uint8), "words": Sequence(Box(0.0, 1.0))})
    gymnasium.register(
        "tests/Words-v0", "tests.environments.toys:Spaces", max_episode_steps=3, disable_env_checker=True,
        kwargs={"observations": space, "actions": Box(-1.0, 1.0, (1,))},
    )  # fmt: skip
    with pytest.raises(InputError, match="observation 'words' is Sequence"):
        GymnasiumEnvironment("tests/Words-v0")
    gymnasium.registry.pop("tests/Words-v0")


def test_collected_episodes_have_the_parts_and_a_report(data: EpisodeData) -> None:
    log, layout = data.transitions, data.transitions.parts
    assert layout is not None
    assert layout.parts == (PLACE, TOP)
    assert log.observations.shape == (40 * 21, layout.nbytes)
    assert data.rewards is not None
    assert data.rewards.successes.double().mean() > 0.3  # the controller got a dictionary
    points = coverage(log, data.normalisation, 50, 0)
    assert np.isfinite(points.to_numpy()).all()
    assert not episode_table(log, data.rewards, data.split)["duplicate"].any()


def test_a_policy_learns_from_a_picture_and_a_vector(data: EpisodeData, tmp_path: Path) -> None:
    training = {"steps": 120, "batch_size": 64, "validation_interval": 60, "random_shift": 1}
    small: dict[str, Any] = {
        "hidden": (32,),
        "encoder": {"name": "convolutional", "channels": 8, "features": 16},
    }
    critic, _ = api.train_critic(data, training=training, representation_size=8, **small)
    readout = api.read_out(
        critic, data, references=200, regression={"steps": 20, "value_steps": 10, "hidden": (8,)}
    )
    policy, _ = api.extract_policy(
        critic, readout, data, training=training, state_value={"actions": 2}, **small
    )
    api.save(policy, tmp_path / "policy.safetensors")
    table = api.evaluate(api.load(tmp_path / "policy.safetensors"), SEEN_DOT, episodes=10)
    assert table["success"].mean() >= 0.5
    with pytest.raises(
        InputError, match="its observations have no parts, the dataset's have the parts place"
    ):
        api.evaluate(policy, DOT, episodes=1)


class Direct(torch.nn.Module):
    """A policy of the user's own, which gets dictionaries."""

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert observations["images.top"].shape[1:] == (16, 16, 3)
        return (torch.tensor(SeenDot.TARGET).float() - observations["place"]).clamp(-1.0, 1.0)


def test_a_policy_of_your_own_gets_dictionaries() -> None:
    assert api.evaluate(Direct(), SEEN_DOT, episodes=3)["success"].all()
    environment_named(SEEN_DOT).check(
        api.roll_out(Direct(), environment_named(SEEN_DOT), episodes=1, workers=1)[0]
    )


def test_a_policy_reaches_goals_of_several_parts(data: EpisodeData) -> None:
    """Training, rollouts and the policies that do not see the goal."""
    small: dict[str, Any] = {
        "hidden": (32,),
        "encoder": {"name": "convolutional", "channels": 4, "features": 8},
        "representation_size": 8,
        "discount": 0.8,
    }
    training = {"steps": 160, "batch_size": 64, "validation_interval": 80}
    policy, _ = api.train_method(data, "crl", training=training, **small)
    place = EvaluationEnvironment(partial(GoalEnvironment, SeenDotGoals), "dots", goals=True)
    place.check(data.transitions)
    recorded, _ = api.roll_out(policy, place, episodes=4, workers=1)
    layout = recorded.parts
    assert layout is not None
    assert [(part.name, part.shape) for part in layout.parts] == [
        ("place", (4,)),
        ("images.top", (16, 16, 6)),
    ]
    assert (layout.part(recorded.observations, "place")[:, 2:] == torch.tensor([12.0, 4.0])).all()
    assert api.evaluate(policy, place, episodes=10)["success"].mean() >= 0.5
    cloned, _ = api.train_method(data, "bc", training={"steps": 2, "batch_size": 8, "validation_interval": 2})
    for blind, alone in ((Direct(), Direct()), (cloned, cloned)):
        over_goals = api.evaluate(blind, place, episodes=3)
        pd.testing.assert_frame_equal(over_goals, api.evaluate(alone, SEEN_DOT, episodes=3))


def near(observations: Any, actions: torch.Tensor, arrivals: Any) -> torch.Tensor:
    """A reward of the user's own, from dictionaries."""
    moved: torch.Tensor = arrivals["place"][:, 0] - observations["place"][:, 0]
    assert arrivals["images.top"].shape[1:] == (16, 16, 3)
    return moved


def test_rewards_see_the_parts(data: EpisodeData) -> None:
    log, logged = data.transitions, data.rewards
    assert logged is not None
    assert log.parts is not None
    place = log.parts.part(log.arrivals(), "place")
    labels = api.label_rewards(log, logged, f"{__name__}:near", name="near")
    torch.testing.assert_close(labels.rewards, place[:, 0] - log.parts.part(log.states(), "place")[:, 0])
    goal: dict[str, Any] = {"indices": (0,), "target": (12.0,), "scale": 2.0, "tolerance": 2.0, "name": "row"}
    labels = api.label_rewards(log, logged, "goal_distance", part="place", **goal)
    assert torch.equal(labels.successes, (place[:, 0] - 12.0).abs() <= 2.0)
    for part, message in (
        (None, "observations have the parts place, images.top; set reward.part"),
        ("plac", "did you mean place"),
        ("images.top", "reward.part images.top: observations of it are images"),
    ):
        with pytest.raises(InputError, match=message):
            api.label_rewards(log, logged, "goal_distance", part=part, **goal)


def _cameras(**settings: Any) -> Any:
    chosen = {"source": "metaworld", "task": "reach-v3", "episodes": 12, "episode_steps": 3, "image_size": 16}
    return SOURCES.validate(chosen | {"cameras": "corner gripperPOV"} | settings)


def test_cameras_see_the_goal_of_the_episode() -> None:
    settings = _cameras(episode_steps=200)
    place = environment_for(settings, EvaluationParameters(goals=True))
    alone = SOURCES.create(settings).make_environment()
    assert alone is not None
    with (
        closing(place.make()) as environment,
        closing(alone()) as cameras,
        closing(MetaWorldGoals("reach-v3", 200)) as states,
    ):
        try:
            seen, _ = cameras.reset(seed=3)
        except InputError as error:
            if "cannot render" in str(error):
                pytest.skip("no usable GL on this machine")
            raise
        pairs, _ = environment.reset(seed=3)
        layout, whole = parts_of(cameras), parts_of(environment)
        assert layout is not None
        assert whole == layout.twice
        assert torch.equal(layout.first_of(torch.from_numpy(pairs)), torch.from_numpy(seen))
        _, info = states.reset(seed=3)
        goal = whole.part(torch.from_numpy(pairs), "state")[39:]
        np.testing.assert_array_equal(goal, info["goal"].astype(np.float32))
        before, solved = whole.part(torch.from_numpy(pairs), "images.corner").int().chunk(2, dim=-1)
        assert (before - solved).abs().max() > 50, "the arm is elsewhere"


def test_metaworld_is_seen_by_cameras_the_same_in_any_number_of_processes() -> None:
    logs = []
    for workers in (1, 2):
        try:
            logs.append(api.ingest(_cameras(state=workers == 1), 0, workers)[0])
        except InputError as error:
            if "cannot render" in str(error):
                pytest.skip("no usable GL on this machine")
            raise
    assert logs[0].parts is not None
    assert logs[1].parts is not None
    assert logs[0].parts.names == ("state", "images.corner", "images.gripperPOV")
    for name in logs[1].parts.names:
        pictures = [log.parts.part(log.observations, name) for log in logs if log.parts is not None]
        assert torch.equal(*pictures)
        assert pictures[0].float().std() > 10.0
    assert logs[1].parts.names == logs[0].parts.names[1:]
    own = api.ingest(_cameras(cameras=(), image_size=None), 0, 1)[0].observations
    # The scripted policy sees single precision, so only the first observations are the same.
    assert torch.equal(logs[0].parts.part(logs[0].observations, "state")[::4], own[::4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": "cornr"}, "cameras"),
        ({"cameras": "corner corner"}, "names one twice"),
        ({"cameras": (), "image_size": None, "state": False}, "dataset.state=false needs dataset.cameras"),
        ({"cameras": ()}, "dataset.image_size needs dataset.cameras"),
        ({"task": "MT10"}, "for single tasks"),
    ],
)
def test_cameras_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _cameras(**settings)


def test_folders_name_what_is_observed() -> None:
    stems = [
        _cameras(**changes).stem for changes in ({}, {"state": False}, {"cameras": (), "image_size": None})
    ]
    assert stems == ["reach-v3-images-state", "reach-v3-images", "reach-v3"]
