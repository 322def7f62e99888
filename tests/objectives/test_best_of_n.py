from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from cvl_pipeline.networks.actor import Actor, ActorShape, CategoricalActor, GaussianActor
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.readout.q_function import QFunction
from tests.objectives.toys import SignCritic, TargetCritic, q_of


def _observations(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def _policy(discrete: bool, proposals: int = 12) -> BestOfN:
    torch.manual_seed(0)
    shape = ActorShape((3,), 3 if discrete else 2, (8,))
    actor: Actor = CategoricalActor(shape) if discrete else GaussianActor(shape)
    noise = actor.noise(proposals, torch.Generator().manual_seed(2))
    return BestOfN(actor, q_of(SignCritic() if discrete else TargetCritic()), noise).eval()


@pytest.mark.parametrize("discrete", [False, True])
def test_it_takes_the_best_of_its_proposals_and_their_mode(discrete: bool) -> None:
    policy, observations = _policy(discrete), _observations()
    q = QFunction(policy.critic, policy.readout)
    with torch.no_grad():
        chosen = policy(observations)
        candidates = [
            policy.actor(observations),
            *(policy.actor.act_with_noise(observations, row[None]).squeeze(1) for row in policy.proposals),
        ]
        values = torch.stack([q(observations, actions) for actions in candidates])
        best = values.max(0).values
        reached = q(observations, chosen)
    assert len(candidates) == 13
    np.testing.assert_allclose(reached, best, rtol=1e-6)
    assert (reached >= values[0] - 1e-6).all(), "worse than the mode"
    assert float((reached - values[0]).max()) > 0.1, "and better somewhere"
    proposed = torch.stack(candidates, dim=1)
    assert (proposed == chosen.unsqueeze(1)).all(-1).any(1).all(), "an action that nobody proposed"


@pytest.mark.parametrize("discrete", [False, True])
def test_a_state_is_acted_in_alike_whenever_and_beside_whatever_it_comes(discrete: bool) -> None:
    policy, observations = _policy(discrete), _observations()
    whole = policy(observations)
    assert torch.equal(policy(observations), whole)
    np.testing.assert_allclose(policy(observations[7:9]), whole[7:9], atol=1e-6)
    assert not whole.requires_grad


def test_proposals_without_noise_leave_the_mode() -> None:
    policy = _policy(discrete=False)
    policy.proposals.zero_()
    observations = _observations()
    np.testing.assert_allclose(policy(observations), policy.actor(observations).detach(), atol=1e-6)


def test_more_proposals_come_nearer_to_the_best_action() -> None:
    target = torch.tensor(TargetCritic.TARGET)
    distances = [
        float((_policy(discrete=False, proposals=count)(_observations()) - target).norm(dim=1).mean())
        for count in (1, 16, 256)
    ]
    assert distances[2] < 0.15 < 0.5 * distances[0]
    assert distances[1] < distances[0]


def test_it_travels_to_other_processes() -> None:
    policy = _policy(discrete=True)
    copy = pickle.loads(pickle.dumps(policy))  # noqa: S301
    assert torch.equal(copy(_observations()), policy(_observations()))


def test_its_state_holds_the_noise_that_its_proposals_are_made_of() -> None:
    assert torch.equal(_policy(discrete=True).state_dict()["proposals"], _policy(discrete=True).proposals)
