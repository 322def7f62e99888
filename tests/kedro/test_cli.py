from __future__ import annotations

import errno
import os
from typing import Any

import click
import pytest
from click.testing import CliRunner
from kedro.framework.cli.project import run as kedro_run
from kedro.io import DatasetError

from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.cli import _Run, cli


def _run_that_raises(error: BaseException) -> click.Command:
    def callback(**_: Any) -> None:
        raise error

    return _Run("run", params=kedro_run.params, callback=callback)


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


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("explicit", [True, False])
def test_what_the_person_got_wrong_is_told_in_one_line(depth: int, explicit: bool) -> None:
    error: Exception = InputError("x.json is damaged; delete it")
    for _ in range(depth):
        error = _wrapped(error, explicit)
    result = CliRunner().invoke(_run_that_raises(error), [])
    assert result.exit_code == 1
    assert result.output == "Error: x.json is damaged; delete it\n"


def test_a_message_is_one_line_whatever_is_in_it() -> None:
    result = CliRunner().invoke(_run_that_raises(InputError("a\nfile\x1b[2J is damaged")), [])
    assert result.output == "Error: a file\\x1b[2J is damaged\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_takes_no_more_is_no_defect(number: int) -> None:
    error = _wrapped(OSError(number, os.strerror(number), "logs/events"), explicit=True)
    result = CliRunner().invoke(_run_that_raises(error), [])
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot write logs/events: ")
    assert result.output.count("\n") == 1


def test_a_defect_keeps_its_traceback() -> None:
    result = CliRunner().invoke(_run_that_raises(KeyError("a defect")), [])
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pipelines", "data_ingest"], "unknown pipeline 'data_ingest': did you mean data_ingestion?"),
        (["--nodes", "evaluation.rollout"], "did you mean evaluation.roll_out"),
        (["--from-nodes", "evaluation.rollout"], "did you mean evaluation.roll_out"),
        (["--namespaces", "evaluaton"], "unknown namespace 'evaluaton': did you mean evaluation?"),
    ],
)
def test_a_pipeline_or_node_that_does_not_exist_is_refused_with_a_near_one(
    options: list[str], message: str
) -> None:
    result = CliRunner().invoke(cli, ["run", *options])
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_training_that_diverged_is_told_in_one_line() -> None:
    result = CliRunner().invoke(_run_that_raises(FloatingPointError("the loss became nan")), [])
    assert result.exit_code == 1
    assert result.output == "Error: the loss became nan\n"


def test_the_status_of_a_pipeline_that_does_not_exist_is_refused_with_a_near_one() -> None:
    result = CliRunner().invoke(cli, ["artifacts", "status", "--pipelines", "data_ingest"])
    assert result.exit_code == 1
    assert result.output == "Error: unknown pipeline 'data_ingest': did you mean data_ingestion?\n"
