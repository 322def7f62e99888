from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kedro.framework.project import LOGGING
from kedro.io import DataCatalog
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError
from pydantic_core import PydanticCustomError

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.kedro.configuration import CheckedConfigLoader, ProjectContext, below_folder
from cvl_pipeline.kedro.pipeline_registry import plan_for, register_pipelines
from cvl_pipeline.kedro.provenance.records import Recipe, Record, write_record
from cvl_pipeline.readout.parameters import REWARDS
from cvl_pipeline.schema import Strict, nested
from cvl_pipeline.sources.base import SOURCES, LocalPath
from cvl_pipeline.tuning.storage import StudyLocation
from tests.kedro.sessions import make_loader, path_of
from tests.project import PROJECT, copy_conf

PARTS = ["..", "/", "~", "a", "{task}", "$", "[b]", "\\", "\n", "\0", ".", "-", "ä", ":"]
NAMES = st.lists(st.sampled_from(PARTS), max_size=5).map("".join) | st.text(max_size=5)


def _folders(loader: CheckedConfigLoader) -> set[str]:
    """Folders between the layer and the file, over all catalog entries except a study's."""
    folders = set()
    for name, entry in loader["catalog"].items():
        parts = Path(entry["filepath"]).parts
        assert parts[0] == "data", name
        if parts[3] != "tuning":
            folders.add("/".join(parts[2:4]))
    return folders


@pytest.mark.parametrize(
    ("runtime", "folder"),
    [
        ({"seed": 4}, "door-open-v3/tuning/study"),
        ({"tuning": {"study": "wide"}}, "door-open-v3/tuning/wide"),
        ({"reward": {"source": "success"}}, "door-open-v3/tuning/success/study"),
    ],
)
def test_a_study_belongs_to_a_dataset_and_a_reward_for_all_seeds(
    runtime: dict[str, Any], folder: str
) -> None:
    loader = make_loader(**runtime)
    location, place = loader.study()
    assert place == PROJECT / f"data/06_models/{folder}"
    assert location == StudyLocation(place / "journal.log")
    best = loader["catalog"]["best_parameters"]["filepath"]
    assert best == f"data/08_reporting/{folder}/best_parameters.json"


