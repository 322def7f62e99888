from __future__ import annotations

from kedro.io import MemoryDataset
from kedro.pipeline import node

from cvl_pipeline.kedro.beside import WORKERS, _answer
from cvl_pipeline.kedro.pipelines.contrastive_dynamics.nodes import report
from cvl_pipeline.kedro.workspace import Workspace
from cvl_pipeline.training.devices import available_cores


def test_episodes_leave_a_core_free() -> None:
    own = node(abs, WORKERS, "result", name="own")
    cores = max(1, available_cores() - 1)
    assert _answer(own, {WORKERS: MemoryDataset(80)}, Workspace()) == ({"result": cores}, None, "")


def test_a_defect_has_its_traceback() -> None:
    own = node(report, "history", "result", name="own")
    outputs, error, trace = _answer(own, {"history": MemoryDataset("none")}, Workspace())
    assert outputs is None
    assert type(error) is RuntimeError
    assert str(error).startswith("AttributeError: 'str' object")
    assert "in report" in trace
