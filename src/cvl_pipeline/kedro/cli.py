"""The project's commands: Kedro's own ``run`` and others. They report the user's mistakes in one line."""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import traceback
from collections.abc import Sequence
from copy import copy
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import settings
from kedro.pipeline import Pipeline
from omegaconf import OmegaConf

from cvl_pipeline.errors import TERMINATED, InputError, missing_extra, one_line, printable, unknown_name
from cvl_pipeline.imports import fault_of_user_code
from cvl_pipeline.io.storage import shown
from cvl_pipeline.kedro import silence
from cvl_pipeline.kedro.configuration import CheckedConfigLoader, project_folder, project_loader
from cvl_pipeline.kedro.hooks import check_reward_of
from cvl_pipeline.kedro.mistakes import mistake
from cvl_pipeline.kedro.parameters import RunParameters, check_parameters
from cvl_pipeline.kedro.pipeline_registry import current_plan, plan_for, register_pipelines, register_stages
from cvl_pipeline.kedro.provenance.states import Provenance
from cvl_pipeline.kedro.provenance.status import print_status
from cvl_pipeline.sources import FORMATS
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.tuning.storage import StudyLocation

# Python looks for garbage once more before it exits: more than a second, among all that torch has made.
atexit.register(gc.freeze)


@click.group(name=__file__)
def cli() -> None:
    """Command line of cvl-pipeline."""


class _Command(click.Command):
    """Reports the user's mistakes in one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options; Kedro reads the values of ``--params`` as YAML, which may fail in any way."""
        given = list(args)  # parsing takes them away
        _check_once(self, given)
        try:
            return super().parse_args(ctx, args)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            raise click.ClickException(
                printable(
                    f"--params {_unreadable(given)}cannot be read ({one_line(error)[:200]}); write field=value, with "
                    "commas between, and quotes around a value with braces: field='{task}x'"
                )
            ) from error

    def check(self, options: dict[str, Any]) -> None:
        """Raise InputError if an option is invalid; this one accepts all."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            self.check(ctx.params)
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except Exception as error:
            if os.environ.get("CVL_TRACEBACK"):
                traceback.print_exception(error)
            if (line := mistake(error)) is not None:
                raise click.ClickException(printable(line)) from error
            if isinstance(error, ValueError | KeyError | MissingConfigException) and _raised_by_kedro(error):
                # A tag, a dataset, credentials or an environment that does not exist.
                raise click.ClickException(printable(" ".join(str(error.args[0]).split()))) from error
            if isinstance(error, click.exceptions.Exit):  # no command of ours ends this way
                raise click.ClickException(
                    f"the command ended before it was done ({one_line(error)})"
                ) from error
            raise
        except SystemExit as error:
            if error.code == TERMINATED:
                raise
            raise click.ClickException(printable(str(fault_of_user_code(error)))) from error
        finally:
            silence.end()


def _unreadable(args: list[str]) -> str:
    """Return the first field=value among the arguments that cannot be read, with a blank; empty if none is it."""
    items = (item for arg in args for item in arg.removeprefix("--params=").split(","))
    return next((f"{item} " for item in items if not _readable(item)), "")


def _readable(item: str) -> bool:
    try:
        OmegaConf.from_dotlist([item])
    except Exception:  # of YAML, or of OmegaConf's own grammar
        return False
    return True


class _AboutPipelines(_Command):
    """Lets the pipelines follow the parameters, and refuses names that do not exist."""

    def check(self, options: dict[str, Any]) -> None:
        silence.begin(silence.START, "loading libraries, which takes longest the first time")
        parameters = _follow(options)
        asked = _asked_names(options)
        _check_evaluates(parameters, asked)
        _check_names(asked)


def _follow(options: dict[str, Any]) -> RunParameters:
    """Let the pipelines follow the parameters that the options give; return these."""
    env = options.get("env") or os.environ.get("KEDRO_ENV")  # as Kedro's session does
    loader = project_loader(env, options.get("params") or {}, conf_source=options.get("conf_source"))
    parameters: RunParameters = loader.run_parameters()
    plan_for(parameters)
    return parameters


def _check_evaluates(parameters: RunParameters, asked: dict[str, list[str]]) -> None:
    """Raise InputError if an option asks for the evaluation and no environment is known."""
    nodes = {node.name for node in register_stages()["evaluation"].nodes}  # the page, if policies are judged
    names = [name for group in asked.values() for name in group if name not in nodes]
    if not current_plan().evaluates and any(name.partition(".")[0] == "evaluation" for name in names):
        environment_for(parameters.dataset, parameters.evaluation)  # says why there is none


RENAMED_NODES = {
    "policy_extraction.extract": "policy_extraction.train_cvl",
    "policy_extraction.clone": "policy_extraction.train_bc",
    "evaluation.roll_out": "evaluation.roll_out_cvl",
    "evaluation.score": "evaluation.score_cvl",
}
"""New names of old nodes, for error messages."""


def _asked_names(options: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names that the options have, by their kind."""
    return {
        "pipeline": [*(options["pipelines"] or []), *filter(None, [options.get("pipeline")])],
        "node": [
            name for option in ("node_names", "from_nodes", "to_nodes") for name in options.get(option, ())
        ],
        "namespace": list(options.get("namespaces") or []),
        "tag": list(options.get("tags") or []),
    }


