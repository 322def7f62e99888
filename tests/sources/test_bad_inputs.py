"""Almost four hundred generated bad inputs; each ends in a one-line error that names the fault."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from cvl_pipeline.api import ingest
from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.configuration import CheckedConfigLoader
from cvl_pipeline.kedro.parameters import check_parameters
from cvl_pipeline.kedro.settings import CONFIG_LOADER_ARGS
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import validated
from tests.project import CONF
from tests.sources import logs
from tests.sources.logs import COLUMNS, DEMOS

D4RL_ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
NUMBERS = [f"obs_{i}" for i in range(11)] + [f"act_{i}" for i in range(3)] + ["reward"]
NO_NUMBERS = [np.nan, np.inf, -np.inf]
EPISODES = 6
Damage = Callable[[Path, np.random.Generator], dict[str, Any]]
"""Damages the logs in a folder and returns dataset parameters that must fail."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    logs.write_all(folder, *logs.collect_hopper(EPISODES))
    return folder


def _d4rl(folder: Path) -> dict[str, Any]:
    return {"source": "d4rl", "task": "hopper-random-v2", "path": str(folder / "hopper.hdf5")}


def _csv(folder: Path, table: pd.DataFrame | None = None, **columns: Any) -> dict[str, Any]:
    if table is not None:
        table.to_csv(folder / "hopper.csv", index=False)
    return {"source": "files", "path": str(folder / "hopper.csv"), "columns": COLUMNS | columns}


def _table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "hopper.csv").astype(object)


