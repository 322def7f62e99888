from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import configure_project
from kedro.io import DatasetError

from cvl_pipeline.errors import TERMINATED, InputError, missing_extra
from cvl_pipeline.kedro.cli import RENAMED_NODES, _AboutPipelines, _follow, cli
from cvl_pipeline.kedro.pipeline_registry import register_pipelines
from tests.project import CONF, PROJECT, copy_conf


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the project, as Kedro's command line does."""
    monkeypatch.chdir(PROJECT)
    configure_project("cvl_pipeline.kedro")


def _run_that_raises(error: BaseException) -> click.Command:
    def callback(**_: Any) -> None:
        raise error

    return _AboutPipelines("run", params=kedro_run.params, callback=callback)


def _wrapped(error: Exception, explicit: bool) -> Exception:
    """As Kedro (``raise ... from``) and OmegaConf (``raise`` inside ``except``) wrap what they run."""
    try:
        try:
            raise error
        except Exception as cause:
            if explicit:
                raise DatasetError("Failed while loading data from dataset") from cause
            raise DatasetError("Failed while resolving")  # noqa: B904
    except DatasetError as wrapper:
        return wrapper


def _refusal(*arguments: str) -> str:
    """The message of a command that is refused in one line."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code != 0
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1, result.output
    return result.output


@pytest.mark.parametrize(
    "item", ["dataset.name={task}x", "dataset.name={task", "dataset.name=}", "dataset.path=${x"]
)
@pytest.mark.parametrize("option", [["--params"], []])
def test_params_that_cannot_be_read_are_named(item: str, option: list[str]) -> None:
    given = f"seed=1,{item}"
    message = _refusal("run", *([*option, given] if option else [f"--params={given}"]))
    assert message.startswith(f"Error: --params {item} cannot be read")
    assert "quotes around a value with braces" in message


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("explicit", [True, False])
def test_a_users_mistake_is_reported_in_one_line(depth: int, explicit: bool) -> None:
    error: Exception = InputError("x.json is damaged; delete it")
    for _ in range(depth):
        error = _wrapped(error, explicit)
    result = CliRunner().invoke(_run_that_raises(error), [])
    assert result.exit_code == 1
    assert result.output == "Error: x.json is damaged; delete it\n"


def test_a_message_with_line_breaks_and_control_characters_stays_one_line() -> None:
    result = CliRunner().invoke(_run_that_raises(InputError("a\nfile\x1b[2J is damaged")), [])
    assert result.output == "Error: a file\\x1b[2J is damaged\n"


@pytest.mark.parametrize(("number", "verb"), [(errno.ENOSPC, "write"), (errno.EACCES, "read or write")])
def test_a_full_or_read_only_disk_is_reported_in_one_line(number: int, verb: str) -> None:
    error = _wrapped(OSError(number, os.strerror(number), "logs/events"), explicit=True)
    result = CliRunner().invoke(_run_that_raises(error), [])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: cannot {verb} logs/events: ")
    assert result.output.count("\n") == 1


def test_diverged_training_is_reported_in_one_line() -> None:
    result = CliRunner().invoke(_run_that_raises(FloatingPointError("the loss became nan")), [])
    assert result.exit_code == 1
    assert result.output == "Error: the loss became nan\n"


def test_a_defect_keeps_its_traceback() -> None:
    def callback(**_: Any) -> None:
        missing_extra("x", None)  # type: ignore[arg-type]

    result = CliRunner().invoke(_AboutPipelines("run", params=kedro_run.params, callback=callback), [])
    assert isinstance(result.exception, AttributeError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ZeroDivisionError("by zero"), "failed at"),
        (SystemExit(0), "ended Python at"),
        (SystemExit(), "ended Python at"),
        (SystemExit(3), "ended Python at"),
        (click.exceptions.Exit(0), "failed at"),
    ],
)
def test_an_error_of_the_users_own_code_is_one_line_with_its_place(error: BaseException, text: str) -> None:
    result = CliRunner().invoke(_run_that_raises(error), [])
    assert result.exit_code == 1
    assert result.output.startswith("Error: tests.kedro.test_cli:_run_that_raises.<locals>.callback " + text)
    assert "test_cli.py:" in result.output
    assert result.output.count("\n") == 1


def test_a_run_that_sigterm_ends_keeps_its_status() -> None:
    assert CliRunner().invoke(_run_that_raises(SystemExit(TERMINATED)), []).exit_code == TERMINATED


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()])
def test_whatever_else_ends_a_run_is_no_success(error: BaseException) -> None:
    with suppress(GeneratorExit):
        assert CliRunner().invoke(_run_that_raises(error), []).exit_code != 0


def test_the_traceback_of_an_error_is_shown_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVL_TRACEBACK", "1")
    result = CliRunner().invoke(_run_that_raises(ZeroDivisionError("by zero")), [])
    assert "Traceback (most recent call last)" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pipelines", "data_ingest"], "unknown pipeline 'data_ingest': did you mean data_ingestion?"),
        (["--nodes", "evaluation.rollout"], "did you mean evaluation.roll_out_bc or evaluation.roll_out_cvl"),
        (["--from-nodes", "evaluation.rollout"], "did you mean evaluation.roll_out_bc or evaluation.roll_out_cvl"),
        (["--to-nodes", "evaluation.rollout"], "did you mean evaluation.roll_out_bc or evaluation.roll_out_cvl"),
        (["--namespaces", "evaluaton"], "unknown namespace 'evaluaton': did you mean evaluation?"),
        (["--tags", "reporting"], "unknown tag 'reporting': did you mean report"),
        (["--nodes", "policy_extraction.train_iql"], "did you mean policy_extraction.train_cvl"),
        (["--nodes", "policy_extraction.extract"],
         "node 'policy_extraction.extract' is now 'policy_extraction.train_cvl'"),
        (["--from-nodes", "policy_extraction.clone"],
         "node 'policy_extraction.clone' is now 'policy_extraction.train_bc'"),
        (["--to-nodes", "evaluation.roll_out"], "node 'evaluation.roll_out' is now 'evaluation.roll_out_cvl'"),
        (["--nodes", "evaluation.score"], "node 'evaluation.score' is now 'evaluation.score_cvl'"),
    ],
)  # fmt: skip
def test_an_unknown_or_old_name_is_refused_with_the_right_one(options: list[str], message: str) -> None:
    assert message in _refusal("run", *options)


def test_the_status_of_an_unknown_pipeline_is_refused_alike() -> None:
    message = "Error: unknown pipeline 'data_ingest': did you mean data_ingestion?\n"
    assert _refusal("artifacts", "status", "--pipelines", "data_ingest") == message


@pytest.mark.parametrize("old", RENAMED_NODES)
def test_old_node_names_lead_to_nodes_that_exist(old: str) -> None:
    names = {node.name for node in register_pipelines()["__default__"].nodes}
    assert old not in names
    assert RENAMED_NODES[old] in names


def test_nodes_of_a_baseline_exist_where_it_is_in_force() -> None:
    _follow({"params": {"baselines": {"iql": {}}}})
    assert "policy_extraction.train_iql" in {node.name for node in register_pipelines()["__default__"].nodes}


LOG = "dataset.source=files,dataset.path=mine.csv"
NO_ENVIRONMENT = (
    "Error: no environment is known for dataset 'mine.csv' (dataset.source files); name a Gymnasium id in "
    "evaluation.environment to evaluate policies\n"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--pipelines", "evaluation"),
        ("run", "--pipelines", "policy_extraction,evaluation"),
        ("run", "--nodes", "evaluation.plot"),
        ("run", "--to-nodes", "evaluation.summarise"),
        ("run", "--namespaces", "evaluation"),
        ("run", "--tags", "evaluation"),
        ("artifacts", "status", "--pipelines", "evaluation"),
    ],
)
def test_an_evaluation_without_an_environment_is_refused_in_one_line(arguments: tuple[str, ...]) -> None:
    assert _refusal(*arguments, "--params", LOG) == NO_ENVIRONMENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--params", "seed=1", "--params", "dataset.task=reach-v3"], "--params is given twice"),
        (["--params=seed=1", "--params", "tuned=true"], "--params is given twice"),
        (["--tags", "training", "--tags", "report"], "--tags is given twice"),
        (["--env", "smoke", "-e", "robot"], "-e is given twice"),
        (["--params", "seed=1,tuned=true,seed=2"], "--params sets seed twice"),
        (["--params", "dataset.task=a,dataset=2"], "--params sets dataset.task and dataset twice"),
        (["--params", "dataset.action_low=-1,-1"], "-1' is no field=value; a comma ends a field"),
    ],
)
def test_what_is_given_twice_is_refused_because_the_first_would_be_lost(
    options: list[str], message: str
) -> None:
    assert message in _refusal("run", *options)


@pytest.mark.parametrize(
    "params", ["evaluation.environment=...", f"{LOG},evaluation.environment=...", "seed=[1"]
)
def test_params_that_cannot_be_read_are_reported_in_one_line(params: str) -> None:
    """Such as the three dots of an example, pasted as they are."""
    assert "--params" in _refusal("run", "--params", params)


@pytest.mark.parametrize(
    ("variable", "option", "source", "task"),
    [
        ("smoke", None, "metaworld", "reach-v3"),
        ("smoke", "pointmaze", "pointmaze", "PointMaze_Medium-v3"),
        (None, "smoke", "metaworld", "reach-v3"),
    ],
)
def test_pipelines_follow_the_environment_of_the_run(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, option: str | None, source: str, task: str
) -> None:
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    if variable is not None:
        monkeypatch.setenv("KEDRO_ENV", variable)
    dataset: Any = _follow({"conf_source": str(CONF), "env": option}).dataset
    assert (dataset.source, dataset.task) == (source, task)


def test_help_names_the_accepted_runners_alone() -> None:
    text = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "ThreadRunner" in text
    assert "ParallelRunner" not in text


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("artifacts", "status", "--env", "smoke", "--pipelines", "data_ingestion"), "7 artifacts"),
        (("tuning", "status", "--params", "tuning.study=none-such"), f"in {PROJECT}/data/06_models/"),
        (("run", "--pipelines", "data_ingest"), "did you mean data_ingestion?"),
    ],
)
def test_commands_in_a_subfolder_are_those_of_the_project(
    arguments: tuple[str, ...], output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT / "notebooks")
    result = CliRunner().invoke(cli, arguments)
    assert output in result.output
    assert result.exit_code in (0, 1)
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_the_log_of_a_command_in_a_subfolder_is_below_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"params": {"dataset": {"source": "files", "path": "mine.csv"}}}
    before: Any = _follow(options).dataset
    monkeypatch.chdir(PROJECT / "notebooks")
    after: Any = _follow(options).dataset
    assert before.path == "mine.csv"
    assert after.path == str(PROJECT / "mine.csv")
    assert (before.label, before.folder) == (after.label, after.folder)


def test_another_configuration_belongs_to_this_project(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(PROJECT / "notebooks")
    source = str(copy_conf(tmp_path))
    message = f"in {PROJECT}/data/06_models/door-open-v3/tuning/none-such/journal.log: "
    assert message in _refusal(
        "tuning", "status", "--conf-source", source, "--params", "tuning.study=none-such"
    )


@pytest.mark.parametrize(
    ("params", "line"),
    [
        (f"{LOG},dataset.columns.rewards=null", "the log has no rewards: define one with reward.source "),
        ("reward.source=no_such_module:f", "reward.source 'no_such_module:f' cannot be imported "),
    ],
)
def test_the_status_advises_no_run_that_would_be_refused(params: str, line: str) -> None:
    result = CliRunner().invoke(cli, ["artifacts", "status", "--env", "smoke", "--params", params])
    assert result.exit_code == 0
    assert f"\nA run would stop: {line}" in result.output
    assert "--only-missing-outputs" not in result.output


def test_a_wrong_class_is_refused_before_the_run_in_one_line() -> None:
    name = "tests.own:LossTakesNothing"
    message = f"objective '{name}': loss must take (self, drawn), not (self)"
    output = _refusal("run", "--params", f"policy_extraction.objective={name}")
    assert output == f"Error: parameters: 'policy_extraction.objective' is '{name}': {message}\n"
