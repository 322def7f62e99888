"""The interface of sources, and the episodes that all of them have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from pydantic import Field, ValidationError

from cvl_pipeline.api import ingest
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import validated
from cvl_pipeline.sources.arrays import load_arrays
from cvl_pipeline.sources.base import SOURCES, Source, SourceParameters
from cvl_pipeline.sources.minari_writer import save_minari
from cvl_pipeline.sources.steps import Steps, episodes_from_steps
from cvl_pipeline.testing.builders import DATASET, make_rewards, make_transitions
from tests.sources import logs
from tests.sources.rows import assert_equal

HERE = "tests.sources.test_base"


def _parameters(values: dict[str, Any]) -> SourceParameters:
    parameters = SOURCES.validate(values)
    assert isinstance(parameters, SourceParameters)
    return parameters


def _load(**values: Any) -> tuple[Transitions, Rewards]:
    return ingest(_parameters(values), seed=0, workers=1)


def _refusal(dataset: Any) -> str:
    with pytest.raises(InputError) as caught:
        validated(StageParameters, {"dataset": dataset})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("{task}", "door-open-v3"), ("{task}-smoke", "door-open-v3-smoke"), ("my_data.2", "my_data.2")],
)
def test_the_folder_is_the_name_with_the_task_filled_in(name: str, folder: str) -> None:
    assert _parameters(DATASET | {"name": name}).folder == folder


@pytest.mark.parametrize(
    ("values", "label", "folder"),
    [
        ({"source": "files", "path": "/tmp/my log.csv"}, "my log.csv", "my-log.csv"),
        ({"source": "files", "path": ".hidden.csv"}, ".hidden.csv", "hidden.csv"),
        ({"source": "files", "path": "."}, "files", "files"),
        ({"source": "files", "path": ".."}, "..", "files"),
        ({"source": "lerobot", "path": "/"}, "lerobot", "lerobot"),
        ({"source": "d4rl", "task": "hopper-x", "path": "/tmp/own.hdf5"}, "own.hdf5", "own.hdf5"),
        ({"source": "d4rl", "task": "hopper-medium-v2"}, "hopper-medium-v2", "hopper-medium-v2"),
        ({"source": "minari", "task": "a/b-v0", "path": "/tmp/x"}, "a/b-v0", "a-b-v0"),
        ({"source": "lerobot", "path": "/tmp/recordings/pick cube"}, "pick cube", "pick-cube"),
        ({"source": "lerobot", "task": "lerobot/pusht", "path": "/tmp/x"}, "lerobot/pusht", "lerobot-pusht"),
        ({"source": "gymnasium", "task": "ALE:Pong-v5"}, "ALE:Pong-v5", "ALE-Pong-v5"),
    ],
)
def test_the_label_is_the_task_or_the_file(values: dict[str, Any], label: str, folder: str) -> None:
    parameters = _parameters(values)
    assert parameters.label == label
    assert parameters.folder == folder


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/tmp/x", "..\\x", "a b", "{seed}", "{task}/x", "x\n", "${x}"]
)
def test_a_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="it names a folder"):
        SOURCES.validate(DATASET | {"name": name})


@pytest.mark.parametrize("task", ["", "../reach-v3", "reach v3", ".", "a/../b", "{task}", "/etc"])
@pytest.mark.parametrize("source", ["metaworld", "pointmaze", "gymnasium", "d4rl", "minari"])
def test_a_task_that_is_no_word_is_refused(source: str, task: str) -> None:
    with pytest.raises(ValidationError, match="such as door-open-v3"):
        SOURCES.validate({"source": source, "task": task})


@pytest.mark.parametrize("source", ["files", "d4rl", "minari"])
def test_a_path_on_another_machine_is_refused(source: str) -> None:
    with pytest.raises(ValidationError, match="must be a file or folder on this machine: download it first"):
        SOURCES.validate({"source": source, "path": "s3://bucket/log.csv"})


@pytest.mark.parametrize("source", SOURCES.names)
def test_every_setting_of_a_source_has_a_default_and_a_description(source: str) -> None:
    own = SOURCES[source]
    assert issubclass(own, Source)
    for name, field in own.Parameters.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name
    values = {"source": source} | ({"path": "log"} if source in ("files", "lerobot") else {})
    assert _parameters(values).source == source


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    message = _refusal({"source": "xyz"})
    assert message.startswith("parameters: 'dataset.source' is 'xyz': unknown source 'xyz': known: ")
    for name in SOURCES.names:
        assert name in message
    assert "module:Class" in message
    assert "did you mean minari?" in _refusal({"source": "minary"})


def test_settings_exist_only_for_their_source() -> None:
    message = _refusal({"source": "metaworld", "columns": {"rewards": None}})
    assert "unknown field 'dataset.columns'" in message
    assert "it belongs to source files; known with source metaworld: " in message
    assert "did you mean 'episodes'?" in _refusal({"source": "pointmaze", "episods": 5})


class Own(Source):
    """A source of the user's own: short random episodes."""

    class Parameters(SourceParameters):
        """Its settings."""

        source: str = "own"
        count: int = Field(3, ge=1)
        broken: bool = False

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        transitions = make_transitions(
            [4] * self.parameters.count, [False] * self.parameters.count, seed=seed
        )
        rewards = make_rewards(transitions)
        if self.parameters.broken:
            transitions = replace(transitions, actions=transitions.actions * float("nan"))
        return transitions, rewards


