"""Two processes with B segments each compute the same as one process with 2 B."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import LOSSES
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.methods.crl import CRL, GoalReaching
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.objectives.training import PolicyExtraction
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    training_parameters,
)
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import any_of, average, gather, maximum, own_share, rank, world_size
from tests.methods.toys import OFF_POLICY, method_parameters, off_policy_module
from tests.training.processes import call_in_processes
from tests.training.toy import LineFit

LENGTHS, ENDS = [20] * 6, [False, True] * 3
BATCH = 16
DYNAMICS: dict[str, dict[str, Any]] = {
    f"{loss}, penalty {penalty}, {representation}": {
        "loss": {"name": loss, "logsumexp_penalty": penalty},
        "representation": representation,
        "learned_temperature": representation == "unit_norm",
    }
    for loss, penalty, representation in product(LOSSES.names, (0.0, 0.1), ("unit_norm", "raw"))
} | {"horizons, several segments per episode": {"horizon_conditioning": True, "segments_per_episode": 4}}
ACTIONS = ("continuous", "discrete")
POLICIES = [f"{objective}, {actions}" for objective, actions in product(OBJECTIVES.names, ACTIONS)]
METHODS: dict[str, dict[str, Any]] = {
    **{f"{name}, continuous actions": {} for name in OFF_POLICY},
    **{f"{name}, discrete actions": {} for name in ("iql", "cql")},
    **{f"iql, {actions} actions, scaled": {"scale_advantage": True} for actions in ACTIONS},
}
GOALS = [f"crl, {actions}, {extraction}" for actions, extraction in product(ACTIONS, ("ddpg_bc", "awr"))]
MODULES = (*DYNAMICS, *POLICIES, *METHODS, *GOALS)


def _data(actions: str) -> EpisodeData:
    make = make_discrete_transitions if actions == "discrete" else make_transitions
    transitions = make(LENGTHS, ENDS)
    return make_data(transitions, 4, make_rewards(transitions))


def _dynamics(changes: dict[str, Any]) -> ContrastiveDynamics:
    parameters = dynamics_parameters(**changes, training={"batch_size": BATCH})
    return ContrastiveDynamics(_data("continuous"), parameters, 0)


def _values(data: EpisodeData) -> QFunction:
    assert data.rewards is not None
    torch.manual_seed(0)
    shape = CriticShape((3,), data.transitions.actions.shape[1], (8,), 4, "unit_norm", 0.5, False, 0.9, False)
    critic = ContrastiveCritic(shape, data.normalisation)
    readout = build_readout(critic, data.transitions, data.rewards, data.split, readout_parameters(), 0)
    return QFunction(critic, readout)


def _policy(name: str) -> PolicyExtraction:
    objective, actions = name.split(", ")
    data = _data(actions)
    parameters = policy_parameters(objective=objective, training={"batch_size": BATCH})
    return PolicyExtraction(data, parameters, 0, _values(data))


def _goal_reaching(name: str) -> GoalReaching:
    _, actions, extraction = name.split(", ")
    data, training = _data(actions), training_parameters(batch_size=BATCH).model_dump()
    parameters = CRL.Parameters.model_validate(
        {"hidden": (8,), "extraction": extraction, "training": training}
    )
    return GoalReaching(data, parameters, 0, _values(data).critic)


def _method(name: str) -> OfflineModule:
    method, actions, *_ = name.split(", ")
    parameters = method_parameters(method, {"batch_size": BATCH}, **METHODS[name])
    return off_policy_module(_data(actions.removesuffix(" actions")), parameters)


def _module(name: str) -> OfflineModule:
    if name in DYNAMICS:
        return _dynamics(DYNAMICS[name])
    if name in GOALS:
        return _goal_reaching(name)
    return _method(name) if name in METHODS else _policy(name)


def _step(module: OfflineModule, step: int) -> dict[str, Tensor]:
    """Loss, metrics and gradients of the batch of a step, as training has them."""
    module.on_fit_start()
    loss, metrics = module.training_loss(module.batch(step))
    parameters = module.trained_parameters()
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        "loss": average(loss.detach()),
        **{name: average(value.detach()) for name, value in metrics.items()},
        **{
            f"gradient of {names[parameter]}": average(gradient)
            for parameter, gradient in zip(parameters, gradients, strict=True)
        },
    }


def _everything() -> dict[str, Any]:
    results: dict[str, Any] = {name: _step(_module(name), 3) for name in MODULES}
    return results | {"laws": _laws()}


def _laws() -> dict[str, Any]:
    """Results of every function, in one process of several."""
    whole = torch.arange(12.0).reshape(6, 2)
    share = own_share(whole).clone().requires_grad_()
    gathered = gather(share)
    # Every process computes the loss of the whole batch.
    (gradient,) = torch.autograd.grad((gathered * (1.0 + whole)).sum(), share)
    own = torch.tensor([1.0 + rank(), -float(rank())])
    device = torch.device("cpu")
    return {
        "rank": rank(), "world_size": world_size(), "share": share.detach(), "gathered": gathered.detach(),
        "gradient": gradient, "own": own, "average": average(own), "maximum": maximum(own),
        # Columns of a wider matrix: rows that are not contiguous in memory.
        "columns": gather(own_share(whole.t().contiguous().t())),
        "narrow": gather(own_share(whole).bfloat16()),
        "any": [any_of(flag, device) for flag in (False, rank() == 0, rank() == world_size() - 1, True)],
        "sums": _sums(LineFit(training_parameters(), 0)), "fault": _fault(LineFit(training_parameters(), 0)),
    }  # fmt: skip


def _sums(module: LineFit) -> dict[str, Any]:
    """Sums of an unfinished interval, before and after they are saved and restored."""
    module._add("weight", torch.tensor(1.0 + 2.0 * rank()))
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    before, module._sums = module._sums, {}
    module.on_load_checkpoint(checkpoint)
    return {"before": before, "after": module._sums, "saved": checkpoint}


def _fault(module: LineFit) -> str:
    """Message about losses of which only the last process has one that is not a number."""
    losses = torch.ones(5)
    losses[3] = torch.nan if rank() == world_size() - 1 else 1.0
    with pytest.raises(FloatingPointError) as caught:
        module._check(losses, 10)
    return str(caught.value)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    return call_in_processes(2, tmp_path_factory.mktemp("two"), _everything)


@pytest.mark.parametrize("name", MODULES)
def test_two_processes_compute_the_loss_and_gradients_of_one(two: list[dict[str, Any]], name: str) -> None:
    one = _step(_module(name), 3)
    assert sum(float(value.abs().sum()) for key, value in one.items() if "gradient" in key) > 0.0
    for results in two:
        assert results[name].keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(results[name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")


def test_gradient_of_the_temperature_is_compared() -> None:
    one = _step(_dynamics(DYNAMICS["symmetric_infonce, penalty 0.1, unit_norm"]), 3)
    assert any("temperature" in name and bool(value.abs() > 1e-3) for name, value in one.items())


def test_shares_are_disjoint_and_complete(two: list[dict[str, Any]]) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    laws = [results["laws"] for results in two]
    assert [found["rank"] for found in laws] == [0, 1]
    assert [found["world_size"] for found in laws] == [2, 2]
    assert torch.equal(torch.cat([found["share"] for found in laws]), whole)


def test_gather_gives_every_process_all_rows_and_the_gradient(two: list[dict[str, Any]]) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    laws = [results["laws"] for results in two]
    for found in laws:
        assert torch.equal(found["gathered"], whole)
        assert torch.equal(found["columns"], whole)
        assert torch.equal(found["narrow"], whole.bfloat16())
    # The mean over processes is the derivative of the loss with respect to a number added to all rows: the sum
    # of the factors.
    mean = sum(found["gradient"].sum() for found in laws) / 2
    assert float(mean) == float((1.0 + whole).sum())


def test_average_maximum_and_any_cover_all_processes(two: list[dict[str, Any]]) -> None:
    for results in two:
        laws = results["laws"]
        assert laws["average"].tolist() == [1.5, -0.5]
        assert laws["maximum"].tolist() == [2.0, 0.0]
        assert laws["any"] == [False, True, True, True]
    # The arguments stay unchanged.
    assert [results["laws"]["own"].tolist() for results in two] == [[1.0, 0.0], [2.0, -1.0]]


def test_every_process_restores_its_own_sums(two: list[dict[str, Any]]) -> None:
    for number, results in enumerate(two):
        sums = results["laws"]["sums"]
        assert sums["after"] == sums["before"] == {"weight": torch.tensor(1.0 + 2.0 * number)}
    # One process that resumes the training of two takes their mean.
    module = LineFit(training_parameters(), 0)
    module.on_load_checkpoint(two[0]["laws"]["sums"]["saved"])
    assert module._sums == {"weight": torch.tensor(2.0)}


def test_loss_that_is_not_a_number_in_one_process_ends_all(two: list[dict[str, Any]]) -> None:
    first, second = (results["laws"]["fault"] for results in two)
    assert first == second
    assert "the loss became nan at step 13" in first


def test_functions_are_the_identity_in_one_process() -> None:
    laws = _laws()
    whole = torch.arange(12.0).reshape(6, 2)
    assert (laws["rank"], laws["world_size"]) == (0, 1)
    assert torch.equal(laws["share"], whole)
    assert torch.equal(laws["gathered"], whole)
    assert torch.equal(laws["gradient"], 1.0 + whole)
    assert laws["average"].tolist() == laws["maximum"].tolist() == [1.0, 0.0]
    assert laws["any"] == [False, True, True, True]
