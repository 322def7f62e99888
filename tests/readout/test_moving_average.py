from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.sampling import Segments, SegmentSampler
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.readout.moving_average import MovingFeatures
from cvl_pipeline.readout.readouts import FeatureReadout, feature_readout
from cvl_pipeline.readout.references import References, all_references
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    make_rewards,
    make_transitions,
)
from tests.readout.critics import small_critic

FEATURES, SIZE, TEMPERATURE = 64, 4, 1.0


def _moving(rewards: Rewards, **changes: Any) -> MovingFeatures:
    values: dict[str, Any] = {
        "features": FEATURES, "size": SIZE, "temperature": TEMPERATURE, "decay": 0.9, "seed": 3,
    }  # fmt: skip
    return MovingFeatures(rewards.rewards, **(values | changes))


def _one_pass(references: References) -> FeatureReadout:
    """The pipeline's pass after training, with the same features, which depend only on the seed."""
    return feature_readout(
        references, True, FEATURES, torch.Generator().manual_seed(3),
        temperature=torch.tensor(TEMPERATURE), horizons=torch.zeros(0, dtype=torch.int64), discount=0.9,
        self_normalised=True,
    )  # fmt: skip


def _batch(transitions: Transitions, count: int, seed: int = 0) -> Segments:
    return SegmentSampler(transitions, 0.9).sample(count, torch.Generator().manual_seed(seed))


def _psi(critic: ContrastiveCritic, segments: Segments) -> Tensor:
    return critic.psi(segments.futures, segments.absorbed).detach()


def _references_of(segments: Segments, psi: Tensor, rewards: Rewards) -> References:
    labels = torch.where(segments.absorbed, 0.0, rewards.rewards[segments.arrivals])
    return References(psi, labels, torch.full((len(psi),), 1.0 / len(psi)).log())


def _queries(count: int = 9) -> Tensor:
    return normalize(torch.randn(count, SIZE, generator=torch.Generator().manual_seed(8)), dim=-1)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("times", [1, 20])
def test_a_psi_that_stays_the_same_gives_the_feature_sum_of_one_pass(
    transitions: Transitions, rewards: Rewards, decay: float, times: int
) -> None:
    """From the first batch on, the initial value of the average has no weight."""
    segments, critic = _batch(transitions, 50), small_critic(temperature=TEMPERATURE)
    assert segments.absorbed.any(), "the absorbing state takes part, without a reward"
    psi = _psi(critic, segments)
    moving = _moving(rewards, decay=decay)
    for _ in range(times):
        moving(segments, psi)
    found, expected = moving.readout(critic), _one_pass(_references_of(segments, psi, rewards))
    for name in ("xi", "normaliser", "directions", "phases"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(found.values(_queries()), expected.values(_queries()), rtol=1e-3)
    assert found.discount == 0.9
    assert len(found.horizons) == 0


def test_batches_of_the_sampler_average_to_all_references(transitions: Transitions, rewards: Rewards) -> None:
    critic, moving = small_critic(temperature=TEMPERATURE), _moving(rewards, decay=0.996)
    for seed in range(800):
        segments = _batch(transitions, 64, seed)
        moving(segments, _psi(critic, segments))
    found = moving.readout(critic)
    expected = _one_pass(all_references(critic, transitions, rewards))
    np.testing.assert_allclose(found.xi, expected.xi, atol=4e-3)
    np.testing.assert_allclose(found.normaliser, expected.normaliser, atol=4e-3)
    assert expected.xi.std() > 0.02, "the tolerance means something"


def test_later_batches_count_more(transitions: Transitions, rewards: Rewards) -> None:
    critic, moving = small_critic(temperature=TEMPERATURE), _moving(rewards, decay=0.5)
    batches = [_batch(transitions, 20, seed) for seed in range(3)]
    for segments in batches:
        moving(segments, _psi(critic, segments))
    each = torch.stack([_one_pass(_references_of(part, _psi(critic, part), rewards)).xi for part in batches])
    expected = torch.tensor([1.0, 2.0, 4.0]) / 7.0 @ each
    np.testing.assert_allclose(moving.readout(critic).xi, expected, rtol=1e-3, atol=1e-5)


def test_a_readout_may_be_left_unnormalised(transitions: Transitions, rewards: Rewards) -> None:
    critic, moving, segments = (
        small_critic(temperature=TEMPERATURE),
        _moving(rewards),
        _batch(transitions, 50),
    )
    moving(segments, _psi(critic, segments))
    assert moving.readout(critic).self_normalised
    assert not moving.readout(critic, self_normalised=False).self_normalised


def test_averages_are_as_precise_under_autocast(transitions: Transitions, rewards: Rewards) -> None:
    critic, segments = small_critic(temperature=TEMPERATURE), _batch(transitions, 50)
    psi, plain, mixed = _psi(critic, segments), _moving(rewards), _moving(rewards)
    plain(segments, psi)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed(segments, psi)
    assert torch.equal(mixed.readout(critic).xi, plain.readout(critic).xi)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_follows_training_to_the_gpu(transitions: Transitions, rewards: Rewards) -> None:
    critic, segments = small_critic(temperature=TEMPERATURE), _batch(transitions, 50)
    psi, here, there = _psi(critic, segments), _moving(rewards), _moving(rewards)
    on_gpu = Segments(**{name: value.to("cuda") for name, value in vars(segments).items()})
    for _ in range(2):
        here(segments, psi)
        there(on_gpu, psi.to("cuda"))
    # The trained critic is on the CPU again, and so is its readout.
    np.testing.assert_allclose(there.readout(critic).xi, here.readout(critic).xi, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("learned", [0.9, 0.25])
def test_a_learned_temperature_is_refused(transitions: Transitions, rewards: Rewards, learned: float) -> None:
    moving, segments = _moving(rewards), _batch(transitions, 50)
    moving(segments, _psi(small_critic(temperature=TEMPERATURE), segments))
    with pytest.raises(
        InputError, match=rf"sampled for temperature 1, .*learned {learned}.*learned_temperature=false"
    ):
        moving.readout(small_critic(temperature=learned))


def test_averages_of_a_training_are_those_of_one_pass() -> None:
    data = make_transitions([20] * 10, [False, True] * 5)
    rewards = make_rewards(data)
    episodes = make_data(data, 8)
    parameters = dynamics_parameters(
        temperature=TEMPERATURE,
        # Training is so slow that psi stays constant, and the averages equal those of one pass.
        training={"steps": 150, "batch_size": 256, "learning_rate": 1e-12, "validation_interval": 150},
    )
    moving = _moving(rewards, decay=0.99)
    watched, _ = train_dynamics(episodes, parameters, 0, observer=moving)
    expected = _one_pass(all_references(watched, data, rewards, episodes.split.train))
    found = moving.readout(watched)
    np.testing.assert_allclose(found.xi, expected.xi, atol=5e-3)
    np.testing.assert_allclose(found.normaliser, expected.normaliser, atol=5e-3)
    assert expected.xi.std() > 0.02
