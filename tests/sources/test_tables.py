from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from cvl_pipeline.sources.files import load_file
from cvl_pipeline.testing.builders import make_transitions
from tests.sources.rows import ARRAYS, SMALL, TABLES, Array, Log, log_of, mapping, mapping_of, refusal, write


def test_arrays_in_groups_are_placed_side_by_side(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["robot/hand/place"] = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        file["robot/grip"] = np.array([7, 8, 9])
        file["act"] = np.zeros((3, 1))
        file["meta/end"] = np.array([False, False, True])
    changes = SMALL | {"actions": "act", "terminated": "meta/end"}
    for names in ("robot/hand/place robot/grip", ["robot/hand/place", "robot/grip"]):
        data, _ = load_file(tmp_path / "log.h5", mapping(**changes | {"observations": names}))
        assert data.observations.tolist() == [[1, 2, 7], [3, 4, 8], [5, 6, 9], [5, 6, 9]]
    data, _ = load_file(tmp_path / "log.h5", mapping(**changes | {"observations": "robot/*"}))
    assert data.observations[0].tolist() == [7, 1, 2]


def test_cells_of_a_table_may_be_vectors(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [[1.0, 2.0], [3.0, 4.0]], "u": [[0.5], [-0.5]], "end": [0, 1]})
    frame.to_parquet(tmp_path / "log.parquet")
    data, _ = load_file(tmp_path / "log.parquet", mapping(**SMALL))
    assert data.observations.tolist() == [[1, 2], [3, 4], [3, 4]]
    assert data.actions.tolist() == [[0.5], [-0.5]]


@pytest.mark.parametrize("widths", [(2, 2), (1, 1), (1, 2)])
def test_cells_of_lists_of_lists_are_refused(tmp_path: Path, widths: tuple[int, int]) -> None:
    cells = [[[0.5] * width] * 2 for width in widths]
    pd.DataFrame({"x": cells, "u": [0.5, -0.5], "end": [0, 1]}).to_parquet(tmp_path / "log.parquet")
    assert "'x' (dataset.columns.observations): a row is a list of lists; flatten it" in refusal(
        tmp_path / "log.parquet", mapping(**SMALL)
    )


