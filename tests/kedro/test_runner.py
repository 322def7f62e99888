from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro import runner
from cvl_pipeline.kedro.rows import BESIDE
from cvl_pipeline.kedro.runner import BesideRunner
from cvl_pipeline.training.launch import TrainingError
from tests.training.processes import wait_for

# Functions of nodes; they meet at files in a folder.


def here(folder: Path) -> int:
    (folder / "here").touch()
    wait_for((folder / "there").exists)
    return os.getpid()


def fails_here(folder: Path) -> int:
    wait_for((folder / "there").exists)
    raise InputError("the first failed")


def after(first: int, second: int) -> tuple[int, int]:
    return first, second


def there(folder: Path) -> int:
    (folder / "there").touch()
    print("printed there")  # noqa: T201
    logging.getLogger("cvl_pipeline").warning("logged there")
    return os.getpid()


def stays_there(folder: Path) -> int:
    (folder / "there").write_text(str(os.getpid()))
    time.sleep(600.0)
    return 0


def fails_there(folder: Path) -> int:
    (folder / "there").touch()
    raise InputError("the other failed")


def faulty_there(folder: Path) -> int:
    (folder / "there").touch()
    return len(folder)  # type: ignore[arg-type]


def dies_there(folder: Path) -> int:
    (folder / "there").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _run(
    folder: Path, other: Callable[..., Any], own: Callable[..., Any] = here, **parameters: Any
) -> DataCatalog:
    catalog = DataCatalog(
        {
            "parameters": MemoryDataset(parameters),
            "folder": MemoryDataset(folder),
            **{name: MemoryDataset() for name in ("own", "other", "pair")},
        }
    )
    nodes = [
        node(own, "folder", "own", name="a_own"),
        node(other, "folder", "other", name="other", tags=[BESIDE]),
        node(after, ["own", "other"], "pair", name="pair"),
    ]
    BesideRunner().run(Pipeline(nodes), catalog, _create_hook_manager())
    return catalog


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "available_cores", lambda: 2)


def test_a_tagged_node_runs_in_a_process_beside_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, logger="cvl_pipeline"):
        own, other = _run(tmp_path, there).load("pair")
    assert own == os.getpid() != other
    assert caplog.messages == ["other runs beside the others", "logged there"]
    assert "printed there\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {"contrastive_dynamics": {"training": {"devices": 2}}},
        {"baselines": {"bc": {"training": {"accelerator": "gpu"}}}},
    ],
    ids=["one core", "several processes", "a GPU"],
)
def test_without_an_idle_core_nothing_runs_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: Any
) -> None:
    if parameters is None:
        monkeypatch.setattr(runner, "available_cores", lambda: 1)
    (tmp_path / "there").touch()
    own, other = _run(tmp_path, there, **parameters or {}).load("pair")
    assert own == other == os.getpid()


def test_if_the_node_beside_fails_the_present_node_ends_and_no_other_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"^the other failed$"):
        _run(tmp_path, fails_there)
    assert (tmp_path / "here").exists()


def test_an_error_in_code_of_ones_own_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_runner:faulty_there failed at .*: object of type") as caught:
        _run(tmp_path, faulty_there)
    assert "in faulty_there" in str(caught.value.__cause__)


def test_a_killed_process_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"ran other beside this one ended early \(exit status -9\)"):
        _run(tmp_path, dies_there)


def test_if_a_node_fails_the_process_beside_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the first failed$"):
        _run(tmp_path, stays_there, fails_here)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "there").read_text()), 0)


def test_if_both_fail_the_first_error_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^the other failed$"):
        _run(tmp_path, fails_there, fails_later)


def fails_later(folder: Path) -> int:
    wait_for((folder / "there").exists)
    time.sleep(3.0)
    raise InputError("the first failed")
