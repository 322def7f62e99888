from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.ddpg_bc import DDPGPlusBC
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import validated
from cvl_pipeline.testing.builders import dynamics_parameters, policy_parameters
from cvl_pipeline.tuning.parameters import SPACE, Categorical, Dimension, Float, Int, TuningParameters
from cvl_pipeline.tuning.space import (
    check_space,
    distribution,
    encoded_defaults,
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
def test_points_are_in_the_space_and_make_valid_parameters(seed: int) -> None:
    tuning, stages = make_tuning(space=CONDITIONAL, objectives=("success_rate",)), make_stages()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    point = suggest(trial, tuning.space, stages)
    awr = point["policy_extraction.objective"] == "awr"
    assert ("policy_extraction.beta" in point) == awr
    assert ("policy_extraction.alpha" in point) != awr
    policy = with_values(stages, point).policy_extraction
    assert policy.hidden in ((8,), (16, 16))
    assert policy.training == stages.policy_extraction.training
    if awr:
        assert isinstance(policy, AdvantageWeightedRegression.Parameters)
        assert 1.0 <= policy.beta <= 9.0
    else:
        # Settings of the former objective, such as beta, are gone.
        assert isinstance(policy, DDPGPlusBC.Parameters)
        assert 0.5 <= policy.alpha <= 2.0
    for name, value in point.items():
        assert value_of(with_values(stages, point), name) == value
    for name, value in trial.params.items():
        distribution(tuning.space[name]).to_internal_repr(value)


HIDDEN = "contrastive_dynamics.hidden"
SIZE = "contrastive_dynamics.representation_size"


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ([256, 256], True), ([256], False), ([[64], [256, 256]], True), ([[64], [64, 64]], False),
        ("256 256", True), (256, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("searched", [True, False])
def test_a_flat_list_is_one_value_of_a_parameter_whose_values_are_lists(
    condition: Any, met: bool, searched: bool
) -> None:
    stages = make_stages(contrastive_dynamics=dynamics_parameters(hidden=[256, 256]))
    space: dict[str, Any] = {SIZE: {"type": "int", "low": 2, "high": 8, "when": {HIDDEN: condition}}}
    if searched:
        space[HIDDEN] = {"type": "categorical", "choices": [[256, 256]]}
    tuning = make_tuning(space=space)
    check_space(tuning, stages)
    assert (SIZE in suggest(optuna.create_study().ask(), tuning.space, stages)) == met


def test_a_list_has_alternatives_of_a_parameter_whose_values_are_no_lists() -> None:
    stages = make_stages(contrastive_dynamics=dynamics_parameters(representation_size=4))
    space = {HIDDEN: {"type": "categorical", "choices": [[8], [16]], "when": {SIZE: [2, 4]}}}
    assert HIDDEN in suggest(optuna.create_study().ask(), make_tuning(space=space).space, stages)


def test_value_of_a_setting_that_the_choice_lacks_is_none() -> None:
    stages = make_stages()
    assert value_of(stages, "policy_extraction.beta") == 3.0
    assert value_of(stages, "policy_extraction.alpha") is None
    assert value_of(stages, "policy_extraction.state_value.name") == "marginal_actions"
    assert value_of(stages, "contrastive_dynamics.loss.name") == "symmetric_infonce"


def test_defaults_are_a_point_if_the_space_holds_them() -> None:
    stages = make_stages()
    tuning = make_tuning(space=CONDITIONAL, objectives=("success_rate",))
    encoded = encoded_defaults(tuning.space, stages)
    assert encoded == {
        "policy_extraction.objective": "awr",
        "policy_extraction.beta": 3.0,
        "policy_extraction.hidden": "[8]",
    }
    study = optuna.create_study()
    study.enqueue_trial(encoded)
    point = suggest(study.ask(), tuning.space, stages)
    assert with_values(stages, point) == stages


@pytest.mark.parametrize(
    "dimension",
    [
        Float(low=5.0, high=9.0), Float(low=0.0, high=9.0, step=2.0), Categorical(choices=(1.0, 2.0)),
        Int(low=5, high=9), Int(low=0, high=9, step=2),
    ],
)  # fmt: skip
def test_defaults_outside_of_the_space_are_no_trial(dimension: Dimension) -> None:
    assert encoded_defaults({"policy_extraction.beta": dimension}, make_stages()) is None


@pytest.mark.parametrize("dimension", [Int(low=1, high=10), Int(low=1, high=10, log=True)])
@pytest.mark.parametrize(("beta", "holds"), [(3.0, True), (2.5, False)])
def test_whole_numbers_hold_no_default_that_is_a_fraction(
    dimension: Dimension, beta: float, holds: bool
) -> None:
    stages = make_stages(policy_extraction=policy_parameters(beta=beta))
    name = "policy_extraction.beta"
    assert encoded_defaults({name: dimension}, stages) == ({name: beta} if holds else None)


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
            {"space": {"contrastive_dynamics.loss.name": {"type": "categorical", "choices": ["nce", "nca"]}}},
            ["contrastive_dynamics.loss.name cannot be 'nca'", "unknown loss 'nca'", "did you mean nce"],
        ),
        (
            {"space": {"contrastive_dynamics.loss": {"type": "categorical", "choices": ["nce", "infonce"]}}},
            ["contrastive_dynamics.loss cannot be searched"],
        ),
        (
            {
                "objectives": ("contrastive_loss",),
                "space": {"contrastive_dynamics.loss.logsumexp_penalty": {"type": "float", "low": 0, "high": 1}},
            },
            ["contrastive_loss cannot compare trials that differ in contrastive_dynamics.loss.logsumexp_penalty"],
        ),
        *(
            (
                {
                    "objectives": ("success_rate",),
                    "space": {
                        "policy_extraction.alpha": {"type": "float", "low": 1, "high": 2, "when": conditions},
                    },
                },
                [f"policy_extraction.alpha cannot be 1.0 when {words[0]}: ", words[1]],
            )
            for conditions, words in (
                (
                    {"policy_extraction.objective": ["ddpg_bc", "awrr"]},
                    ["policy_extraction.objective is 'awrr'", "did you mean awr"],
                ),
                (
                    {"policy_extraction.objective": ["ddpg_bc", "awr"]},
                    ["policy_extraction.objective is 'awr'", "it belongs to objective ddpg_bc"],
                ),
                (
                    {"policy_extraction.objective": "ddpg_bc", "contrastive_dynamics.hidden": [[8], [0, 8]]},
                    [
                        "policy_extraction.objective is 'ddpg_bc' and contrastive_dynamics.hidden is [0, 8]",
                        "contrastive_dynamics.hidden.0' is 0",
                    ],
                ),
            )
        ),
        (
            {"space": {"contrastive_dynamics.logsumexp_penalty": {"type": "float", "low": 0, "high": 1}}},
            ["'contrastive_dynamics.logsumexp_penalty' is now 'contrastive_dynamics.loss.logsumexp_penalty'"],
        ),
        (
            {
                "objectives": ("success_rate",),
                "space": {"policy_extraction.alpha": {"type": "float", "low": 1, "high": 2}},
            },
            ["policy_extraction.alpha cannot be 1.0", "it belongs to objective ddpg_bc"],
        ),
        *(
            (
                {"objectives": ("success_rate",), "space": {name: {"type": "int", "low": 1, "high": 2}}},
                [f"{name} cannot be searched"],
            )
            for name in (
                "value_report.compared_transitions", "baselines", "dataset.task", "reward.name",
                "evaluation.confidence", "data_ingestion.workers",
            )
        ),
        (
            {"space": {"policy_extraction.beta": {"type": "float", "low": 1, "high": 2}}},
            ["policy_extraction.beta affects none of tuning.objectives (returns_correlation)"],
        ),
        (
            {
                "objectives": ("contrastive_loss",),
                "space": {"contrastive_dynamics.discount": {"type": "float", "low": 0.9, "high": 0.99}},
            },
            ["contrastive_loss cannot compare trials that differ in contrastive_dynamics.discount"],
        ),
        (
            {"space": {"dataset.noise_max": {"type": "float", "low": 0.1, "high": 0.3}}},
            ["returns_correlation cannot compare trials that differ in dataset.noise_max", "held-out episodes differ"],
        ),
        ({"space": {"seed": {"type": "int", "low": 0, "high": 9}}}, ["seed cannot be searched"]),
        (
            {"space": {"evaluation.episodes": {"type": "int", "low": 1, "high": 9}}},
            ["evaluation.episodes cannot be searched"],
        ),
        (
            {"space": {"contrastive_dynamics.training": {"type": "categorical", "choices": [1]}}},
            ["contrastive_dynamics.training cannot be searched"],
        ),
        (
            {"space": {"contrastive_dynamics.training.devices": {"type": "int", "low": 1, "high": 2}}},
            ["training.devices cannot be searched"],
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
def test_space_that_cannot_be_searched_is_refused_in_one_line(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        check_space(make_tuning(**changes), make_stages())
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        ({"type": "float", "low": 1.0}, ["float.high' is missing"]),
        ({"type": "float", "low": 2.0, "high": 1.0}, ["low <= high"]),
        ({"type": "int", "low": 2, "high": 1}, ["low <= high"]),
        ({"type": "float", "low": 0.0, "high": 1.0, "log": True}, ["log needs low > 0"]),
        ({"type": "int", "low": 1, "high": 9, "log": True, "step": 2}, ["log needs low > 0 and no step"]),
        ({"type": "float", "low": 0.0, "high": 1.0, "step": 0.0}, ["step", "greater than 0"]),
        ({"type": "int", "low": 1.5, "high": 3}, ["low' is 1.5", "valid integer"]),
        ({"type": "int", "low": 1, "high": 3, "choices": [1]}, ["unknown field", "choices"]),
        ({"type": "categorical"}, ["choices' is missing"]),
        ({"type": "categorical", "choices": []}, ["needs choices"]),
        ({"type": "categorical", "choices": [1, 1]}, ["each of them once"]),
        ({"type": "categorical", "choices": [1], "log": True}, ["unknown field", "log"]),
        ({"type": "real", "low": 1, "high": 2}, ["'float', 'int', 'categorical'"]),
        ({"low": 1, "high": 2}, ["type"]),
        (
            {"type": "int", "low": 1, "high": 2, "when": {"policy_extraction.objective": []}},
            ["policy_extraction.objective has no value: name one, or a list of them"],
        ),
    ],
)
def test_faulty_dimension_is_refused_in_one_line(dimension: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        validated(TuningParameters, {"space": {"contrastive_dynamics.temperature": dimension}})
    assert "space.contrastive_dynamics.temperature" in str(caught.value)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_examples_of_a_dimension_are_its_limits_or_all_of_its_values() -> None:
    assert Float(low=0.1, high=1.0).examples == (0.1, 1.0)
    assert Int(low=1, high=4).examples == (1, 4)
    assert Categorical(choices=("a", [1], None)).examples == ("a", [1], None)


def test_default_space_can_be_searched_by_the_default_objective() -> None:
    tuning = TuningParameters()
    assert tuning.space == SPACE
    check_space(tuning, StageParameters())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"objectives": ()}, "is empty"),
        ({"objectives": ("sucess_rate",)}, "did you mean success_rate"),
        ({"measures": ("returns_correlation",)}, "twice"),
        ({"objectives": ("success_rate", "return_mean"), "pruner": "median"}, "cannot be pruned"),
        (
            {"pruner": "median"},
            "returns_correlation is known only when a trial ends.*or use contrastive_loss or",
        ),
        ({"sampler": "nsgaii"}, "for several objectives"),
        ({"study": "../elsewhere"}, "names a folder"),
        ({"trials": 0}, "greater than or equal to 1"),
    ],
)
def test_contradictory_study_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_tuning(**changes)


def test_null_leaves_a_dimension_out() -> None:
    tuning = make_tuning(space={"contrastive_dynamics.temperature": None, **CONDITIONAL})
    assert list(tuning.space) == list(CONDITIONAL)


def test_several_names_may_be_one_string() -> None:
    tuning = make_tuning(objectives="success_rate return_mean", sampler="nsgaii")
    assert tuning.objectives == ("success_rate", "return_mean")
    assert tuning.directions == ["maximize", "maximize"]
