"""The project's commands: Kedro's own ``run``, and others, with a person's mistakes told in one line."""

from __future__ import annotations

from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import settings
from kedro.pipeline import Pipeline

from cvl_pipeline.errors import InputError, causes, unknown_name
from cvl_pipeline.launch import TrainingError
from cvl_pipeline.pipeline_registry import register_pipelines, register_stages
from cvl_pipeline.provenance.states import Provenance
from cvl_pipeline.provenance.status import print_status


@click.group(name=__file__)
def cli() -> None:
    """Command line of cvl-pipeline."""


class _Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            self.check(ctx.params)
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

    def check(self, options: dict[str, Any]) -> None:
        """Raise InputError if an option names what does not exist."""
        _check("pipeline", options["pipelines"] or [], list(register_pipelines()))


class _Run(_Command):
    def check(self, options: dict[str, Any]) -> None:
        _check_names(options)


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
        _check(kind, names, known[kind])


def _check(kind: str, names: list[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)


def _raised_by_kedro(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("kedro.")


# Also a name of this module: Kedro's find_run_command looks for it here.
run = _Run("run", params=kedro_run.params, callback=kedro_run.callback, help=kedro_run.help)
cli.add_command(run)


@cli.group()
def artifacts() -> None:
    """What the pipeline has made."""


def _status(env: str, params: dict[str, Any], pipelines: list[str], conf_source: str, explain: bool) -> None:
    """List every artifact as fresh, stale (and why), missing or damaged. Changes nothing.

    Fresh is what a run with the same --env and --params would make again; a run with --only-missing-outputs
    makes the rest.
    """
    known = register_pipelines()
    chosen = sum((known[name] for name in pipelines or ["__default__"]), start=Pipeline([]))
    with settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=params) as session:
        # Of the whole: what was made from a stale artifact of another stage is stale.
        provenance = Provenance(known["__default__"] + chosen, session.load_context().catalog)
        print_status(provenance, chosen.all_outputs(), explain)


_EXPLAIN = click.Option(["--explain"], is_flag=True, help="Say everything that changed: what was, what is.")
_SHARED = [
    option for option in kedro_run.params if option.name in ("env", "params", "pipelines", "conf_source")
]
artifacts.add_command(_Command("status", params=[*_SHARED, _EXPLAIN], callback=_status, help=_status.__doc__))
