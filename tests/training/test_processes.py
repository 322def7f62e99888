"""Two processes with B segments each compute what one does with 2 B."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from cvl_pipeline.dynamics.losses import CONTRASTIVE_LOSSES
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.module import OBJECTIVES, PolicyExtraction
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    identity_normalisation,
    make_discrete_transitions,
    make_rewards,
    make_transitions,
    policy_parameters,
    readout_parameters,
    split_first,
    training_parameters,
)
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import any_of, average, gather, maximum, own_share, rank, world_size
from tests.training.processes import call_in_processes
from tests.training.toy import LineFit

LENGTHS, ENDS = [20] * 6, [False, True] * 3
BATCH = 16
DYNAMICS: dict[str, dict[str, Any]] = {
    f"{loss}, penalty {penalty}, {representation}": {
        "loss": loss,
        "logsumexp_penalty": penalty,
        "representation": representation,
        "learned_temperature": representation == "unit_norm",
    }
    for loss, penalty, representation in product(sorted(CONTRASTIVE_LOSSES), (0.0, 0.1), ("unit_norm", "raw"))
} | {"horizons, several segments an episode": {"horizon_conditioning": True, "segments_per_episode": 4}}
POLICIES = [
    f"{objective}, {actions}" for objective in sorted(OBJECTIVES) for actions in ("continuous", "discrete")
]


def _dynamics(changes: dict[str, Any]) -> ContrastiveDynamics:
    data = make_transitions(LENGTHS, ENDS)
    parameters = dynamics_parameters(**changes, training={"batch_size": BATCH})
    return ContrastiveDynamics(data, split_first(data, 4), identity_normalisation(data), parameters, 0)


def _policy(name: str) -> PolicyExtraction:
    objective, actions = name.split(", ")
    make = make_discrete_transitions if actions == "discrete" else make_transitions
    data = make(LENGTHS, ENDS)
    split, normalisation, rewards = split_first(data, 4), identity_normalisation(data), make_rewards(data)
    torch.manual_seed(0)
    shape = CriticShape((3,), data.actions.shape[1], (8,), 4, "unit_norm", 0.5, False, 0.9, False)
    critic = ContrastiveCritic(shape, normalisation)
    readout = build_readout(critic, data, rewards, split, readout_parameters(), 0)
    parameters = policy_parameters(objective=objective, training={"batch_size": BATCH})
    return PolicyExtraction(data, split, normalisation, parameters, 0, QFunction(critic, readout), rewards)


def _step(module: OfflineModule, step: int) -> dict[str, Tensor]:
    """Loss, metrics and gradients of the batch of a step, as training has them; "rows" are this process's."""
    module.on_fit_start()
    loss, metrics = module.training_loss(module.batch(step))
    parameters = module.trained_parameters()
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    return {
        "loss": average(loss.detach()),
        **{name: average(value.detach()) for name, value in metrics.items()},
        **{f"gradient of {n}": average(value) for n, value in zip(names, gradients, strict=True)},
    }


def _everything() -> dict[str, Any]:
    results: dict[str, Any] = {name: _step(_dynamics(changes), 3) for name, changes in DYNAMICS.items()}
    return results | {name: _step(_policy(name), 3) for name in POLICIES} | {"laws": _laws()}


def _laws() -> dict[str, Any]:
    """What a process of several sees; ``_check_laws`` says what it should be."""
    whole = torch.arange(12.0).reshape(6, 2)
    share = own_share(whole).requires_grad_()
    gathered = gather(share)
    # Every process weighs the rows by the same factors, the loss of one process on the whole batch.
    (gradient,) = torch.autograd.grad((gathered * (1.0 + whole)).sum(), share)
    own = torch.tensor([1.0 + rank(), -float(rank())])
    device = torch.device("cpu")
    return {
        "rank": rank(), "world_size": world_size(), "share": share.detach(), "gathered": gathered.detach(),
        "gradient": gradient, "own": own, "average": average(own), "maximum": maximum(own),
        # Columns of a wider matrix: rows that do not lie side by side in memory.
        "columns": gather(own_share(whole.t().contiguous().t())),
        "narrow": gather(own_share(whole).bfloat16()),
        "any": [any_of(flag, device) for flag in (False, rank() == 0, rank() == world_size() - 1, True)],
        "sums": _sums(LineFit(training_parameters(), 0)), "fault": _fault(LineFit(training_parameters(), 0)),
    }  # fmt: skip


