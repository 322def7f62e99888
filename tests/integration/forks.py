"""Kedro commands in forks of one process, which has imported the slow libraries but not the project.

Each line of standard input requests a command, and each line of standard output reports its exit status.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOW = (
    "torch", "lightning", "pandas", "scipy.stats", "matplotlib.figure", "gymnasium", "h5py",
    "pyarrow.parquet", "pydantic", "kedro.framework.cli.cli", "kedro.framework.session", "kedro.runner",
    "kedro.io", "kedro_datasets.pandas.parquet_dataset", "kedro_datasets.matplotlib.matplotlib_dataset",
)  # fmt: skip


def plan() -> None:
    """Let Kedro choose the nodes, and print them instead of running them."""
    from cvl_pipeline.kedro.runner import BesideRunner

    def report(self: Any, pipeline: Any, *_: Any) -> None:
        print("PLAN", *sorted(node.name for node in pipeline.nodes), flush=True)  # noqa: T201
        os._exit(0)  # SystemExit within a run is reported as an error

    BesideRunner._run = report  # type: ignore[method-assign, assignment]


def die_at_record(number: int) -> None:
    """Exit like kill -9 before writing the record with that number."""
    from cvl_pipeline.kedro.provenance import states

    write, count = vars(states)["write_record"], 0

    def counted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            os._exit(137)
        write(*arguments)

    vars(states)["write_record"] = counted


def on_python_path(folder: str) -> None:
    """Let modules be imported from a folder of the project."""
    sys.path.insert(0, str(Path(folder).resolve()))


CHANGES: dict[str, Callable[..., None]] = {
    "plan": plan,
    "die_at_record": die_at_record,
    "on_python_path": on_python_path,
}


def _command(root: str, arguments: list[str], output: str, changes: dict[str, list[Any]]) -> int:
    os.chdir(root)
    sys.path.insert(0, str(Path(root, "src")))
    sys.argv = ["kedro", *arguments]
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        from kedro.framework.cli.cli import main

        from cvl_pipeline.kedro import silence

        silence.PATIENCE = 3600.0  # what a busy machine takes long for is not what these tests are about
        for name, values in changes.items():
            CHANGES[name](*values)
        main()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    for module in SLOW:
        __import__(module)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            status = _command(**asked)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


if __name__ == "__main__":
    _serve()