def _check_names(asked: dict[str, list[str]]) -> None:
    """Raise InputError if a pipeline, a node, a stage or a tag does not exist."""
    pipelines = register_pipelines()
    nodes = {node for pipeline in pipelines.values() for node in pipeline.nodes}
    known = {
        "pipeline": list(pipelines),
        "node": sorted(node.name for node in nodes),
        "namespace": [name for name in pipelines if name != "__default__"],
        "tag": sorted({tag for node in nodes for tag in node.tags}),
    }
    for kind, names in asked.items():
        for name in names:
            if name in RENAMED_NODES:
                raise InputError(f"node '{name}' is now '{RENAMED_NODES[name]}'")
            if name not in known[kind]:
                raise unknown_name(kind, name, known[kind])


def _raised_by_kedro(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("kedro.")


def _check_once(command: click.Command, args: Sequence[str]) -> None:
    """Raise UsageError for an option, or a key of --params, that is given twice: the last one would count alone."""
    options = [each for each in command.params if isinstance(each, click.Option) and not each.multiple]
    names = {name: option.opts[-1] for option in options for name in option.opts}
    found: set[str] = set()
    for place, argument in enumerate(args):
        if argument == "--":
            break
        given, _, value = argument.partition("=")
        name = names.get(given)
        if name is None:
            continue
        if name in found:
            raise click.UsageError(
                printable(f"{given} is given twice, and only the last would count; give it once")
            )
        found.add(name)
        if name == "--params":
            _check_keys_once(value if "=" in argument else "".join(args[place + 1 : place + 2]))


def _check_keys_once(params: str) -> None:
    """Raise UsageError for a key that ``--params`` has twice, as itself or as a part of another one, or for no key."""
    for part in params.split(",") if params.strip() else ():
        if part.strip() and "=" not in part:
            raise click.UsageError(
                printable(
                    f"--params: '{part.strip()}' is no field=value; a comma ends a field, so write several values with "
                    'blanks between: --params "dataset.action_low=-1 -1"'
                )
            )
    keys = [key.strip() for key, sign, _ in (part.partition("=") for part in params.split(",")) if sign]
    for place, key in enumerate(keys):
        for other in keys[:place]:
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                both = key if key == other else f"{other} and {key}"
                raise click.UsageError(printable(f"--params sets {both} twice; write it once"))


HELP = {
    "params": "Parameters for this run: field=value, with commas between, such as seed=1,dataset.task=reach-v3.",
    "tags": "Tags of the nodes that run, with commas between.",
    "runner": "SequentialRunner, which runs one node after another, or ThreadRunner, which runs independent nodes "
    "side by side. By default, baselines run in a second process beside the other nodes if there are two cores.",
}
"""Help of options that differs from Kedro's, whose words do not hold here."""


def _with_own_help(option: click.Parameter) -> click.Parameter:
    """Return the option, with help and a default of this project's own."""
    if option.name in HELP and isinstance(option, click.Option):
        option = copy(option)
        option.help = HELP[option.name]
        if option.name == "runner":
            option.default = "cvl_pipeline.kedro.runner.BesideRunner"
    return option


# Also a name of this module: Kedro's find_run_command looks for it here.
run = _AboutPipelines(
    "run",
    params=[_with_own_help(option) for option in kedro_run.params],
    callback=kedro_run.callback,
    help=kedro_run.help,
)
cli.add_command(run)


class _Fleet(_Command):
    """Refuses what a fleet cannot do before anything runs."""

    def check(self, options: dict[str, Any]) -> None:
        from cvl_pipeline.dynamics.fleet import check_fleet
        from cvl_pipeline.kedro.fleet import seeds_of

        if "seed" in options["params"]:
            raise InputError("--params seed=... does not go with --seeds; name all seeds there")
        options["seeds"] = seeds_of(options["seeds"])
        check_fleet(_follow(options).contrastive_dynamics)


def _fleet(seeds: list[int], env: str | None, params: dict[str, Any], conf_source: str | None) -> None:
    """Run the pipeline for several seeds, and train their critics as one.

    It makes the missing and stale artifacts of every seed, as kedro run --only-missing-outputs does. On a GPU, many
    critics train in the time of a few. See docs/training.md.
    """
    from cvl_pipeline.kedro.fleet import run_fleet

    run_fleet(seeds, env, params, conf_source)


_SEEDS = click.Option(["--seeds"], required=True, help="Such as 0-15, or 0-3,8.")
cli.add_command(
    _Fleet(
        "fleet",
        params=[
            _SEEDS,
            *(part for part in kedro_run.params if part.name in ("env", "params", "conf_source")),
        ],
        callback=_fleet,
        help=_fleet.__doc__,
    )
)


class _Tuning(_Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:
            raise click.ClickException(str(missing_extra("tuning", error))) from error


@cli.group()
def tuning() -> None:
    """Studies that ``kedro run --pipelines tuning`` runs."""


def _which_study(command: Any) -> Any:
    """Add the options that choose a study, the same as those of the run."""
    of_run = {option.name: option for option in kedro_run.params}
    params = click.option(
        "--params", default="", callback=of_run["params"].callback, help="Such as dataset.task=push-v3."
    )
    source = click.option(
        "--conf-source", callback=of_run["conf_source"].callback, help="Folder of the configuration."
    )
    return click.option("--env", "-e", help="Folder of conf/.")(params(source(command)))


@tuning.command(cls=_Tuning)
@_which_study
def status(env: str | None, params: dict[str, Any], conf_source: str | None) -> None:
    """Print how many trials there are, and the best."""
    from cvl_pipeline.tuning.results import status_lines
    from cvl_pipeline.tuning.study import find_study

    location, parameters = _study_in_force(env, params, conf_source)
    study = find_study(location, parameters, parameters.tuning)
    for line in status_lines(study, parameters.tuning):
        click.echo(line)


@tuning.command(cls=_Tuning)
@_which_study
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=int)
def dashboard(env: str | None, params: dict[str, Any], conf_source: str | None, host: str, port: int) -> None:
    """Open optuna-dashboard on the study's storage, while it runs or afterwards."""
    from optuna_dashboard import run_server

    from cvl_pipeline.tuning.storage import open_storage
    from cvl_pipeline.tuning.study import find_study

    location, parameters = _study_in_force(env, params, conf_source)
    study = find_study(location, parameters, parameters.tuning)
    click.echo(f"http://{host}:{port}/ shows '{study.study_name}'; Ctrl+C ends it")
    run_server(open_storage(location), host=host, port=port)


def _study_in_force(
    env: str | None, params: dict[str, Any], conf_source: str | None
) -> tuple[StudyLocation, RunParameters]:
    """Return the storage of the study of the parameters, and these."""
    with settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=params) as session:
        loader = session.load_context().config_loader
        assert isinstance(loader, CheckedConfigLoader)  # of the project's settings
        return loader.study()[0], loader.run_parameters()


