"""Networks of observations of several parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.networks.actor import make_actor
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.networks.encoder import (
    AutomaticEncoder,
    ConvolutionalEncoder,
    MLPEncoder,
    ObservationEncoder,
    PartsEncoder,
    ResNetEncoder,
)
from cvl_pipeline.networks.goal_policy import GoalPolicy, make_goal_actor
from cvl_pipeline.networks.parameters import ENCODERS
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.schema import validated
from cvl_pipeline.testing.builders import make_packed_transitions

SMALL = {"name": "convolutional", "channels": 4, "features": 5}
DATA = EpisodeData.prepare(make_packed_transitions([5, 1, 7], [True, False, False]))
LOG = DATA.transitions
assert LOG.parts is not None
LAYOUT, PARTS = LOG.parts, LOG.parts.unpack(LOG.observations)


def _encoder(**settings: Any) -> PartsEncoder:
    torch.manual_seed(0)
    return PartsEncoder(LAYOUT, DATA.normalisation, {**SMALL, **settings})


def _kinds(encoder: PartsEncoder) -> list[type]:
    return [type(part.encoder) for part in encoder.encoders]


def test_every_part_is_standardised_and_encoded_by_itself() -> None:
    encoder = _encoder()
    assert LAYOUT.names == ("state", "images.wrist", "images.top")
    assert _kinds(encoder) == [AutomaticEncoder, ConvolutionalEncoder, ConvolutionalEncoder]
    assert encoder.features == 3 + 5 + 5
    mean, std = DATA.normalisation.observation_mean, DATA.normalisation.observation_std
    expected = [(PARTS["state"] - mean[:3]) / std[:3]]
    for place, name in ((slice(3, 6), "images.wrist"), (slice(6, 9), "images.top")):
        alone = ObservationEncoder(LAYOUT[name].shape, None, SMALL)
        alone.load_state_dict(encoder.encoders[LAYOUT.names.index(name)].state_dict())
        assert torch.equal(alone.standardise.mean, mean[place])
        assert torch.equal(alone.standardise.std, std[place])
        expected.append(alone(PARTS[name]))
    assert torch.equal(encoder(LOG.observations), torch.cat(expected, -1))
    rows = LOG.observations[:6].reshape(2, 3, -1)
    assert torch.equal(encoder(rows), encoder(LOG.observations[:6]).reshape(2, 3, -1))


def test_statistics_are_by_dimension_of_vectors_and_by_channel_of_images() -> None:
    rows = LOG.select(DATA.split.train).observations
    for name, part in LAYOUT.unpack(rows).items():
        values = part.double().flatten(0, -2)
        place = LAYOUT.statistics_of(name)
        np.testing.assert_allclose(DATA.normalisation.observation_mean[place], values.mean(0), rtol=1e-5)
        np.testing.assert_allclose(
            DATA.normalisation.observation_std[place], values.std(0, correction=0), rtol=1e-5
        )


def test_single_parts_have_encoders_of_their_own() -> None:
    resnet, mlp = {"name": "resnet", "channels": 4, "features": 7}, {"name": "mlp", "features": 6}
    encoder = _encoder(parts={"images.wrist": resnet, "state": mlp})
    assert _kinds(encoder) == [MLPEncoder, ResNetEncoder, ConvolutionalEncoder]
    assert encoder.features == 6 + 7 + 5
    assert encoder(LOG.observations).shape == (len(LOG.observations), 18)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"parts": {"images.wrst": SMALL}}, r"part_encoders 'images.wrst': did you mean images.wrist"),
        (
            {"parts": {"state": SMALL}},
            "part 'state' of the observations: encoder 'convolutional' needs images",
        ),
        ({"name": "identity"}, "part 'images.wrist' of the observations: encoder 'identity' needs vectors"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(encoder: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PartsEncoder(LAYOUT, None, encoder)


def test_encoders_of_parts_need_parts() -> None:
    with pytest.raises(InputError, match="part_encoders names state, but observations have no parts"):
        ObservationEncoder((3,), None, {"parts": {"state": {"name": "mlp"}}})


def test_part_encoders_are_choices_by_name() -> None:
    given = {"part_encoders": {"images.wrist": "resnet", "state": {"name": "mlp", "hidden": "8 8"}}}
    encoding = validated(DynamicsParameters, given).encoding
    assert encoding["name"] == "auto"
    assert encoding["parts"]["images.wrist"] == ENCODERS.validate("resnet").model_dump(mode="json")
    assert encoding["parts"]["state"]["hidden"] == [8, 8]
    assert validated(DynamicsParameters, {}).encoding == {"name": "auto"}
    with pytest.raises(InputError, match=r"'part_encoders.state.featres'.*did you mean 'features'"):
        validated(DynamicsParameters, {"part_encoders": {"state": {"name": "mlp", "featres": 3}}})


@pytest.mark.parametrize("size", [64, 84, 128])
def test_the_residual_network_does_not_depend_on_other_rows(size: int) -> None:
    torch.manual_seed(0)
    encoder = ResNetEncoder(ResNetEncoder.Parameters(channels=4), (size, size, 3))
    images = torch.randn(3, size, size, 3)
    torch.testing.assert_close(encoder(images)[1], encoder(images[1:2])[0], atol=1e-5, rtol=1e-4)


def _critic() -> ContrastiveCritic:
    torch.manual_seed(0)
    shape = CriticShape((LAYOUT.nbytes,), 2, (8,), 6, "unit_norm", 0.3, False, 0.9, False, SMALL, LAYOUT)
    return ContrastiveCritic(shape, DATA.normalisation).eval()


def _q() -> QFunction:
    readout = ExactReadout(
        temperature=torch.tensor(0.3), discount=0.9, self_normalised=True, psi=torch.randn(9, 6),
        rewards=torch.rand(9), log_weights=torch.rand(9), horizons=torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip
    return QFunction(_critic(), readout)


def test_policies_and_values_take_dictionaries() -> None:
    actor, q = make_actor(LOG, DATA.normalisation, (8,), SMALL).eval(), _q()
    arrays = {name: part.numpy() for name, part in PARTS.items()}
    arrays["state"] = arrays["state"].astype(np.float64)
    one = {name: part[2] for name, part in arrays.items()}
    actions = actor.act(arrays)
    torch.testing.assert_close(torch.from_numpy(actions), actor(LOG.observations).detach())
    np.testing.assert_allclose(actor(one), actions[2], atol=1e-5)
    values = q(arrays, actions)
    expected = q(LOG.observations, torch.from_numpy(actions)).detach()
    torch.testing.assert_close(torch.from_numpy(values), expected)
    np.testing.assert_allclose(q(one, actions[2]), values[2], rtol=1e-5)


def test_other_observations_are_refused() -> None:
    actor = make_actor(LOG, DATA.normalisation, (8,), SMALL)
    arrays = {name: part.numpy() for name, part in PARTS.items()}
    for given, message in (
        (arrays["state"], "observations are ndarray.*give arrays by name of the part: state, images.wrist"),
        ({"state": arrays["state"]}, "observations lack images.wrist, images.top"),
        ({**arrays, "state": arrays["state"][:, :2]}, r"observations\['state'\] have shape \(16, 2\)"),
        ({**arrays, "state": arrays["state"] * np.nan}, r"observations\['state'\] hold a value that is not"),
        ({**arrays, "more": arrays["state"]}, "have more too many"),
    ):
        with pytest.raises(InputError, match=message):
            actor.act(given)


def test_networks_are_rebuilt_from_their_files(tmp_path: Path) -> None:
    goal_actor = make_goal_actor(LOG, DATA.normalisation, (8,), SMALL)
    critic = _critic().requires_grad_(False)
    actor = make_actor(LOG, DATA.normalisation, (8,), SMALL)
    goals = GoalPolicy(goal_actor, critic, LOG.observations[2:5].clone()).eval()
    for kind, network in (("policy", actor), ("policy", goals), ("critic", critic)):
        save_artifact(tmp_path / "x.safetensors", kind, network)
        loaded = load_artifact(tmp_path / "x.safetensors")
        assert loaded.shape.parts == LAYOUT
        if kind == "policy":
            assert torch.equal(loaded(LOG.observations), network(LOG.observations))


def test_a_policy_for_goals_sees_state_and_goal_by_part() -> None:
    actor = make_goal_actor(LOG, DATA.normalisation, (8,), SMALL)
    policy = GoalPolicy(actor, _critic(), LOG.observations[2:5].clone()).eval()
    mean = DATA.normalisation.observation_mean
    encoder = actor.encode_observation
    assert isinstance(encoder, PartsEncoder)
    assert [part.shape[-1] for part in encoder.layout.parts] == [6, 6, 6]
    wrist = encoder.encoders[1]
    assert isinstance(wrist, ObservationEncoder)
    assert torch.equal(wrist.standardise.mean, torch.cat([mean[3:6]] * 2))
    moved = policy.toward({name: part[:2].numpy() for name, part in PARTS.items()})
    assert torch.equal(moved.goals, LOG.observations[:2])
    assert moved(LOG.observations).shape == (16, 2)
