from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.encoder import (
    SMALLEST,
    AutomaticEncoder,
    ConvolutionalEncoder,
    Encoder,
    IdentityEncoder,
    ObservationEncoder,
)
from cvl_pipeline.networks.parameters import ENCODERS, EncoderParameters, IdentityEncoderParameters

FEATURES = ConvolutionalEncoder.Parameters().features


def _statistics(mean: list[float], std: list[float]) -> Normalisation:
    return Normalisation(torch.tensor(mean), torch.tensor(std), torch.zeros(1), torch.ones(1))


def _images(*rows: int, shape: tuple[int, int, int] = (16, 12, 3)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (*rows, *shape), generator=generator, dtype=torch.uint8)


def _encoder(shape: tuple[int, ...], **settings: Any) -> Encoder:
    parameters = ENCODERS.validate(settings)
    return ENCODERS.of(parameters)(parameters, shape)


@pytest.mark.parametrize("name", ["auto", "identity"])
def test_vectors_are_standardised_and_nothing_else(name: str) -> None:
    encoder = ObservationEncoder((2,), _statistics([1.0, 2.0], [2.0, 4.0]), {"name": name})
    assert encoder(torch.tensor([[3.0, 2.0]])).tolist() == [[1.0, 0.0]]
    assert encoder.features == 2
    assert list(encoder.parameters()) == []


@pytest.mark.parametrize("shape", [(64, 64, 3), (84, 84, 4), (5, 9, 1), (16, 12, 3)])
def test_images_of_any_size_become_bounded_features(shape: tuple[int, int, int]) -> None:
    encoder = ObservationEncoder(shape, _statistics([100.0] * shape[2], [50.0] * shape[2]))
    features = encoder(_images(2, 3, shape=shape))
    assert features.shape == (2, 3, FEATURES)
    assert features.abs().max() <= 1.0
    assert features.std() > 0.1


def test_without_gradients_few_images_are_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ObservationEncoder((16, 12, 3), _statistics([100.0] * 3, [50.0] * 3))
    counts: list[int] = []
    encoder.encoder.register_forward_hook(lambda _module, inputs, _output: counts.append(len(inputs[0])))
    images = _images(3, 5)
    whole = encoder(images)
    monkeypatch.setattr("cvl_pipeline.networks.encoder.PIECE", 4 * 16 * 12 * 3)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), whole)
    assert counts == [15, 4, 4, 4, 3]


def test_images_are_standardised_by_channel() -> None:
    plain = ObservationEncoder((16, 12, 3), _statistics([0.0] * 3, [1.0] * 3))
    scaled = ObservationEncoder((16, 12, 3), _statistics([1.0, 2.0, 3.0], [2.0, 4.0, 8.0]))
    scaled.encoder.load_state_dict(plain.encoder.state_dict())
    assert list(scaled.encoder.parameters()) != []
    images = _images(4)
    by_hand = (images - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
    torch.testing.assert_close(scaled(images), plain(by_hand))


def test_rows_do_not_depend_on_each_other() -> None:
    encoder = ObservationEncoder((16, 12, 3), _statistics([128.0] * 3, [70.0] * 3))
    images = _images(5)
    torch.testing.assert_close(encoder(images)[3], encoder(images[3:4])[0])


def test_automatic_encoder_is_the_default_and_chooses_by_the_shape() -> None:
    assert ENCODERS.names[0] == "auto"
    vectors, images = _encoder((3,)), _encoder((16, 12, 3))
    assert isinstance(vectors, AutomaticEncoder)
    assert isinstance(images, AutomaticEncoder)
    assert isinstance(vectors.chosen, IdentityEncoder)
    assert isinstance(images.chosen, ConvolutionalEncoder)
    assert (vectors.features, images.features) == (3, FEATURES)


def test_automatic_encoder_is_the_one_that_it_chooses() -> None:
    automatic, chosen = _encoder((16, 12, 3)), _encoder((16, 12, 3), name="convolutional")
    assert isinstance(automatic, AutomaticEncoder)
    automatic.chosen.load_state_dict(chosen.state_dict())
    images = _images(4).float()
    torch.testing.assert_close(automatic(images), chosen(images))


@pytest.mark.parametrize(("channels", "features"), [(4, 10), (8, 3)])
def test_settings_of_the_convolutions_are_used(channels: int, features: int) -> None:
    settings = {"name": "convolutional", "channels": channels, "features": features}
    encoder = _encoder((24, 24, 3), **settings)
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
    # 24 becomes 12, which becomes SMALLEST.
    assert SMALLEST == 6
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (3, channels), (channels, channels),
    ]  # fmt: skip
    assert encoder.features == features
    assert encoder(_images(2, shape=(24, 24, 3)).float()).shape == (2, features)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "identity",
            (16, 12, 3),
            r"encoder 'identity' needs vectors, but observations have shape \(16, 12, 3\)",
        ),
        ("convolutional", (3,), r"encoder 'convolutional' needs images, but observations have shape \(3,\)"),
    ],
)
def test_observations_of_the_wrong_shape_are_refused(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ObservationEncoder(shape, encoder={"name": name})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "convolutions"}, "unknown encoder 'convolutions': did you mean convolutional"),
        ({"name": "identity", "channels": 3}, "channels"),
        ({"name": "convolutional", "channels": 0}, "channels"),
        ({"name": "convolutional", "features": 0}, "features"),
    ],
)
def test_unknown_encoders_and_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ENCODERS.validate(settings)