@cli.group()
def artifacts() -> None:
    """Artifacts that the pipeline makes."""


def _status(env: str, params: dict[str, Any], pipelines: list[str], conf_source: str, explain: bool) -> None:
    """List every artifact as fresh, stale (and why), missing or damaged. Changes nothing.

    An artifact is fresh if a run with the same --env and --params would make it again. A run with
    --only-missing-outputs makes all others.
    """
    with settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=params) as session:
        catalog = session.load_context().catalog
        known = register_pipelines()
        chosen = sum((known[name] for name in pipelines or ["__default__"]), start=Pipeline([]))
        # All pipelines: an artifact is stale too if it was made from a stale artifact of another stage.
        provenance = Provenance(known["__default__"] + chosen, catalog)
        refusal: InputError | None = None
        try:
            check_reward_of(check_parameters(catalog.load("parameters")))
        except InputError as error:  # the states are listed all the same
            refusal = error
        print_status(provenance, chosen.all_outputs(), explain, refusal, pipelines)


@cli.group()
def parameters() -> None:
    """The references of parameters and commands."""


@parameters.command(cls=_Command)
def write() -> None:
    """Write docs/parameters.md, docs/commands.md and conf/parameters.schema.json from the code."""
    from cvl_pipeline.kedro.reference import write_reference

    for path in write_reference(project_folder()):
        click.echo(f"wrote {shown(path)}")


