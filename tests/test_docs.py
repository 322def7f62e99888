"""The README and docs: programs run, commands and settings are valid, links lead somewhere, the English is plain."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import yaml
from benchmarks.commands import NOT_HERE, NOTEBOOKS, PAGES, blocks, lines, text_of

import cvl_pipeline as cvl
from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro import cli
from cvl_pipeline.kedro.parameters import RunParameters
from cvl_pipeline.schema import validated
from cvl_pipeline.testing.builders import make_data, make_rewards, make_transitions, names_in
from tests.project import PROJECT, copy_conf

SITE = yaml.safe_load((PROJECT / "mkdocs.yml").read_text())
PROGRAMS = {
    "README.md": ["here"],
    "docs/data.md": ["here"] * 4,
    "docs/deploy.md": ["here", "here", "here"],
    "docs/guides/add-a-baseline.md": ["tests/test_examples.py"] * 2,
    "docs/guides/add-a-source.md": ["tests/test_examples.py"] * 2,
    "docs/guides/add-an-encoder.md": ["tests/test_examples.py"] * 3,
    "docs/guides/add-an-objective.md": ["tests/test_examples.py"] * 2,
    "docs/method.md": ["here"],
    "docs/own-data.md": ["here", "tests/sources/test_own_data.py", "here"],
    "docs/python.md": ["here", "here", "here"],
    "docs/report.md": ["here"],
    "docs/suites.md": ["tests/suites/test_pages.py"] * 2,
}
"""The file of the test that runs each Python block of a page."""
NOT_CHECKED = NOT_HERE | {
    "export SRUN_CPUS_PER_TASK": "SLURM",
    "export MLFLOW_TRACKING_URI": "it changes the reader's shell",
    "export WANDB_MODE": "it changes the reader's shell",
    "mlflow ": "a server, of a package that is not in requirements.lock",
    "tensorboard ": "a server",
    "kedro registry list": "a command of Kedro's own",
}
"""How commands begin that no test checks, and why."""
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


SMALL: dict[str, Any] = {
    "hidden": (8,),
    "training": {"steps": 8, "batch_size": 16, "accelerator": "cpu", "loggers": ()},
}
"""Settings of a training that takes no time."""


def _words(line: str) -> list[str]:
    """A command and its arguments; that of ``make run ARGS=...`` is ``kedro run ...``."""
    words = [word for word in shlex.split(line, comments=True) if word != "&"]
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[:2] == ["make", "run"]:
        words = [
            "kedro",
            "run",
            *(part for word in words[2:] for part in shlex.split(word.removeprefix("ARGS="))),
        ]
    return words


def _commands(page: Path) -> list[list[str]]:
    """The arguments of every ``kedro run`` of a page."""
    commands = [_words(line) for line in lines(page)]
    return [words[2:] for words in commands if words and Path(words[0]).name == "kedro" and words[1] == "run"]


COMMANDS = [(page, command) for page in [*PAGES, *NOTEBOOKS] for command in _commands(page)]


def test_the_program_of_the_page_on_reports_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = blocks(PROJECT / "docs/report.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert names_in(tmp_path) == ["plotly.min.js", "suite.html"]
    assert "12 of 12 runs are there." in Path("suite.html").read_text()


def test_the_program_of_the_readme_trains_and_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = blocks(PROJECT / "README.md", "python")
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
    advice = (
        (PROJECT / "docs/python.md").read_text().partition("For a first try, pass")[2].partition("\n\n")[0]
    )
    training, regression = re.findall(r"`(\w+=\{.*?\})`", advice)
    program = program.replace("train_critic(data", f"train_critic(data, {training}")
    program = program.replace("read_out(critic, data", f"read_out(critic, data, {regression}")
    program = program.replace("policy(critic, readout, data", f"policy(critic, readout, data, {training}")
    assert program.count("steps") == 4
    exec(program, names)
    action = names["action"]
    assert isinstance(action, np.ndarray)
    assert action.shape == (2,)
    assert action.dtype == np.float32
    assert (np.abs(action) <= 1.0).all()


def test_the_page_on_python_has_the_program_of_the_readme() -> None:
    (program,) = blocks(PROJECT / "README.md", "python")
    assert blocks(PROJECT / "docs/python.md", "python")[0] == program


def test_the_page_on_python_reads_a_csv_by_the_names_of_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = next(
        block for block in blocks(PROJECT / "docs/python.md", "python") if "episodes_from_file" in block
    )
    rows = [f"{t},{-t},{t % 3},{t % 2},{t // 5}" for t in range(20)]
    (tmp_path / "log.csv").write_text("\n".join(["obs_0,obs_1,torque,reward,run", *rows]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"cvl": cvl}
    exec(program, names)
    assert names["data"].transitions.lengths.tolist() == [4, 4, 4, 4]  # each loses its last step


def test_the_page_on_python_loads_the_artifacts_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data(make_transitions([30] * 5, [False] * 5), train=4)
    data = data.with_rewards(make_rewards(data.transitions))
    critic, _ = cvl.train_critic(data, **SMALL)
    readout = cvl.read_out(critic, data, regression=None)
    policy, _ = cvl.train_method(data, "bc", **SMALL)
    for name, artifact in (("critic", critic), ("readout", readout), ("cvl_policy", policy)):
        cvl.save(artifact, f"data/06_models/door-open-v3/seed_0/{name}.safetensors")
    names: dict[str, Any] = {}
    exec(blocks(PROJECT / "docs/python.md", "python")[2], names)
    transitions = data.transitions
    assert names["q"](transitions.observations[:7], transitions.actions[:7]).shape == (7,)
    assert names["policy"].act(transitions.observations[0].numpy()).shape == (transitions.actions.shape[1],)


def test_the_program_of_the_page_on_the_method_acts_for_a_goal() -> None:
    (program,) = blocks(PROJECT / "docs/method.md", "python")
    data = make_data(make_transitions([30] * 5, [False] * 5), train=4)
    data = data.with_rewards(make_rewards(data.transitions))
    states = data.transitions.observations.numpy()
    names = {"cvl": cvl, "data": data, "goal": states[9], "observation": states[0]}
    short, count = re.subn(r'training=\{"steps": \d+\}', "**SMALL", program)
    assert count == 1
    exec(short, names | {"SMALL": SMALL}, names)
    assert np.shape(names["action"]) == (data.transitions.actions.shape[1],)


def test_the_page_on_own_data_reads_its_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _, reward = blocks(PROJECT / "docs/own-data.md", "python")
    header = "run,t,x,y,joint_2,joint_10,torque_0,torque_1,reward,fell"
    rows = [f"{t // 5},{t % 5},1,2,3,4,0.5,-0.5,{t},{int(t % 5 == 4)}" for t in range(20)]
    (tmp_path / "robot.csv").write_text("\n".join([header, *rows]))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program + reward, names)
    transitions = names["data"].transitions
    assert transitions.lengths.tolist() == [5] * 4
    assert transitions.observations[0].tolist() == [1.0, 2.0, 3.0, 4.0]
    count = len(transitions.observations)
    assert names["fast"](None, None, transitions.observations).tolist() == [4.0] * count
    rewards, successes = names["near"](None, None, {"state": 0.3 + torch.eye(3, 2)})
    assert rewards.tolist() == pytest.approx([-1.0, -1.0, 0.0])
    assert successes.tolist() == [False, False, True]


def test_the_page_on_data_measures_presets_and_saves_for_minari(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presets, minari, *_ = blocks(PROJECT / "docs/data.md", "python")
    small = re.sub(r"in \((\"\S+\"), .*\):", r"in (\1,):", presets).replace("episodes=100", "episodes=4")
    exec(small, {})
    assert re.search(r"^reach-v3 mixed 4 \d", capsys.readouterr().out, re.MULTILINE)

    pytest.importorskip("gymnasium_robotics")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    transitions = make_transitions([5, 5], [False, False])
    raw = "data/01_raw/PointMaze_Medium-v3/seed_0"
    cvl.save(transitions, f"{raw}/transitions.safetensors")
    cvl.save(make_rewards(transitions), f"{raw}/rewards.safetensors")
    exec(minari, {})
    assert (tmp_path / "minari/mine/pointmaze-v0/data").is_dir()


def test_the_page_on_data_has_observations_of_several_parts() -> None:
    *_, use, pack = blocks(PROJECT / "docs/data.md", "python")
    generator = np.random.default_rng(0)
    names: dict[str, Any] = {
        "states": generator.normal(size=(40, 2)).astype(np.float32),
        "pictures": generator.integers(0, 255, (40, 8, 8, 3), dtype=np.uint8),
        "actions": generator.uniform(-1.0, 1.0, (40, 2)),
        "rewards": generator.normal(size=40),
        "ends": np.arange(40) % 10 == 9,
        "cvl": cvl,
        "Transitions": dict,
        "others": {},
    }
    names |= {"state": names["states"][0], "picture": names["pictures"][0]}
    train, act = use.splitlines()
    exec(train, names)
    names["policy"] = cvl.train_method(names["data"], "bc", **SMALL).policy
    exec(act, names)
    assert names["action"].shape == (2,)
    exec(pack, names)
    assert names["rows"].shape == (40, 2 * 4 + 8 * 8 * 3)


def test_the_program_of_the_page_on_robots_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from cvl_pipeline.deploy import runner
    from tests.deploy import models

    _, program, _ = blocks(PROJECT / "docs/deploy.md", "python")
    models.write_folder(tmp_path / "cvl_exported", models.linear(), value=models.sum_of_action())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "runner", runner)  # the folder of a real export has this very file
    names: dict[str, Any] = {"observation": np.array([0.1, 0.2, 0.3])}
    exec(program.replace("latency_ms=20.0", "latency_ms=1e6"), names)
    assert names["action"].tolist() == pytest.approx([0.4, -0.1])
    assert float(names["q"]) == pytest.approx(0.3)


def test_the_program_of_the_page_on_robots_resizes_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvl_pipeline.deploy import runner

    class Policy:
        def select_action(self, observation: dict[str, Any]) -> dict[str, tuple[int, ...]]:
            return {name: np.shape(part) for name, part in observation.items()}

    monkeypatch.setitem(sys.modules, "runner", runner)
    picture = np.zeros((480, 640, 3), np.uint8)
    names: dict[str, Any] = {"policy": Policy(), "joints": np.zeros(7), "front": picture, "wrist": picture}
    exec(blocks(PROJECT / "docs/deploy.md", "python")[2], names)
    assert names["action"] == {"state": (7,), "images.front": (64, 64, 3), "images.wrist": (64, 64, 3)}


def test_the_page_on_robots_exports_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    from cvl_pipeline.deploy.runner import load_policy

    program, *_ = blocks(PROJECT / "docs/deploy.md", "python")
    data = make_data(make_transitions([30] * 5, [False] * 5), train=4)
    data = data.with_rewards(make_rewards(data.transitions))
    critic, _ = cvl.train_critic(data, **SMALL)
    readout = cvl.read_out(critic, data, regression=None)
    policy, _ = cvl.train_method(data, "bc", **SMALL)
    monkeypatch.chdir(tmp_path)
    exec(program, {"policy": policy, "data": data, "critic": critic, "readout": readout})
    assert load_policy("cvl_exported").contract["about"]["task"] == "open the door"


WRITTEN = re.compile(
    r"<!-- (\S+): written by benchmarks\.(\w+) -->\n\n(.*?)\n\n<!-- end of \1 -->", re.DOTALL
)
SECTIONS = [
    (page, *match)
    for page in sorted((PROJECT / "docs").rglob("*.md"))
    for match in WRITTEN.findall(page.read_text())
    if match[1] != "commands"
]
"""Page, name, script and text; without the list of all pages' commands, which is not made from a record alone."""


