from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import OFFSET_FREQUENCIES, ContrastiveCritic, CriticShape, offset_code
from cvl_pipeline.networks.encoder import ObservationEncoder

NORMALISATION = Normalisation(
    torch.tensor([0.5, -1.0, 2.0]),
    torch.tensor([0.1, 2.0, 1.0]),
    torch.tensor([0.2, 0.0]),
    torch.tensor([0.3, 0.7]),
)


def _critic(**changes: Any) -> ContrastiveCritic:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "observation_shape": (3,),
        "action_size": 2,
        "hidden": (16, 16),
        "representation_size": 8,
        "representation": "unit_norm",
        "temperature": 0.3,
        "learned_temperature": False,
        "discount": 0.9,
        "horizon_conditioning": False,
    }
    return ContrastiveCritic(CriticShape(**(values | changes)), NORMALISATION)


def _inputs(count: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        3.0 * torch.randn(count, 3, generator=generator),
        torch.randn(count, 2, generator=generator),
        torch.rand(count, generator=generator) < 0.3,
    )


def test_unit_norm_representations_are_on_the_sphere_and_raw_ones_are_not() -> None:
    observations, actions, absorbed = _inputs()
    critic, raw = _critic(), _critic(representation="raw")
    for representation in (critic.phi(observations, actions), critic.psi(observations, absorbed)):
        np.testing.assert_allclose(representation.detach().norm(dim=-1), 1.0, atol=1e-6)
    assert (raw.phi(observations, actions).detach().norm(dim=-1) - 1.0).abs().min() > 1e-3


def test_raw_logits_of_a_new_critic_are_of_order_one_for_any_size() -> None:
    generator = torch.Generator().manual_seed(2)
    observations, actions = torch.randn(256, 3, generator=generator), torch.randn(256, 2, generator=generator)
    none = torch.zeros(256, dtype=torch.bool)
    spreads = []
    for size in (16, 256):
        critic = _critic(representation="raw", representation_size=size, temperature=1.0, hidden=(64, 64))
        with torch.no_grad():
            logits = critic.logits(critic.phi(observations, actions), critic.psi(observations, none))
        spreads.append(float(logits.std()))
    assert all(0.05 < spread < 3.0 for spread in spreads)
    assert 0.5 < spreads[1] / spreads[0] < 2.0


def test_logits_are_inner_products_over_the_temperature() -> None:
    observations, actions, absorbed = _inputs()
    critic = _critic()
    with torch.no_grad():
        phi, psi = critic.phi(observations, actions), critic.psi(observations[:7], absorbed[:7])
        logits = critic.logits(phi, psi)
    expected = phi.double().numpy() @ psi.double().numpy().T / 0.3
    assert logits.shape == (20, 7)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_inputs_are_standardised_by_the_statistics_of_the_training_episodes() -> None:
    observations, actions, absorbed = _inputs()
    critic = _critic()
    plain = ContrastiveCritic(critic.shape)
    plain.load_state_dict(critic.state_dict())
    assert isinstance(plain.encode_observation, ObservationEncoder)
    plain.encode_observation.standardise.fit(torch.zeros(3), torch.ones(3))
    plain.standardise_action.fit(torch.zeros(2), torch.ones(2))
    scaled = (observations - NORMALISATION.observation_mean) / NORMALISATION.observation_std
    scaled_actions = (actions - NORMALISATION.action_mean) / NORMALISATION.action_std
    assert torch.equal(critic.phi(observations, actions), plain.phi(scaled, scaled_actions))
    assert torch.equal(critic.psi(observations, absorbed), plain.psi(scaled, absorbed))
    assert not torch.equal(critic.phi(observations, actions), plain.phi(observations, actions))


def test_the_absorbing_state_has_no_observation() -> None:
    observations, _, _ = _inputs(4)
    critic = _critic()
    absorbed = critic.psi(observations, torch.ones(4, dtype=torch.bool))
    assert torch.equal(absorbed, absorbed[:1].expand(4, -1))
    assert torch.equal(critic.psi(observations * 1e30, torch.ones(4, dtype=torch.bool)), absorbed)
    # A standardised observation of zeros is an ordinary state.
    mean = critic.psi(NORMALISATION.observation_mean[None], torch.tensor([False]))
    assert not torch.allclose(mean[0], absorbed[0])


