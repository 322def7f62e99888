from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from cvl_pipeline.episodes.preparation import observed_returns
from cvl_pipeline.episodes.sampling import SegmentSampler
from cvl_pipeline.networks.actor import CategoricalActor
from cvl_pipeline.objectives.published import Published
from cvl_pipeline.testing.builders import make_rewards
from tests.objectives.toys import DISCOUNT, TargetCritic, episodes, make_module, network_q


@pytest.mark.parametrize("discrete", [False, True])
def test_loss_equals_the_formula(discrete: bool) -> None:
    transitions = episodes(discrete)
    module = make_module(
        transitions, objective="published", cloning_share=0.2, entropy_weight=0.3,
        training={"batch_size": 256},
    )  # fmt: skip
    (batch,) = module.draw(1, Generator().manual_seed(8))
    result, metrics = module.training_loss(batch)
    loss = float(result.detach())

    # The same segments and the same noise; the rest is written out.
    generator = Generator().manual_seed(8)
    train = transitions.select(torch.arange(4))
    segments = SegmentSampler(train, DISCOUNT).sample(256, generator)
    assert segments.absorbed.any()
    rewards = make_rewards(transitions).rewards[:200][segments.arrivals]
    rewards = rewards.masked_fill(segments.absorbed, 0.0).double()
    states = segments.observations
    with torch.no_grad():
        cloning = -module.actor.log_prob(states, segments.actions).mean()
        if isinstance(module.actor, CategoricalActor):
            log_pi = module.actor.log_probs(states).double()
            place = 2.0 * states[:, 0].double()
            ratio = torch.stack([place, -place, torch.zeros_like(place)], dim=1).exp()
            gain = (log_pi.exp() * (ratio * rewards[:, None] - 0.3 * log_pi)).sum(1).mean()
        else:
            noise = torch.randn(len(states), 2, generator=generator)
            actions = module.actor.act_with_noise(states, noise[:, None]).squeeze(1)
            ratio = (-(actions - torch.tensor(TargetCritic.TARGET)).double().square().sum(-1)).exp()
            gain = (ratio * rewards - 0.3 * module.actor.log_prob(states, actions)).mean()
    assert loss == pytest.approx(float(0.2 * cloning - 0.8 * gain), rel=1e-5)
    assert float(metrics["gain"].detach()) == pytest.approx(float(gain), rel=1e-5)


def test_futures_are_drawn_at_the_discount_of_the_readout() -> None:
    # A critic conditioned on the horizon may have another one.
    transitions = episodes()
    q = network_q(transitions, conditioned=True, discount=0.2)
    assert q.critic.shape.discount == 0.9
    module = make_module(transitions, q, objective="published")
    assert isinstance(module.objective, Published)
    assert module.objective._sampler.discount == 0.2


def test_the_critic_may_look_less_far_ahead_than_the_values() -> None:
    """Segments have the critic's discount, and labels carry the rest of the return."""
    transitions = episodes()
    q = network_q(transitions, discount=0.97)
    module = make_module(transitions, q, objective="published", training={"batch_size": 256})
    objective = module.objective
    assert isinstance(objective, Published)
    assert objective._sampler.discount == 0.9
    rewards = make_rewards(transitions).rewards
    weight = (0.97 - 0.9) / (0.97 * (1.0 - 0.9))
    means = 0.03 * observed_returns(rewards, transitions, 0.97)
    expected = ((1.0 - weight) * rewards + weight * means).float()
    # The training episodes come first, so their transitions have the same places.
    np.testing.assert_allclose(objective._rewards, expected, rtol=1e-5)
    (batch,) = objective.draw(1, 256, Generator().manual_seed(8))
    _, metrics = module.training_loss(batch)
    segments = objective._sampler.gather(batch[0])
    labels = expected[segments.arrivals].masked_fill(segments.absorbed, 0.0)
    with torch.no_grad():
        actions = module.actor.act_with_noise(segments.observations, batch[1].unsqueeze(1)).squeeze(1)
        phi, psi = (
            q.critic.phi(segments.observations, actions),
            q.critic.psi(segments.futures, segments.absorbed),
        )
        gain = ((phi * psi).sum(-1) / q.critic.temperature).exp() * labels
    assert float(metrics["gain"].detach()) == pytest.approx(float(gain.mean()), rel=1e-4)


def test_every_state_has_noise_of_its_own() -> None:
    module = make_module(episodes(), objective="published")
    seen: list[Tensor] = []
    act_with_noise = module.actor.act_with_noise

    def record(observations: Tensor, noise: Tensor) -> Tensor:
        seen.append(noise)
        return act_with_noise(observations, noise)

    module.actor.act_with_noise = record  # type: ignore[method-assign]
    module.training_loss(module.draw(1, Generator().manual_seed(0))[0])
    assert len(np.unique(seen[0].squeeze(1).numpy(), axis=0)) == 16
