from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.networks.encoder import ObservationEncoder
from cvl_pipeline.networks.mlp import MLP
from cvl_pipeline.readout import q_function as module
from cvl_pipeline.readout.build import exact_readout
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.readout.references import References, all_references
from cvl_pipeline.readout.regression import RegressedReadout
from cvl_pipeline.testing.finite_mdp import FiniteMDP, grid_world
from tests.readout.critics import small_critic
from tests.readout.laws import all_pairs, critic_of, expected_values, log_law

HORIZONS = torch.tensor([1, 4, 30])


def _q(horizons: Tensor | None = None, references: int = 20) -> QFunction:
    """An untrained critic with arbitrary references."""
    generator = torch.Generator().manual_seed(1)
    some = References(
        psi=torch.randn(references, 4, generator=generator),
        rewards=torch.rand(references, generator=generator),
        log_weights=torch.full((references,), 1.0 / references).log(),
    )
    critic = small_critic(horizon_conditioning=horizons is not None)
    return QFunction(
        critic, exact_readout(critic, some, torch.zeros(0) if horizons is None else horizons, 0.9)
    )


def _pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, generator=generator), torch.rand(count, 2, generator=generator)


def test_q_is_the_readout_of_phi() -> None:
    q, pairs = _q(), _pairs(5)
    expected = q.readout.values(q.critic.phi(*pairs))
    assert torch.equal(q(*pairs), expected)
    assert q(*pairs).std() > 1e-3


def test_a_horizon_conditioned_critic_is_averaged_over_horizons() -> None:
    q, (observations, actions) = _q(HORIZONS), _pairs(5)
    phi = q.phi(observations, actions)
    assert phi.shape == (5, 3, 4)
    values = []
    for index, offset in enumerate(HORIZONS):
        alone = q.critic.phi(observations, actions, offset.expand(5))
        np.testing.assert_allclose(phi[:, index].detach(), alone.detach(), rtol=1e-5, atol=1e-6)
        values.append(q.readout.values(alone).detach())
    np.testing.assert_allclose(q(observations, actions).detach(), torch.stack(values).mean(0), rtol=1e-5)
    assert torch.stack(values).std(0).min() > 1e-4, "the horizons differ"


@pytest.mark.parametrize("horizons", [None, HORIZONS], ids=["no horizons", "horizons"])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_pairs_in_batches_equal_pairs_at_once(
    monkeypatch: pytest.MonkeyPatch, horizons: Tensor | None, chunk: int
) -> None:
    q, pairs = _q(horizons), _pairs(60)
    values, sizes = q.readout.values_and_sample_size(q.phi(*pairs))
    monkeypatch.setattr(module, "CHUNK", chunk)
    batched, batched_sizes = q.in_batches(*pairs)
    assert not batched.requires_grad
    np.testing.assert_allclose(batched, values.detach(), rtol=1e-5)
    np.testing.assert_allclose(batched_sizes, sizes.detach(), rtol=1e-5)


@pytest.mark.parametrize("horizons", [None, HORIZONS], ids=["no horizons", "horizons"])
def test_no_batch_has_more_representations_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch, horizons: Tensor | None
) -> None:
    """The memory of a batch in the readout grows with their number, including horizons."""
    seen = []
    original = ContrastiveCritic.phi

    def phi(
        critic: ContrastiveCritic, observations: Tensor, actions: Tensor, offsets: Tensor | None = None
    ) -> Tensor:
        result = original(critic, observations, actions, offsets)
        seen.append(result.shape[:-1].numel())
        return result

    monkeypatch.setattr(ContrastiveCritic, "phi", phi)
    monkeypatch.setattr(module, "CHUNK", 12)
    _q(horizons).in_batches(*_pairs(60))
    assert max(seen) == 12


def test_values_of_all_actions_equal_those_of_single_actions() -> None:
    q, (observations, _) = _q(), _pairs(5)
    values = q.of_all_actions(observations)
    assert values.shape == (5, 2)
    for index, action in enumerate(torch.eye(2)):
        expected = q(observations, action.expand(5, 2))
        np.testing.assert_allclose(values[:, index].detach(), expected.detach(), rtol=1e-5)


