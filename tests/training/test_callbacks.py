from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from cvl_pipeline.dynamics.module import ContrastiveDynamics, train_dynamics
from cvl_pipeline.episodes.container import Transitions
from cvl_pipeline.errors import TERMINATED
from cvl_pipeline.io.checked import read_checkpoint
from cvl_pipeline.testing.builders import dynamics_parameters, make_data, names_in, training_parameters
from cvl_pipeline.training import callbacks
from cvl_pipeline.training.callbacks import BestWeights, operations_of_a_step, product_rate
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.parameters import TrainingParameters
from cvl_pipeline.training.seeds import stream_seed
from tests.clocks import FakeClock
from tests.training.toy import LineFit

SPEEDS = [
    "throughput/steps_per_second",
    "throughput/samples_per_second",
    "throughput/model_flops_utilisation",
]


class Passing(OfflineModule):
    """A weight that falls from 0 to -1 and has its lowest held-out loss at -0.56."""

    def __init__(
        self, training: TrainingParameters, *, fail_at: int | None = None, fail_at_end: bool = False
    ) -> None:
        super().__init__(training, 0)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._fail_at = fail_at
        self._fail_at_end = fail_at_end

    def draw(self, batches: int, generator: Generator) -> list[None]:
        return [None] * batches

    def training_loss(self, batch: None) -> tuple[Tensor, dict[str, Tensor]]:
        if self.global_step == self._fail_at:
            raise RuntimeError("the machine went away")
        return self.weight.sum(), {}

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        loss = (self.weight.detach() + 0.56).square().sum()
        return {"loss": loss, "weight": self.weight.detach().clone()[0]}

    def on_train_end(self) -> None:
        if self._fail_at_end:
            raise RuntimeError("the machine went away")


PASSING = training_parameters(steps=100, validation_interval=10, learning_rate=0.02)


def _fit(
    keep: Literal["last", "best"], patience: int | None, checkpoints: Path | None = None, **failure: Any
) -> tuple[Passing, pd.DataFrame]:
    module = Passing(PASSING, **failure)
    best = BestWeights(keep, patience)
    return module, fit(module, description="test", checkpoints=checkpoints, best=best)


def _lowest(history: pd.DataFrame) -> int:
    return int(history["validation/loss"].to_numpy().argmin())


def test_best_weights_are_those_of_the_lowest_held_out_loss() -> None:
    last, history = _fit("last", None)
    best, same = _fit("best", None)
    assert history.equals(same)
    assert len(history) == 10
    assert 0 < _lowest(history) < 9
    assert float(best.weight.detach()) == history["validation/weight"][_lowest(history)]
    assert float(last.weight.detach()) == history["validation/weight"].iloc[-1]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_patience_ends_training_that_no_longer_lowers_the_loss(keep: Literal["last", "best"]) -> None:
    _, whole = _fit("last", None)
    module, history = _fit(keep, 2)
    assert history.equals(whole.iloc[: _lowest(whole) + 3])
    kept = _lowest(whole) if keep == "best" else len(history) - 1
    assert float(module.weight.detach()) == history["validation/weight"][kept]


def test_patience_that_is_never_exceeded_changes_nothing() -> None:
    _, history = _fit("last", 8)
    assert len(history) == 10


@pytest.mark.parametrize(
    ("patience", "failure"),
    [
        *((2, {"fail_at": step}) for step in (15, 30, 42, 49)),
        (2, {"fail_at_end": True}),
        (None, {"fail_at_end": True}),
    ],
)
def test_best_weights_and_patience_survive_an_interruption(
    tmp_path: Path, patience: int | None, failure: dict[str, Any]
) -> None:
    whole, expected = _fit("best", patience)
    with pytest.raises(RuntimeError, match="went away"):
        _fit("best", patience, tmp_path, **failure)
    resumed, history = _fit("best", patience, tmp_path)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert torch.equal(resumed.weight, whole.weight)


