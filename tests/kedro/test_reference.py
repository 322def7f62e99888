from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cvl_pipeline.kedro.parameters import RunParameters
from cvl_pipeline.kedro.reference import (
    COMMANDS,
    PAGE,
    SCHEMA,
    command_page,
    parameter_page,
    parameter_schema,
    write_reference,
)
from cvl_pipeline.schema import flattened
from tests.project import CONF, PROJECT

FILES = sorted(CONF.glob("*/**/parameters*.yml"))
VALIDATOR = jsonschema.validators.validator_for(json.loads(parameter_schema()))(
    json.loads(parameter_schema())
)


def test_the_reference_pages_and_the_schema_are_up_to_date() -> None:
    """If not: ``kedro parameters write``."""
    assert (PROJECT / PAGE).read_text() == parameter_page()
    assert (PROJECT / SCHEMA).read_text() == parameter_schema()
    assert (PROJECT / COMMANDS).read_text() == command_page()


def test_the_files_are_written_into_a_project(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "conf").mkdir()
    assert write_reference(tmp_path) == [tmp_path / PAGE, tmp_path / SCHEMA, tmp_path / COMMANDS]
    assert (tmp_path / PAGE).read_text() == parameter_page()
    assert (tmp_path / SCHEMA).read_text() == parameter_schema()


def test_the_page_lists_every_parameter_with_its_default() -> None:
    page = parameter_page()
    for name, value in flattened(RunParameters().model_dump(mode="json")).items():
        field = name.replace("baselines.bc.", "baselines.<name>.")
        if name.startswith("tuning.space") or field.endswith((".method", ".source", ".objective", ".name")):
            continue
        if value == {}:  # a group without entries
            assert f"`{field}`" in page or f"# {field}\n" in page, name
            continue
        assert f"`{field}`" in page, name
        assert value is None or f"| `{json.dumps(value)}` |" in page, name


def test_the_schema_is_valid_and_describes_each_alternative_once() -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert parameter_schema().count('"title": "ConvolutionalEncoderParameters"') == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_the_schema_accepts_the_parameter_files(path: Path) -> None:
    text = path.read_text()
    VALIDATOR.validate(yaml.safe_load(text) or {})
    (line,) = [line for line in text.splitlines() if line.startswith("# yaml-language-server: $schema=")]
    assert (path.parent / line.partition("=")[2]).resolve() == PROJECT / SCHEMA


def test_the_parameter_files_are_found() -> None:
    assert {path.parent.name for path in FILES} >= {"base", "smoke", "pointmaze"}


@pytest.mark.parametrize(
    "values",
    [
        {"sed": 1},
        {"seed": -1},
        {"seed": "many"},
        {"contrastive_dynamics": {"temperatur": 0.1}},
        {"contrastive_dynamics": {"training": {"steps": 0}}},
        {"evaluation": {"confidence": 2.0}},
        {"value_report": 3},
    ],
)
def test_the_schema_refuses_mistakes(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(values)
