"""What TD3+BC and ReBRAC share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline.methods.td3_bc import TD3BC, TD3PlusBC
from cvl_pipeline.training.vector import Adam
from tests.methods.toys import make_episodes, method_parameters


def _module(**settings: Any) -> TD3PlusBC:
    training = {"steps": 100, "batch_size": 64, "learning_rate": 3e-3}
    return TD3PlusBC(make_episodes(), method_parameters("td3_bc", training, **settings), 0)


def _weights(*networks: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for network in networks for p in network.parameters()])


def test_noise_of_the_targets_is_clipped_in_halves_of_the_range() -> None:
    module = _module(target_noise=0.2, noise_clip=0.5)
    module.actor.action_low.copy_(torch.tensor([-1.0, 0.0]))
    module.actor.action_high.copy_(torch.tensor([1.0, 10.0]))
    module.target_actor.load_state_dict(module.actor.state_dict())
    with torch.no_grad():  # actions in the middle, where the bounds do not limit the noise
        for parameter in module.target_actor.network[-1].parameters():
            parameter.zero_()
    step = module.steps(torch.arange(4))
    noise = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-9.0, 9.0], [2.0, -2.0]])
    expected = torch.tensor([[0.0, 5.0], [0.2, 6.0], [-0.5, 7.5], [0.4, 3.0]])
    torch.testing.assert_close(module.next_actions(step, noise), expected)
    wide = _module(target_noise=5.0, noise_clip=9.0)
    assert wide.next_actions(step, noise).abs().max() == 1.0  # within the bounds


def test_distance_is_in_halves_of_the_range() -> None:
    module = _module()
    module.actor.action_low.copy_(torch.tensor([-1.0, 0.0]))
    module.actor.action_high.copy_(torch.tensor([1.0, 10.0]))
    actions, others = torch.tensor([[0.5, 5.0]]), torch.tensor([[0.0, 10.0]])
    torch.testing.assert_close(module.actor.distance(actions, others), torch.tensor([[0.25, 1.0]]))


@pytest.mark.parametrize(
    ("delay", "actor", "targets"),
    [
        (1, [True] * 6, [False] + [True] * 5),
        (2, [True, False] * 3, [False, True] * 3),
        (3, [True, False, False] * 2, [False, True, False] * 2),
    ],
)
def test_actor_and_targets_are_delayed(delay: int, actor: list[bool], targets: list[bool]) -> None:
    """The targets move at the start of the step after each update of the actor."""
    module = _module(policy_delay=delay, target_rate=0.5)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, Adam)
    moved: dict[str, list[bool]] = {"q": [], "actor": [], "targets": []}
    for batch in module.draw(6, Generator().manual_seed(0)):
        before = [_weights(part) for part in (module.q, module.actor)]
        before_targets = [_weights(module.target_q), _weights(module.target_actor)]
        loss, _ = module.training_loss(batch)
        after_targets = [_weights(module.target_q), _weights(module.target_actor)]
        module.differentiate(loss)
        optimizer.step()
        for name, old, part in zip(("q", "actor"), before, (module.q, module.actor), strict=True):
            moved[name].append(not torch.equal(old, _weights(part)))
        changed = [not torch.equal(old, new) for old, new in zip(before_targets, after_targets, strict=True)]
        assert changed[0] == changed[1]
        moved["targets"].append(changed[0])
    module.release()
    assert moved == {"q": [True] * 6, "actor": actor, "targets": targets}


def test_defaults_are_the_published_ones() -> None:
    parameters = TD3BC.Parameters()
    assert (parameters.policy_delay, parameters.target_noise, parameters.noise_clip) == (2, 0.2, 0.5)
    assert (parameters.discount, parameters.target_rate) == (0.99, 0.005)


@pytest.mark.parametrize(
    ("field", "value"), [("policy_delay", 0), ("target_noise", -0.1), ("noise_clip", -1.0)]
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        method_parameters("td3_bc", **{field: value})
