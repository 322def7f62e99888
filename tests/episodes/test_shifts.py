"""Random shifts, and trainings that use them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from cvl_pipeline.dynamics.module import ContrastiveDynamics, train_dynamics
from cvl_pipeline.episodes.shifts import PLACES, RandomShift, random_shift
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.iql import ImplicitQLearning
from cvl_pipeline.objectives.training import PolicyExtraction
from cvl_pipeline.testing.builders import dynamics_parameters, make_packed_transitions, make_transitions
from cvl_pipeline.training.module import OfflineModule
from tests.methods.toys import check_resumption, make_images, method_parameters

PACKED = make_packed_transitions([4, 3], [False, True])
assert PACKED.parts is not None
LAYOUT, PARTS = PACKED.parts, PACKED.parts.unpack(PACKED.observations)
TRAINING = {"random_shift": 2, "batch_size": 8, "validation_interval": 35, "steps": 70}
SMALL = {"name": "convolutional", "channels": 2, "features": 4}


def _cropped(image: Tensor, shift: Tensor, pixels: int) -> Tensor:
    """Pad by replication and crop, as published, (H, W, C)."""
    padded = functional.pad(image.permute(2, 0, 1).double()[None], (pixels,) * 4, mode="replicate")[0]
    top, left = (pixels + shift).tolist()
    return (
        padded[:, top : top + image.shape[0], left : left + image.shape[1]].permute(1, 2, 0).to(torch.uint8)
    )


def test_images_are_padded_by_their_edges_and_cropped() -> None:
    shift = RandomShift(PACKED, 3)
    rows = len(PACKED.observations)
    noise = shift.draw(rows, Generator().manual_seed(0))
    assert noise.shape == (rows, PLACES, 2, 2)
    assert set(noise.flatten().tolist()) == set(range(-3, 4))
    for place in range(PLACES):
        changed = LAYOUT.unpack(shift.changed(PACKED.observations, noise, place))
        assert torch.equal(changed["state"], PARTS["state"])
        for number, name in enumerate(("images.wrist", "images.top")):
            for row in range(rows):
                expected = _cropped(PARTS[name][row], noise[row, place, number], 3)
                assert torch.equal(changed[name][row], expected)


def test_a_single_image_is_shifted_and_others_are_refused() -> None:
    pictures = make_images(packed=False).transitions
    shift = RandomShift(pictures, 1)
    noise = shift.draw(2, Generator().manual_seed(0))
    changed = shift.changed(pictures.observations[:2], noise, 1)
    assert torch.equal(changed[1], _cropped(pictures.observations[1], noise[1, 1, 0], 1))
    assert random_shift(make_transitions([3], [True]), 0) is None
    with pytest.raises(InputError, match=r"training\.random_shift is 4, but no observation is an image"):
        random_shift(make_transitions([3], [True]), 4)


@pytest.mark.parametrize(("name", "module"), [("bc", PolicyExtraction), ("iql", ImplicitQLearning)])
def test_interrupted_training_resumes_to_the_same_policy(
    name: str, module: type[OfflineModule], tmp_path: Path
) -> None:
    data = make_images(packed=name == "iql")
    method: Any = METHODS.create(method_parameters(name, training=TRAINING, encoder=SMALL, hidden=(8,)))
    data = data if method.needs_rewards else data.without_rewards()
    check_resumption(partial(method.train, data, 0), tmp_path, module, 40)


def _critic(monkeypatch: pytest.MonkeyPatch, stays: bool, **changes: Any) -> dict[str, Tensor]:
    monkeypatch.setattr("cvl_pipeline.training.module.fits", lambda *_: not stays)
    parameters = dynamics_parameters(
        training=TRAINING | changes, hidden=(8,), representation_size=4, encoder=SMALL
    )
    return dict(train_dynamics(make_images(packed=True), parameters, 0).critic.state_dict())


def test_the_critic_sees_the_same_shifts_if_batches_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, here = (_critic(monkeypatch, stays) for stays in (True, False))
    torch.testing.assert_close(ahead, here, rtol=0, atol=0)
    without = _critic(monkeypatch, False, random_shift=0)
    assert any(not torch.equal(here[name], without[name]) for name in here)


def test_processes_take_their_shares_of_the_shifts(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = dynamics_parameters(training=TRAINING, hidden=(8,), representation_size=4, encoder=SMALL)
    module = ContrastiveDynamics(make_images(packed=True), parameters, 0)
    module.on_fit_start()
    whole = module.prepared(module.batch(3))
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("cvl_pipeline.training.processes.world_size", lambda: 2)
        monkeypatch.setattr("cvl_pipeline.training.processes.rank", lambda rank=rank: rank)
        shares.append(module.prepared(module.batch(3)))
    for name in ("observations", "futures"):
        joined = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(joined, getattr(whole, name))