def test_hdf5_rows_of_variable_length_are_vectors_if_they_are_of_one_length(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        ragged = file.create_dataset("x", (2,), dtype=h5py.vlen_dtype(np.float32))
        ragged[0], ragged[1] = [1, 2], [3, 4]
        file["u"], file["end"] = np.zeros(2), np.array([0, 1])
    data, _ = load_file(tmp_path / "log.h5", mapping(**SMALL))
    assert data.observations.tolist() == [[1, 2], [3, 4], [3, 4]]


def test_patterns_take_all_that_match_in_natural_order(csv: Callable[[str], Path]) -> None:
    path = csv("obs_10,obs_2,u,obs_1,end,note\n10,2,0,1,0,a\n20,4,1,3,1,b\n")
    data, _ = load_file(path, mapping(**SMALL | {"observations": "obs_*"}))
    assert data.observations[0].tolist() == [1, 2, 10]
    data, _ = load_file(path, mapping(**SMALL | {"observations": "obs_1? obs_[12]"}))
    assert data.observations[0].tolist() == [10, 1, 2]


def test_a_name_with_pattern_characters_is_first_taken_literally(csv: Callable[[str], Path]) -> None:
    path = csv("x[0],x0,u,end\n1,2,0,0\n3,4,0,1\n")
    data, _ = load_file(path, mapping(**SMALL | {"observations": "x[0]"}))
    assert data.observations[0].tolist() == [1]


@pytest.mark.parametrize("name", ARRAYS + TABLES)
@pytest.mark.parametrize(
    "flags",
    [
        np.array([0, 0, 1, 0]),
        np.array([0.0, 0.0, 1.0, 0.0]),
        np.array([False, False, True, False]),
        np.array([b"False", b"false", b"true", b"FALSE"]),
        np.array([[0], [0], [1], [0]], dtype=np.uint8),
    ],
)
def test_flags_are_written_in_many_ways(tmp_path: Path, name: str, flags: Array) -> None:
    data = make_transitions([3, 1], [True, False])
    flags = np.char.decode(flags) if flags.dtype.kind == "S" and name in TABLES else flags
    flags = flags[:, 0] if name in TABLES and flags.ndim > 1 else flags
    path = write(tmp_path / name, log_of(data) | {"terminated": flags})
    found, _ = load_file(path, mapping_of(name))
    assert found.terminated.tolist() == [True, False]


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", [">i8", ">f4", ">u2"])
def test_flags_and_episode_ids_may_have_any_order_of_bytes(tmp_path: Path, name: str, kind: str) -> None:
    data = make_transitions([3, 1], [True, False])
    columns = {"terminated": [0, 0, 1, 0], "episode": [5, 5, 5, 2]}
    log = log_of(data) | {column: np.array(values, dtype=kind) for column, values in columns.items()}
    found, _ = load_file(write(tmp_path / name, log), mapping_of(name, episode="episode"))
    assert found.episode_starts.tolist() == [0, 3, 4]
    assert found.terminated.tolist() == [True, False]


def test_a_vector_of_one_number_is_a_number(npz: Callable[..., Path]) -> None:
    _, rewards = load_file(npz(reward=np.array([[1.0], [2.0], [3.0], [4.0]])), mapping())
    assert rewards.rewards.tolist() == [1, 2, 3, 4]
    data, _ = load_file(npz(action=np.array([0.5, 1.0, 2.0, 3.0])), mapping())
    assert data.actions.tolist() == [[0.5], [1], [2], [3]]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x,u,end\n1,2\n", "Expected 3 columns, got 2"),
        ("x,u,end\n1,2,0\n1,2,0,5\n", "Expected 3 columns, got 4"),
        ("x,u,end\n", "has no row"),
        ("x,x,u,end\n1,2,3,0\n", "there are 2 with that name"),
        ("x,u,end\n1,2,0\n,2,0\n", "'x' (dataset.columns.observations): nan at row 1"),
        ("x,u,end\n1,2,0\n1,2,\n", "'end' (dataset.columns.terminated): nothing at row 1"),
        ("x,u,end\n1,2,0\n1,two,0\n", "'u' (dataset.columns.actions): 'two' at row 1"),
        ("x,u,end\n,2,0\n,2,0\n", "'x' (dataset.columns.observations): nothing at row 0"),
        (
            "x,u,end\n1,2,0\n1,2,2\n",
            "'end' (dataset.columns.terminated): 2 at row 1 (the first is 0) is not a flag",
        ),
        ("x,u,end\n1,2,yes\n1,2,no\n", "'yes' at row 0"),
        ("x,u,end\n1,2,0\n1e400,2,0\n", "inf at row 1"),
        ("x,u,end\n1,2020-01-01,0\n", "datetime.date(2020, 1, 1) at row 0"),
        ("x;u;end\n1;2;0\n", "there is x;u;end"),
    ],
)
def test_a_faulty_table_is_refused_by_column_row_and_value(
    csv: Callable[[str], Path], text: str, part: str
) -> None:
    assert part in refusal(csv(text), mapping(**SMALL))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"observation": np.ones((4, 2, 2))},
            "'observation' (dataset.columns.observations): has shape (4, 2, 2)",
        ),
        ({"observation": np.ones((4, 0))}, "'observation' (dataset.columns.observations): has shape (4, 0)"),
        ({"observation": np.float32(1)}, "is a single value"),
        ({"observation": np.ones((0, 3))}, "has no row"),
        (
            {"action": np.ones((5, 2))},
            "'observation' (dataset.columns.observations): 4 rows, but 'action' has 5; save one row per step",
        ),
        ({"reward": np.ones(5)}, "'reward' (dataset.columns.rewards): 5 rows, but 'action' has 4"),
        ({"reward": np.ones((4, 2))}, "'reward' (dataset.columns.rewards): 2 numbers per row"),
        ({"reward": np.array([0, 1, np.nan, 3])}, "'reward' (dataset.columns.rewards): nan at row 2"),
        (
            {"action": np.array([[0, 0], [0, 1], [2, 2], [0, -np.inf]])},
            "-inf at row 3 (the first is 0), entry 1",
        ),
        (
            {"action": np.ones((4, 2), dtype=np.complex64)},
            "'action' (dataset.columns.actions): holds complex64",
        ),
        ({"action": np.ones(4, dtype="datetime64[s]")}, "holds datetime64[s], not numbers"),
        ({"action": np.array(["1", "2", "3", "4"])}, "holds text such as '1'; save it as numbers"),
        ({"action": np.array(["1", "2", "x", "4"])}, "'x' at row 2"),
        ({"observation": np.full((4, 3), 1e39)}, "1e+39 at row 0 (the first is 0), entry 0 is too large"),
        ({"reward": np.array([0, 0, 0, -1e300])}, "-1e+300 at row 3 (the first is 0) is too large"),
        ({"terminated": np.array([0, 0, 0.5, 1])}, "'terminated' (dataset.columns.terminated): 0.5 at row 2"),
        ({"terminated": np.array([0, 0, 0, -1])}, "-1 at row 3"),
        ({"terminated": np.array([0, 0, 0, np.nan])}, "nothing at row 3"),
        ({"terminated": np.zeros((4, 2))}, "has shape (4, 2); save one value per row"),
        ({"success": np.array([0, 3, 0, 1])}, "'success' (dataset.columns.successes): 3 at row 1"),
        (
            {"next": np.ones((4, 2))},
            "next_observations are 2 numbers per row and dataset.columns.observations 3",
        ),
    ],
)
def test_a_faulty_array_is_refused_by_name_row_and_value(
    npz: Callable[..., Path], changes: Log, part: str
) -> None:
    assert part in refusal(npz(**changes))


