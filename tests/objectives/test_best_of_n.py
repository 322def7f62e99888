from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.networks.actor import Actor, ActorShape, CategoricalActor, GaussianActor
from cvl_pipeline.objectives.best_of_n import BestOfN
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.testing.builders import make_data, make_rewards, policy_parameters
from cvl_pipeline.training.seeds import stream_seed
from tests.objectives.toys import TRAIN, SignCritic, TargetCritic, episodes, network_q, q_of, train


def _observations(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1))


def _policy(discrete: bool, proposals: int = 12) -> BestOfN:
    torch.manual_seed(0)
    shape = ActorShape((3,), 3 if discrete else 2, (8,))
    actor: Actor = CategoricalActor(shape) if discrete else GaussianActor(shape)
    noise = actor.noise(proposals, torch.Generator().manual_seed(2))
    return BestOfN(actor, q_of(SignCritic() if discrete else TargetCritic()), noise).eval()


@pytest.mark.parametrize("discrete", [False, True])
def test_action_is_the_best_of_the_mode_and_the_proposals(discrete: bool) -> None:
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
    assert float((reached - values[0]).max()) > 0.1, "nowhere better than the mode"
    proposed = torch.stack(candidates, dim=1)
    assert (proposed == chosen.unsqueeze(1)).all(-1).any(1).all(), "an action that was not proposed"


@pytest.mark.parametrize("discrete", [False, True])
def test_action_depends_on_the_state_alone(discrete: bool) -> None:
    policy, observations = _policy(discrete), _observations()
    whole = policy(observations)
    assert torch.equal(policy(observations), whole)
    np.testing.assert_allclose(policy(observations[7:9]), whole[7:9], atol=1e-6)
    assert not whole.requires_grad


def test_proposals_without_noise_are_the_mode() -> None:
    policy = _policy(discrete=False)
    policy.proposals.zero_()
    observations = _observations()
    np.testing.assert_allclose(policy(observations), policy.actor(observations).detach(), atol=1e-6)


def test_more_proposals_get_closer_to_the_best_action() -> None:
    target = torch.tensor(TargetCritic.TARGET)
    distances = [
        float((_policy(discrete=False, proposals=count)(_observations()) - target).norm(dim=1).mean())
        for count in (1, 16, 256)
    ]
    assert distances[2] < 0.15 < 0.5 * distances[0]
    assert distances[1] < distances[0]


def test_a_policy_with_a_regressed_readout_is_extracted_and_stored(tmp_path: Path) -> None:
    transitions = episodes()
    data = make_data(transitions, TRAIN, make_rewards(transitions))
    q = network_q(transitions, discount=0.97, regression={"steps": 5, "value_steps": 5, "hidden": (8,)})
    assert isinstance(q.readout, RegressedReadout)
    q.critic.requires_grad_(False)
    policy, _ = train_policy(data, policy_parameters(objective="best_of_n"), 0, values=q)
    save_artifact(tmp_path / "x.safetensors", "policy", policy)
    loaded = load_artifact(tmp_path / "x.safetensors", "policy")
    assert isinstance(loaded.readout, RegressedReadout)
    assert torch.equal(loaded(_observations()), policy(_observations()))
    values = QFunction(loaded.critic, loaded.readout)(transitions.states(), transitions.actions)
    torch.testing.assert_close(values, q(transitions.states(), transitions.actions))


def test_policy_can_be_pickled() -> None:
    policy = _policy(discrete=True)
    copy = pickle.loads(pickle.dumps(policy))  # noqa: S301
    assert torch.equal(copy(_observations()), policy(_observations()))


def test_state_dict_holds_the_noise_of_the_proposals() -> None:
    assert torch.equal(_policy(discrete=True).state_dict()["proposals"], _policy(discrete=True).proposals)


@pytest.mark.parametrize("discrete", [False, True])
def test_actor_of_best_of_n_is_the_clone(discrete: bool) -> None:
    transitions = episodes(discrete)
    policy, history = train(transitions, "best_of_n", proposals=5)
    clone, clone_history = train(transitions, "bc")
    assert isinstance(policy, BestOfN)
    assert not policy.training
    actor, expected = policy.actor.state_dict(), clone.state_dict()
    if not discrete:  # the noise is that of the clone's errors
        assert not torch.equal(actor.pop("log_std"), expected.pop("log_std"))
    torch.testing.assert_close(actor, expected, rtol=0, atol=0)
    assert history["train/loss"].equals(clone_history["train/loss"])
    generator = Generator().manual_seed(stream_seed(0, "proposals", 0))
    assert torch.equal(policy.proposals, policy.actor.noise(5, generator))
    assert not any(parameter.requires_grad for parameter in policy.critic.parameters())


@pytest.mark.parametrize("discrete", [False, True])
def test_policy_acts_on_numpy_observations(discrete: bool) -> None:
    policy, observations = _policy(discrete), _observations(6)
    actions = policy.act(observations.numpy().astype(np.float64))
    expected = policy(observations).numpy()
    if discrete:
        assert actions.tolist() == expected.argmax(1).tolist()
        assert isinstance(policy.act(observations[0].numpy()), int)
    else:
        np.testing.assert_allclose(actions, expected, atol=1e-6)
        assert policy.act(observations[0].numpy()).shape == (2,)
