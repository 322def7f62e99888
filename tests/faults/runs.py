"""Runs of the pipeline in a process of their own, forked from one that has imported everything."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tests.project import PROJECT, copy_settings

ENVIRONMENT = "smoke"
LIMIT = 120.0
"""Seconds after which a run counts as hung; undisturbed ones take a few."""
PARAMETERS = ",".join(
    [
        # The smoke environment, smaller still: building simulators takes most of its time. One process each,
        # as a second one, started afresh, would import everything.
        "dataset.episodes=4,dataset.episode_steps=20,data_ingestion.workers=1",
        "data_ingestion.validation_fraction=0.3,evaluation.episodes=2,evaluation.workers=1",
        # Saved on the way, which by time would not happen.
        *(
            f"{stage}.training.steps=40,{stage}.training.checkpoint_steps=20"
            for stage in ("contrastive_dynamics", "policy_extraction")
        ),
    ]
)
OLDER = PARAMETERS + ",dataset.random_max=0.5"
"""Of an earlier run, whose artifacts are others under the same names."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit status, None if it had to be ended, and what it wrote."""

    status: int | None
    output: str
    seconds: float


def command(
    stages: Sequence[str] = (),
    nodes: Sequence[str] = (),
    parameters: str = PARAMETERS,
    reuse: bool = False,
) -> list[str]:
    """Arguments of ``kedro run``: what a person types, and types again after a fault.

    Args:
        stages: to run; none: all.
        nodes: to run; none: all of the stages.
        parameters: those that are not of the smoke environment.
        reuse: run what is stale alone.
    """
    chosen = ["--only-missing-outputs"] if reuse else []
    chosen += ["--pipelines", ",".join(stages)] if stages else []
    chosen += ["--nodes", ",".join(nodes)] if nodes else []
    return [*chosen, "--params", parameters]


def preload() -> None:
    """Import what runs need, so that a fork has it; start no thread."""
    torch.set_num_threads(1)
    os.environ |= {"COLUMNS": "400", "KEDRO_ENV": ENVIRONMENT, "TQDM_DISABLE": "1"}
    os.chdir(PROJECT)  # Kedro takes its configuration of logging from here when it is imported
    for name in (
        "cvl_pipeline.kedro.cli", "cvl_pipeline.kedro.settings", "kedro.framework.session",
        "lightning.pytorch.loggers",
        "matplotlib.backends.backend_agg", "metaworld", "tensorboard.summary.writer.event_file_writer",
        "torch.utils.tensorboard",
    ):  # fmt: skip
        import_module(name)
    from cvl_pipeline.kedro.pipeline_registry import register_pipelines
    from cvl_pipeline.kedro.provenance.code import code_of

    for node in register_pipelines()["__default__"].nodes:
        code_of(node.func)  # kept for the life of the process


def make_project(root: Path) -> Path:
    """A project without data: configuration, and the folder that its code would be in."""
    for name in ("src", "data"):
        (root / name).mkdir(parents=True)
    copy_settings(root)
    return root


def run(
    root: Path,
    arguments: Sequence[str],
    before: Callable[[], None] | None = None,
    ended: tuple[signal.Signals, float] | None = None,
) -> Outcome:
    """Run ``kedro run`` in a project.

    Args:
        root: of the project.
        arguments: of the command.
        before: called in the new process before it begins, to inject a fault.
        ended: a signal to send to it, and after how many seconds.
    """
    output = root / "output"
    output.write_text("")  # a child that is ended at once has none
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(root, list(arguments), before, output)
    status: int | None = None
    while True:
        found, raw = os.waitpid(process, os.WNOHANG)
        if found:
            status = os.waitstatus_to_exitcode(raw)
            break
        seconds = time.monotonic() - start
        if ended is not None and seconds >= ended[1]:
            os.kill(process, ended[0])
            ended = None
        if seconds > LIMIT:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            break
        time.sleep(0.003)
    return Outcome(status, output.read_text(errors="replace"), time.monotonic() - start)


def _child(root: Path, arguments: list[str], before: Callable[[], None] | None, output: Path) -> None:
    """Never returns."""
    status: Any = 1
    try:
        os.setsid()
        os.chdir(root)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        # Whatever a test runner has put in their place.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        from kedro.framework.startup import bootstrap_project

        from cvl_pipeline.kedro.cli import run as kedro_run

        bootstrap_project(root)
        if before is not None:
            before()
        kedro_run.main(args=arguments, prog_name="kedro run")
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