def _dynamics(transitions: Transitions, **changes: Any) -> ContrastiveDynamics:
    return ContrastiveDynamics(make_data(transitions, 4), dynamics_parameters(**changes), 0)


def test_critic_is_trained_with_its_best_weights(transitions: Transitions) -> None:
    results = {}
    for keep in ("last", "best"):
        # This learning rate overfits four episodes at once.
        training = {"steps": 60, "validation_interval": 5, "learning_rate": 0.05}
        parameters = dynamics_parameters(keep=keep, training=training)
        critic, history = train_dynamics(make_data(transitions, 4), parameters, 0)
        module = _dynamics(transitions, keep=keep, training=training)
        module.critic.load_state_dict(critic.state_dict())
        module.on_fit_start()
        generator = Generator().manual_seed(stream_seed(0, "validation", 0))
        with torch.no_grad():
            results[keep] = float(module.validation_metrics(generator)["loss"])
        losses = history["validation/loss"]
        assert losses.min() < losses.iloc[-1]
        expected = losses.iloc[-1] if keep == "last" else losses.min()
        assert results[keep] == pytest.approx(expected, rel=1e-6)


def _metrics(logs: Path) -> pd.DataFrame:
    return pd.read_csv(logs / "metrics.csv")


def test_metrics_hold_the_history_and_the_speed_of_every_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transitions: Transitions
) -> None:
    """A gradient step takes a 64th of a second; what goes on around the steps does not count."""
    clock = FakeClock(monkeypatch)
    clock.price(ContrastiveDynamics, "gradient_step", 1.0 / 64.0)
    for name in ("on_fit_start", "validation_metrics"):
        clock.price(ContrastiveDynamics, name, 1000.0)
    monkeypatch.setattr(callbacks, "time", clock)
    monkeypatch.setattr(callbacks, "product_rate", lambda *_: 2.0**30)
    training = {"steps": 70, "validation_interval": 30, "batch_size": 16}
    module = _dynamics(transitions, training=training)
    history = fit(module, description="test", logs=tmp_path / "logs")
    metrics = _metrics(tmp_path / "logs")
    assert list(metrics.columns) == [*history.columns, *SPEEDS]
    pd.testing.assert_frame_equal(metrics[history.columns], history, check_dtype=False, rtol=1e-12)
    assert metrics["throughput/steps_per_second"].tolist() == [64.0] * 3
    assert metrics["throughput/samples_per_second"].tolist() == [16 * 64.0] * 3
    share = operations_of_a_step(module) * 64.0 / 2.0**30
    assert metrics["throughput/model_flops_utilisation"].tolist() == pytest.approx([share] * 3)
    assert names_in(tmp_path / "logs") == ["metrics.csv"]


def test_logs_change_no_result(tmp_path: Path, transitions: Transitions) -> None:
    plain, measured = (_dynamics(transitions) for _ in range(2))
    history = fit(plain, description="test")
    assert fit(measured, description="test", logs=tmp_path).equals(history)
    for name, value in plain.state_dict().items():
        assert torch.equal(measured.state_dict()[name], value), name


@pytest.mark.parametrize(("interval", "at"), [(30, 20), (30, 31), (30, 60), (30, 95), (75, 80)])
def test_metrics_of_a_resumed_run_hold_all_rows(tmp_path: Path, interval: int, at: int) -> None:
    training = training_parameters(steps=100, validation_interval=interval)
    with pytest.raises(RuntimeError, match="went away"):
        fit(LineFit(training, 0, fail_at=at), description="test", checkpoints=tmp_path / "c", logs=tmp_path)
    history = fit(LineFit(training, 0), description="test", checkpoints=tmp_path / "c", logs=tmp_path)
    metrics = _metrics(tmp_path)
    assert metrics["step"].tolist() == history["step"].tolist()
    assert metrics["train/loss"].tolist() == pytest.approx(history["train/loss"].tolist(), rel=1e-12)
    assert (metrics["throughput/steps_per_second"] > 0.0).all()


