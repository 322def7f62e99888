"""The project's ``kedro run``: Kedro's own, with a person's mistakes told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run

from cvl_pipeline.errors import InputError, causes, printable, unknown_name
from cvl_pipeline.launch import TrainingError
from cvl_pipeline.pipeline_registry import register_pipelines, register_stages
from cvl_pipeline.storage import FULL, REFUSED, refusal, shown


@click.group(name=__file__)
def cli() -> None:
    """Command line of cvl-pipeline."""


class _Run(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            _check_names(ctx.params)
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except Exception as error:
            for cause in causes(error):
                # Training that diverged, or lost a process, is told to a person too.
                if isinstance(cause, InputError | FloatingPointError | TrainingError):
                    raise click.ClickException(printable(str(cause))) from error
                if isinstance(cause, OSError) and cause.errno in (*FULL, *REFUSED):
                    # Of a file that is no artifact, such as a log.
                    place = shown(Path(cause.filename)) if cause.filename else "a file"
                    raise click.ClickException(
                        printable(f"cannot write {place}: {refusal(cause)}")
                    ) from error
            if isinstance(error, ValueError | MissingConfigException) and _raised_by_kedro(error):
                # A tag, a dataset or an environment that does not exist.
                raise click.ClickException(" ".join(str(error).split())) from error
            raise


def _check_names(options: dict[str, Any]) -> None:
    """Raise InputError if an option names a pipeline, a node, a stage or a tag that does not exist."""
    pipelines = register_pipelines()
    known = {
        "pipeline": list(pipelines),
        "node": sorted(node.name for node in pipelines["__default__"].nodes),
        "namespace": list(register_stages()),
        "tag": sorted({tag for node in pipelines["__default__"].nodes for tag in node.tags}),
    }
    asked = {
        "pipeline": [*(options["pipelines"] or []), *filter(None, [options["pipeline"]])],
        "node": [*options["node_names"], *options["from_nodes"], *options["to_nodes"]],
        "namespace": options["namespaces"] or [],
        "tag": options["tags"] or [],
    }
    for kind, names in asked.items():
        for name in names:
            if name not in known[kind]:
                raise unknown_name(kind, name, known[kind])


def _raised_by_kedro(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("kedro.")


# Also a name of this module: Kedro's find_run_command looks for it here.
run = _Run("run", params=kedro_run.params, callback=kedro_run.callback, help=kedro_run.help)
cli.add_command(run)
