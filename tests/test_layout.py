"""The folders of the project, and the pages that describe them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.kedro.sessions import make_loader
from tests.project import CONF, PROJECT

LAYERS = (
    "01_raw", "02_intermediate", "03_primary", "04_feature", "05_model_input", "06_models",
    "07_model_output", "08_reporting",
)  # fmt: skip
PAGES = [PROJECT / name for name in ("CONTRIBUTING.md", "conf/README.md", "data/README.md")]
PAGES += sorted((PROJECT / "docs/guides").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_lines_of_page_are_short(page: Path) -> None:
    exempt = ("|", "    PYTHONPATH=")  # rows of tables, and commands that you can copy
    assert [
        line for line in page.read_text().splitlines() if len(line) > 120 and not line.startswith(exempt)
    ] == []


def test_data_readme_lists_every_file_of_the_catalog_under_its_layer() -> None:
    text = (PROJECT / "data/README.md").read_text()
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `(\d\d_\w+)` \|.*$", text, re.MULTILINE)}
    assert tuple(rows) == LAYERS
    catalog = make_loader(env="smoke")["catalog"]
    used = set()
    for name, entry in catalog.items():
        _, layer, *_, folder, file = entry["filepath"].split("/")
        if folder.endswith("_exported"):  # a folder is one artifact
            file = f"{folder}/"
        assert f"`{file.replace('{method}', 'cvl')}`" in rows[layer], name
        used.add(layer)
    assert {layer for layer, row in rows.items() if "| empty" in row} == set(LAYERS) - used


def test_conf_readme_lists_every_folder_and_file_in_git() -> None:
    text = (CONF / "README.md").read_text()
    listed = subprocess.run(["git", "ls-files", "."], cwd=CONF, capture_output=True, text=True, check=False)
    for name in {path.partition("/")[0] for path in listed.stdout.split()} - {"README.md"}:
        assert f"| `{name}" in text, name


def _ignored(path: str) -> bool:
    result = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=PROJECT, check=False)
    if result.returncode == 128:
        pytest.skip("no git checkout")
    return result.returncode == 0


def test_git_keeps_the_layers_of_data_and_no_artifact() -> None:
    for path in ("data/README.md", *(f"data/{layer}/.gitkeep" for layer in LAYERS)):
        assert (PROJECT / path).exists()
        assert not _ignored(path), path
    for path in (
        "01_raw/door-open-v3/seed_0/transitions.safetensors", "06_models/.critic.safetensors.made.json",
        "08_reporting/README.md", "01_raw/door-open-v3/.gitkeep", ".cache/file", ".locks/file", "00_own/log.csv",
    ):  # fmt: skip
        assert _ignored(f"data/{path}"), path


def test_git_ignores_credentials_and_local_settings() -> None:
    for path in ("base/credentials.yml", "smoke/credentials_lab.yaml", "local/parameters.yml"):
        assert _ignored(f"conf/{path}"), path
    assert not _ignored("conf/local/.gitkeep")
    assert not _ignored("conf/pointmaze/parameters.yml")
