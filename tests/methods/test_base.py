from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline import api
from cvl_pipeline.episodes.container import Rewards
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.parameters import StageParameters, with_inherited
from cvl_pipeline.schema import validated
from cvl_pipeline.testing.builders import policy_parameters
from tests.methods.toys import Imitation, WithCritic, WithoutRewards, make_episodes, method_parameters
from tests.objectives.toys import network_q

OWN = f"{Imitation.__module__}:Imitation"
WITHOUT_REWARDS = f"{Imitation.__module__}:WithoutRewards"
WITH_CRITIC = f"{Imitation.__module__}:WithCritic"

KNOWN = ", ".join(METHODS.names)


@pytest.fixture(autouse=True)
def _nothing_received() -> None:
    Imitation.received.clear()


def test_titles_are_distinct_and_cloning_alone_needs_no_rewards() -> None:
    methods = {name: METHODS[name] for name in METHODS.names}
    assert len({method.title for method in methods.values()}) == len(methods)
    assert [name for name, method in methods.items() if not method.needs_rewards] == ["bc"]
    assert not any(method.needs_critic and method.learns_values for method in methods.values())


@pytest.mark.parametrize("name", METHODS.names)
def test_every_method_keeps_its_parameters(name: str) -> None:
    parameters = METHODS.validate(name)
    method = METHODS.create(parameters)
    assert type(method) is METHODS[name]
    assert isinstance(parameters, method.Parameters)
    assert method.parameters is parameters
    assert METHODS.validate(parameters.model_dump(mode="json")) == parameters


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=rf"unknown method 'sac': known: {KNOWN} \(or module:Class"):
        METHODS["sac"]
    with pytest.raises(InputError, match=r"'torch\.nn:Linear' is not a subclass of .*methods\.base\.Method"):
        METHODS["torch.nn:Linear"]


def test_method_of_ones_own_trains_with_its_settings() -> None:
    data = make_episodes()
    parameters = method_parameters(OWN, patience=7)
    assert isinstance(parameters, Imitation.Parameters)
    policy, history = api.train_method(data, parameters, seed=3)
    (received,) = Imitation.received
    assert received["parameters"].patience == 7
    assert received["rewards"] is data.rewards
    assert received["values"] is None
    assert policy(data.transitions.states()).shape == data.transitions.actions.shape
    assert history["step"].tolist() == [4, 8]
    with pytest.raises(ValueError, match="expectile"):
        method_parameters(OWN, expectile=0.7)


def test_method_that_needs_no_rewards_never_sees_them() -> None:
    assert not WithoutRewards.needs_rewards
    data = make_episodes()
    api.train_method(data, method_parameters(WITHOUT_REWARDS))
    api.train_method(data.without_rewards(), method_parameters(WITHOUT_REWARDS))
    assert [received["rewards"] for received in Imitation.received] == [None, None]


@pytest.mark.parametrize("missing", ["none", "all NaN"])
def test_method_that_needs_rewards_is_refused_without_them(missing: str) -> None:
    data = make_episodes(rewards=False)
    if missing == "all NaN":
        count = len(data.transitions)
        data = replace(
            data, rewards=Rewards(torch.full((count,), torch.nan), torch.zeros(count, dtype=torch.bool))
        )
    for method in (OWN, "iql"):
        with pytest.raises(InputError, match=f"method '{method}' needs data with rewards"):
            api.train_method(data, method_parameters(method))
    assert Imitation.received == []


def test_method_receives_the_critic_only_if_it_needs_one() -> None:
    assert WithCritic.needs_critic
    data = make_episodes()
    q = network_q(data.transitions)
    with pytest.raises(InputError, match=f"method '{WITH_CRITIC}' needs a critic and a readout"):
        api.train_method(data, method_parameters(WITH_CRITIC))
    api.train_method(data, method_parameters(WITH_CRITIC), values=q)
    api.train_method(data, method_parameters(OWN), values=q)
    assert [received["values"] for received in Imitation.received] == [q, None]


# Baselines in the parameters of all stages.

POLICY: dict[str, Any] = {
    "hidden": [8, 8], "encoder": {"name": "convolutional", "channels": 4},
    "training": {"steps": 70, "batch_size": 32, "precision": "bfloat16"},
}  # fmt: skip


def _baselines(baselines: Any, **stages: Any) -> dict[str, Any]:
    return validated(
        StageParameters, {"policy_extraction": POLICY, "baselines": baselines, **stages}
    ).baselines


def test_bc_is_the_default_baseline_and_follows_policy_extraction() -> None:
    assert list(StageParameters().baselines) == ["bc"]
    stages = validated(StageParameters, {"policy_extraction": POLICY})
    policy, bc = stages.policy_extraction, stages.baselines["bc"]
    assert bc.method == "bc"
    assert (bc.hidden, bc.encoder, bc.training) == (policy.hidden, policy.encoder, policy.training)
    assert bc.training.steps == 70


def test_baseline_may_set_parts_of_its_own() -> None:
    own = {"hidden": [4], "encoder": {"name": "identity"}, "training": {"steps": 5}}
    bc = _baselines({"bc": own})["bc"]
    assert bc.hidden == (4,)
    assert bc.encoder.name == "identity"
    assert (bc.training.steps, bc.training.batch_size, bc.training.precision) == (5, 32, "bfloat16")


