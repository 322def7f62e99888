"""The README and docs: their programs run, their commands parse, their English is plain."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import cvl_pipeline as cvl
from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro import cli
from cvl_pipeline.testing.builders import names_in
from tests.project import PROJECT, copy_conf

PAGES = sorted([PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").rglob("*.md")])
RIDDLES = (
    "what follows from another reward",
    "are not Optuna's heartbeats' to end",
    "one named after the reward inside it for any other",
    "a copy that is not of that",
    "Without torchrun's help",
    "names can lead to no path",
    "where that cannot be asked",
    "they cannot carry the critic's temperature",
    "A trial was over before its result was told",
    "behaviour that went elsewhere",
    "Nothing is drawn yet",
    "is told in one line",
    "What killed runs left is removed",
    "is taken up where it was",
    "What had not been saved is trained again",
    "made anew",
    "told apart",
)
"""Wordings that readers had to read twice; each has been replaced by a plain sentence."""


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def _commands(page: Path) -> list[list[str]]:
    """The arguments of every ``kedro run`` of a page."""
    lines = [line for block in _blocks(page, "bash") for line in block.replace("\\\n", "").splitlines()]
    commands = []
    for words in (shlex.split(line, comments=True) for line in lines):
        places = [i for i, word in enumerate(words) if Path(word).name == "kedro" and words[i + 1] == "run"]
        commands += [[word for word in words[i + 2 :] if word != "&"] for i in places]
    return commands


COMMANDS = [(page, command) for page in PAGES for command in _commands(page)]


def test_the_program_of_the_page_on_reports_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = _blocks(PROJECT / "docs/report.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert names_in(tmp_path) == ["plotly.min.js", "suite.html"]
    assert "12 of 12 runs are there." in Path("suite.html").read_text()


def test_the_program_of_the_readme_trains_and_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = next(block for block in _blocks(PROJECT / "README.md", "python") if "extract_policy" in block)
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    generator = np.random.default_rng(0)
    steps = np.arange(400)
    np.savez(
        tmp_path / "log.npz",
        observations=generator.normal(size=(400, 3)),
        actions=generator.uniform(-1.0, 1.0, size=(400, 2)),
        rewards=generator.normal(size=400),
        truncated=steps % 20 == 19,
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program, names)
    action = names["action"]
    assert isinstance(action, np.ndarray)
    assert action.shape == (2,)
    assert action.dtype == np.float32
    assert (np.abs(action) <= 1.0).all()


def test_the_readme_reads_a_csv_by_the_names_of_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = next(
        block for block in _blocks(PROJECT / "README.md", "python") if "episodes_from_file" in block
    )
    rows = [f"{t},{-t},{t % 3},{t % 2},{t // 5}" for t in range(20)]
    (tmp_path / "log.csv").write_text("\n".join(["obs_0,obs_1,torque,reward,run", *rows]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"cvl": cvl}
    exec(program, names)
    assert names["data"].transitions.lengths.tolist() == [4, 4, 4, 4]  # each loses its last step


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 20
    assert {page.name for page, _ in COMMANDS} >= {"README.md", "own-data.md", "training.md", "studies.md"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the environment that docs/own-data.md describes."""
    root = tmp_path_factory.mktemp("docs")
    conf = copy_conf(root)
    example = yaml.safe_load(_blocks(PROJECT / "docs/own-data.md", "yaml")[0])
    (conf / "robot").mkdir()
    (conf / "robot/parameters.yml").write_text(yaml.safe_dump(example))
    (root / "my_rewards.py").write_text(
        "def fast(observations, actions, following):\n    return following[:, 3]\n"
    )
    return root


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{page.name}-{index}" for index, (page, _) in enumerate(COMMANDS)]
)
def test_commands_are_accepted_as_printed(
    page: Path, command: list[str], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, names and parameters of every ``kedro run`` are valid; nothing is run."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.syspath_prepend(PROJECT / "examples")
    context = cli.run.make_context("run", list(command))
    if "tuned=true" in " ".join(command):
        with pytest.raises(InputError, match=r"^tuned=true, but .* does not exist: search first"):
            cli.run.check(context.params)
    else:
        cli.run.check(context.params)


def test_the_english_is_plain() -> None:
    texts = [*PAGES, *(PROJECT / "src").rglob("*.py"), *(PROJECT / "conf").rglob("*.yml")]
    for path in texts:
        text = " ".join(path.read_text().split())
        for riddle in RIDDLES:
            assert riddle not in text, (path.relative_to(PROJECT), riddle)
