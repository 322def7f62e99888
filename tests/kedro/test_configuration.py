from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from cvl_pipeline.errors import InputError, causes
from cvl_pipeline.kedro.configuration import RESOLVERS, CheckedConfigLoader
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from cvl_pipeline.sources.parameters import DatasetParameters
from cvl_pipeline.testing.builders import DATASET, reward_parameters
from tests.project import CONF, copy_conf


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """OmegaConf's resolvers belong to the process; each test is to see its own loader's."""
    _forget()
    yield
    _forget()


PARTS = ["..", "/", "~", "a", "{task}", "$", "[b]", "\\", "\n", "\0", ".", "-", "ä", ":"]
NAMES = st.lists(st.sampled_from(PARTS), max_size=5).map("".join) | st.text(max_size=5)


def _forget() -> None:
    for resolver in RESOLVERS:
        OmegaConf.clear_resolver(resolver)


def _loader(env: str | None = None, conf: Path = CONF, **runtime: Any) -> CheckedConfigLoader:
    return CheckedConfigLoader(str(conf), env=env, runtime_params=runtime, **CONFIG_LOADER_ARGS)


def _folders(loader: CheckedConfigLoader) -> set[str]:
    """What lies between the layer and the file, over all catalog entries that are no study's."""
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
def test_a_study_belongs_to_a_dataset_and_a_reward_whatever_the_seed(
    runtime: dict[str, Any], folder: str
) -> None:
    catalog = _loader(**runtime)["catalog"]
    assert catalog["tuning_storage"]["filepath"] == f"data/06_models/{folder}/journal.log"
    assert catalog["tuning_storage"]["credentials"] is None
    assert catalog["best_parameters"]["filepath"] == f"data/08_reporting/{folder}/best_parameters.json"


def test_the_study_s_database_is_an_entry_of_the_credentials() -> None:
    catalog = _loader(tuning={"storage": "somewhere"})["catalog"]
    assert catalog["tuning_storage"]["credentials"] == "somewhere"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """The configuration in a project of its own."""
    return copy_conf(tmp_path)


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """A file for what a study found."""
    path = tmp_path / "data/08_reporting/door-open-v3/tuning/study/best_parameters.json"
    path.parent.mkdir(parents=True)
    return path


def test_tuned_takes_what_a_study_found_and_the_command_line_has_the_last_word(
    best: Path, conf: Path
) -> None:
    found = {"contrastive_dynamics.temperature": 0.3, "contrastive_dynamics.training.steps": 7}
    best.write_text(json.dumps({"parameters": found}))
    given: dict[str, Any] = {"tuned": True, "contrastive_dynamics": {"training": {"steps": 9}}}
    dynamics = _loader(conf=conf, **given)["parameters"]["contrastive_dynamics"]
    assert dynamics["temperature"] == 0.3
    assert dynamics["training"]["steps"] == 9
    assert _loader(conf=conf)["parameters"]["contrastive_dynamics"]["temperature"] == 0.1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist: search first"),
        ("{", "best_parameters.json is damaged"),
        ("[]", "best_parameters.json is damaged"),
        ('{"parameters": {"contrastive_dynamics.temperature": -1}}', "temperature' is -1"),
    ],
)
def test_a_study_s_result_that_cannot_be_used(
    best: Path, conf: Path, content: str | None, words: str
) -> None:
    if content is not None:
        best.write_text(content)
    with pytest.raises(InputError, match=words):
        _loader(conf=conf, tuned=True)["parameters"]


@pytest.mark.parametrize("env", [None, "smoke"])
def test_the_parameter_files_of_every_environment_are_valid(env: str | None) -> None:
    parameters = _loader(env)["parameters"]
    assert parameters["contrastive_dynamics"]["loss"] == "symmetric_infonce"


def test_smoke_changes_single_fields_and_keeps_the_others() -> None:
    base, smoke = _loader()["parameters"], _loader("smoke")["parameters"]
    assert (
        smoke["contrastive_dynamics"]["training"]["steps"] < base["contrastive_dynamics"]["training"]["steps"]
    )
    for field in ("discount", "temperature", "loss"):
        assert smoke["contrastive_dynamics"][field] == base["contrastive_dynamics"][field]
    learning_rate = base["policy_extraction"]["training"]["learning_rate"]
    assert smoke["policy_extraction"]["training"]["learning_rate"] == learning_rate


def test_artifacts_are_filed_under_dataset_and_seed() -> None:
    assert _folders(_loader()) == {"door-open-v3/seed_0"}