URL = "postgresql+psycopg://user:secret@host/database"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"url": URL}, None),
        ({"url": URL, "user": "me"}, "its entry in credentials.yml must be one field, url"),
        ({"url": 3}, "its entry in credentials.yml must be one field, url"),
        (None, "'somewhere', which is no entry of conf/base/credentials.yml or conf/local/credentials.yml"),
    ],
)
def test_the_database_of_a_study_is_an_entry_of_the_credentials(
    conf: Path, entry: Any, message: str | None
) -> None:
    if entry is not None:
        (conf / "local/credentials.yml").write_text(json.dumps({"somewhere": entry}))
    loader = make_loader(conf, tuning={"storage": "somewhere"})
    if message is None:
        location, folder = loader.study()
        assert location.url == URL
        assert location.journal == folder / "journal.log"
        return
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        loader.study()
    assert "secret" not in str(caught.value)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The configuration in a project of its own."""
    return copy_conf(tmp_path)


@pytest.fixture
def best_path(tmp_path: Path) -> Path:
    """The file for the result of a study."""
    path = tmp_path / "data/08_reporting/door-open-v3/tuning/study/best_parameters.json"
    path.parent.mkdir(parents=True)
    return path


def test_tuned_applies_the_result_of_a_study_and_params_override_it(best_path: Path, conf: Path) -> None:
    found = {"contrastive_dynamics.temperature": 0.3, "contrastive_dynamics.training.steps": 7}
    best_path.write_text(json.dumps({"parameters": found}))
    given: dict[str, Any] = {"tuned": True, "contrastive_dynamics": {"training": {"steps": 9}}}
    dynamics = make_loader(conf, **given)["parameters"]["contrastive_dynamics"]
    assert dynamics["temperature"] == 0.3
    assert dynamics["training"]["steps"] == 9
    assert make_loader(conf)["parameters"]["contrastive_dynamics"]["temperature"] == 0.1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist: search first"),
        ("{", "best_parameters.json is damaged"),
        ("[]", "best_parameters.json is damaged"),
        ('{"parameters": null}', "best_parameters.json is damaged"),
        ('{"parameters": ["a"]}', "best_parameters.json is damaged"),
        (
            '{"parameters": {"data.root": "elsewhere"}}',
            "best_parameters.json has changed since it was written",
        ),
        ('{"parameters": {"seed": 7}}', "best_parameters.json has changed since it was written"),
        ('{"parameters": {"contrastive_dynamics.temperature": -1}}', "temperature' is -1"),
    ],
)
def test_an_unusable_result_of_a_study_is_refused(
    best_path: Path, conf: Path, content: str | None, words: str
) -> None:
    if content is not None:
        best_path.write_text(content)
    with pytest.raises(InputError, match=words):
        make_loader(conf, tuned=True)["parameters"]


def test_a_result_of_a_study_that_is_not_the_one_of_its_record_is_refused(
    best_path: Path, conf: Path
) -> None:
    text = json.dumps({"parameters": {"contrastive_dynamics.temperature": 0.3}})
    best_path.write_text(text)
    recipe = Recipe("tuning.choose", {}, {}, {}, {}, {})
    made = hashlib.sha256(text.encode()).hexdigest()
    write_record(best_path, Record(recipe, {}, {"best_parameters": made}, []))
    assert make_loader(conf, tuned=True)["parameters"]["contrastive_dynamics"]["temperature"] == 0.3
    best_path.write_text(text.replace("0.3", "0.9"))
    with pytest.raises(
        InputError, match=r"best_parameters\.json has changed since it was written; delete it"
    ):
        make_loader(conf, tuned=True)["parameters"]


def _environment(conf: Path, **values: Any) -> None:
    """Write an environment ``other`` with these parameters."""
    (conf / "other").mkdir(exist_ok=True)
    (conf / "other/parameters.yml").write_text(json.dumps(values))


LOG = {"source": "files", "path": "mine.csv"}
TASK_SETTINGS = {"task", "episodes", "episode_steps", "noise_max"}


@pytest.mark.parametrize("by", ["environment", "params"])
def test_a_layer_that_chooses_another_alternative_drops_the_settings_of_the_former_one(
    conf: Path, by: str
) -> None:
    base = make_loader(conf)["parameters"]
    assert base["dataset"].keys() >= TASK_SETTINGS  # conf/base has some of them
    assert "beta" in base["policy_extraction"]
    values: dict[str, Any] = {
        "dataset": LOG, "policy_extraction": {"objective": "ddpg_bc"}, "value_readout": {"references": 50},
    }  # fmt: skip
    if by == "environment":
        _environment(conf, **values)
    loader = make_loader(conf, "other") if by == "environment" else make_loader(conf, **values)
    parameters = loader["parameters"]
    assert TASK_SETTINGS.isdisjoint(parameters["dataset"])
    assert {"beta", "state_value"}.isdisjoint(parameters["policy_extraction"])
    assert parameters["policy_extraction"]["alpha"] == 1.0
    # Settings that both alternatives have stay, and so do the settings of other choices.
    assert parameters["policy_extraction"]["training"] == base["policy_extraction"]["training"]
    assert parameters["value_readout"] == base["value_readout"] | {"references": 50}


@pytest.mark.parametrize(
    ("values", "task", "episode_steps"),
    [
        ({"source": "pointmaze"}, "PointMaze_Medium-v3", 60),
        ({"source": "gymnasium"}, "CartPole-v1", 60),
        ({"source": "gymnasium", "task": "Pendulum-v1", "episode_steps": None}, "Pendulum-v1", None),
        ({"source": "d4rl"}, "hopper-medium-v2", "none"),
        ({"source": "metaworld"}, "reach-v3", 60),
    ],
)
def test_another_source_keeps_what_means_the_same_and_has_its_own_task(
    conf: Path, values: dict[str, Any], task: str, episode_steps: Any
) -> None:
    _environment(conf, dataset={"task": "reach-v3", "episode_steps": 60, "name": "mine"})
    dataset = make_loader(conf, "other", dataset=values)["parameters"]["dataset"]
    assert (dataset["task"], dataset.get("episode_steps", "none")) == (task, episode_steps)
    assert dataset["name"] == "mine"


def test_params_may_choose_another_alternative_than_the_environment(conf: Path) -> None:
    _environment(conf, policy_extraction={"objective": "ddpg_bc", "alpha": 2.0})
    extraction = make_loader(conf, "other")["parameters"]["policy_extraction"]
    assert extraction["alpha"] == 2.0
    extraction = make_loader(conf, "other", policy_extraction={"objective": "best_of_n"})["parameters"][
        "policy_extraction"
    ]
    assert extraction["proposals"] == 32
    assert {"alpha", "beta"}.isdisjoint(extraction)


@pytest.mark.parametrize(
    ("extraction", "message"),
    [
        ({"alfa": 2.0}, "unknown field 'policy_extraction.alfa': did you mean 'alpha'?"),
        ({"beta": 2.0}, "unknown field 'policy_extraction.beta': it belongs to objective awr; known with"),
        (
            {"training": {"setps": 3}},
            "unknown field 'policy_extraction.training.setps': did you mean 'steps'?",
        ),
    ],
)
@pytest.mark.parametrize("by", ["environment", "params"])
def test_a_typo_in_a_layer_that_chooses_another_alternative_is_refused(
    conf: Path, by: str, extraction: dict[str, Any], message: str
) -> None:
    values: dict[str, Any] = {"policy_extraction": {"objective": "ddpg_bc", **extraction}}
    if by == "environment":
        _environment(conf, **values)
    loader = make_loader(conf, "other") if by == "environment" else make_loader(conf, **values)
    with pytest.raises(InputError) as caught:
        loader["parameters"]
    assert message in str(caught.value)


def test_baselines_are_merged_by_name_and_null_removes_one(conf: Path) -> None:
    assert list(make_loader(conf)["parameters"]["baselines"]) == ["bc"]
    _environment(conf, baselines={"iql": {"expectile": 0.8}, "wide": {"method": "bc", "hidden": [512]}})
    baselines = make_loader(conf, "other")["parameters"]["baselines"]
    assert list(baselines) == ["bc", "iql", "wide"]
    assert baselines["iql"]["expectile"] == 0.8
    assert baselines["wide"]["hidden"] == [512]
    fewer = make_loader(conf, "other", baselines={"bc": None, "iql": {"beta": 1.0}})["parameters"][
        "baselines"
    ]
    assert list(fewer) == ["iql", "wide"]
    assert (fewer["iql"]["expectile"], fewer["iql"]["beta"]) == (0.8, 1.0)
    # Another method under the same name.
    changed = make_loader(conf, "other", baselines={"iql": "bc"})["parameters"]["baselines"]["iql"]
    assert changed["method"] == "bc"
    assert "expectile" not in changed


@pytest.mark.parametrize(
    ("best", "runtime", "expected"),
    [
        ({"policy_extraction.beta": 1.0}, {}, {"objective": "awr", "beta": 1.0}),
        # The study chose another objective than conf/base.
        ({"policy_extraction.objective": "ddpg_bc", "policy_extraction.alpha": 2.0}, {},
         {"objective": "ddpg_bc", "alpha": 2.0}),
        # --params choose another objective than the study.
        ({"policy_extraction.beta": 1.0}, {"policy_extraction": {"objective": "ddpg_bc"}},
         {"objective": "ddpg_bc", "alpha": 1.0}),
    ],
)  # fmt: skip
def test_the_result_of_a_study_is_a_layer_between_the_environment_and_params(
    best: dict[str, Any], runtime: dict[str, Any], expected: dict[str, Any], conf: Path, best_path: Path
) -> None:
    best_path.write_text(json.dumps({"parameters": best}))
    extraction = make_loader(conf, tuned=True, **runtime)["parameters"]["policy_extraction"]
    assert {name: extraction[name] for name in expected} == expected
    assert ("beta" in extraction) == (expected["objective"] == "awr")


@pytest.mark.parametrize("env", [None, "smoke", "pointmaze", "notebook"])
def test_the_parameter_files_of_every_environment_are_valid(env: str | None) -> None:
    parameters = make_loader(env=env)["parameters"]
    assert parameters["contrastive_dynamics"]["loss"] == {
        "name": "symmetric_infonce", "logsumexp_penalty": 0.0
    }  # fmt: skip


def test_smoke_changes_single_fields_and_keeps_the_others() -> None:
    base, smoke = make_loader()["parameters"], make_loader(env="smoke")["parameters"]
    steps = base["contrastive_dynamics"]["training"]["steps"]
    assert smoke["contrastive_dynamics"]["training"]["steps"] < steps
    for field in ("discount", "temperature", "loss"):
        assert smoke["contrastive_dynamics"][field] == base["contrastive_dynamics"][field]
    learning_rate = base["policy_extraction"]["training"]["learning_rate"]
    assert smoke["policy_extraction"]["training"]["learning_rate"] == learning_rate


def test_params_may_leave_out_a_part_that_the_environment_sets() -> None:
    smoke = make_loader(env="smoke")["parameters"]["value_readout"]["regression"]
    assert smoke["steps"] == 60
    changed = make_loader(env="smoke", value_readout={"regression": {"steps": 5}})["parameters"]
    assert changed["value_readout"]["regression"] == smoke | {"steps": 5}
    without = make_loader(env="smoke", value_readout={"regression": None})["parameters"]
    assert without["value_readout"]["regression"] is None


@pytest.mark.parametrize(
    ("env", "runtime", "folder"),
    [
        (None, {}, "door-open-v3/seed_0"),
        (None, {"dataset": {"task": "reach-v3", "name": "{task}-b"}, "seed": 2}, "reach-v3-b/seed_2"),
        ("smoke", {"seed": 1}, "reach-v3-smoke/seed_1"),
    ],
)
def test_artifacts_are_filed_under_dataset_and_seed(
    env: str | None, runtime: dict[str, Any], folder: str
) -> None:
    assert _folders(make_loader(env=env, **runtime)) == {folder}


@pytest.mark.parametrize(
    ("reward", "folder"),
    [
        ({}, "seed_3"),
        ({"source": "success"}, "seed_3/success"),
        ({"source": "success", "name": "solved"}, "seed_3/solved"),
        ({"source": "dataset", "name": "as_logged"}, "seed_3/as_logged"),
        ({"source": "my_rewards:speed"}, "seed_3/my_rewards.speed"),
        (
            {
                "source": "goal_distance",
                "indices": "0 1 2",
                "target": "0.1 0.8 0.2",
                "scale": 0.1,
                "tolerance": 0.05,
                "name": "corner",
            },
            "seed_3/corner",
        ),
    ],
)
def test_artifacts_of_a_reward_are_filed_under_its_name(reward: dict[str, Any], folder: str) -> None:
    catalog = DataCatalog.from_config(make_loader(seed=3, reward=reward)["catalog"])

    def place(name: str) -> str:
        return str(path_of(catalog, name).parent.relative_to("data"))

    assert place("readout") == f"06_models/door-open-v3/{folder}"
    assert place("metrics") == f"08_reporting/door-open-v3/{folder}"
    assert place("labels").endswith(f"/door-open-v3/{folder}")
    assert place("cvl_policy") == f"06_models/door-open-v3/{folder}"
    assert place("bc_rollouts") == f"07_model_output/door-open-v3/{folder}"
    # Artifacts that no reward affects are shared by all rewards.
    assert place("critic") == "06_models/door-open-v3/seed_3"
    assert place("reward_free_bc_policy") == "06_models/door-open-v3/seed_3"
    assert place("reward_free_bc_rollout_rewards") == "07_model_output/door-open-v3/seed_3"
    assert place("transitions") == "01_raw/door-open-v3/seed_3"


@pytest.mark.parametrize("reward", [{}, {"source": "success"}, {"source": "dataset", "name": "checkpoints"}])
def test_no_two_artifacts_share_a_file_under_any_reward(reward: dict[str, Any]) -> None:
    loader = make_loader(reward=reward, baselines={"iql": {}, "another": {"method": "bc"}})
    plan_for(loader.run_parameters())
    catalog = DataCatalog.from_config(loader["catalog"])
    names = [name for pipeline in register_pipelines().values() for name in pipeline.all_outputs()]
    assert len({path_of(catalog, name) for name in names}) == len(set(names)) > 40


def test_two_sessions_in_one_process_file_their_artifacts_apart() -> None:
    # A notebook, or a sweep in one interpreter. The first session must not decide for all.
    assert _folders(make_loader(seed=1)) == {"door-open-v3/seed_1"}
    assert _folders(make_loader(seed=2)) == {"door-open-v3/seed_2"}
    places = [
        make_loader(reward={"source": s})["catalog"]["metrics"]["filepath"] for s in ("success", "dataset")
    ]
    assert Path(places[0]).parent.name == "success"
    assert Path(places[1]).parent.name == "seed_0"


@pytest.mark.parametrize("key", ["parameters", "catalog"])
@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"dataset": {"task": "../x"}}, "parameters: 'dataset.task' is '../x': "),
        ({"sed": 1}, "parameters: unknown field 'sed': did you mean 'seed'?"),
        ({"reward": {"source": "succes"}},
         "parameters: 'reward.source' is 'succes': unknown reward source 'succes': did you mean success?"),
        ({"reward": {"name": "a/b"}}, "parameters: 'reward.name' is 'a/b': "),
    ],
)  # fmt: skip
def test_faulty_parameters_stop_the_loading_of_anything_that_needs_them(
    key: str, runtime: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, OmegaConfBaseException)) as caught:
        make_loader(**runtime)[key]
    # OmegaConf wraps the error of a resolver; the command line looks for the cause.
    messages = [str(cause) for cause in causes(caught.value) if isinstance(cause, InputError)]
    assert messages
    assert messages[0].startswith(message)


@given(
    name=NAMES,
    values=NAMES.map(lambda path: {"source": "files", "path": path})
    | NAMES.map(lambda task: {"source": "minari", "task": task}),
    reward=st.none() | NAMES,
    source=NAMES.map("{}:f".format) | NAMES,
)
def test_names_cannot_lead_out_of_the_folder_of_the_dataset(
    name: str, values: dict[str, str], reward: str | None, source: str
) -> None:
    try:
        dataset: Any = SOURCES.validate(values | {"name": name})
        label: Any = REWARDS.validate({"source": source, "name": reward})
    except (ValidationError, PydanticCustomError):
        return
    parts = Path("data", dataset.folder, "seed_0", label.folder).parts
    assert parts[:3] == ("data", dataset.folder, "seed_0")
    assert len(parts) <= 4
    assert not any(part.startswith(".") for part in parts)
    assert all(re.fullmatch(r"[\w.\-]+", part) for part in parts)


def test_a_configuration_elsewhere_leads_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, project = copy_conf(tmp_path / "elsewhere"), tmp_path / "project"
    (project / "below").mkdir(parents=True)
    monkeypatch.chdir(project / "below")
    given: dict[str, Any] = {"dataset": {"source": "files", "path": "logs/mine.csv"}}
    loader = make_loader(conf=own, **given)
    loader.project = project
    assert loader.elsewhere == str(own)
    assert loader.location("data/x").path == project / "data/x"
    assert loader.local("x") == project / "data/x"
    assert loader.study()[1].is_relative_to(project / "data")
    assert loader["parameters"]["dataset"]["path"] == str(project / "logs/mine.csv")
    monkeypatch.chdir(project)
    same = make_loader(conf=own, **given)
    same.project = project
    assert same["parameters"]["dataset"]["path"] == "logs/mine.csv"
    assert same._folders == loader._folders


def test_kedros_context_says_where_the_project_is(tmp_path: Path) -> None:
    loader = make_loader(conf=copy_conf(tmp_path / "elsewhere"))
    ProjectContext(project_path=tmp_path, config_loader=loader, env=None, package_name="x", hook_manager=None)
    assert loader.project == tmp_path


def test_a_file_of_the_current_folder_is_refused_with_the_projects_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(conf=copy_conf(tmp_path), dataset={"source": "files", "path": "mine.csv"})
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    (tmp_path / "below/mine.csv").write_text("")
    with pytest.raises(InputError) as caught:
        loader.run_parameters()
    assert str(caught.value) == (
        f"dataset.path is 'mine.csv': relative paths begin at the project's folder, {tmp_path}, which has no such "
        f"file, but the current folder has one: give its absolute path, {tmp_path}/below/mine.csv"
    )
    (tmp_path / "mine.csv").write_text("")
    assert loader.run_parameters().dataset.path == str(tmp_path / "mine.csv")  # type: ignore[attr-defined]


def test_paths_in_models_of_the_users_own_are_below_the_folder(tmp_path: Path) -> None:
    class Inner(Strict):
        table: Path = Path("a.csv")

    class Outer(Strict):
        log: LocalPath = "logs/b.csv"
        absolute: LocalPath = "/c.csv"
        either: LocalPath | None = "d.csv"
        none: LocalPath | None = None
        text: str = "d.csv"
        inner: Inner = Inner()
        several: dict[str, Inner] = Field({"one": Inner()})

    moved = below_folder(Outer(), tmp_path)
    assert moved.model_dump() == {
        "log": str(tmp_path / "logs/b.csv"), "absolute": "/c.csv", "either": str(tmp_path / "d.csv"),
        "none": None, "text": "d.csv",
        "inner": {"table": tmp_path / "a.csv"}, "several": {"one": {"table": tmp_path / "a.csv"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("sqlite:///study.db", "sqlite:///{}/study.db"),
        ("sqlite+pysqlite:///a/study.db", "sqlite+pysqlite:///{}/a/study.db"),
        ("sqlite:////a/study.db", "sqlite:////a/study.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql+psycopg://me:x@host/database", "postgresql+psycopg://me:x@host/database"),
    ],
)
def test_a_database_in_a_file_is_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, found: str
) -> None:
    conf = copy_conf(tmp_path)
    (conf / "local/credentials.yml").write_text(json.dumps({"lab": {"url": url}}))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    loader = make_loader(conf=conf, tuning={"storage": "lab"})
    assert loader.study()[0].url == found.format(tmp_path)


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${seed}", "a/${dataset.task}", "???"])
@pytest.mark.parametrize("name", ["data.root", "dataset.name", "evaluation.environment"])
def test_the_value_that_is_checked_is_the_one_that_is_used(name: str, value: str) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"parameters: '{name}' is {value!r}: write the value itself")
    ):
        make_loader(**nested({name: value})).run_parameters()


def test_files_of_conf_may_refer_to_each_other_and_leave_nothing_open(conf: Path) -> None:
    _environment(conf, dataset={"episodes": "${evaluation.episodes}"}, evaluation={"episodes": 7})
    assert make_loader(conf, "other")["parameters"]["dataset"]["episodes"] == 7
    _environment(conf, data={"root": "???"})
    with pytest.raises(InputError, match=r"'data.root' is '\?\?\?'"):
        make_loader(conf, "other")["parameters"]


def test_a_run_from_another_folder_logs_as_the_project_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "logging.yml").write_text("version: 1\nloggers: {kedro: {level: WARNING}}\n")
    configured: list[Any] = []
    monkeypatch.setattr(LOGGING, "configure", configured.append)
    monkeypatch.delenv("KEDRO_LOGGING_CONFIG", raising=False)
    arguments: dict[str, Any] = {
        "config_loader": make_loader(),
        "env": None,
        "package_name": "x",
        "hook_manager": None,
    }
    ProjectContext(project_path=tmp_path, **arguments)
    assert configured == [{"version": 1, "loggers": {"kedro": {"level": "WARNING"}}}]
    monkeypatch.chdir(tmp_path)  # here Kedro itself has found the file
    ProjectContext(project_path=tmp_path, **arguments)
    assert len(configured) == 1


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"seed: 1\nreward:\n  source: success\nreward: {}\n", ", line 4", "found duplicate key reward"),
        (b"dataset:\n  source: files\n path: x.csv\n", ", line 3", "expected"),
        (b"dataset: {source: files\n", ", line 2", "expected"),
        (b"dataset:\n  path: \xff\xfe.csv\n", "", "codec can't decode"),
        (b"- seed: 1\n", "", "not names with values"),
    ],
)
@pytest.mark.parametrize("file", ["parameters.yml", "catalog_mine.yml"])
def test_a_file_that_is_no_yaml_is_named_with_its_line(
    file: str, content: bytes, line: str, reason: str, conf: Path
) -> None:
    (conf / "robot").mkdir()
    (conf / "robot" / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"robot/{re.escape(file)}{line}:? .*{re.escape(reason)}") as caught:
        make_loader(conf, "robot")[file.partition(".")[0].partition("_")[0]]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "seed: ${sed}",
        "seed: ${oc.env:SEED}",
        "null: 1",
        "5",
        "seed: ${",
        "a: &a {b: *a}",
        "seed: " + 5000 * "1",
    ],
)
def test_a_file_whose_values_cannot_be_worked_out_is_named(content: str, conf: Path) -> None:
    (conf / "robot").mkdir()
    (conf / "robot" / "parameters.yml").write_text(content)
    with pytest.raises(InputError, match=r"robot/parameters\.yml") as caught:
        make_loader(conf, "robot")["parameters"]
    assert "\n" not in str(caught.value)