def test_a_source_of_your_own_is_chosen_by_module_and_class() -> None:
    transitions, rewards = _load(source=f"{HERE}:Own", count=5)
    assert transitions.lengths.tolist() == [4] * 5
    assert len(rewards.rewards) == 20
    source = SOURCES.create(_parameters({"source": f"{HERE}:Own"}))
    assert source.make_environment() is None
    assert not source.may_have_environment
    assert (source.tasks, source.score(1.0), source.files(), source.slow_to_build) == ((), None, [], False)
    assert source.environment_name == f"{HERE}:Own"
    assert _parameters({"source": f"{HERE}:Own"}).folder == "tests.sources.test_base-Own"


def test_the_settings_of_a_source_of_your_own_are_checked() -> None:
    assert "'dataset.count' is 0" in _refusal({"source": f"{HERE}:Own", "count": 0})
    assert "did you mean 'count'?" in _refusal({"source": f"{HERE}:Own", "cuont": 1})
    for name, part in (
        ("nowhere:Own", "source 'nowhere:Own' cannot be imported"),
        (f"{HERE}:Nothing", "cannot be imported"),
        (f"{HERE}:SourceParameters", "is not a subclass of cvl_pipeline.sources.base.Source"),
        (f"{HERE}:_load", "is not a subclass of"),
    ):
        assert part in _refusal({"source": name})


def test_the_episodes_of_a_source_of_your_own_are_checked() -> None:
    with pytest.raises(InputError, match=r"transitions\.actions: nan at index \(0, 0\)"):
        _load(source=f"{HERE}:Own", broken=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Transitions, Rewards]:
    folder = tmp_path_factory.mktemp("logs")
    collected = logs.collect_hopper(6)
    logs.write_all(folder, *collected)
    return folder, *collected


def test_every_format_gives_the_same_episodes(written: tuple[Path, Transitions, Rewards]) -> None:
    folder, transitions, rewards = written
    assert transitions.terminated.all()
    assert not rewards.reports_success  # Hopper has no success
    bounds = {"action_low": "-1 -1 -1", "action_high": "1 1 1"}
    for values in (
        {"source": "d4rl", "task": "hopper-random-v2", "path": str(folder / "hopper.hdf5")},
        {"source": "minari", "task": logs.MINARI_ID, "path": str(folder / "minari")},
        {"source": "files", "path": str(folder / "hopper.csv"), "columns": logs.COLUMNS, **bounds},
        {"source": "files", "path": str(folder / "demos.hdf5"), "columns": logs.DEMOS, **bounds},
    ):
        assert_equal(_load(**values), (transitions, rewards))


