from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch

from cvl_pipeline.environments.base import Array, Environment
from cvl_pipeline.environments.cameras import MetaWorldCameras
from cvl_pipeline.environments.gymnasium import GymnasiumEnvironment
from cvl_pipeline.environments.metaworld import MetaWorldEnvironment
from cvl_pipeline.environments.parameters import VideoParameters
from cvl_pipeline.environments.rollouts import RolloutTask, run_episodes, stack_episodes
from cvl_pipeline.environments.video import Replay, ranked_episodes, record, render
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.testing.builders import make_transitions
from tests.environments.toys import Push, Walk

SEEDS = [1, 3, 5, 7]
SETTINGS = VideoParameters(size=64, every=2)


class Drawn(Walk):
    """A walk as a bar whose length says how many steps were taken."""

    def render(self) -> Array:
        picture = np.zeros((32, 48, 3), np.uint8)
        picture[:, : 8 * self.taken] = 255
        return picture


class Own(Drawn, gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """One's own class below Gymnasium's, whose list of render modes is empty."""


class Blind(Walk, gymnasium.Env[Any, Any]):  # type: ignore[misc]
    """The same without a method of its own that renders."""


class Undrawn(Walk):
    def render(self) -> Array:
        raise OSError("no paint\nleft")


class Crashing(Drawn):
    def render(self) -> Array:
        sys.stderr.write("Segmentation fault\n")
        sys.stderr.flush()
        os._exit(11)


def _episodes(make: Callable[[], Environment]) -> tuple[Transitions, pd.DataFrame]:
    episodes = run_episodes(RolloutTask(make, Push), SEEDS, workers=1, description="")
    returns = [sum(episode.rewards) for episode in episodes]
    table = pd.DataFrame({"return": returns, "episode_seed": SEEDS})
    return stack_episodes(episodes, make())[0], table


def _frames(content: bytes) -> list[Array]:
    av = pytest.importorskip("av")
    with av.open(io.BytesIO(content)) as file:
        assert file.streams.video[0].codec_context.name == "h264"
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p", "browsers play no other"
        assert file.streams.video[0].average_rate == SETTINGS.frames_per_second
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def test_best_median_and_worst_are_by_return() -> None:
    table = pd.DataFrame({"return": [3.0, 9.0, 1.0, 5.0, 7.0]})
    assert ranked_episodes(table) == {"best": 1, "median": 3, "worst": 2}
    assert ranked_episodes(pd.DataFrame({"return": [3.0, np.nan, 4.0]})) == {
        "best": 2,
        "median": 0,
        "worst": 1,
    }
    assert ranked_episodes(pd.DataFrame({"return": [3.0, 9.0]})) == {"best": 1, "median": 0}
    assert ranked_episodes(pd.DataFrame({"return": [3.0]})) == {"median": 0}


@pytest.mark.parametrize("environment", [Drawn, Own])
def test_videos_show_the_start_every_second_step_and_the_end(
    environment: type[Drawn], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av")
    make = partial(environment, 5)
    transitions, table = _episodes(make)
    videos = record(make, transitions, table, SETTINGS, "CVL")
    assert not caplog.records
    assert set(videos) == {"best", "median", "worst"}
    for rank, episode in ranked_episodes(table).items():
        start, end = map(int, transitions.episode_starts[episode : episode + 2])
        frames = _frames(videos[rank])
        assert frames[0].shape == (64, 96, 3)
        lengths = [round((frame[32] > 128).all(-1).sum() / 16) for frame in frames]
        assert lengths == [*range(0, end - start, 2), end - start]
        last = transitions.observations[end + episode].numpy()
        replay = Replay(SEEDS[episode], transitions.actions[start:end].numpy(), last)
        assert render(make, [replay], SETTINGS) == ([videos[rank]], [True]), "the same bytes again"


def test_an_episode_that_is_not_repeated_is_noticed() -> None:
    pytest.importorskip("av")
    replay = Replay(1, np.zeros((3, 1), np.float32), np.array([0.2, 3.0]))
    _, repeated = render(Drawn, [replay, replace(replay, seed=2)], SETTINGS)
    assert repeated == [False, True]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Undrawn, "OSError: no paint left"),
        (Blind, "the environment has no render mode 'rgb_array'"),
        (Crashing, "the process that renders died (Segmentation fault)"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(
    environment: type[Walk], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av")
    transitions, table = _episodes(environment)
    assert record(environment, transitions, table, SETTINGS, "CVL") == {}
    (line,) = caplog.messages
    assert line.startswith(f"No videos of CVL: {message}")
    assert "\n" not in line


def test_without_a_usable_gl_there_is_one_line_and_no_video(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av")
    make = partial(GymnasiumEnvironment, "HalfCheetah-v5", 4)
    transitions, table = _mujoco(make)
    monkeypatch.setenv("MUJOCO_GL", "nothing")
    assert record(make, transitions, table, SETTINGS, "CVL") == {}
    (line,) = caplog.messages
    assert line.startswith("No videos of CVL: RuntimeError: invalid value for environment variable MUJOCO_GL")
    assert line.endswith("apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri)")


def test_without_pyav_there_is_one_line_and_no_video(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    (tmp_path / "av.py").write_text("raise ModuleNotFoundError(\"No module named 'av'\", name='av')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    transitions, table = _episodes(Drawn)
    assert record(Drawn, transitions, table, SETTINGS, "CVL") == {}
    assert caplog.messages == ["No videos of CVL: they need av: pip install 'cvl-pipeline[videos]'"]


def _mujoco(make: Callable[[], Any]) -> tuple[Transitions, pd.DataFrame]:
    """One episode of the largest actions."""
    environment = make()
    observation, _ = environment.reset(seed=1)
    observations, actions, over = [observation], [], False
    while not over:
        actions.append(environment.action_space.high.astype(np.float32))
        observation, _, terminated, truncated, _ = environment.step(actions[-1])
        observations.append(observation)
        over = terminated or truncated
    transitions = replace(
        make_transitions([len(actions)], [False]),
        observations=torch.tensor(np.array(observations), dtype=torch.float32),
        actions=torch.tensor(np.array(actions)),
    )
    return transitions, pd.DataFrame({"return": [1.0], "episode_seed": [1]})


@pytest.mark.parametrize(
    "make",
    [
        partial(MetaWorldEnvironment, "reach-v3", 4), partial(GymnasiumEnvironment, "HalfCheetah-v5", 4),
        partial(MetaWorldCameras, "reach-v3", 4, ["corner2"], 16),  # which videos are taken with, too
    ],
    ids=["metaworld", "gymnasium", "cameras"],
)  # fmt: skip
def test_mujoco_is_rendered_without_a_gpu(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    transitions, table = _mujoco(make)
    videos = record(make, transitions, table, SETTINGS, "CVL")
    assert "MUJOCO_GL" not in os.environ
    if not videos and "libegl" in caplog.text:
        pytest.skip("no usable GL on this machine")
    assert not caplog.records, "the episode is repeated exactly"
    frames = _frames(videos["median"])
    assert len(frames) == 3
    assert frames[0].shape == (64, 64, 3)
    assert frames[0].std() > 10, "not one colour"
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 20, "it moves"
