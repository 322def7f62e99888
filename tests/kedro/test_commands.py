from __future__ import annotations

import shlex
from typing import Any

import click
import pytest
from click.testing import CliRunner
from kedro.framework.cli.utils import _split_params

from cvl_pipeline.kedro.commands import kedro_run, keep_options


def _parsed(command: str) -> tuple[str | None, dict[str, Any]]:
    """Environment and parameters of a command, as Kedro reads them."""
    found: list[tuple[str | None, dict[str, Any]]] = []

    @click.command()
    @click.option("--env")
    @click.option("--params", default="", callback=_split_params)
    def run(env: str | None, params: dict[str, Any]) -> None:
        found.append((env, params))

    words = shlex.split(command)
    assert words[:2] == ["kedro", "run"]
    result = CliRunner().invoke(run, words[2:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (options,) = found
    return options


@pytest.mark.parametrize(
    ("env", "params"),
    [
        (None, {}),
        ("smoke", {}),
        (None, {"seed": 3}),
        ("smoke", {
            "dataset": {"task": "reach-v3", "noise_max": 1e-5, "name": "a b"},
            "baselines": {"bc": None},
            "tuned": True,
            "reward": {"source": "my_rewards:low", "indices": "0 1 2"},
            "contrastive_dynamics": {"training": {"steps": 10}},
        }),
        (None, {"dataset": {"name": "2024", "path": "/a/b # c, d.hdf5"}, "reward": {"name": "null"}}),
        (None, {"dataset": {"name": "{task}-v2", "columns": {"episode": "true"}}}),
    ],
)  # fmt: skip
def test_an_advised_command_has_the_options_of_the_run(env: str | None, params: dict[str, Any]) -> None:
    keep_options(env, params)
    assert _parsed(kedro_run()) == (env, params)
    assert kedro_run("--only-missing-outputs").startswith("kedro run --only-missing-outputs")


def test_options_are_those_of_the_last_run() -> None:
    keep_options("smoke", {"seed": 3})
    keep_options(None, None)
    assert kedro_run("--pipelines", "a,b") == "kedro run --pipelines a,b"


def test_an_advised_command_shows_no_password() -> None:
    keep_options(None, {"data": {"root": "sftp://me:S3CR3T@host/data"}})
    assert kedro_run() == "kedro run --params 'data.root=sftp://me:***@host/data'"


def test_an_advised_command_names_the_same_configuration() -> None:
    keep_options("smoke", {"seed": 1}, "/a folder/conf")
    assert kedro_run("-x") == "kedro run -x --conf-source '/a folder/conf' --env smoke --params seed=1"