def test_a_log_that_lacks_some_rewards_is_refused(
    written: tuple[Path, Transitions, Rewards], tmp_path: Path
) -> None:
    lines = (written[0] / "hopper.csv").read_text().splitlines()
    cells = lines[3].split(",")
    cells[lines[0].split(",").index("reward")] = ""
    lines[3] = ",".join(cells)
    (tmp_path / "hopper.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"'reward'.*row 2"):
        _load(source="files", path=str(tmp_path / "hopper.csv"), columns=logs.COLUMNS)


def test_actions_beyond_the_bounds_are_refused(written: tuple[Path, Transitions, Rewards]) -> None:
    largest = float(np.abs(written[1].actions[:, 0]).max())
    with pytest.raises(InputError, match="is outside"):
        _load(
            source="files", path=str(written[0] / "hopper.csv"), columns=logs.COLUMNS,
            action_low=f"{-0.5 * largest} -1 -1", action_high=f"{0.5 * largest} 1 1",
        )  # fmt: skip


class _Rows(Source):
    """A source of one's own, as docs/guides/add-a-source.md has it: it does not know the rule."""

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        steps = Steps(**{**_beyond(), "next_observations": None})
        return episodes_from_steps(steps, "own", (-np.ones(2), np.ones(2)))


def _beyond() -> dict[str, Any]:
    """Two episodes of four steps, the second of which has an action beyond [-1, 1]."""
    rows = np.arange(8)
    actions = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
    actions[5] = [1.5, -1.0]
    return {
        "observations": np.stack([rows, -rows], 1).astype(np.float32), "actions": actions,
        "rewards": rows.astype(np.float32), "terminated": rows == 3, "truncated": rows == 7,
    }  # fmt: skip


def _write_beyond(source: str, folder: Path) -> dict[str, Any]:
    """Write the log for a source; returns its settings."""
    log = _beyond()
    if source == "minari":
        data, rewards = load_arrays(
            **log, action_low=[-1, -1], action_high=[1, 1], actions_out_of_bounds="widen"
        )
        narrow = replace(
            data, actions=data.actions.clamp(-1, 1), action_low=-torch.ones(2), action_high=torch.ones(2)
        )
        save_minari(narrow, rewards, "own/rows-v0", folder)
        with h5py.File(folder / "own/rows-v0/data/main_data.hdf5", "a") as file:
            file["episode_1/actions"][1] = [1.5, -1.0]
        return {"source": "minari", "task": "own/rows-v0", "path": str(folder)}
    if source == "module:Class":
        return {"source": "tests.sources.test_base:_Rows"}
    names = {"terminated": "terminals", "truncated": "timeouts"} if source == "d4rl" else {}
    with h5py.File(folder / "log.hdf5", "w") as file:
        for name, values in log.items():
            file[names.get(name, name)] = values
    bounds = {"action_low": "-1 -1", "action_high": "1 1"} if source == "files" else {}
    return {"source": source, "path": str(folder / "log.hdf5"), **bounds}


@pytest.mark.parametrize("source", ["files", "d4rl", "minari", "module:Class"])
def test_every_source_has_the_same_rule_for_actions_beyond_the_bounds(source: str, tmp_path: Path) -> None:
    settings = _write_beyond(source, tmp_path)
    with pytest.raises(
        InputError, match=r"action 1.5 at .*is outside \[-1, 1\].*dataset.actions_out_of_bounds"
    ):
        _load(**settings)
    clipped, _ = _load(**settings, actions_out_of_bounds="clip")
    assert (float(clipped.actions.max()), clipped.action_high.tolist()) == (1.0, [1.0, 1.0])
    widened, _ = _load(**settings, actions_out_of_bounds="widen")
    assert (float(widened.actions.max()), widened.action_high.tolist()) == (1.5, [1.5, 1.0])
    for data in (clipped, widened):
        assert (int(data.actions_out_of_bounds), float(data.largest_excess)) == (1, 0.5)


def test_arrays_have_the_same_rule_for_actions_beyond_the_bounds() -> None:
    arrays = _beyond() | {"action_low": [-1, -1], "action_high": [1, 1]}
    with pytest.raises(
        InputError, match=r"actions\[5, 0\] is 1.5, outside \[-1, 1\]; .* set actions_out_of_bounds to"
    ):
        load_arrays(**arrays)
    with pytest.raises(InputError, match="actions_out_of_bounds is 'cut'; it must be refuse, clip, widen"):
        load_arrays(**arrays, actions_out_of_bounds="cut")  # type: ignore[arg-type]
    clipped, _ = load_arrays(**arrays, actions_out_of_bounds="clip")
    widened, _ = load_arrays(**arrays, actions_out_of_bounds="widen")
    assert [float(data.actions.max()) for data in (clipped, widened)] == [1.0, 1.5]
    assert widened.action_high.tolist() == [1.5, 1.0]
    assert int(clipped.actions_out_of_bounds) == int(widened.actions_out_of_bounds) == 1


@pytest.mark.parametrize("source", ["files", "d4rl", "module:Class"])
def test_every_source_counts_dropped_steps(source: str, tmp_path: Path) -> None:
    _, rewards = _load(**_write_beyond(source, tmp_path), actions_out_of_bounds="clip")
    assert (int(rewards.dropped_steps), float(rewards.dropped_reward)) == (1, 7.0)
