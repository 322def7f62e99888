from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.base import SOURCES, SourceParameters
from cvl_pipeline.sources.d4rl import SUCCESSORS
from cvl_pipeline.sources.environment import (
    EvaluationEnvironment,
    environment_for,
    environment_named,
    has_environment,
)
from cvl_pipeline.sources.minari_writer import save_minari
from cvl_pipeline.testing.builders import DATASET

LOG = {"source": "files", "path": "log.csv"}


def _dataset(values: dict[str, Any]) -> SourceParameters:
    parameters = SOURCES.validate(values)
    assert isinstance(parameters, SourceParameters)
    return parameters


def _environment(values: dict[str, Any], **evaluation: Any) -> EvaluationEnvironment:
    return environment_for(_dataset(values), EvaluationParameters(**evaluation))


def _has(values: dict[str, Any], **evaluation: Any) -> bool:
    return has_environment(_dataset(values), EvaluationParameters(**evaluation))


def _ends(environment: EvaluationEnvironment, steps: int) -> list[bool]:
    """Whether the episode has ended after each of some steps without an action."""
    with closing(environment.make()) as built:
        built.reset(seed=0)
        action = np.zeros(built.action_space.shape, dtype=np.float32)
        return [any(built.step(action)[2:4]) for _ in range(steps)]


@pytest.mark.parametrize(
    ("values", "name", "observations", "steps"),
    [
        (DATASET, "door-open-v3", 39, 10),
        (DATASET | {"task": "MT10"}, "MT10", 49, 10),
        (DATASET | {"source": "pointmaze", "task": "PointMaze_UMaze-v3"}, "PointMaze_UMaze-v3", 8, 10),
        (DATASET | {"source": "gymnasium", "task": "CartPole-v1"}, "CartPole-v1", 4, 10),
        ({"source": "d4rl", "task": "hopper-medium-v2"}, "Hopper-v5", 11, None),
        ({"source": "d4rl", "task": "pen-human-v1"}, "AdroitHandPen-v1", 45, None),
        ({"source": "d4rl", "task": "maze2d-umaze-v1"}, "maze2d-umaze-v1", 4, 300),
        ({"source": "d4rl", "task": "antmaze-umaze-v2"}, "antmaze-umaze-v2", 29, None),
        ({"source": "d4rl", "task": "kitchen-partial-v0"}, "kitchen-partial-v0", 60, None),
    ],
)
def test_every_source_has_its_environment(
    values: dict[str, Any], name: str, observations: int, steps: int | None
) -> None:
    environment = _environment(values)
    environment.check()
    assert environment.name == name
    assert _has(values)
    with closing(environment.make()) as built:
        assert built.observation_space.shape == (observations,)
        observation, _ = built.reset(seed=0)
        assert observation.shape == (observations,)
    if steps is not None:
        assert _ends(environment, steps)[-1]


@pytest.mark.parametrize("family", SUCCESSORS)
def test_successors_of_d4rls_environments_exist(family: str) -> None:
    environment = _environment({"source": "d4rl", "task": f"{family}-x"})
    assert environment.name == SUCCESSORS[family]
    environment.check()


def test_only_the_own_environment_of_a_benchmark_shares_its_episodes_among_tasks() -> None:
    benchmark = DATASET | {"task": "MT10"}
    assert _environment(benchmark).tasks[:2] == ("reach-v3", "push-v3")
    assert len(_environment(DATASET | {"task": "MT50"}).tasks) == 50
    assert _environment(DATASET).tasks == ()
    assert _environment(benchmark, environment="Pendulum-v1").tasks == ()
    assert _environment(LOG, environment="Pendulum-v1").tasks == ()


def test_you_may_shorten_the_episodes_of_a_d4rl_task() -> None:
    environment = _environment({"source": "d4rl", "task": "maze2d-large-dense-v1"}, episode_steps=3)
    assert _ends(environment, 3) == [False, False, True]


@pytest.mark.parametrize("values", [LOG, DATASET])
def test_you_may_name_another_environment(values: dict[str, Any]) -> None:
    environment = _environment(values, environment="Pendulum-v1", episode_steps=3)
    assert environment.name == "Pendulum-v1"
    assert not environment.slow_to_build
    assert _has(values, environment="Pendulum-v1")
    assert _ends(environment, 3) == [False, False, True]
    assert _ends(environment_named("Pendulum-v1", 3), 3) == [False, False, True]


