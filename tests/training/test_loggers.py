from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from cvl_pipeline.errors import InputError
from cvl_pipeline.testing.builders import names_in, training_parameters
from cvl_pipeline.training import loggers
from cvl_pipeline.training.fit import fit
from cvl_pipeline.training.loggers import make_loggers
from tests.training.toy import LineFit


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
def test_tensorboard_receives_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training = training_parameters(steps=60, validation_interval=20, loggers="tensorboard")
    history = fit(LineFit(training, 0), description="test", logs=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert set(history.columns) - {"step"} <= set(written)
    assert "throughput/steps_per_second" in written
    for name in ("train/loss", "validation/slope"):
        assert [step for step, _ in written[name]] == [20, 40, 60]
        assert [value for _, value in written[name]] == pytest.approx(history[name].tolist(), rel=1e-6)


def test_without_tensorboard_only_metrics_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    training = training_parameters(loggers="tensorboard")
    fit(LineFit(training, 0), description="test", logs=tmp_path)
    assert names_in(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_missing_logger_is_named(tmp_path: Path, name: str) -> None:
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(InputError, match=f"{name} is not installed; run: pip install {name}"):
        fit(LineFit(training_parameters(loggers=name), 0), description="test", logs=tmp_path)
    assert not list(tmp_path.rglob("metrics.csv"))


def test_no_logger_is_created_by_default(tmp_path: Path) -> None:
    assert make_loggers((), tmp_path) == []
    assert names_in(tmp_path) == []


@pytest.mark.filterwarnings("ignore")  # of tensorboard's own imports
@pytest.mark.parametrize("names", ["", "tensorboard"])
def test_a_folder_that_is_moved_ends_the_training_with_one_line(tmp_path: Path, names: str) -> None:
    folder = tmp_path / "data" / "logs"

    def move(row: Mapping[str, float]) -> None:
        if row["step"] == 40:
            (tmp_path / "data").rename(tmp_path / "moved")

    training = training_parameters(steps=200, validation_interval=20, loggers=names)
    with pytest.raises(InputError, match=r"logs/metrics\.csv was moved or deleted during training; move"):
        fit(LineFit(training, 0), description="test", logs=folder, watch=move)
    assert names_in(tmp_path) == ["moved"]  # the folder is not created again


def test_a_logger_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("the server\nis gone")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", fail)
    training = training_parameters(loggers="tensorboard")
    message = (
        r"training\.loggers: TensorBoard cannot write \(ConnectionError: the server is gone\); repair it"
    )
    with pytest.raises(InputError, match=message):
        fit(LineFit(training, 0), description="test", logs=tmp_path)