@pytest.mark.parametrize(
    ("page", "name", "script", "text"), SECTIONS, ids=[f"{page.name}-{name}" for page, name, *_ in SECTIONS]
)
def test_sections_are_what_their_scripts_write_from_the_records(
    page: Path, name: str, script: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"benchmarks.{script}")
    if script == "reports":
        part = module.SECTIONS[name]
        records = shutil.copytree(part.folder, tmp_path / name)
        written = {name: module.text(part, records)}
    else:
        written = {}
        monkeypatch.setattr(module, "write_section", lambda _, section, made: written.update({section: made}))
        monkeypatch.setattr(
            "sys.argv", [script, *(["--write-docs"] if script in ("deploy", "speed") else [])]
        )
        module.main()
    assert text == written[name]


def test_every_mark_of_a_script_begins_a_section() -> None:
    marks = sum(
        page.read_text().count(": written by benchmarks.") for page in (PROJECT / "docs").rglob("*.md")
    )
    assert len(SECTIONS) + 1 == marks, "without that of docs/tried.md"


def test_every_program_of_a_page_runs_in_a_test() -> None:
    for page in PAGES:
        name = str(page.relative_to(PROJECT))
        assert len(blocks(page, "python")) == len(PROGRAMS.get(name, [])), name
    for test in {test for tests in PROGRAMS.values() for test in tests} - {"here"}:
        assert (PROJECT / test).exists()


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 20
    assert {page.name for page, _ in COMMANDS} >= {"start.md", "own-data.md", "training.md", "studies.md"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the environment that docs/own-data.md describes."""
    root = tmp_path_factory.mktemp("docs")
    conf = copy_conf(root)
    example = yaml.safe_load(blocks(PROJECT / "docs/own-data.md", "yaml")[0])
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


def _check_command(words: list[str]) -> None:
    """Fail if a command, which is not ``kedro run``, or an option of it does not exist."""
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([\w -]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in " ".join(targets).split()
    elif program == "pip":
        extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"[\w-]+", arguments[-1].partition("[")[2])) <= set(extras)
    elif program == "python":
        assert importlib.util.find_spec(arguments[1]), arguments
    else:
        assert Path(program).name == "kedro", words
        command: click.Command = cli.cli
        while isinstance(command, click.Group):
            command, *arguments = command.commands[arguments[0]], *arguments[1:]
        context = command.make_context(command.name, arguments)
        if "suite" in words:
            assert (PROJECT / f"conf/suites/{context.params['name']}.yml").exists()


def test_all_other_commands_exist() -> None:
    used = Counter[str]()
    for page in PAGES:
        for line in lines(page):
            reasons = [start for start in NOT_CHECKED if line.startswith(start)]
            used.update(reasons)
            words = _words(line)
            if not reasons and not (words[1:2] == ["run"] and Path(words[0]).name == "kedro"):
                _check_command(words)
    assert set(used) == set(NOT_CHECKED), "a reason is superfluous"


def test_the_error_that_the_page_on_the_first_run_shows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    text = (PROJECT / "docs/start.md").read_text()
    match = re.search(r"\$ kedro run (.*)\nError: (.*), \.\.\.\n", text)
    assert match
    with pytest.raises(InputError, match=re.escape(match[2])):
        cli.run.check(cli.run.make_context("run", match[1].split()).params)


def test_the_settings_of_pages_are_valid() -> None:
    """Blocks of YAML are files of parameters; those of credentials and suites have readers of their own."""
    checked = 0
    for page in PAGES:
        for block in blocks(page, "yaml"):
            values = yaml.safe_load(block)
            if set(values) <= set(RunParameters.model_fields):
                with pytest.MonkeyPatch.context() as patch:
                    patch.syspath_prepend(PROJECT / "examples")
                    validated(RunParameters, values)
                checked += 1
            else:
                assert page.name in ("README.md", "install.md", "remote.md", "studies.md", "suites.md"), (
                    page.name,
                    values,
                )
    assert checked >= 9


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site write them."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r"[\w/-]+\.md", str(SITE["nav"]))
    pages = [
        str(page.relative_to(PROJECT)) for page in [*PAGES, PROJECT / "CHANGELOG.md", PROJECT / "SECURITY.md"]
    ]
    pages += [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]  # `make docs` makes them
    assert sorted(listed) == sorted(pages), "add the page to nav in mkdocs.yml"


def test_the_page_on_the_python_interface_lists_every_name() -> None:
    listed = re.findall(r"^::: \S+\.(\w+)$", (PROJECT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(cvl.__all__)


def test_the_english_is_plain() -> None:
    texts = [*PAGES, *NOTEBOOKS, *(PROJECT / "src").rglob("*.py"), *(PROJECT / "conf").rglob("*.yml")]
    for path in texts:
        text = " ".join(path.read_text().split())
        for riddle in RIDDLES:
            assert riddle not in text, (path.relative_to(PROJECT), riddle)
