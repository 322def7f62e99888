from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from cvl_pipeline.dynamics.losses import nce, symmetric_infonce
from cvl_pipeline.dynamics.module import ContrastiveDynamics, train_dynamics
from cvl_pipeline.trajectories.container import Rewards, Transitions
from cvl_pipeline.trajectories.sampling import SegmentSampler
from tests.builders import (
    dynamics_parameters,
    identity_normalisation,
    make_transitions,
    split_first,
)


def _module(transitions: Transitions, seed: int = 0, **changes: object) -> ContrastiveDynamics:
    return ContrastiveDynamics(
        transitions,
        split_first(transitions, 4),
        identity_normalisation(transitions),
        dynamics_parameters(**changes),  # type: ignore[arg-type]
        seed,
    )


@pytest.mark.parametrize("loss", ["symmetric_infonce", "nce"])
def test_one_step_minimises_the_loss_of_sampled_segments_of_the_training_episodes(
    transitions: Transitions, loss: str
) -> None:
    module = _module(transitions, loss=loss)
    module.on_fit_start()
    result, _ = module.training_loss(torch.Generator().manual_seed(3))
    train = transitions.select(torch.arange(4))
    segments = SegmentSampler(train, 0.9).sample(16, torch.Generator().manual_seed(3))
    logits = module.critic.logits(
        module.critic.phi(segments.observations, segments.actions),
        module.critic.psi(segments.futures, segments.absorbed),
    )
    assert segments.absorbed.any(), "the batch is to show the absorbing state"
    expected = {"symmetric_infonce": symmetric_infonce, "nce": nce}[loss](logits)
    assert float(result.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_measuring_uses_the_held_out_episodes_alone(transitions: Transitions) -> None:
    module = _module(transitions)
    module.on_fit_start()
    spoilt = transitions.observations.clone()
    spoilt[: 16 + 4] = torch.nan  # the training episodes
    other = _module(replace(transitions, observations=spoilt))
    other.critic.load_state_dict(module.critic.state_dict())
    other.on_fit_start()
    with torch.no_grad():
        metrics = module.validation_metrics(torch.Generator().manual_seed(0))
        same = other.validation_metrics(torch.Generator().manual_seed(0))
    assert {name: float(value) for name, value in metrics.items()} == {
        name: float(value) for name, value in same.items()
    }
    assert set(metrics) == {
        "loss",
        "categorical_accuracy_future",
        "categorical_accuracy_anchor",
        "mutual_information_bound",
        "logit_positive",
        "logit_negative",
        "temperature",
    }


def test_the_dynamics_hold_no_reward(transitions: Transitions) -> None:
    module = _module(transitions)
    assert not any(isinstance(value, Rewards) for value in vars(module).values())
    assert not {"rewards", "successes"} & {field.name for field in fields(Transitions)}


def test_the_seed_determines_the_initial_weights_and_leaves_the_global_generator_alone(
    transitions: Transitions,
) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first, again, other = (_module(transitions, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.critic.state_dict().items():
        assert torch.equal(value, again.critic.state_dict()[name])
    name = "phi_network.0.weight"
    assert not torch.equal(first.critic.state_dict()[name], other.critic.state_dict()[name])


def test_training_twice_gives_the_same_critic_to_the_bit(transitions: Transitions) -> None:
    runs = []
    for seed in (0, 0, 1):
        critic, history = train_dynamics(
            transitions,
            split_first(transitions, 4),
            identity_normalisation(transitions),
            dynamics_parameters(),
            seed,
        )
        assert not critic.training
        runs.append((critic.state_dict(), history))
    (first, first_history), (again, again_history), (other, _) = runs
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert first_history.equals(again_history)
    assert not torch.equal(first["phi_network.0.weight"], other["phi_network.0.weight"])


def test_a_learned_temperature_moves_and_is_reported() -> None:
    data = make_transitions([30] * 6, [False] * 6)
    critic, history = train_dynamics(
        data,
        split_first(data, 4),
        identity_normalisation(data),
        dynamics_parameters(learned_temperature=True, temperature=1.0, training={"learning_rate": 0.05}),
        0,
    )
    assert float(critic.temperature.detach()) != pytest.approx(1.0, abs=1e-3)
    assert history["validation/temperature"].iloc[-1] == pytest.approx(float(critic.temperature.detach()))


def test_episodes_that_say_where_they_lead_are_told_apart() -> None:
    """A goal in the observation predicts the future, so held-out accuracy rises far above chance."""
    data = make_transitions([10] * 60, [False] * 60, observation_size=4)
    goals = torch.randn(60, 4, generator=torch.Generator().manual_seed(5))
    data = replace(data, observations=goals.repeat_interleave(11, dim=0) + 0.1 * data.observations)
    _, history = train_dynamics(
        data,
        split_first(data, 40),
        identity_normalisation(data),
        dynamics_parameters(
            hidden=(32,),
            representation_size=8,
            validation_batches=2,
            training={"steps": 300, "batch_size": 64, "validation_interval": 150, "learning_rate": 3e-3},
        ),
        0,
    )
    assert history["step"].tolist() == [150, 300]
    last = history.iloc[-1]
    # Twenty held-out goals: at best one future of about three in 64 is the right one.
    assert last["validation/categorical_accuracy_future"] > 0.2
    assert last["validation/mutual_information_bound"] > 1.5
    assert last["validation/mutual_information_bound"] < np.log(64)
    assert last["validation/logit_positive"] > last["validation/logit_negative"] + 1.0