@pytest.mark.parametrize(
    ("runtime", "folder"),
    [
        ({"seed": 7}, "door-open-v3/seed_7"),
        ({"dataset": {"task": "reach-v3"}}, "reach-v3/seed_0"),
        ({"dataset": {"task": "reach-v3", "name": "{task}-b"}, "seed": 2}, "reach-v3-b/seed_2"),
    ],
)
def test_parameters_of_the_command_line_move_the_files(runtime: dict[str, Any], folder: str) -> None:
    assert _folders(_loader(**runtime)) == {folder}


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
def test_what_follows_from_a_reward_is_filed_under_its_name(reward: dict[str, Any], folder: str) -> None:
    catalog = _loader(seed=3, reward=reward)["catalog"]

    def place(name: str) -> str:
        return str(Path(catalog[name]["filepath"]).parent.relative_to("data"))

    assert place("readout") == f"06_models/door-open-v3/{folder}"
    assert place("metrics") == f"08_reporting/door-open-v3/{folder}"
    assert place("labels") == f"03_primary/door-open-v3/{folder}"
    assert place("policy_checkpoints") == f"06_models/door-open-v3/{folder}/checkpoints"
    # What no reward touches stays where it is, to be used again.
    assert place("critic") == "06_models/door-open-v3/seed_3"
    assert place("bc_policy") == "06_models/door-open-v3/seed_3"
    assert place("transitions") == "01_raw/door-open-v3/seed_3"


def test_no_two_artifacts_share_a_file_under_any_reward() -> None:
    for reward in ({}, {"source": "success"}, {"source": "dataset", "name": "checkpoints"}):
        files = [entry["filepath"] for entry in _loader(reward=reward)["catalog"].values()]
        assert len(set(files)) == len(files)


def test_smoke_runs_are_filed_apart() -> None:
    assert _folders(_loader("smoke")) == {"reach-v3-smoke/seed_0"}
    _forget()
    assert _folders(_loader("smoke", seed=1)) == {"reach-v3-smoke/seed_1"}


def test_parameters_of_the_command_line_win_over_the_environment() -> None:
    loader = _loader("smoke", contrastive_dynamics={"training": {"steps": 5}})
    training = loader["parameters"]["contrastive_dynamics"]["training"]
    assert training["steps"] == 5
    assert training["batch_size"] == 64


def test_two_sessions_in_one_process_file_their_artifacts_apart() -> None:
    # A notebook, or a sweep in one interpreter. The first session must not decide for all.
    assert _folders(_loader(seed=1)) == {"door-open-v3/seed_1"}
    assert _folders(_loader(seed=2)) == {"door-open-v3/seed_2"}
    places = [_loader(reward={"source": s})["catalog"]["metrics"]["filepath"] for s in ("success", "dataset")]
    assert Path(places[0]).parent.name == "success"
    assert Path(places[1]).parent.name == "seed_0"


@pytest.mark.parametrize("key", ["parameters", "catalog"])
@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"dataset": {"task": "../x"}}, "parameters: 'dataset.task' is '../x': "),
        ({"sed": 1}, "parameters: unknown field 'sed': did you mean 'seed'?"),
        ({"reward": {"source": "succes"}}, "parameters: 'reward.source' is 'succes': must be dataset"),
        ({"reward": {"name": "a/b"}}, "parameters: 'reward.name' is 'a/b': "),
    ],
)
def test_faulty_parameters_stop_the_loading_of_anything_that_needs_them(
    key: str, runtime: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, OmegaConfBaseException)) as caught:
        _loader(**runtime)[key]
    # OmegaConf raises an error of its own over that of a resolver; the command line looks beneath it.
    told = [str(cause) for cause in causes(caught.value) if isinstance(cause, InputError)]
    assert told
    assert told[0].startswith(message)


@given(
    name=NAMES, task=NAMES, path=NAMES, reward=st.none() | NAMES, source=NAMES.map("{}:f".format) | NAMES,
)  # fmt: skip
def test_no_name_leads_out_of_the_folder_of_its_dataset(
    name: str, task: str, path: str, reward: str | None, source: str
) -> None:
    try:
        dataset = DatasetParameters(
            **DATASET | {"source": "files", "name": name, "task": task, "path": path or "x"}
        )
        label = reward_parameters(source=source, name=reward)
    except ValidationError:
        return
    parts = Path("data", dataset.folder, "seed_0", label.folder).parts
    assert parts[:3] == ("data", dataset.folder, "seed_0")
    assert len(parts) <= 4
    assert not any(part.startswith(".") for part in parts)
    assert all(re.fullmatch(r"[\w.\-]+", part) for part in parts)