def test_ragged_rows_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"x": [[1.0, 2.0], [3.0]], "u": [1, 2], "end": [0, 1]}).to_parquet(tmp_path / "log.parquet")
    text = refusal(tmp_path / "log.parquet", mapping(**SMALL))
    assert (
        "'x' (dataset.columns.observations): 1 values at row 1 (the first is 0), but 2 in the first" in text
    )
    pd.DataFrame({"x": [[1.0, 2.0], None], "u": [1, 2], "end": [0, 1]}).to_parquet(tmp_path / "log.parquet")
    assert "at row 1" in refusal(tmp_path / "log.parquet", mapping(**SMALL))
    pd.DataFrame({"x": [[[1.0], [2.0, 3.0]]], "u": [1], "end": [0]}).to_parquet(tmp_path / "log.parquet")
    assert "flatten it to one vector" in refusal(tmp_path / "log.parquet", mapping(**SMALL))


def test_an_hdf5_group_or_an_array_without_data_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["deep/place"], file["u"], file["end"] = np.ones(2), np.ones(2), np.array([0, 1])
        file["void"] = h5py.Empty("f4")
        file["pair"] = np.zeros(2, dtype=[("a", "f4"), ("b", "f4")])
    text = refusal(tmp_path / "log.h5", mapping(**SMALL))
    assert "no array 'x' (dataset.columns.observations)" in text
    assert "deep/place" in text
    text = refusal(tmp_path / "log.h5", mapping(**SMALL | {"observations": "void"}))
    assert "'void' (dataset.columns.observations): is a single value or empty" in text
    assert "not numbers" in refusal(tmp_path / "log.h5", mapping(**SMALL | {"observations": "pair"}))


def test_an_episode_id_that_is_missing_is_refused(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,id\n0,0,a\n1,0,\n2,0,b\n")
    text = refusal(path, mapping(**SMALL | {"terminated": None, "episode": "id"}))
    assert "'id' (dataset.columns.episode): nothing at row 1" in text


def test_episode_ids_that_are_vectors_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2.0], "u": [1, 2], "id": [[1, 2], [1, 2]]}).to_parquet(tmp_path / "log.parquet")
    text = refusal(tmp_path / "log.parquet", mapping(**SMALL | {"terminated": None, "episode": "id"}))
    assert "'id' (dataset.columns.episode): has shape (2, 2)" in text


@pytest.mark.parametrize("name", ["log.h5", "log.npz", "log.parquet", "log.csv"])
def test_an_unknown_name_is_refused_with_near_and_known_ones(tmp_path: Path, log: Log, name: str) -> None:
    text = refusal(write(tmp_path / name, log), mapping_of(name, rewards="rewrad"))
    assert "no column 'rewrad'" in text or "no array 'rewrad'" in text
    for part in [
        "(dataset.columns.rewards)",
        "did you mean 'reward'?",
        "terminated, truncated",
        "null (None in Python) if",
    ]:
        assert part in text


def test_some_of_many_names_are_listed(csv: Callable[[str], Path]) -> None:
    path = csv(",".join(f"c{i}" for i in range(100)) + "\n" + ",".join("0" * 100) + "\n")
    text = refusal(path, mapping(**SMALL))
    assert "c2, c3" in text
    assert "c29 and 70 more" in text


def test_a_pattern_that_matches_nothing_is_refused(csv: Callable[[str], Path]) -> None:
    text = refusal(csv("x,u,end\n1,2,0\n"), mapping(**SMALL | {"observations": "obs_*"}))
    assert "no column matches 'obs_*' (dataset.columns.observations); there is end, u, x" in text


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"observations": "*"}, "'*' (dataset.columns.observations): takes 'end' too, which is"),
        ({"observations": "x*", "rewards": "xr"}, "takes 'xr' too, which is dataset.columns.rewards"),
        (
            {"observations": "x*", "next_observations": "xn*"},
            "takes 'xn' too, which is dataset.columns.next_obs",
        ),
    ],
)
def test_a_pattern_must_not_take_what_another_field_names(
    csv: Callable[[str], Path], changes: dict[str, Any], part: str
) -> None:
    """Otherwise a reward could become an observation without notice."""
    assert part in refusal(csv("x,xr,xn,u,end\n1,2,0,0,1\n"), mapping(**SMALL | changes))


def test_a_name_given_twice_is_refused(csv: Callable[[str], Path]) -> None:
    assert "listed twice; name it once" in refusal(
        csv("x,u,end\n1,2,0\n"), mapping(**SMALL | {"observations": "x x"})
    )
