"""A process beside the run, in which the runner lets the functions of nodes run.

It reads the inputs from the catalog's files and returns the outputs. The run saves them, so hooks, locks and records
stay in one process. Log records and printed text go to the run, whose terminal may show a progress bar.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any

import torch
from kedro.io import DataCatalog
from kedro.pipeline.node import Node

from cvl_pipeline.errors import TERMINATED, InputError, one_line
from cvl_pipeline.io.children import end_with_parent
from cvl_pipeline.kedro.mistakes import mistake
from cvl_pipeline.kedro.workspace import Workspace, workspace
from cvl_pipeline.training.devices import available_cores
from cvl_pipeline.training.launch import TrainingError

WORKERS = "params:evaluation.workers"
"""Number of processes that run episodes. The process beside leaves one core to the run. No result depends on it."""


def threads_beside() -> int:
    """Return torch's threads for a node that may run beside, in either process: half of them."""
    return max(1, torch.get_num_threads() // 2)


class ProcessBeside:
    """A process with half of the threads that runs one node after another.

    The thread that creates it must outlive it: Linux ends a process together with the thread that started it.
    """

    def __init__(self) -> None:
        """Start the process; ``ready`` waits for its imports."""
        # Ctrl+C reaches all processes of a terminal. This one ends when the run ends it, and saves its training. The
        # process inherits the mask of the thread, from its first instruction on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name="beside")
        self.process.start()
        theirs.close()

    def ready(self) -> bool:
        """Wait until it can run nodes; return False if it has ended instead."""
        try:
            self._answer()
        except EOFError:
            return False
        return True

    def run(self, node: Node, catalog: DataCatalog) -> dict[str, Any]:
        """Run the function of a node with its inputs in the catalog; return the outputs.

        Raises:
            InputError: the function failed by a mistake of the user.
            RuntimeError: it failed otherwise.
            TrainingError: the process has ended.
        """
        datasets = {name: catalog.get(name) for name in node.inputs}
        try:
            _send(self._connection, node, datasets, workspace.get())
            outputs, error, trace = self._answer()
        except EOFError:
            self.process.join()
            raise TrainingError(
                f"the process that ran {node.name} beside this one ended early (exit status "
                f"{self.process.exitcode}); run the same command again to resume, with --runner SequentialRunner in "
                "one process"
            ) from None
        if error is not None:
            raise error from RuntimeError(trace)
        result: dict[str, Any] = outputs
        return result

    def __enter__(self) -> ProcessBeside:
        """Return the process."""
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Let the process end, at once after an error, and wait for that."""
        self._connection.close()
        if error is not None:
            self.process.terminate()
        self.process.join()

    def _answer(self) -> tuple[Any, ...]:
        """Return its next answer; log and print until then what it logs and prints."""
        while True:
            kind, *answer = _receive(self._connection)
            if kind == "record":
                logging.getLogger(answer[0].name).handle(answer[0])
            elif kind == "text":
                sys.stdout.write(answer[0])
                sys.stdout.flush()
            else:
                return tuple(answer)


def _send(connection: Connection, *message: Any) -> None:
    """Send a message; raise EOFError if the other process has ended."""
    try:
        # Not as torch's own pickles, whose tensors end with the process that sent them.
        connection.send_bytes(pickle.dumps(message))
    except ConnectionError as error:
        raise EOFError from error


def _receive(connection: Connection) -> Any:
    """Return the next message; raise EOFError if the other process has ended."""
    try:
        message = connection.recv_bytes()
    except ConnectionError as error:
        raise EOFError from error
    return pickle.loads(message)  # noqa: S301  # only these two processes have the pipe


class _Records(QueueHandler):
    """Sends log records to the run."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(EOFError):  # the run was killed; this process saves its training and ends too
            _send(self.queue, "record", record)  # type: ignore[arg-type]


class _Text(io.TextIOBase):
    """Sends printed text to the run."""

    encoding = "utf-8"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, text: str) -> int:
        with suppress(EOFError):
            _send(self._connection, "text", text)
        return len(text)


def _serve(connection: Connection) -> None:
    """Run nodes until the run closes the connection or ends this process."""
    end_with_parent()
    import kedro.framework.project  # noqa: F401  # reads conf/logging.yml

    import cvl_pipeline.training.fit  # noqa: F401  # slow, so until then the run may take the nodes itself

    torch.set_num_threads(threads_beside())
    logging.getLogger().handlers = [_Records(connection)]  # type: ignore[arg-type]
    sys.stdout = _Text(connection)
    with suppress(EOFError):  # the run has ended
        _send(connection, "ready")
        while True:
            _send(connection, "answer", *_answer(*_receive(connection)))


def _answer(node: Node, datasets: dict[str, Any], place: Workspace) -> tuple[Any, ...]:
    """Return the outputs of a node; or the error, in one line if the user made it, and its traceback."""
    workspace.set(place)
    try:
        inputs = {name: dataset.load() for name, dataset in datasets.items()}
        if WORKERS in inputs:
            inputs[WORKERS] = min(inputs[WORKERS] or available_cores(), max(1, available_cores() - 1))
        return node.run(inputs), None, ""
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == TERMINATED:
            raise
        line = mistake(error)
        plain = RuntimeError(one_line(error)) if line is None else InputError(line)
        return None, plain, "".join(traceback.format_exception(error))