def _cut_hdf5(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    content = (folder / "hopper.hdf5").read_bytes()
    (folder / "hopper.hdf5").write_bytes(content[: int(rng.integers(0, len(content) - 1))])
    return _d4rl(folder)


def _noise_instead_of_hdf5(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    (folder / "hopper.hdf5").write_bytes(rng.bytes(int(rng.integers(0, 5000))))
    return _d4rl(folder)


def _change(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change an array of an HDF5 file, or delete it if the change returns None."""
    with h5py.File(path, "r+") as file:
        values = change(file[name][()])
        del file[name]
        if values is not None:
            file[name] = values


def _with_one(values: Any, rng: np.random.Generator, faults: list[float]) -> Any:
    """Replace one number."""
    values = values.astype(np.float32)
    values[tuple(rng.integers(0, values.shape))] = rng.choice(faults)
    return values


def _replace(folder: Path, name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    _change(folder / "hopper.hdf5", name, change)
    return _d4rl(folder)


def _array_missing(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    return _replace(folder, str(rng.choice(D4RL_ARRAYS[:4])), lambda values: None)


def _array_of_another_length(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    name = str(rng.choice(D4RL_ARRAYS))
    return _replace(folder, name, lambda values: values[: int(rng.integers(0, len(values)))])


def _array_of_another_rank(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    name = str(rng.choice(D4RL_ARRAYS))
    if rng.random() < 0.5:
        return _replace(folder, name, lambda values: np.stack([values, values], axis=1))
    return _replace(folder, name, lambda values: values[..., None, None])


def _array_of_text(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    name = str(rng.choice(D4RL_ARRAYS))
    return _replace(folder, name, lambda values: np.array([b"one"] * len(values)))


def _number_that_is_none(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    name = str(rng.choice(["observations", "actions", "rewards"]))
    return _replace(folder, name, lambda values: _with_one(values, rng, NO_NUMBERS))


def _flag_that_is_none(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    name = str(rng.choice(["terminals", "timeouts"]))
    return _replace(folder, name, lambda values: _with_one(values, rng, [2.0, -1.0, 0.5, np.nan]))


def _cell_that_is_no_number(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    table = _table(folder)
    table.loc[rng.integers(len(table)), rng.choice(NUMBERS)] = rng.choice(["", "three", "nan", "1e60", "--"])
    return _csv(folder, table)


def _flag_of_another_kind(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    table = _table(folder)
    table.loc[rng.integers(len(table)), "fell"] = rng.choice(["2", "", "maybe", "0.5"])
    return _csv(folder, table)


def _column_missing(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    gone = str(rng.choice(["reward", "fell", "episode"]))
    return _csv(folder, _table(folder).drop(columns=gone))


def _rows_shuffled(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    table = _table(folder)
    return _csv(folder, table.iloc[rng.permutation(len(table))])


def _row_of_another_width(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    lines = (folder / "hopper.csv").read_text().splitlines()
    at = int(rng.integers(1, len(lines)))
    lines[at] = lines[at] + ",1" if rng.random() < 0.5 else lines[at].rsplit(",", 2)[0]
    (folder / "hopper.csv").write_text("\n".join(lines))
    return _csv(folder)


def _name_with_a_typo(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    field = str(rng.choice(["rewards", "terminated", "episode", "observations", "actions"]))
    name = COLUMNS[field].replace("*", "0")
    at = int(rng.integers(len(name)))
    return _csv(folder, **{field: name[:at] + "q" + name[at + 1 :]})


def _file_missing(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    suffix = str(rng.choice(["csv", "hdf5", "parquet", "npz", "txt", "pkl"]))
    return _csv(folder) | {"path": str(folder / f"absent.{suffix}")}


def _file_of_another_kind(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    suffix = str(rng.choice(["parquet", "npz", "h5", "csv.gz", "json"]))
    shutil.copy(folder / "hopper.csv", folder / f"log.{suffix}")
    return _csv(folder) | {"path": str(folder / f"log.{suffix}")}


def _bounds_that_cannot_be(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    low, high = (("-1 -1", "1 1 1"), ("1 1 1", "-1 -1 -1"), ("0 0 0", "0.1 0.1 0.1"))[int(rng.integers(3))]
    return _csv(folder) | {"action_low": low, "action_high": high}


def _minari_damaged(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    files = sorted(path for path in (folder / "minari" / logs.MINARI_ID / "data").iterdir())
    file = files[int(rng.integers(len(files)))]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // int(rng.integers(2, 9))])
    return {"source": "minari", "task": logs.MINARI_ID, "path": str(folder / "minari")}


def _demos(folder: Path, **columns: Any) -> dict[str, Any]:
    return {"source": "files", "path": str(folder / "demos.hdf5"), "columns": DEMOS | columns}


def _in_a_demo(folder: Path, rng: np.random.Generator, name: str, change: Callable[[Any], Any]) -> str:
    """Change an array of one group and return the group's name."""
    group = f"data/demo_{rng.integers(EPISODES)}"
    _change(folder / "demos.hdf5", f"{group}/{name}", change)
    return group


DEMO_ARRAYS = ("obs/place", "obs/rest", "actions", "rewards", "dones")


def _demo_without_an_array(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    _in_a_demo(folder, rng, str(rng.choice(DEMO_ARRAYS)), lambda values: None)
    return _demos(folder)


def _demo_array_of_another_length(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    _in_a_demo(folder, rng, str(rng.choice(DEMO_ARRAYS)), lambda values: values[: rng.integers(len(values))])
    return _demos(folder)


def _demo_array_of_another_width(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    _in_a_demo(folder, rng, str(rng.choice(DEMO_ARRAYS[:3])), lambda values: values[:, 1:])
    return _demos(folder)


def _demo_number_that_is_none(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    name = str(rng.choice(DEMO_ARRAYS[:4]))
    _in_a_demo(folder, rng, name, lambda values: _with_one(values, rng, NO_NUMBERS))
    return _demos(folder)


def _demo_that_ends_in_the_middle(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    def spoil(values: Any) -> Any:
        values[rng.integers(len(values) - 1)] = 1
        return values

    _in_a_demo(folder, rng, "dones", spoil)
    return _demos(folder)


def _demos_of_which_one_lacks_its_end(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    group = _in_a_demo(folder, rng, "obs/place", lambda values: values[:-1])
    _change(folder / "demos.hdf5", f"{group}/obs/rest", lambda values: values[:-1])
    return _demos(folder)


def _demos_that_nobody_wrote(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    return _demos(folder, groups=str(rng.choice(["demo_*", "data", "data/*/*", "data/epsiode_*", "*/demo"])))


def _groups_of_a_table(folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    return _csv(folder, groups=str(rng.choice(["*", "data/*", "obs_0"])), episode=None)


DAMAGES: tuple[Damage, ...] = (
    _cut_hdf5, _noise_instead_of_hdf5, _array_missing, _array_of_another_length, _array_of_another_rank,
    _array_of_text, _number_that_is_none, _flag_that_is_none, _cell_that_is_no_number, _flag_of_another_kind,
    _column_missing, _rows_shuffled, _row_of_another_width, _name_with_a_typo, _file_missing,
    _file_of_another_kind, _bounds_that_cannot_be, _minari_damaged, _demo_without_an_array,
    _demo_array_of_another_length, _demo_array_of_another_width, _demo_number_that_is_none,
    _demo_that_ends_in_the_middle, _demos_of_which_one_lacks_its_end, _demos_that_nobody_wrote,
    _groups_of_a_table,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_a_damaged_log_gives_a_one_line_error(damage: Damage, whole: Path, tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        changes = damage(folder, np.random.default_rng(number))
        with pytest.raises(InputError) as caught:
            ingest(validated(StageParameters, {"dataset": changes}).dataset, seed=0, workers=1)
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 1000
        assert any(word in message for word in (str(folder), "dataset.", "transitions.", "rewards."))


def test_spoiled_parameters_give_a_one_line_error() -> None:
    base = CheckedConfigLoader(str(CONF), **CONFIG_LOADER_ARGS)["parameters"]
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    while counts.total() < 130:
        spoiled = copy.deepcopy(base)
        place: dict[str, Any] = spoiled
        path = []
        while True:
            name = str(rng.choice(sorted(place)))
            path.append(name)
            if not (isinstance(place[name], dict) and place[name]):
                break
            place = place[name]
        way = str(rng.choice(["typo", "type"]))
        value = place.pop(name)
        if way == "typo":
            place[f"{name}x"] = value
        elif way == "type":
            place[name] = "neither" if name == "when" else {"neither": "this"}
        with pytest.raises(InputError) as caught:
            check_parameters(spoiled)
        message = str(caught.value)
        assert "\n" not in message
        assert path[0] in message
        assert name in message
        counts[way] += 1
    assert min(counts.values()) > 40
