from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.readout.rewards import check_reward, label, warn_of_rare_goal
from cvl_pipeline.testing.builders import (
    labelled_transitions,
    make_packed_transitions,
    make_rewards,
    reward_parameters,
)

HERE = "tests.readout.test_rewards"


@pytest.fixture
def data() -> Transitions:
    """Two episodes of 3 and 2 steps, with observations (episode, time)."""
    return labelled_transitions([3, 2], [False, True])


@pytest.fixture
def logged(data: Transitions) -> Rewards:
    return make_rewards(data)


# Reward functions of the user.


def time_times_action(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Tensor:
    assert torch.equal(arrivals - observations, torch.tensor([0.0, 1.0]).expand(5, 2))
    return arrivals[:, 1] * actions[:, 0]


def at_the_second_step(observations: Tensor, actions: Tensor, arrivals: Tensor) -> tuple[Tensor, Tensor]:
    return (arrivals[:, 1] == 2.0).int(), arrivals[:, 1] == 2.0


def of_a_network(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Tensor:
    return observations @ torch.ones(2, requires_grad=True)


def with_an_error(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Tensor:
    raise RuntimeError("no such\n  dimension")


def of_two_arguments(observations: Tensor, actions: Tensor) -> Tensor:
    return actions[:, 0]


def of_a_column(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Tensor:
    return actions[:, :1]


def of_numpy(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Any:
    return actions[:, 0].numpy()


def of_nothing(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Any:
    return None


def of_three(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Any:
    return actions[:, 0], actions[:, 0] > 0.0, actions


def with_one_success(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Any:
    return actions[:, 0], torch.tensor(True)


def with_a_word_for_success(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Any:
    return actions[:, 0], "solved"


def with_a_hole(observations: Tensor, actions: Tensor, arrivals: Tensor) -> Tensor:
    return torch.where(torch.arange(5) == 3, torch.nan, actions[:, 0])


NOT_A_FUNCTION = 3.0


# Results.


def test_the_reward_of_the_dataset_stays_unchanged(data: Transitions, logged: Rewards) -> None:
    assert label(data, logged, reward_parameters()) is logged


def test_a_log_without_rewards_needs_another_reward(data: Transitions, logged: Rewards) -> None:
    missing = Rewards(torch.full((5,), torch.nan), logged.successes)
    with pytest.raises(InputError, match=r"the log has no rewards: define one with reward\.source"):
        label(data, missing, reward_parameters())
    assert label(data, missing, reward_parameters(source="success")).rewards.sum() == missing.successes.sum()


def test_success_is_worth_one_and_everything_else_zero(data: Transitions, logged: Rewards) -> None:
    logged = Rewards(logged.rewards, torch.tensor([True, False, False, True, True]))
    labels = label(data, logged, reward_parameters(source="success"))
    assert labels.rewards.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]
    assert labels.rewards.dtype == torch.float32
    assert torch.equal(labels.successes, logged.successes)
    assert labels.reports_success


def test_success_is_no_reward_where_nothing_reports_it(data: Transitions, logged: Rewards) -> None:
    unreported = Rewards(logged.rewards, torch.zeros(5, dtype=torch.bool), torch.tensor(False))
    with pytest.raises(
        InputError, match=r"the log does not report successes; name its column in dataset\.columns\.successes"
    ):
        label(data, unreported, reward_parameters(source="success"))
    never = Rewards(logged.rewards, torch.zeros(5, dtype=torch.bool))
    assert label(data, never, reward_parameters(source="success")).rewards.tolist() == [0.0] * 5
    assert not label(data, unreported, reward_parameters()).reports_success


def _goal(**changes: Any) -> Any:
    values = {
        "source": "goal_distance",
        "indices": (0, 1),
        "target": (0.0, 2.0),
        "scale": 2.0,
        "tolerance": 1.0,
    }
    return reward_parameters(**(values | changes))


def test_goal_distance_measures_the_next_state(data: Transitions, logged: Rewards) -> None:
    # Arrivals: (0, 1), (0, 2), (0, 3), (1, 1), (1, 2); squared distances 1, 0, 1, 2, 1, over scale^2 = 4.
    labels = label(data, logged, _goal())
    np.testing.assert_allclose(labels.rewards, [0.8, 1.0, 0.8, 2.0 / 3.0, 0.8], rtol=1e-6)
    assert labels.successes.tolist() == [True, True, True, False, True]
    assert labels.reports_success
    assert labels.rewards.dtype == torch.float32


def test_goal_distance_compares_only_the_given_dimensions(data: Transitions, logged: Rewards) -> None:
    for index in (1, -1):
        labels = label(data, logged, _goal(indices=(index,), target=(3.0,), scale=1.0, tolerance=1e-3))
        np.testing.assert_allclose(labels.rewards, [0.2, 0.5, 1.0, 0.2, 0.5], rtol=1e-6)
        assert labels.successes.tolist() == [False, False, True, False, False]


def test_the_reward_at_the_scale_is_a_half(data: Transitions, logged: Rewards) -> None:
    labels = label(data, logged, _goal(target=(0.0, 1.0), scale=math.sqrt(2.0)))
    # The fifth arrival, (1, 2), is sqrt(2) from the target.
    assert float(labels.rewards[4]) == pytest.approx(0.5)


@pytest.mark.parametrize("index", [2, -3])
def test_a_dimension_that_observations_lack_is_named(data: Transitions, logged: Rewards, index: int) -> None:
    with pytest.raises(
        InputError, match=rf"reward\.indices: {index} is not a dimension of the observations, which have 2"
    ):
        label(data, logged, _goal(indices=(0, index)))


def test_goal_distance_beside_cameras_copies_few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_packed_transitions([120, 100], [False, True], size=128)
    taken: list[int] = []
    arrivals = Transitions.arrivals

    def noted_arrivals(self: Transitions, index: Tensor | None = None) -> Tensor:
        rows = arrivals(self, index)
        taken.append(rows.nbytes)
        return rows

    monkeypatch.setattr(Transitions, "arrivals", noted_arrivals)
    labels = label(data, make_rewards(data), _goal(part="state"))
    assert max(taken) <= 1 << 22 < sum(taken)
    assert data.parts is not None
    states = data.parts.part(arrivals(data), "state")
    distance = (states[:, [0, 1]] - torch.tensor([0.0, 2.0])).norm(dim=1)
    assert torch.equal(labels.rewards, 1.0 / (1.0 + (distance / 2.0).square()))
    assert torch.equal(labels.successes, distance <= 1.0)


def _by(function: str, data: Transitions, logged: Rewards) -> Rewards:
    return label(data, logged, reward_parameters(source=f"{HERE}:{function}"))


def test_a_function_gets_states_actions_and_next_states(data: Transitions, logged: Rewards) -> None:
    labels = _by("time_times_action", data, logged)
    np.testing.assert_allclose(labels.rewards, torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]) * data.actions[:, 0])
    assert labels.successes.tolist() == [False] * 5
    assert not labels.reports_success


def changes_its_input(states: Tensor, actions: Tensor, arrivals: Tensor) -> Tensor:
    for given in (states, actions, arrivals):
        given.zero_()
    return torch.zeros(len(states))


def test_a_function_cannot_change_the_log(data: Transitions, logged: Rewards) -> None:
    before = data.observations.clone(), data.actions.clone()
    _by("changes_its_input", data, logged)
    assert torch.equal(data.observations, before[0])
    assert torch.equal(data.actions, before[1])


def test_a_function_may_define_success(data: Transitions, logged: Rewards) -> None:
    labels = _by("at_the_second_step", data, logged)
    assert labels.rewards.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert labels.rewards.dtype == torch.float32
    assert labels.successes.tolist() == [False, True, False, False, True]
    assert labels.successes.dtype == torch.bool
    assert labels.reports_success


def test_a_reward_from_a_network_has_no_gradient(data: Transitions, logged: Rewards) -> None:
    labels = _by("of_a_network", data, logged)
    assert not labels.rewards.requires_grad
    assert labels.rewards.tolist() == [0.0, 1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("with_an_error", "failed on 5 transitions .RuntimeError: no such dimension."),
        (
            "of_two_arguments",
            "failed on 5 transitions .TypeError.*it is called with observations, actions and next",
        ),
        ("of_a_column", r"returned \(5, 1\), not a tensor of one reward per transition, \(5,\)"),
        ("of_numpy", "returned ndarray, not a tensor of one reward"),
        ("of_nothing", "returned NoneType, not a tensor of one reward"),
        ("of_three", "returned tuple, not a tensor of one reward"),
        ("with_one_success", r"returned \(\), not a tensor of one success per transition, \(5,\)"),
        ("with_a_word_for_success", "returned str, not a tensor of one success"),
        ("with_a_hole", "returned nan for transition 3"),
        ("NOT_A_FUNCTION", "is float, not a function"),
        ("missing", r"cannot be imported: module '.*' has no 'missing'"),
    ],
)
def test_a_faulty_function_is_named_with_its_fault(
    data: Transitions, logged: Rewards, function: str, message: str
) -> None:
    with pytest.raises(InputError, match=rf"^reward\.source '{HERE}:{function}' {message}") as caught:
        _by(function, data, logged)
    assert "\n" not in str(caught.value), "one line"


def test_a_function_that_cannot_be_imported_is_reported_before_anything_runs() -> None:
    check_reward(reward_parameters(source=f"{HERE}:with_an_error"))  # importable; only a call shows the fault
    check_reward(reward_parameters(source="success"))
    for function in ("missing", "NOT_A_FUNCTION"):
        with pytest.raises(InputError, match=rf"reward\.source '{HERE}:{function}'"):
            check_reward(reward_parameters(source=f"{HERE}:{function}"))


# The warning about a goal that the log hardly reaches.


def _with_successes(count: int, total: int, reported: bool = True) -> Rewards:
    return Rewards(torch.zeros(total), torch.arange(total) < count, torch.tensor(reported))


@pytest.mark.parametrize(("count", "total"), [(0, 5), (0, 20_000), (1, 200), (99, 20_000)])
def test_a_goal_that_few_logged_states_reach_gives_a_warning(
    caplog: pytest.LogCaptureFixture, count: int, total: int
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_rare_goal(_with_successes(count, total))
    (message,) = caplog.messages
    assert message.startswith(f"{count} of {total} logged states count as success under this reward, ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "labels",
    [
        _with_successes(1, 100),
        _with_successes(100, 1_000_000),
        _with_successes(300, 20_000),
        _with_successes(0, 20_000, reported=False),
    ],
    ids=["one percent", "a hundred states", "many states", "success is not reported"],
)
def test_other_goals_give_no_warning(caplog: pytest.LogCaptureFixture, labels: Rewards) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_rare_goal(labels)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("leaving", r"failed on 5 transitions \(SystemExit: 0 at .*own\.py:\d+\)"),
        ("failing", r"failed on 5 transitions \(ZeroDivisionError: .* at .*own\.py:\d+\)"),
        ("nothing", "returned NoneType, not a tensor"),
        ("generated", "returned generator, not a tensor"),
    ],
)
def test_a_function_that_ends_python_or_returns_nothing_is_named(
    function: str, message: str, data: Transitions, logged: Rewards
) -> None:
    with pytest.raises(InputError, match=rf"^reward\.source 'tests\.own:{function}' {message}"):
        label(data, logged, reward_parameters(source=f"tests.own:{function}"))