@pytest.mark.parametrize(
    ("label", "entry"), [("iql", {}), ("iql", "iql"), ("rival", "iql"), ("rival", {"method": "iql"})]
)
def test_label_or_method_chooses_the_baseline(label: str, entry: Any) -> None:
    (baseline,) = _baselines({label: entry}).values()
    assert baseline.method == "iql"
    assert baseline.hidden == (8, 8)
    assert baseline.training.batch_size == 32


def test_iql_takes_the_steps_of_critic_regression_and_policy_together() -> None:
    critic = {"training": {"steps": 200}}
    alone = {"regression": None}
    few = {"method": "random_fourier", "regression": {"steps": 10, "value_steps": 4}}
    for readout, steps in ((alone, 270), (few, 270 + 14)):
        baselines = _baselines({"iql": {}}, contrastive_dynamics=critic, value_readout=readout)
        assert baselines["iql"].training.steps == steps
    assert _baselines({"iql": {"training": {"steps": 9}}})["iql"].training.steps == 9
    defaults = validated(StageParameters, {"baselines": {"iql": {}}})
    total = defaults.contrastive_dynamics.training.steps + defaults.policy_extraction.training.steps
    regression = defaults.value_readout.regression
    assert regression is not None
    assert defaults.baselines["iql"].training.steps == total + regression.all_steps == 7500
    # A method that learns no values takes those of the policy alone.
    both = _baselines({"iql": {}, "bc": {}}, contrastive_dynamics=critic)
    assert both["bc"].training.steps == 70


def test_baseline_of_ones_own_follows_policy_extraction() -> None:
    baseline = _baselines({"mine": {"method": OWN, "patience": 9}})["mine"]
    assert isinstance(baseline, Imitation.Parameters)
    assert (baseline.patience, baseline.hidden, baseline.training.steps) == (9, (8, 8), 70)


def test_cvl_with_another_objective_is_a_baseline_with_settings_of_its_own() -> None:
    extraction = {"objective": "ddpg_bc", "alpha": 2.0, "hidden": [5]}
    baseline = _baselines({"ddpg": {"method": "cvl", "extraction": extraction}})["ddpg"]
    assert baseline.extraction.objective == "ddpg_bc"
    assert baseline.extraction.hidden == (5,)
    assert METHODS.create(baseline).training == baseline.extraction.training


def test_parameters_made_in_python_are_followed_too() -> None:
    policy = policy_parameters(hidden=(9,), training={"steps": 11})
    stages = StageParameters(policy_extraction=policy)
    assert stages.baselines["bc"].hidden == (9,)
    assert stages.baselines["bc"].training.steps == 11


def test_null_leaves_a_baseline_out() -> None:
    assert _baselines({"bc": None}) == {}
    assert list(_baselines({"bc": None, "iql": {}})) == ["iql"]


@pytest.mark.parametrize(
    ("baselines", "message"),
    [
        ({"cvl": {}}, "'cvl' is the name of CVL itself"),
        ({"rival": {}}, f"'baselines.rival': names no method: set its method to one of {KNOWN}"),
        ({"rival": {"method": None, "hidden": [8]}}, "'baselines.rival': names no method"),
        ({"rival": {"method": "sac"}}, "'baselines.rival.method' is 'sac': unknown method 'sac'"),
        ({"rival": "sac"}, "unknown method 'sac'"),
        ({"iql": {"expectil": 0.7}}, "'baselines.iql.expectil': did you mean 'expectile'"),
        ({"bc": {"expectile": 0.7}}, "it belongs to method iql"),
        ({"iql": {"expectile": 0.3}}, "'baselines.iql.expectile' is 0.3"),
        ({"BC": {"method": "bc"}}, "must be lower-case letters, digits and '_'"),
        (["bc"], "must be a mapping from labels to settings"),
        ({"bc": 3}, "must be a mapping, or a bare name"),
    ],
)
def test_faulty_baselines_are_named_in_one_line(baselines: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _baselines(baselines)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SHARED = st.fixed_dictionaries(
    {},
    optional={
        "hidden": st.lists(st.integers(2, 9), max_size=2),
        "encoder": st.sampled_from([{"name": "identity"}, {"name": "convolutional", "channels": 3}, "auto"]),
        "training": st.fixed_dictionaries({}, optional={"steps": st.integers(1, 99)}),
    },
)


@given(policy=SHARED, bc=SHARED, iql=SHARED)
def test_inheritance_is_idempotent_and_survives_a_round_trip(
    policy: dict[str, Any], bc: dict[str, Any], iql: dict[str, Any]
) -> None:
    values = {"policy_extraction": policy, "baselines": {"bc": bc, "iql": iql}}
    once = with_inherited(values)
    twice = with_inherited(once)  # "auto" may have become {"name": "auto"}
    assert StageParameters.model_validate(twice) == StageParameters.model_validate(once)
    assert values == {"policy_extraction": policy, "baselines": {"bc": bc, "iql": iql}}  # unchanged
    stages = StageParameters.model_validate(values)
    assert StageParameters.model_validate(stages.model_dump(mode="json")) == stages
    for name in ("hidden", "encoder"):
        if name not in bc:
            assert getattr(stages.baselines["bc"], name) == getattr(stages.policy_extraction, name)