@pytest.mark.parametrize(
    ("values", "label"),
    [
        (LOG, "log.csv"),
        ({"source": "d4rl", "task": "ant-random-expert-v0"}, "ant-random-expert-v0"),
        ({"source": "d4rl", "task": "bullet-maze2d-umaze-v0"}, "bullet-maze2d-umaze-v0"),
    ],
)
def test_without_a_known_environment_the_error_says_what_to_do(values: dict[str, Any], label: str) -> None:
    assert not _has(values)
    with pytest.raises(
        InputError,
        match=rf"no environment is known for dataset '{label}' \(dataset.source {values['source']}\); name a "
        r"Gymnasium id in evaluation\.environment",
    ):
        _environment(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            DATASET | {"task": "door-opn-v3"},
            "unknown Meta-World task 'door-opn-v3': did you mean door-open-v3",
        ),
        (DATASET | {"task": "MT11"}, "unknown Meta-World task 'MT11': did you mean MT10"),
        ({"source": "pointmaze", "task": "PointMaze_Hug-v3"}, "unknown PointMaze environment"),
        ({"source": "gymnasium", "task": "CartPol-v1"}, "Gymnasium environment 'CartPol-v1'"),
        ({"source": "d4rl", "task": "maze2d-umaz-v1"}, "'maze2d-umaz-v1': did you mean maze2d-umaze-v1"),
    ],
)
def test_an_unknown_environment_is_reported_before_anything_runs(
    values: dict[str, Any], message: str
) -> None:
    assert _has(values)  # the check reports it, instead of a run without an evaluation
    with pytest.raises(InputError, match=message):
        _environment(values).check()


def test_a_minari_dataset_has_the_environment_that_it_names(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    save_minari(transitions, rewards, "with-v0", tmp_path, environment="Pendulum-v1")
    save_minari(transitions, rewards, "without-v0", tmp_path)
    with_environment, without, missing = (
        {"source": "minari", "task": f"{name}-v0", "path": str(tmp_path)}
        for name in ("with", "without", "missing")
    )
    assert _environment(with_environment).name == "Pendulum-v1"
    assert _ends(_environment(with_environment), 200).index(True) == 199
    assert _ends(_environment(with_environment, episode_steps=3), 3) == [False, False, True]
    assert (_has(with_environment), _has(without)) == (True, False)
    assert _has(missing)  # a dataset that is not there yet may name one
    with pytest.raises(InputError, match=r"no environment is known for dataset 'without-v0'"):
        _environment(without)


def test_an_environment_without_a_time_limit_is_refused_by_the_field_that_gives_one(
    tmp_path: Path, transitions: Transitions, rewards: Rewards
) -> None:
    save_minari(transitions, rewards, "endless-v0", tmp_path, environment="CliffWalking-v1")
    recorded = {"source": "minari", "task": "endless-v0", "path": str(tmp_path)}
    collected = {"source": "gymnasium", "task": "CliffWalking-v1", "episode_steps": None}
    for environment, field in (
        (_environment(recorded), "evaluation"),
        (_environment(LOG, environment="CliffWalking-v1"), "evaluation"),
        (_environment(collected), "dataset"),
    ):
        message = rf"'CliffWalking-v1' has no time limit.* set {field}\.episode_steps"
        with pytest.raises(InputError, match=message):
            environment.check()
    with pytest.raises(InputError, match=r"set dataset\.episode_steps"):
        SOURCES.create(_dataset(collected)).load(0, 1)
    _environment(recorded, episode_steps=5).check()


@pytest.mark.parametrize(
    ("values", "evaluation", "known"),
    [
        (DATASET | {"source": "gymnasium", "task": "CartPole-v1"}, {}, True),
        (DATASET | {"source": "gymnasium", "task": "CartPole-v1"}, {"environment": "CartPole-v1"}, False),
        (LOG, {"environment": "CartPole-v1"}, False),
        ({"source": "d4rl", "task": "hopper-medium-v2"}, {}, False),
    ],
)
def test_a_log_tells_whether_the_environment_that_made_it_reports_success(
    values: dict[str, Any], evaluation: dict[str, Any], known: bool
) -> None:
    environment = _environment(values, **evaluation)
    silent, reporting = (
        Rewards(torch.zeros(2), torch.zeros(2, dtype=torch.bool), torch.tensor(reported))
        for reported in (False, True)
    )
    assert environment.with_known_success(silent, reporting).reports_success == known
    assert not environment.with_known_success(silent, silent).reports_success
    assert environment.with_known_success(reporting, silent).reports_success


def test_a_slow_environment_is_not_built_to_check_it() -> None:
    def fail() -> Any:
        raise AssertionError

    EvaluationEnvironment(fail, "slow", slow_to_build=True).check()
    with pytest.raises(AssertionError):
        EvaluationEnvironment(fail, "fast").check()