class Averaged(LineFit):
    """Keeps a moving average of its weight, which every call of training_loss updates."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("mean", torch.zeros(2))

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert isinstance(self.mean, Tensor)
        self.mean.lerp_(self.weight.detach(), 0.1)
        return super().training_loss(batch)


def test_counting_operations_changes_no_weight_or_buffer(tmp_path: Path) -> None:
    training = training_parameters(steps=100, validation_interval=100)
    whole = Averaged(training, 0)
    fit(whole, description="test")
    with pytest.raises(RuntimeError, match="went away"):
        fit(Averaged(training, 0, fail_at=60), description="test", checkpoints=tmp_path / "c", logs=tmp_path)
    # Operations are counted again after the resumption, where the average differs from the weight.
    resumed = Averaged(training, 0)
    fit(resumed, description="test", checkpoints=tmp_path / "c", logs=tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_watcher_receives_every_row_once(tmp_path: Path) -> None:
    training = training_parameters(steps=100, validation_interval=30)
    rows: list[Mapping[str, float]] = []
    history = fit(LineFit(training, 0), description="test", watch=rows.append)
    assert pd.DataFrame(rows).astype({"step": int}).equals(history)
    # A resumed run passes on the rows before the resumption too.
    with pytest.raises(RuntimeError, match="went away"):
        fit(LineFit(training, 0, fail_at=70), description="test", checkpoints=tmp_path)
    again: list[Mapping[str, float]] = []
    fit(LineFit(training, 0), description="test", checkpoints=tmp_path, watch=again.append)
    assert again == rows


def test_watcher_that_raises_ends_the_training() -> None:
    def stop(row: Mapping[str, float]) -> None:
        raise FloatingPointError(f"stopped at {row['step']:.0f}")

    module = LineFit(training_parameters(steps=100, validation_interval=30), 0)
    with pytest.raises(FloatingPointError, match="stopped at 30"):
        fit(module, description="test", watch=stop)
    assert len(module.losses) == 30


class EndsInAnEmptyChunk(LineFit):
    """Fails after its last step, in the second chunk of the interval's three."""

    def training_step(self, index: int) -> None:
        if self.global_step == 100:
            raise RuntimeError("the machine went away")
        super().training_step(index)


def test_run_resumed_after_its_last_step_writes_its_last_row(tmp_path: Path) -> None:
    training = training_parameters(steps=100, validation_interval=75)
    with pytest.raises(RuntimeError, match="went away"):
        fit(EndsInAnEmptyChunk(training, 0), description="test", checkpoints=tmp_path / "c", logs=tmp_path)
    fit(LineFit(training, 0), description="test", checkpoints=tmp_path / "c", logs=tmp_path)
    assert _metrics(tmp_path)["step"].tolist() == [75, 100]


