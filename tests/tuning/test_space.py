from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.tuning.parameters import Dimension
from cvl_pipeline.tuning.space import (
    check_space,
    defaults_as_drawn,
    distribution,
    suggest,
    value_of,
    with_values,
)
from tests.tuning.studies import make_stages, make_tuning

CONDITIONAL = {
    "policy_extraction.objective": {"type": "categorical", "choices": ["awr", "ddpg_bc"]},
    "policy_extraction.beta": {
        "type": "float", "low": 1.0, "high": 9.0, "when": {"policy_extraction.objective": "awr"},
    },
    "policy_extraction.alpha": {
        "type": "float", "low": 0.5, "high": 2.0, "when": {"policy_extraction.objective": ["ddpg_bc"]},
    },
    "policy_extraction.hidden": {"type": "categorical", "choices": [[8], [16, 16]]},
}  # fmt: skip


@given(st.integers(0, 2**31))
def test_a_point_lies_in_the_space_and_makes_valid_parameters(seed: int) -> None:
    tuning, stages = make_tuning(space=CONDITIONAL, objectives=("success_rate",)), make_stages()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    point = suggest(trial, tuning.space, stages)
    awr = point["policy_extraction.objective"] == "awr"
    assert ("policy_extraction.beta" in point) == awr
    assert ("policy_extraction.alpha" in point) != awr
    policy = with_values(stages, point).policy_extraction
    assert policy.hidden in ((8,), (16, 16))
    assert 1.0 <= policy.beta <= 9.0
    for name, value in point.items():
        assert value_of(with_values(stages, point), name) == value
    for name, value in trial.params.items():
        distribution(tuning.space[name]).to_internal_repr(value)


def test_the_defaults_are_a_point_if_the_space_has_them() -> None:
    stages = make_stages()
    tuning = make_tuning(space=CONDITIONAL, objectives=("success_rate",))
    drawn = defaults_as_drawn(tuning.space, stages)
    assert drawn == {
        "policy_extraction.objective": "awr",
        "policy_extraction.beta": 3.0,
        "policy_extraction.hidden": "[8]",
    }
    study = optuna.create_study()
    study.enqueue_trial(drawn)
    point = suggest(study.ask(), tuning.space, stages)
    assert with_values(stages, point) == stages


@pytest.mark.parametrize(
    "dimension",
    [
        {"type": "float", "low": 5.0, "high": 9.0},
        {"type": "float", "low": 0.0, "high": 9.0, "step": 2.0},
        {"type": "categorical", "choices": [1.0, 2.0]},
    ],
)
def test_defaults_outside_of_the_space_are_not_tried(dimension: dict[str, Any]) -> None:
    space = {"policy_extraction.beta": Dimension(**dimension)}
    assert defaults_as_drawn(space, make_stages()) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {}}, ["tuning.space is empty"]),
        (
            {"space": {"contrastive_dynamics.temprature": {"type": "float", "low": 0.1, "high": 1}}},
            ["contrastive_dynamics.temprature", "did you mean contrastive_dynamics.temperature"],
        ),
        (
            {"space": {"contrastive_dynamcs.temperature": {"type": "float", "low": 0.1, "high": 1}}},
            ["unknown parameter 'contrastive_dynamcs.temperature'", "contrastive_dynamics"],
        ),
        ({"space": {"temperature": {"type": "float", "low": 0.1, "high": 1}}}, ["temperature", "seed"]),
        (
            {"space": {"contrastive_dynamics.temperature": {"type": "float", "low": -1.0, "high": 1.0}}},
            ["contrastive_dynamics.temperature cannot be -1.0", "greater than 0"],
        ),
        (
            {"space": {"contrastive_dynamics.loss": {"type": "categorical", "choices": ["nce", "nca"]}}},
            ["cannot be 'nca'", "symmetric_infonce"],
        ),
        (
            {"space": {"policy_extraction.beta": {"type": "float", "low": 1, "high": 2}}},
            ["policy_extraction.beta changes none of tuning.objectives (returns_correlation)"],
        ),
        (
            {
                "objectives": ("contrastive_loss",),
                "space": {"contrastive_dynamics.discount": {"type": "float", "low": 0.9, "high": 0.99}},
            },
            ["contrastive_dynamics.discount", "cannot be compared by contrastive_loss"],
        ),
        (
            {"space": {"dataset.noise_max": {"type": "float", "low": 0.1, "high": 0.3}}},
            ["dataset.noise_max", "cannot be compared by returns_correlation", "the held-out episodes differ"],
        ),
        ({"space": {"seed": {"type": "int", "low": 0, "high": 9}}}, ["seed is not a parameter that can be"]),
        (
            {"space": {"evaluation.episodes": {"type": "int", "low": 1, "high": 9}}},
            ["evaluation.episodes is not a parameter"],
        ),
        (
            {"space": {"contrastive_dynamics.training": {"type": "categorical", "choices": [1]}}},
            ["contrastive_dynamics.training is not a parameter"],
        ),
        (
            {"space": {"contrastive_dynamics.training.devices": {"type": "int", "low": 1, "high": 2}}},
            ["training.devices is not a parameter"],
        ),
        (
            {
                "space": {
                    "contrastive_dynamics.temperature": {
                        "type": "float", "low": 0.1, "high": 1.0,
                        "when": {"contrastive_dynamics.representation_size": 4},
                    },
                    "contrastive_dynamics.representation_size": {
                        "type": "int", "low": 2, "high": 8, "when": {"contrastive_dynamics.temperature": 0.5},
                    },
                }
            },
            ["conditions in a circle"],
        ),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched_is_refused_in_one_line(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        check_space(make_tuning(**changes), make_stages())
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("dimension", "word"),
    [
        ({"type": "float", "low": 1.0}, "needs low and high"),
        ({"type": "float", "low": 2.0, "high": 1.0}, "low <= high"),
        ({"type": "float", "low": 0.0, "high": 1.0, "log": True}, "log needs low > 0"),
        ({"type": "int", "low": 1.5, "high": 3}, "whole numbers"),
        ({"type": "int", "low": 1, "high": 3, "choices": [1]}, "choices are for categorical"),
        ({"type": "categorical"}, "needs choices"),
        ({"type": "categorical", "choices": [1, 1]}, "each of them once"),
        ({"type": "categorical", "choices": [1], "log": True}, "not categorical"),
        ({"type": "real", "low": 1, "high": 2}, "categorical"),
    ],
)
def test_a_dimension_that_says_too_little_or_too_much(dimension: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Dimension(**dimension)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"objectives": ()}, "is empty"),
        ({"objectives": ("sucess_rate",)}, "did you mean success_rate"),
        ({"measures": ("returns_correlation",)}, "twice"),
        ({"objectives": ("success_rate", "return_mean"), "pruner": "median"}, "cannot be pruned"),
        ({"sampler": "nsgaii"}, "for several objectives"),
        ({"study": "../elsewhere"}, "names a folder"),
        ({"trials": 0}, "greater than or equal to 1"),
    ],
)
def test_a_study_that_makes_no_sense(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_tuning(**changes)


def test_null_leaves_a_parameter_of_the_base_out() -> None:
    tuning = make_tuning(space={"contrastive_dynamics.temperature": None, **CONDITIONAL})
    assert list(tuning.space) == list(CONDITIONAL)


def test_names_may_be_one_string_as_the_command_line_has_them() -> None:
    tuning = make_tuning(objectives="success_rate return_mean", sampler="nsgaii")
    assert tuning.objectives == ("success_rate", "return_mean")
    assert tuning.directions == ["maximize", "maximize"]