_EXPLAIN = click.Option(["--explain"], is_flag=True, help="Show everything that changed: old and new values.")
_SHARED = [
    option for option in kedro_run.params if option.name in ("env", "params", "pipelines", "conf_source")
]
artifacts.add_command(
    _AboutPipelines("status", params=[*_SHARED, _EXPLAIN], callback=_status, help=_status.__doc__)
)


def _export(
    env: str | None, params: dict[str, Any], conf_source: str | None, form: str, out: str, **options: Any
) -> None:
    """Write the ingested episodes in another format, and print the parameters that read them again."""
    from cvl_pipeline.kedro.export import export_command
    from cvl_pipeline.suites.plan import params_option

    place, parameters = export_command(env, params, conf_source, form, out, **options)
    click.echo(f"wrote {shown(place)}; to read it:")
    values = params_option(parameters)
    click.echo(shlex.join(["kedro", "run", "--params", values]))


cli.add_command(
    _Command(
        "export-dataset",
        params=[
            *(option for option in kedro_run.params if option.name in ("env", "params", "conf_source")),
            click.Option(["--format", "form"], required=True, type=click.Choice(FORMATS)),
            click.Option(
                ["--out"],
                required=True,
                help="New file (hdf5), new folder (lerobot), or the folder of Minari's datasets.",
            ),
            click.Option(
                ["--name"],
                help="minari: id of the dataset, such as mine/door-v0. lerobot: text of the only task.",
            ),
            click.Option(
                ["--fps", "rate"],
                type=click.IntRange(1, 10000),
                help="lerobot: steps per second (default: 10).",
            ),
            click.Option(
                ["--videos"], is_flag=True, default=None, help="lerobot: AV1 videos instead of exact images."
            ),
        ],
        callback=_export,
        help=_export.__doc__,
    )
)


class _Suite(_Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ImportError as error:
            raise click.ClickException(str(missing_extra("suites", error))) from error


@cli.group()
def suite() -> None:
    """Many runs that compare methods, see docs/suites.md."""


def _words(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    return None if value is None else value.replace(",", " ")


def _which_suite(command: Any) -> Any:
    """Add the argument and options that choose a suite."""
    of_run = {option.name: option for option in kedro_run.params}
    params = click.option(
        "--params", default="", callback=of_run["params"].callback, help="More parameters, as of kedro run."
    )
    options = [
        click.argument("name"),
        click.option("--set", "axes", help="One of the sets of the file (default: the first)."),
        click.option("--tasks", callback=_words, help="Instead of those of the file."),
        click.option("--datasets", callback=_words, help="Some of those of the file, by their labels."),
        click.option("--presets", callback=_words, help="Instead of those of the file."),
        click.option("--seeds", callback=_words, help="Instead of those of the file, such as 0,1,2."),
        click.option("--methods", callback=_words, help="Instead of those of the file."),
        click.option("--budget", type=float, help="Factor of all gradient steps, such as 0.1 or 10."),
        click.option("--env", "-e", help="Folder of conf/ with other settings, such as smoke."),
        params,
        click.option("--data-root", help="Folder or URL of the data of all runs."),
        click.option("--records", help="Folder or URL of the records and the report."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@suite.command("run", cls=_Suite)
@_which_suite
@click.option("--jobs", type=click.IntRange(1), help="Runs at once (default: one for each GPU, or core).")
@click.option("--threads", type=click.IntRange(1), help="Cores of a run (default: an equal share).")
@click.option("--scheduler", help="Address of a Dask scheduler, whose workers run the units.")
@click.option("--delete-data", is_flag=True, help="Delete the data of a cell when it has a record.")
def run_suite(**options: Any) -> None:
    """Run the units of a suite that are not finished yet, then write the report. The same command goes on."""
    from cvl_pipeline.kedro.suites import run_command

    if failed := run_command(**options):
        raise InputError(
            f"{len(failed)} units failed ({', '.join(failed)}); the same command tries them again, and kedro suite "
            f"status {options['name']} says why"
        )


@suite.command("status", cls=_Suite)
@_which_suite
def suite_status(**options: Any) -> None:
    """Print how many units are done, which run, which failed and why."""
    from cvl_pipeline.kedro.suites import status_command

    for line in status_command(**options):
        click.echo(line)


@suite.command("report", cls=_Suite)
@_which_suite
def suite_report(**options: Any) -> None:
    """Write the report from the records at hand."""
    from cvl_pipeline.kedro.suites import report_command

    click.echo(report_command(**options))


@suite.command("cancel", cls=_Suite)
@_which_suite
def suite_cancel(**options: Any) -> None:
    """End a running suite. Its units save their training; kedro suite run goes on."""
    from cvl_pipeline.kedro.suites import cancel_command

    click.echo(cancel_command(**options))
