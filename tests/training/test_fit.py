from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from cvl_pipeline.dynamics.module import ContrastiveDynamics, train_dynamics
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.episodes.preparation import fit_normalisation
from cvl_pipeline.episodes.sampling import Draws
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.checked import read_checkpoint
from cvl_pipeline.networks.critic import ContrastiveCritic, CriticShape
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.readout.readouts import ExactReadout
from cvl_pipeline.testing.builders import (
    dynamics_parameters,
    make_data,
    make_transitions,
    names_in,
    policy_parameters,
    split_first,
    training_parameters,
)
from cvl_pipeline.training.devices import accelerator_of
from cvl_pipeline.training.fit import PRECISIONS, fit, run_fingerprint
from cvl_pipeline.training.keeping import kept_checkpoints
from tests.training.toy import LineFit

# Intervals of 30 steps are one full Lightning step of 25 and a rest; the last interval is cut short.
TRAINING = training_parameters(steps=100, validation_interval=30, learning_rate=0.05)


def _train(module: LineFit, checkpoints: Path | None = None, fingerprint: str = "f") -> pd.DataFrame:
    return fit(module, description="test", checkpoints=checkpoints, fingerprint=fingerprint)


def _interrupt(checkpoints: Path, at: int, fingerprint: str = "f") -> None:
    with pytest.raises(RuntimeError, match="the machine went away"):
        _train(LineFit(TRAINING, 0, fail_at=at), checkpoints, fingerprint)


def _checkpoint(checkpoints: Path) -> Path:
    (path,) = checkpoints.rglob("*.ckpt")
    return path


def test_history_has_one_row_per_interval_with_means_over_it() -> None:
    module = LineFit(TRAINING, 0)
    history = _train(module)
    assert history["step"].tolist() == [30, 60, 90, 100]
    assert len(module.losses) == 100
    for row, (start, end) in enumerate([(0, 30), (30, 60), (60, 90), (90, 100)]):
        assert history["train/loss"][row] == pytest.approx(np.mean(module.losses[start:end]), rel=1e-5)
        expected = np.mean(module.first_draws[start:end])
        assert history["train/first_draw"][row] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_validation_uses_the_weights_at_the_end_of_the_interval() -> None:
    module = LineFit(TRAINING, 0)
    history = _train(module)
    assert history["validation/slope"].tolist() == pytest.approx(list(module.weights_after.values()))
    assert len(set(module.validation_draws)) == 1  # the same held-out draw at every measurement


def test_training_solves_the_problem() -> None:
    module = LineFit(training_parameters(steps=400, validation_interval=100, learning_rate=0.05), 0)
    history = _train(module)
    assert module.weight.tolist() == pytest.approx([2.0, -1.0], abs=0.02)
    assert history["train/loss"].iloc[-1] < 0.01 * history["train/loss"].iloc[0]


@pytest.mark.parametrize(
    ("steps", "interval", "rows"),
    [(1, 1, [1]), (5, 100, [5]), (26, 26, [26]), (51, 25, [25, 50, 51]), (3, 1, [1, 2, 3])],
)
def test_the_requested_number_of_steps_is_taken(steps: int, interval: int, rows: list[int]) -> None:
    module = LineFit(training_parameters(steps=steps, validation_interval=interval), 0)
    assert _train(module)["step"].tolist() == rows
    assert len(module.losses) == steps


@pytest.mark.parametrize("at", [31, 59, 60, 61, 85, 95, 99])
def test_interrupted_training_resumes_to_the_same_weights(tmp_path: Path, at: int) -> None:
    whole = LineFit(TRAINING, 0)
    expected = _train(whole, tmp_path / "whole")
    _interrupt(tmp_path / "parts", at)
    resumed = LineFit(TRAINING, 0)
    history = _train(resumed, tmp_path / "parts")
    # No step before the last complete chunk is repeated.
    assert len(resumed.losses) == 100 - max(end for end in (0, 25, 30, 55, 60, 85, 90) if end <= at)
    assert torch.equal(resumed.weight, whole.weight)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)


def test_training_interrupted_twice_resumes_twice(tmp_path: Path) -> None:
    whole = LineFit(TRAINING, 0)
    expected = _train(whole)
    _interrupt(tmp_path, 35)
    _interrupt(tmp_path, 75)
    resumed = LineFit(TRAINING, 0)
    history = _train(resumed, tmp_path)
    assert len(resumed.losses) == 40  # none of the 60 finished steps is repeated
    assert torch.equal(resumed.weight, whole.weight)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)


def test_finished_training_resumes_if_its_result_was_not_stored(tmp_path: Path) -> None:
    first, again = LineFit(TRAINING, 0), LineFit(TRAINING, 0)
    with kept_checkpoints():
        expected = _train(first, tmp_path)
        history = _train(again, tmp_path)
    assert not again.losses  # the last checkpoint is of the last step
    assert torch.equal(again.weight, first.weight)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    other = LineFit(TRAINING, 0)
    _train(other, tmp_path, fingerprint="of other parameters")
    assert len(other.losses) == 100
    _train(LineFit(TRAINING, 0), tmp_path)
    assert not list(tmp_path.iterdir())  # outside of that context, nothing is left