class Moments(Encoder):
    """An encoder of one's own: powers of vectors, weighed by a trained number."""

    class Parameters(EncoderParameters):
        """A setting of its own."""

        powers: int = Field(2, ge=1, description="How many.")

    def __init__(self, parameters: Parameters, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.powers = parameters.powers
        self.features = shape[0] * self.powers
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, observations: Tensor) -> Tensor:
        return self.weight * torch.cat([observations**power for power in range(1, self.powers + 1)], dim=-1)


def test_encoder_of_ones_own_receives_standardised_observations() -> None:
    settings = {"name": f"{__name__}:Moments", "powers": 3}
    encoder = ObservationEncoder((2,), _statistics([1.0, 2.0], [2.0, 4.0]), settings)
    assert encoder.features == 6
    observations = torch.tensor([[5.0, 10.0], [1.0, -2.0]])
    expected = 2.0 * np.array([[2.0, 2.0, 4.0, 4.0, 8.0, 8.0], [0.0, -1.0, 0.0, 1.0, 0.0, -1.0]])
    np.testing.assert_allclose(encoder(observations).detach(), expected)
    # Any number of leading axes.
    assert encoder(torch.zeros(3, 5, 2)).shape == (3, 5, 6)
    with pytest.raises(ValueError, match="channels"):
        ENCODERS.validate(settings | {"channels": 3})


def test_class_that_is_no_encoder_is_refused() -> None:
    with pytest.raises(InputError, match=r"encoder 'torch\.nn:Linear' is not a subclass of .*\.Encoder"):
        ENCODERS["torch.nn:Linear"]


class Silent(IdentityEncoder):
    """Forgets to say how many features it returns, or says a wrong number."""

    Parameters = EncoderParameters  # type: ignore[assignment]
    said: int | None = None

    def __init__(self, parameters: IdentityEncoderParameters, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.features = self.said  # type: ignore[assignment]


class Wrong(Silent):
    said = 7


def test_an_encoder_must_say_how_many_features_it_returns() -> None:
    with pytest.raises(InputError, match=r"Silent': its constructor must set self\.features"):
        ObservationEncoder((3,), encoder={"name": f"{__name__}:Silent"})
    with pytest.raises(
        InputError, match=r"Wrong\.forward returned Tensor \(4, 3\), not a tensor of shape \(4, 7\)"
    ):
        ObservationEncoder((3,), encoder={"name": f"{__name__}:Wrong"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PlainTensor", r"': self\.w is a tensor that would not be stored; use self\.register_buffer\('w', "),
        (
            "InnerTensor",
            r"': self\.shift is a tensor that would not be stored; use self\.register_buffer\('shift', ",
        ),
        ("InheritsTable", r"': self\.table is a tensor that would not be stored"),
        ("ListOfLayers", "' would act differently each time it is loaded, .* nn.ModuleList"),
        ("UnstoredBuffer", "' would act differently each time it is loaded, "),
        ("UninitialisedLayers", r"': its __init__ must call super\(\)\.__init__\(parameters, shape\) first"),
        ("Uninitialised", r"': its __init__ must call super\(\)\.__init__\(parameters, shape\) first"),
    ],
)
def test_an_encoder_of_ones_own_that_a_file_cannot_hold_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"^encoder 'tests\.own:{name}{message}"):
        ObservationEncoder((3,), encoder={"name": f"tests.own:{name}"})


def test_an_encoder_of_ones_own_may_give_nan_for_random_numbers() -> None:
    encoder = ObservationEncoder((3,), encoder={"name": "tests.own:Roots"})
    assert encoder(-torch.ones(3)).shape == (encoder.features,)


@pytest.mark.parametrize(("name", "shapes"), [("TwoOutputs", r"\(Tensor.*\)"), ("OneRow", r"Tensor \(4,\)")])
def test_an_encoder_of_ones_own_that_returns_something_else_is_refused(name: str, shapes: str) -> None:
    with pytest.raises(
        InputError, match=rf"^tests\.own:{name}\.forward returned {shapes}, not a tensor of shape"
    ):
        ObservationEncoder((3,), encoder={"name": f"tests.own:{name}"})


@pytest.mark.parametrize("name", ["Linear", "Noisy"])
def test_the_check_of_an_encoder_of_ones_own_changes_no_draw(name: str) -> None:
    settings = {"name": f"tests.own:{name}"}
    torch.manual_seed(5)
    alone, following = _encoder((3,), **settings), torch.rand(2)
    torch.manual_seed(5)
    checked = ObservationEncoder((3,), encoder=settings)
    assert torch.equal(torch.rand(2), following)
    assert checked.encoder.training
    for ours, theirs in zip(checked.encoder.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_built_in_encoder_is_built_once_and_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConvolutionalEncoder, "forward", None)
    ObservationEncoder((16, 12, 3))