def _sums(module: LineFit) -> dict[str, Any]:
    """Sums of an interval that has begun, before and after they are saved and resumed."""
    module._add("weight", torch.tensor(1.0 + 2.0 * rank()))
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    before, module._sums = module._sums, {}
    module.on_load_checkpoint(checkpoint)
    return {"before": before, "after": module._sums, "saved": checkpoint}


def _fault(module: LineFit) -> str:
    """What is said of losses of which the last process alone has one that is no number."""
    losses = torch.ones(5)
    losses[3] = torch.nan if rank() == world_size() - 1 else 1.0
    with pytest.raises(FloatingPointError) as caught:
        module._check(losses, 10)
    return str(caught.value)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    return call_in_processes(2, tmp_path_factory.mktemp("two"), _everything)


@pytest.mark.parametrize("name", [*DYNAMICS, *POLICIES])
def test_two_processes_have_the_loss_and_gradients_of_one(two: list[dict[str, Any]], name: str) -> None:
    module = _dynamics(DYNAMICS[name]) if name in DYNAMICS else _policy(name)
    one = _step(module, 3)
    assert sum(float(value.abs().sum()) for key, value in one.items() if "gradient" in key) > 0.0
    for results in two:
        assert results[name].keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(results[name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")


def test_the_temperature_is_among_what_is_compared() -> None:
    one = _step(_dynamics(DYNAMICS["symmetric_infonce, penalty 0.1, unit_norm"]), 3)
    assert any("temperature" in name and bool(value.abs() > 1e-3) for name, value in one.items())


def test_processes_take_disjoint_shares_that_make_the_whole(two: list[dict[str, Any]]) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    laws = [results["laws"] for results in two]
    assert [found["rank"] for found in laws] == [0, 1]
    assert [found["world_size"] for found in laws] == [2, 2]
    assert torch.equal(torch.cat([found["share"] for found in laws]), whole)


def test_gathering_gives_every_process_the_whole_and_its_gradient(two: list[dict[str, Any]]) -> None:
    whole = torch.arange(12.0).reshape(6, 2)
    laws = [results["laws"] for results in two]
    for found in laws:
        assert torch.equal(found["gathered"], whole)
        assert torch.equal(found["columns"], whole)
        assert torch.equal(found["narrow"], whole.bfloat16())
    # The mean over processes of what reaches one parameter through the share of each: the derivative of the
    # loss with respect to a parameter that all rows are, which is the sum of the factors.
    mean = sum(found["gradient"].sum() for found in laws) / 2
    assert float(mean) == float((1.0 + whole).sum())


def test_average_maximum_and_vote_are_of_all_processes(two: list[dict[str, Any]]) -> None:
    for results in two:
        laws = results["laws"]
        assert laws["average"].tolist() == [1.5, -0.5]
        assert laws["maximum"].tolist() == [2.0, 0.0]
        assert laws["any"] == [False, True, True, True]
    # What was given stays as it was.
    assert [results["laws"]["own"].tolist() for results in two] == [[1.0, 0.0], [2.0, -1.0]]


def test_every_process_goes_on_with_its_own_sums(two: list[dict[str, Any]]) -> None:
    for number, results in enumerate(two):
        sums = results["laws"]["sums"]
        assert sums["after"] == sums["before"] == {"weight": torch.tensor(1.0 + 2.0 * number)}
    # One process that resumes what two began takes their mean.
    module = LineFit(training_parameters(), 0)
    module.on_load_checkpoint(two[0]["laws"]["sums"]["saved"])
    assert module._sums == {"weight": torch.tensor(2.0)}


def test_a_loss_that_is_no_number_in_one_process_ends_all(two: list[dict[str, Any]]) -> None:
    first, second = (results["laws"]["fault"] for results in two)
    assert first == second
    assert "the loss became nan at step 13" in first


def test_of_one_process_everything_is_its_own() -> None:
    laws = _laws()
    whole = torch.arange(12.0).reshape(6, 2)
    assert (laws["rank"], laws["world_size"]) == (0, 1)
    assert torch.equal(laws["share"], whole)
    assert torch.equal(laws["gathered"], whole)
    assert torch.equal(laws["gradient"], 1.0 + whole)
    assert laws["average"].tolist() == laws["maximum"].tolist() == [1.0, 0.0]
    assert laws["any"] == [False, True, True, True]