@pytest.mark.parametrize("learned", [True, False])
def test_temperature_is_trained_only_if_it_is_learned(learned: bool) -> None:
    observations, actions, absorbed = _inputs()
    critic = _critic(learned_temperature=learned)
    assert float(critic.temperature.detach()) == pytest.approx(0.3)
    trained = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    critic.logits(
        critic.phi(observations, actions), critic.psi(observations, absorbed)
    ).square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    changed = float(critic.temperature.detach()) != pytest.approx(0.3)
    assert changed == learned
    assert float(critic.temperature.detach()) > 0.0


@pytest.mark.parametrize("conditioned", [False, True])
def test_state_dict_and_description_rebuild_the_critic(conditioned: bool) -> None:
    observations, actions, absorbed = _inputs()
    critic = _critic(temperature=0.7, horizon_conditioning=conditioned)
    offsets = torch.arange(20) if conditioned else None
    other = ContrastiveCritic(critic.shape)
    other.load_state_dict(critic.state_dict())
    assert other.shape == critic.shape
    assert torch.equal(other.phi(observations, actions, offsets), critic.phi(observations, actions, offsets))
    assert torch.equal(other.psi(observations, absorbed), critic.psi(observations, absorbed))
    assert float(other.temperature.detach()) == float(critic.temperature.detach())


def test_unknown_representation_is_refused() -> None:
    with pytest.raises(InputError, match="unit_norm"):
        _critic(representation="unitnorm")


def test_conditioned_critic_needs_offsets_and_others_refuse_them() -> None:
    observations, actions, absorbed = _inputs()
    critic = _critic(horizon_conditioning=True)
    first, again, other = (
        critic.phi(observations, actions, torch.full((20,), offset)) for offset in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert ((first - other).detach().norm(dim=-1) > 1e-3).all()
    with pytest.raises(ValueError, match="horizon_conditioning"):
        critic.phi(observations, actions)
    with pytest.raises(ValueError, match="horizon_conditioning"):
        _critic().phi(observations, actions, torch.ones(20, dtype=torch.int64))
    # psi of a future state does not depend on its offset.
    assert critic.psi(observations, absorbed).shape == (20, 8)


def test_conditioned_critic_accepts_several_offsets_per_pair() -> None:
    observations, actions, _ = _inputs()
    critic = _critic(horizon_conditioning=True)
    offsets = torch.tensor([1, 5, 40])
    together = critic.phi(
        observations[:, None].expand(-1, 3, -1), actions[:, None].expand(-1, 3, -1), offsets.expand(20, 3)
    )
    assert together.shape == (20, 3, 8)
    for i in range(3):
        alone = critic.phi(observations, actions, offsets[i].expand(20))
        np.testing.assert_allclose(together[:, i].detach(), alone.detach(), atol=1e-6)


def test_offset_codes_are_bounded_and_distinct() -> None:
    offsets = torch.cat([torch.arange(1, 2001), torch.tensor([10_000, 100_000])])
    code = offset_code(offsets)
    assert code.shape == (2002, 2 * OFFSET_FREQUENCIES)
    assert torch.isfinite(code).all()
    assert float(code.abs().max()) <= 1.0
    # Sines and cosines of the same angle.
    squares = code[:, :OFFSET_FREQUENCIES].square() + code[:, OFFSET_FREQUENCIES:].square()
    np.testing.assert_allclose(squares, 1.0, atol=1e-5)
    distances = torch.cdist(code[:2000], code[:2000]).fill_diagonal_(9.0)
    assert float(distances.min()) > 0.1, "two offsets have the same code"


@pytest.mark.parametrize("representation", ["unit_norm", "raw"])
def test_logits_are_in_single_precision_under_autocast(representation: str) -> None:
    observations, actions, absorbed = _inputs()
    critic = _critic(representation=representation, temperature=0.1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert critic.phi_network[0](torch.zeros(1, 5)).dtype == torch.bfloat16
        phi, psi = critic.phi(observations, actions), critic.psi(observations, absorbed)
        logits = critic.logits(phi, psi)
    assert phi.dtype == psi.dtype == logits.dtype == torch.float32
    expected = phi.double().numpy() @ psi.double().numpy().T / 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    if representation == "unit_norm":
        np.testing.assert_allclose(phi.norm(dim=-1), 1.0, atol=1e-6)