def test_operations_of_a_small_critic_equal_those_counted_by_hand(transitions: Transitions) -> None:
    # Observations of 3, actions of 2, a flag for the absorbing state, one hidden layer of 8, representations
    # of 4, batches of 16.
    module = _dynamics(transitions)
    module.on_fit_start()
    layers_in, layers_out = (3 + 2) * 8 + (3 + 1) * 8, 8 * 4 + 8 * 4
    product = 16 * 4
    # Forward and backward; the first layers need no gradient of their inputs.
    by_hand = 2 * 16 * (2 * layers_in + 3 * layers_out + 3 * product)
    assert operations_of_a_step(module) == by_hand
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_rate_is_that_of_the_fastest_of_four_matrix_products(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    readings = iter([0.0, 0.5, 1.0, 1.25, 2.0, 3.0, 4.0, 4.75])  # before and after each product
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    with FlopCounterMode(display=False) as counter:
        rate = product_rate(torch.device("cpu"), dtype, size=64)
    assert rate == 2 * 64**3 / 0.25
    assert counter.get_total_flops() == 4 * 2 * 64**3


def _saved(folder: Path) -> int | None:
    """The step of the checkpoint, if there is one."""
    paths = list(folder.rglob("last.ckpt"))
    return read_checkpoint(paths[0])["global_step"] if paths else None


def _interrupted(folder: Path, at: int, **training: Any) -> int | None:
    module = LineFit(training_parameters(steps=200, validation_interval=100, **training), 0, fail_at=at)
    with pytest.raises(RuntimeError, match="went away"):
        fit(module, description="test", checkpoints=folder)
    return _saved(folder)


@pytest.mark.parametrize(("at", "saved"), [(50, None), (60, 50), (99, 50), (110, 100), (190, 150)])
def test_training_is_saved_by_steps(tmp_path: Path, at: int, saved: int | None) -> None:
    # Saved after the chunk of 25 steps that reaches 40. The chunk with the fault does not end.
    assert _interrupted(tmp_path, at - 1, checkpoint_seconds=1e6, checkpoint_steps=40) == saved


def test_training_is_not_saved_before_the_interval_ends(tmp_path: Path) -> None:
    assert _interrupted(tmp_path, 180, checkpoint_seconds=1e6) is None


@pytest.mark.parametrize(("at", "saved"), [(70, None), (80, 75), (149, 75), (160, 150)])
def test_training_is_saved_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, saved: int | None
) -> None:
    class Clock(LineFit):
        """Every chunk takes one second."""

        seconds = 0.0

        def training_step(self, index: int) -> None:
            super().training_step(index)
            self.seconds += 1.0

    module = Clock(
        training_parameters(steps=200, validation_interval=100, checkpoint_seconds=2.5), 0, fail_at=at
    )
    clock = SimpleNamespace(monotonic=lambda: module.seconds, perf_counter=time.perf_counter)
    monkeypatch.setattr(callbacks, "time", clock)
    with pytest.raises(RuntimeError, match="went away"):
        fit(module, description="test", checkpoints=tmp_path)
    assert _saved(tmp_path) == saved


class Terminated(LineFit):
    """Receives SIGTERM at step 40."""

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.global_step == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_loss(batch)


def test_sigterm_saves_after_the_chunk_and_ends_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = training_parameters(steps=100, validation_interval=100, checkpoint_seconds=1e6)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        fit(Terminated(training, 0), description="test", checkpoints=tmp_path)
    assert caught.value.code == TERMINATED == 128 + signal.SIGTERM
    assert "run the same command again to resume from" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == handler
    assert _saved(tmp_path) == 50
    resumed, whole = LineFit(training, 0), LineFit(training, 0)
    history = fit(resumed, description="test", checkpoints=tmp_path)
    pd.testing.assert_frame_equal(history, fit(whole, description="test"), check_exact=True)
    assert len(resumed.losses) == 50
    assert torch.equal(resumed.weight, whole.weight)


class TerminatedLate(LineFit):
    """Receives SIGTERM after the last chunk, and fails there if it should."""

    error: Exception | None = None

    def on_train_end(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("of a watcher, say")])
def test_sigterm_after_the_last_chunk_is_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    training = training_parameters(steps=100, validation_interval=100, checkpoint_seconds=1e6)
    handler = signal.getsignal(signal.SIGTERM)
    module = TerminatedLate(training, 0)
    module.error = error
    with pytest.raises(SystemExit) as caught:
        fit(module, description="test", checkpoints=tmp_path)
    assert caught.value.code == TERMINATED
    assert "run the same command again" in caplog.text
    assert "resume" not in caplog.text, "nothing was saved"
    assert signal.getsignal(signal.SIGTERM) == handler
    whole = LineFit(training, 0)
    fit(whole, description="test", checkpoints=tmp_path)
    assert len(whole.losses) == 100


def test_sigterm_ends_training_without_a_folder_too() -> None:
    with pytest.raises(SystemExit) as caught:
        fit(Terminated(training_parameters(steps=100), 0), description="test")
    assert caught.value.code == TERMINATED
