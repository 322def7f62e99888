"""Run the notebooks and write them back with their outputs: ``make notebooks``.

Outputs are kept as plain text, tables and pictures, so that every viewer shows them, and differ as little as possible
between machines: Rich's coloured HTML becomes text, and time stamps and widths do not depend on the terminal.
"""

from __future__ import annotations

import argparse
import base64
import re
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

from cvl_pipeline.io.storage import write_atomically

FOLDER = Path(__file__).parent
LARGEST = 300_000
"""Bytes of a notebook, with its pictures."""
_MACHINE_PATH = re.compile(
    r"(?<![\w.:/<])/(?:home|root|tmp|work|usr|opt|mnt|var|Users|private)/[\w.-]+|[A-Z]:\\\\"
)
_TERMINAL_CODE = re.compile(r"\x1b(?:\[[?0-9;]*[a-zA-Z]|\]8;[^\x1b]*\x1b\\)")
_OVERWRITTEN = re.compile(r"[^\n]*\r(?!\n)")
"""Earlier states of a progress bar."""


def execute(path: Path, folder: Path | None = None, timeout: int = 1800) -> NotebookNode:
    """Run a notebook from top to bottom, and return it with tidy outputs.

    Args:
        path: the notebook; its file stays as it is.
        folder: in which its kernel starts; None: the notebook's own.
        timeout: seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    resources = {"metadata": {"path": str(folder or path.parent)}}
    NotebookClient(notebook, timeout=timeout, record_timing=False, resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def machine_paths(notebook: NotebookNode) -> list[str]:
    """Absolute paths of a machine, in the cells or outputs of a notebook."""
    return _MACHINE_PATH.findall(nbformat.writes(notebook))  # type: ignore[no-untyped-call]


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook atomically.

    Raises:
        ValueError: an output has the path of a file on this machine, or the notebook is too large.
    """
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    if paths := machine_paths(notebook):
        raise ValueError(
            f"{path.name}: an output has the path '{paths[0]}' of this machine; print relative paths"
        )
    if len(text) > LARGEST:
        raise ValueError(f"{path.name}: {len(text)} bytes are more than {LARGEST}; make its pictures smaller")
    write_atomically(path, lambda unfinished: unfinished.write_text(text + "\n"))


def _tidy(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Turn Rich's HTML into text, join texts that follow each other, and remove empty outputs."""
    joined: list[NotebookNode] = []
    for output in outputs:
        data = output.get("data", {})
        if data.get("text/html", "").startswith("<pre"):  # Rich's
            del data["text/html"]
        if "text/plain" in data:
            data["text/plain"] = _plain(data["text/plain"])
        if "image/png" in data:
            data["image/png"] = _smaller(data["image/png"])
        if output.output_type == "display_data" and list(data) == ["text/plain"]:
            output = nbformat.v4.new_output("stream", name="stdout", text=data["text/plain"])  # type: ignore[no-untyped-call]
        before = joined[-1] if joined else {}
        if output.output_type == "stream" and before.get("name") == output.name:
            before["text"] += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = _plain(output.text)
    return [output for output in joined if output.get("text", "text").strip()]


def _smaller(picture: str) -> str:
    """A PNG of at most 128 colours, which a chart does not miss; base64 to base64."""
    colours = Image.open(BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128)
    content = BytesIO()
    colours.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _plain(text: str) -> str:
    text = _OVERWRITTEN.sub("", _TERMINAL_CODE.sub("", text))
    lines = (line.rstrip() for line in text.split("\n"))
    return "\n".join(lines)


def main() -> None:
    """Run the notebooks that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description="Run notebooks and write them back with their outputs.")
    parser.add_argument("names", nargs="*", help="such as quick_start; none: all")
    names = parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        write(execute(path), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
