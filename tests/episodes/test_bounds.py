from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cvl_pipeline.episodes.bounds import bound_actions
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.validation import validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import make_transitions


def _beyond(data: Transitions) -> Transitions:
    """Two actions beyond [-1, 1]: transition 7, the first of episode 2, in both dimensions, and transition 8."""
    actions = data.actions.clone()
    actions[7], actions[8, 0] = torch.tensor([-1.25, 1.75]), 1.5
    return replace(data, actions=actions)


def test_actions_beyond_the_bounds_are_refused_with_place_count_excess_and_remedy(
    transitions: Transitions,
) -> None:
    data = _beyond(transitions)
    episode = int(data.episode_of(torch.tensor(7)))
    step = 7 - int(data.episode_starts[episode])
    with pytest.raises(InputError) as caught:
        bound_actions(data, "refuse", "log.csv")
    assert str(caught.value) == (
        f"log.csv: action -1.25 at episode {episode}, step {step} (the first is 0), dimension 0, is outside [-1, 1]; "
        "2 actions are beyond the bounds, by at most 0.75; log actions as the environment executed them, or set "
        "dataset.actions_out_of_bounds to clip if it clips them, or to widen if it accepts them"
    )


def test_clipped_actions_are_on_the_bounds_and_counted(
    transitions: Transitions, caplog: pytest.LogCaptureFixture
) -> None:
    data = bound_actions(_beyond(transitions), "clip", "log.csv")
    validate_transitions(data)
    assert data.actions[7].tolist() == [-1, 1]
    assert data.actions[8, 0] == 1
    assert torch.equal(data.actions[9:], transitions.actions[9:])
    assert (int(data.actions_out_of_bounds), float(data.largest_excess)) == (2, 0.75)
    assert "log.csv: 2 of 29 actions were beyond the bounds, by at most 0.75; they are clipped" in caplog.text
    assert bound_actions(data, "refuse", "log.csv") is data


def test_widened_bounds_are_the_extremes_of_the_log_and_keep_the_actions(
    transitions: Transitions, caplog: pytest.LogCaptureFixture
) -> None:
    logged = _beyond(transitions)
    data = bound_actions(logged, "widen", "log.csv")
    validate_transitions(data)
    assert torch.equal(data.actions, logged.actions)
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-1.25, -1], [1.5, 1.75])
    assert int(data.actions_out_of_bounds) == 2
    assert "the bounds are widened" in caplog.text


@pytest.mark.parametrize("rule", ["refuse", "clip", "widen"])
def test_actions_within_the_bounds_are_unchanged_by_any_rule(transitions: Transitions, rule: Any) -> None:
    assert bound_actions(transitions, rule, "log.csv") is transitions


@pytest.mark.parametrize("rule", ["refuse", "clip", "widen"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_rule_hides_actions_that_are_no_numbers(transitions: Transitions, rule: Any, value: float) -> None:
    data = replace(transitions, actions=transitions.actions.clone())
    data.actions[3, 1] = value
    with pytest.raises(InputError, match=r"transitions.actions: (inf|nan) at index \(3, 1\)"):
        bound_actions(data, rule, "log.csv")


def test_bounds_that_cross_are_refused(transitions: Transitions) -> None:
    data = replace(transitions, action_low=torch.tensor([-1.0, 2.0]))
    with pytest.raises(InputError, match="action_low: 2 in dimension 1 is above action_high, 1"):
        bound_actions(data, "clip", "log.csv")


@pytest.mark.parametrize("rule", ["refuse", "clip", "widen"])
@pytest.mark.parametrize("change", [lambda actions: actions.double(), lambda actions: actions[:, 0]])
def test_no_rule_takes_actions_that_are_no_vectors_in_single_precision(
    transitions: Transitions, rule: Any, change: Any
) -> None:
    data = replace(transitions, actions=change(_beyond(transitions).actions))
    with pytest.raises(InputError, match=r"transitions.actions: torch.float\d\d of shape .*float32"):
        bound_actions(data, rule, "log.csv")


class _Sizes(TorchFunctionMode):
    """Records the numbers in the largest result of each function of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        if name in ("lt", "__lt__", "isfinite", "clamp"):
            self.largest[name] = max(self.largest.get(name, 0), result.numel())
        return result


def test_wide_actions_are_checked_and_clipped_in_small_blocks() -> None:
    data = make_transitions([200, 100], [False, True])
    actions = torch.zeros(300, 1 << 14)
    actions[299, 5] = 2.0
    bound = torch.ones(1 << 14)
    data = replace(data, actions=actions, action_low=-bound, action_high=bound)
    with _Sizes() as sizes:
        clipped = bound_actions(data, "clip", "log.csv")
    assert len(sizes.largest) == 3
    assert max(sizes.largest.values()) <= 1 << 20
    assert torch.equal(clipped.actions, actions.clamp(max=1.0))
    assert int(clipped.actions_out_of_bounds) == 1
