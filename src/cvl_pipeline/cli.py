"""The project's ``kedro run``: Kedro's own, with a person's mistakes told in one line."""

from __future__ import annotations

from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run

from cvl_pipeline.errors import InputError, causes, unknown_name
from cvl_pipeline.launch import TrainingError
from cvl_pipeline.pipeline_registry import register_pipelines


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
                    raise click.ClickException(str(cause)) from error
            if isinstance(error, ValueError | MissingConfigException) and _raised_by_kedro(error):
                # A tag, a dataset or an environment that does not exist.
                raise click.ClickException(" ".join(str(error).split())) from error
            raise


def _check_names(options: dict[str, Any]) -> None:
    """Raise InputError if an option names a pipeline, a node, a stage or a tag that does not exist."""
    pipelines = register_pipelines()
    nodes = {node for pipeline in pipelines.values() for node in pipeline.nodes}
    known = {
        "pipeline": list(pipelines),
        "node": sorted(node.name for node in nodes),
        "namespace": [name for name in pipelines if name != "__default__"],
        "tag": sorted({tag for node in nodes for tag in node.tags}),
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