@pytest.mark.parametrize("horizons", [None, HORIZONS], ids=["no horizons", "horizons"])
@pytest.mark.parametrize("regressed", [False, True])
def test_values_of_several_actions_equal_those_of_single_actions(
    horizons: Tensor | None, regressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, (observations, _) = _q(horizons), _pairs(5)
    if regressed:
        q = QFunction(q.critic, _regressed(q, (0.1, 0.6, 0.3)))
    actions = torch.rand(5, 4, 2, generator=torch.Generator().manual_seed(3))
    expected = [q(observations, actions[:, index]).detach() for index in range(4)]
    encoded = []
    original = ObservationEncoder.forward

    def forward(encoder: ObservationEncoder, states: Tensor) -> Tensor:
        encoded.append(states.shape[:-1].numel())
        return original(encoder, states)

    monkeypatch.setattr(ObservationEncoder, "forward", forward)
    values = q.of_actions(observations, actions)
    assert set(encoded) == {5}, "each state is encoded once per network, not once per action"
    np.testing.assert_allclose(values.detach(), torch.stack(expected, 1), rtol=1e-5)
    assert values.std(1).min() > 1e-4, "the actions differ"


def test_a_readout_without_weight_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    q, pairs = _q(), _pairs(5)
    alone, both = (
        QFunction(q.critic, _regressed(q, mixture)) for mixture in ((0.1, 0.0, 0.3), (0.1, 1e-9, 0.3))
    )
    expected = both(*pairs).detach()
    monkeypatch.setattr(ExactReadout, "expectation", None)
    np.testing.assert_allclose(alone(*pairs).detach(), expected, rtol=1e-5)
    with pytest.raises(TypeError):
        both(*pairs)


def _regressed(q: QFunction, mixture: tuple[float, float, float]) -> RegressedReadout:
    """The readout of Q beside an untrained network of its inputs."""
    torch.manual_seed(0)
    network = parameters_to_vector(MLP(5, (6,), 1).parameters()).detach()
    return RegressedReadout(
        temperature=q.readout.temperature, horizons=q.readout.horizons, discount=q.readout.discount,
        self_normalised=True, base=q.readout, networks=network[None], sizes=(5, 6, 1), mixture=torch.tensor(mixture),
    )  # fmt: skip


@pytest.mark.parametrize("horizons", [None, HORIZONS], ids=["no horizons", "horizons"])
def test_q_is_differentiable_in_states_and_actions(horizons: Tensor | None) -> None:
    q, pairs = _q(horizons), _pairs(5)
    observations, actions = (values.requires_grad_() for values in pairs)
    q(observations, actions).sum().backward()  # type: ignore[no-untyped-call]
    for values in (observations, actions):
        assert values.grad is not None
        assert (values.grad.abs().sum(1) > 0.0).all()


def test_a_frozen_copy_takes_no_gradient_and_leaves_the_original_alone() -> None:
    q, pairs = _q(), _pairs(5)
    frozen = q.frozen("cpu")
    assert torch.equal(frozen(*pairs), q(*pairs))
    assert not any(parameter.requires_grad for parameter in frozen.critic.parameters())
    assert all(parameter.requires_grad for parameter in q.critic.phi_network.parameters())
    with torch.no_grad():
        next(q.critic.phi_network.parameters()).add_(1.0)
    assert not torch.equal(frozen(*pairs), q(*pairs))


# Finite MDPs, whose p_gamma and Q come from linear solves.


def _over_all_references(mdp: FiniteMDP, transitions: Transitions, rewards: Rewards) -> tuple[Tensor, Tensor]:
    """Q of all pairs from the critic that fits this log exactly, self-normalised and not."""
    critic = critic_of(log_law(mdp, transitions), mdp.discount)
    references = all_references(critic, transitions, rewards)
    values = [
        QFunction(critic, exact_readout(critic, references, torch.zeros(0), mdp.discount, choice))(
            *all_pairs(mdp)
        )
        for choice in (True, False)
    ]
    return values[0].detach(), values[1].detach()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_perfect_critic_gives_the_values_of_its_log(terminal: bool) -> None:
    """Exact for any number of episodes, including the absorbing state."""
    mdp = grid_world(terminal=terminal)
    transitions, rewards = mdp.log_episodes(25, 15, seed=1)
    expected = expected_values(mdp, log_law(mdp, transitions)).ravel()
    seen = np.isfinite(expected)
    assert seen.sum() >= 30
    for values in _over_all_references(mdp, transitions, rewards):
        np.testing.assert_allclose(values[seen], expected[seen], rtol=1e-4)
    # Far from the exact Q, so the readout depends on this log.
    assert np.abs(expected - mdp.q().ravel())[seen].mean() > 0.1


@pytest.mark.parametrize("terminal", [False, True])
def test_values_of_a_long_log_are_q(terminal: bool) -> None:
    mdp = grid_world(terminal=terminal)
    transitions, rewards = mdp.log_episodes(4000 if terminal else 500, 200, seed=2)
    values, _ = _over_all_references(mdp, transitions, rewards)
    exact = mdp.q()[~mdp.terminal]
    errors = values.reshape(mdp.states, mdp.actions).numpy()[~mdp.terminal] - exact
    assert np.sqrt((errors**2).mean()) < 0.12 * exact.std()


@pytest.mark.parametrize("horizons", [None, HORIZONS])
def test_arrays_give_the_values_of_their_tensors(horizons: Tensor | None) -> None:
    q, pairs = _q(horizons), _pairs(5)
    expected = q(*pairs).detach().numpy()
    observations, actions = (part.double().numpy() for part in pairs)
    values = q(observations, actions)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    one = q(observations[0], actions[0])
    assert one.shape == ()
    assert one == pytest.approx(expected[0])


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        ((5, 4), (5, 2), r"observations have shape \(5, 4\); this critic takes \(3,\) or \(B, 3\)"),
        ((5, 3), (5,), r"actions have shape \(5,\); this critic takes \(2,\) or \(B, 2\)"),
        ((5, 3), (4, 2), r"observations have shape \(5, 3\) and actions \(4, 2\); give one action per obs"),
        ((3,), (4, 2), r"observations have shape \(3,\) and actions \(4, 2\); give one action per obs"),
    ],
)
def test_arrays_of_other_shapes_are_refused(
    observations: tuple[int, ...], actions: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        _q()(np.zeros(observations), np.zeros(actions))


def test_arrays_that_hold_no_number_are_refused() -> None:
    with pytest.raises(InputError, match=r"^actions hold a value that is not a finite number"):
        _q()(np.zeros((1, 3)), np.full((1, 2), np.nan))
