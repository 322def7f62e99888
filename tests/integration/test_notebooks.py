"""The notebooks: they run unchanged, at small size, and are stored with outputs that every reader can see."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from notebooks.execute import LARGEST, execute, machine_paths, write

from tests.integration.conftest import copy_project
from tests.project import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LONG = ("catalog", "reading_a_report")
"""They run the pipeline, which other tests do, too."""


def _read(path: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def _pictures(notebook: NotebookNode) -> int:
    return sum(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, whose run the notebooks share."""
    root = tmp_path_factory.mktemp("notebooks")
    copy_project(root)
    (root / "notebooks").mkdir()
    results = "benchmarks/results/success.json"
    (root / results).parent.mkdir(parents=True)
    shutil.copy(PROJECT / results, root / results)
    return root


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # jupyter_client leaves sockets open
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ()) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVL_NOTEBOOK_STEPS", "40")
    monkeypatch.setenv("CVL_NOTEBOOK_ENV", "smoke")
    monkeypatch.setenv("IPYTHONDIR", str(project))
    monkeypatch.setenv("PYTHONPATH", str(project / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = execute(path, project / "notebooks", timeout=500)
    assert _pictures(notebook)
    assert machine_paths(notebook) == []


@each
def test_a_stored_notebook_has_its_outputs_and_no_path_of_a_machine(path: Path) -> None:
    notebook = _read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert _pictures(notebook)
    assert machine_paths(notebook) == []
    assert path.stat().st_size <= LARGEST
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@pytest.mark.parametrize(
    "text", ["saved in /home/me/log.h5", "File '/work/x.py'", r"C:\\Users\\me", "/tmp/a"]
)
def test_paths_of_a_machine_and_large_notebooks_are_refused(text: str, tmp_path: Path) -> None:
    output = nbformat.v4.new_output("stream", name="stdout", text=text)  # type: ignore[no-untyped-call]
    cell = nbformat.v4.new_code_cell("1", outputs=[output])  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="of this machine; print relative paths"):
        write(notebook, tmp_path / "a.ipynb")
    output.text = "data/08_reporting/x " * LARGEST
    with pytest.raises(ValueError, match="make its pictures smaller"):
        write(notebook, tmp_path / "a.ipynb")
    assert list(tmp_path.iterdir()) == []


def test_the_page_on_notebooks_lists_all() -> None:
    page = (PROJECT / "docs/notebooks.md").read_text()
    assert sorted(set(re.findall(r"notebooks/(\w+)\.ipynb", page))) == [path.stem for path in NOTEBOOKS]
