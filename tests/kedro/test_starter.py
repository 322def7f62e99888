from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import cvl_pipeline
from cvl_pipeline import __main__
from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.starter import LAYERS, SECTION, configuration, write_project
from cvl_pipeline.testing.builders import names_in
from tests.project import CONF, PROJECT


def test_project_has_configuration_settings_of_git_and_folders(tmp_path: Path) -> None:
    assert write_project(tmp_path / "new") == []
    project = tmp_path / "new"
    assert names_in(project / "data") == list(LAYERS)
    assert [name for name in names_in(PROJECT / "data") if name[0].isdigit()] == list(LAYERS)
    for name in ("base/parameters.yml", "suites/quick.yml", "logging.yml", "parameters.schema.json"):
        assert (project / "conf" / name).read_bytes() == (CONF / name).read_bytes()
    assert names_in(project / "conf/local") == [".gitkeep"]
    assert (project / ".telemetry").read_text() == (PROJECT / ".telemetry").read_text().strip() + "\n"
    links = re.findall(r"\]\(([^)]+)\)", (project / "conf/README.md").read_text())
    assert [link for link in links if not (project / "conf" / link).exists()] == []
    # Kedro's section is that of this project.
    sections = [
        tomllib.loads((root / "pyproject.toml").read_text())["tool"]["kedro"] for root in (project, PROJECT)
    ]
    assert {**sections[0], "kedro_init_version": ""} == {**sections[1], "kedro_init_version": ""}
    # What keeps secrets and artifacts out of git here does so there.
    rules = (PROJECT / ".gitignore").read_text().splitlines()
    for line in ("/data/**", "!/data/*/", "!/data/*/.gitkeep", "/conf/local/*", "/conf/**/credentials*"):
        assert line in rules
        assert line in (project / ".gitignore").read_text().splitlines()


def test_files_that_exist_stay_and_pyproject_gets_a_section(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    (tmp_path / "README.md").write_text("mine")
    assert write_project(tmp_path) == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "pyproject.toml").read_text() == f'[project]\nname = "mine"\n\n{SECTION}'


def test_projects_and_settings_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    with pytest.raises(InputError, match=r"conf exists; move it away, or choose another folder"):
        write_project(tmp_path)
    assert names_in(tmp_path) == ["conf"]
    (tmp_path / "pyproject.toml").write_text("[tool.kedro]\n")
    with pytest.raises(InputError, match=r"has a section \[tool\.kedro\]: the folder is a project of Kedro"):
        write_project(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool")
    with pytest.raises(InputError, match=r"pyproject\.toml cannot be read \(.*\); repair it"):
        write_project(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file cannot be written \(Not a directory"):
        write_project(tmp_path / "file")


def test_configuration_of_a_checkout_is_its_own() -> None:
    assert configuration() == CONF


def test_init_is_a_command_and_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cvl", "init"])
    for status, text in ((0, "Wrote the project. To see that everything works: kedro run"), (1, "Error: ")):
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        assert ended.value.code == status
        output = "".join(capsys.readouterr())
        assert text in output
        assert output.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["cvl", "--version"])
    __main__.main()
    assert capsys.readouterr().out == f"cvl-pipeline {cvl_pipeline.__version__}\n"


def test_version_is_that_of_changelog_and_citation() -> None:
    released = re.findall(r"^## \[(\d[\d.]*)\]", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert released[0] == cvl_pipeline.__version__ == citation["version"]