def test_keyboard_interrupt_stops_the_run_and_keeps_finished_steps(tmp_path: Path) -> None:
    stopped = LineFit(TRAINING, 0, fail_at=70, failure=KeyboardInterrupt())
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            _train(stopped, tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves the signal ignored
    resumed, whole = LineFit(TRAINING, 0), LineFit(TRAINING, 0)
    _train(resumed, tmp_path)
    _train(whole)
    assert len(resumed.losses) == 40
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
@pytest.mark.parametrize("learned_temperature", [True, False])  # with autograd, and without
def test_contrastive_training_resumes_to_the_same_critic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, learned_temperature: bool
) -> None:
    data = make_transitions([20] * 6, [True, False] * 3)
    training = {"steps": 90, "validation_interval": 30, "learning_rate": 0.01, "precision": precision}
    parameters = dynamics_parameters(learned_temperature=learned_temperature, training=training)
    arguments = (make_data(data, 4), parameters, 0)
    whole = ContrastiveDynamics(*arguments)
    expected = fit(whole, description="test", checkpoints=tmp_path / "whole", fingerprint="f")
    broken = ContrastiveDynamics(*arguments)
    original = broken.gradient_step

    def fails_at_70(batch: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if broken.global_step == 70:
            raise RuntimeError("the machine went away")
        return original(batch)

    monkeypatch.setattr(broken, "gradient_step", fails_at_70)
    with pytest.raises(RuntimeError, match="went away"):
        fit(broken, description="test", checkpoints=tmp_path / "parts", fingerprint="f")
    resumed = ContrastiveDynamics(*arguments)
    history = fit(resumed, description="test", checkpoints=tmp_path / "parts", fingerprint="f")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    pd.testing.assert_frame_equal(history, expected, check_exact=True)


@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_products_use_the_chosen_precision_and_weights_stay_in_single_precision(precision: str) -> None:
    seen = []

    class Product(LineFit):
        def training_loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            seen.append((torch.ones(1, 2) @ self.weight[:, None]).dtype)
            return super().training_loss(batch)

    module = Product(training_parameters(precision=precision), 0)
    _train(module)
    # On a CPU, tf32 is float32.
    assert set(seen) == {torch.bfloat16 if precision == "bfloat16" else torch.float32}
    assert torch.get_float32_matmul_precision() == "highest"  # also afterwards
    assert module.weight.dtype == torch.float32


def test_another_fingerprint_starts_from_the_beginning(tmp_path: Path) -> None:
    _interrupt(tmp_path, 70, fingerprint="old")
    module = LineFit(TRAINING, 0)
    _train(module, tmp_path, fingerprint="new")
    assert len(module.losses) == 100


def test_training_without_a_folder_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _train(LineFit(TRAINING, 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "overwritten", "another program's"])
def test_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    _interrupt(tmp_path, 70)
    path = _checkpoint(tmp_path)
    content = path.read_bytes()
    if damage == "another program's":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        changed = {"cut": content[: len(content) // 2], "cut to nothing": b"", "overwritten": b"x" * 2000}
        path.write_bytes(changed[damage])
    with pytest.raises(InputError, match=r"was not written by|checksum") as caught:
        _train(LineFit(TRAINING, 0), tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it" in str(caught.value)


def test_loss_that_is_not_a_number_ends_the_training_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"nan at step 41 \(seed 3; batch 41 sampled with seed"):
        _train(LineFit(TRAINING, 3, nan_at=41), tmp_path)
    # The checkpoint is from before the fault. Reading it refuses anything that runs code.
    state = read_checkpoint(_checkpoint(tmp_path))
    assert state["global_step"] == 30
    assert torch.isfinite(state["state_dict"]["weight"]).all()


def test_fingerprint_depends_on_parameters_seed_and_inputs(transitions: Transitions) -> None:
    split = split_first(transitions, 4)
    parameters = dynamics_parameters()
    base = run_fingerprint(parameters, 0, transitions, split)
    assert run_fingerprint(dynamics_parameters(), 0, transitions, split_first(transitions, 4)) == base
    nudged = transitions.observations.clone()
    nudged[3, 1] += 1e-6
    others = [
        run_fingerprint(dynamics_parameters(discount=0.91), 0, transitions, split),
        run_fingerprint(dynamics_parameters(training={"steps": 9}), 0, transitions, split),
        run_fingerprint(dynamics_parameters(loss="nce"), 0, transitions, split),
        run_fingerprint(dynamics_parameters(encoder="identity"), 0, transitions, split),
        run_fingerprint(parameters, 1, transitions, split),
        run_fingerprint(parameters, 0, replace(transitions, observations=nudged), split),
        run_fingerprint(parameters, 0, transitions, split_first(transitions, 3)),
        run_fingerprint(parameters, 0, transitions),
        run_fingerprint(parameters, 0, split, transitions),
    ]
    assert len({base, *others}) == len(others) + 1
    assert base.isalnum()  # it names a folder


def test_fingerprint_ignores_what_a_look_at_the_inputs_caches() -> None:
    @dataclass(frozen=True)
    class Input:
        numbers: Tensor

        @cached_property
        def empty(self) -> bool:
            return not len(self.numbers)

    given = Input(torch.arange(3.0))
    before = run_fingerprint(dynamics_parameters(), 0, given)
    assert not given.empty
    assert run_fingerprint(dynamics_parameters(), 0, given) == before


def test_fingerprint_ignores_settings_that_change_no_result(transitions: Transitions) -> None:
    operation = {
        "devices": 2, "nodes": 2, "rendezvous": "node0:29400", "checkpoint_seconds": 5.0,
        "checkpoint_steps": 7, "loggers": ("tensorboard",),
    }  # fmt: skip
    base = run_fingerprint(dynamics_parameters(), 0, transitions)
    for name, value in operation.items():
        changed = dynamics_parameters(training={name: value})
        assert changed != dynamics_parameters(), name
        assert run_fingerprint(changed, 0, transitions) == base, name


def test_fingerprint_sees_the_weights_of_a_critic(transitions: Transitions) -> None:
    torch.manual_seed(0)
    critic = ContrastiveCritic(CriticShape((3,), 2, (4,), 2, "raw", 1.0, False, 0.9, False))
    parameters = dynamics_parameters()
    before = run_fingerprint(parameters, 0, transitions, critic, None)
    assert run_fingerprint(parameters, 0, transitions, critic, None) == before
    with torch.no_grad():
        critic.state_dict()["psi_network.0.bias"][0] += 1.0
    assert run_fingerprint(parameters, 0, transitions, critic, None) != before


def test_fingerprint_sees_the_numbers_of_a_readout() -> None:
    readout = ExactReadout(
        temperature=torch.tensor(0.5),
        horizons=torch.zeros(0, dtype=torch.int64),
        discount=0.9,
        self_normalised=True,
        psi=torch.eye(2),
        rewards=torch.ones(2),
        log_weights=torch.zeros(2),
    )
    parameters = dynamics_parameters()
    prints = [
        run_fingerprint(parameters, 0, changed)
        for changed in (
            readout,
            replace(readout),
            replace(readout, discount=0.91),
            replace(readout, self_normalised=False),
            replace(readout, rewards=torch.zeros(2)),
            replace(readout, horizons=torch.tensor([1])),
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 5


def test_fingerprint_depends_on_the_normalisation(
    transitions: Transitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The statistics are buffers of the network: a resumed run would restore the old ones.
    fingerprints: list[str] = []

    def remember(_: object, *, fingerprint: str, **__: object) -> None:
        fingerprints.append(fingerprint)

    monkeypatch.setattr("cvl_pipeline.dynamics.module.fit", remember)
    monkeypatch.setattr("cvl_pipeline.objectives.training.fit", remember)
    split = split_first(transitions, 4)
    for floor in (1e-3, 5.0):
        data = make_data(transitions, 4, normalisation=fit_normalisation(transitions, split, floor))
        train_dynamics(data, dynamics_parameters(), 0)
        train_policy(data, policy_parameters(objective="bc"), 0)
    assert len(set(fingerprints)) == 4


def test_finished_training_removes_its_own_folder_and_nothing_else(tmp_path: Path) -> None:
    _interrupt(tmp_path, 70, fingerprint="this")
    neighbour = tmp_path / "other" / "last.ckpt"
    neighbour.parent.mkdir()
    neighbour.write_bytes(b"unfinished")
    _train(LineFit(TRAINING, 0), tmp_path, fingerprint="this")
    assert names_in(tmp_path) == ["other"]
    assert neighbour.read_bytes() == b"unfinished"


@pytest.mark.parametrize(
    ("gpus", "settings", "fault"),
    [
        (0, {"accelerator": "gpu"}, "training.accelerator is gpu, but PyTorch finds no .*auto or cpu"),
        (1, {"accelerator": "gpu", "devices": 2}, "training.devices is 2, but PyTorch finds 1 GPU on"),
        (2, {"accelerator": "auto", "devices": 4}, "training.devices is 4, but PyTorch finds 2 GPUs on"),
    ],
)
def test_missing_gpus_are_one_line_before_the_training(
    gpus: int, settings: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InputError, match=fault):
        fit(LineFit(training_parameters(**settings), 0), description="test")


@pytest.mark.parametrize(
    ("gpus", "settings", "expected"),
    [
        (0, {"accelerator": "auto", "devices": 2}, "cpu"), (2, {"accelerator": "cpu", "devices": 4}, "cpu"),
        (2, {"accelerator": "auto", "devices": 2}, "gpu"), (1, {"accelerator": "gpu"}, "gpu"),
    ],
)  # fmt: skip
def test_the_accelerator_is_the_one_that_is_there(
    gpus: int, settings: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert accelerator_of(training_parameters(**settings)) == expected


def test_ctrl_c_is_what_it_was() -> None:
    def interrupt(row: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # Lightning ends Python with status 1 in its place
        fit(LineFit(TRAINING, 0), description="test", watch=interrupt)
