from __future__ import annotations

import pytest
import torch

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.networks.encoder import IMAGE_FEATURES, ObservationEncoder


def _statistics(mean: list[float], std: list[float]) -> Normalisation:
    return Normalisation(torch.tensor(mean), torch.tensor(std), torch.zeros(1), torch.ones(1))


def _images(*rows: int, shape: tuple[int, int, int] = (16, 12, 3)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (*rows, *shape), generator=generator, dtype=torch.uint8)


def test_vectors_are_standardised_and_nothing_else() -> None:
    encoder = ObservationEncoder((2,), _statistics([1.0, 2.0], [2.0, 4.0]))
    assert encoder(torch.tensor([[3.0, 2.0]])).tolist() == [[1.0, 0.0]]
    assert encoder.features == 2
    assert list(encoder.parameters()) == []


@pytest.mark.parametrize("shape", [(64, 64, 3), (84, 84, 4), (5, 9, 1), (16, 12, 3)])
def test_images_of_any_size_become_bounded_features(shape: tuple[int, int, int]) -> None:
    encoder = ObservationEncoder(shape, _statistics([100.0] * shape[2], [50.0] * shape[2]))
    features = encoder(_images(2, 3, shape=shape))
    assert features.shape == (2, 3, IMAGE_FEATURES)
    assert features.abs().max() <= 1.0
    assert features.std() > 0.1


def test_images_are_standardised_by_channel() -> None:
    plain = ObservationEncoder((16, 12, 3), _statistics([0.0] * 3, [1.0] * 3))
    scaled = ObservationEncoder((16, 12, 3), _statistics([1.0, 2.0, 3.0], [2.0, 4.0, 8.0]))
    assert plain.convolutions is not None
    assert scaled.convolutions is not None
    scaled.convolutions.load_state_dict(plain.convolutions.state_dict())
    images = _images(4)
    by_hand = (images - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
    torch.testing.assert_close(scaled(images), plain(by_hand))


def test_rows_do_not_depend_on_each_other() -> None:
    encoder = ObservationEncoder((16, 12, 3), _statistics([128.0] * 3, [70.0] * 3))
    images = _images(5)
    torch.testing.assert_close(encoder(images)[3], encoder(images[3:4])[0])
