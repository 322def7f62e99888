from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError

from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.files import Columns, load_file
from cvl_pipeline.trajectories.container import Rewards, Transitions
from cvl_pipeline.trajectories.validation import validate_rewards, validate_transitions
from tests.builders import labelled_transitions, make_rewards, make_transitions, slices

Array = NDArray[Any]
Log = dict[str, Array]

ARRAYS = ("log.hdf5", "log.h5", "log.npz")
TABLES = ("log.parquet", "log.csv", "log.csv.gz")


def _log(data: Transitions, rewards: Rewards) -> Log:
    """One row a step, with everything that a log can say."""
    last = data.episode_starts[1:] - 1
    ends = torch.zeros(2, len(data), dtype=torch.bool)
    ends[0, last], ends[1, last] = data.terminated, data.truncated
    episode = data.episode_of(torch.arange(len(data)))
    columns = {
        "observation": data.states(),
        "action": data.actions,
        "next": data.arrivals(),
        "reward": rewards.rewards,
        "success": rewards.successes,
        "terminated": ends[0],
        "truncated": ends[1],
        "episode": episode,
        "step": torch.arange(len(data)) - data.episode_starts[episode],
    }
    return {name: values.numpy() for name, values in columns.items()}


def _frame(log: Log) -> pd.DataFrame:
    """Vectors as columns, observation_0, observation_1, ..."""
    columns: dict[str, Array] = {}
    for name, values in log.items():
        wide = {f"{name}_{i}": values[:, i] for i in range(values.shape[1])} if values.ndim > 1 else {}
        columns |= wide or {name: values}
    return pd.DataFrame(columns)


def _write(path: Path, log: Log) -> Path:
    if path.name in TABLES:
        frame = _frame(log)
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    elif path.suffix == ".npz":
        named: dict[str, Any] = log  # for all that mypy knows, one of them is called allow_pickle
        np.savez(path, **named)
    else:
        with h5py.File(path, "w") as file:
            for name, values in log.items():
                file[name] = values
    return path


def _columns(**changes: Any) -> Columns:
    values: dict[str, Any] = {
        "observations": "observation",
        "actions": "action",
        "rewards": "reward",
        "successes": "success",
        "terminated": "terminated",
        "truncated": "truncated",
        "episode": None,
        "step": None,
        "next_observations": "next",
        "discrete": False,
        "action_count": None,
    }
    return Columns(**(values | changes))


def _columns_of(name: str, **changes: Any) -> Columns:
    """What ``_write`` calls things in a file of that name."""
    table = {"observations": "observation_*", "actions": "action_*", "next_observations": "next_*"}
    return _columns(**((table if name in TABLES else {}) | changes))


def _refusal(path: Path, columns: Columns | None = None, **bounds: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_file(path, columns or _columns_of(path.name), **bounds)
    text = str(caught.value)
    assert path.name in text or "dataset.action_" in text
    assert "\n" not in text
    return text


def _assert_equal(found: tuple[Transitions, Rewards], expected: tuple[Transitions, Rewards]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in vars(ours).items():
            torch.testing.assert_close(value, vars(theirs)[name], rtol=0, atol=0, equal_nan=True)


def _logged_bounds(data: Transitions) -> dict[str, Any]:
    return {"action_low": data.actions.amin(0), "action_high": data.actions.amax(0)}


@pytest.fixture
def log(transitions: Transitions, rewards: Rewards) -> Log:
    return _log(transitions, rewards)


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays that differ from the log of one episode of four steps."""
    data = make_transitions([4], [False])

    def write(**changes: Any) -> Path:
        return _write(tmp_path / "log.npz", _log(data, make_rewards(data)) | changes)

    return write


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "log.csv"
        path.write_text(text)
        return path

    return write


# One observation and one action, ends flagged.
SMALL: dict[str, Any] = {
    "observations": "x", "actions": "u", "rewards": None, "successes": None, "next_observations": None,
    "terminated": "end", "truncated": None,
}  # fmt: skip


# --- What is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_every_format_gives_the_very_same_episodes(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log, name: str
) -> None:
    bounds = {"action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}
    found = load_file(_write(tmp_path / name, log), _columns_of(name), **bounds)
    validate_transitions(found[0])
    validate_rewards(found[1], found[0])
    _assert_equal(found, (transitions, rewards))


@st.composite
def _episodes(draw: st.DrawFn) -> tuple[Transitions, Rewards]:
    endings = draw(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
    data = make_transitions([length for length, _ in endings], [fell for _, fell in endings])
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    sizes = {"observations": data.observations.shape, "actions": data.actions.shape}
    drawn = {
        name: torch.from_numpy(draw(arrays(np.float32, tuple(shape), elements=numbers)))
        for name, shape in sizes.items()
    }
    data = Transitions(**(vars(data) | drawn))
    data = Transitions(**(vars(data) | _logged_bounds(data)))
    values = torch.from_numpy(draw(arrays(np.float32, len(data), elements=numbers)))
    return data, Rewards(values, torch.from_numpy(draw(arrays(np.bool_, len(data)))))


@settings(max_examples=30)
@given(
    episodes=_episodes(),
    marks=st.sampled_from(
        [
            ("terminated", "truncated"),
            ("episode", "terminated"),
            ("episode", "step", "truncated", "terminated"),
        ]
    ),
)
def test_what_is_written_is_loaded(episodes: tuple[Transitions, Rewards], marks: tuple[str, ...]) -> None:
    given_marks = dict.fromkeys(("terminated", "truncated", "episode", "step")) | {
        mark: mark for mark in marks
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("log.hdf5", "log.npz", "log.parquet", "log.csv"):
            path = _write(Path(folder, name), _log(*episodes))
            _assert_equal(load_file(path, _columns_of(name, **given_marks)), episodes)


def test_arrays_are_found_in_groups_and_laid_side_by_side(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["robot/hand/place"] = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        file["robot/grip"] = np.array([7, 8, 9])
        file["act"] = np.zeros((3, 1))
        file["meta/end"] = np.array([False, False, True])
    changes = SMALL | {"actions": "act", "terminated": "meta/end"}
    for names in ("robot/hand/place robot/grip", ["robot/hand/place", "robot/grip"]):
        data, _ = load_file(tmp_path / "log.h5", _columns(**changes | {"observations": names}))
        assert data.observations.tolist() == [[1, 2, 7], [3, 4, 8], [5, 6, 9], [5, 6, 9]]
    data, _ = load_file(tmp_path / "log.h5", _columns(**changes | {"observations": "robot/*"}))
    assert data.observations[0].tolist() == [7, 1, 2]


def test_cells_of_a_table_may_be_vectors(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [[1.0, 2.0], [3.0, 4.0]], "u": [[0.5], [-0.5]], "end": [0, 1]})
    frame.to_parquet(tmp_path / "log.parquet")
    data, _ = load_file(tmp_path / "log.parquet", _columns(**SMALL))
    assert data.observations.tolist() == [[1, 2], [3, 4], [3, 4]]
    assert data.actions.tolist() == [[0.5], [-0.5]]


def test_hdf5_rows_of_variable_length_are_vectors_if_they_are_of_one_length(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        ragged = file.create_dataset("x", (2,), dtype=h5py.vlen_dtype(np.float32))
        ragged[0], ragged[1] = [1, 2], [3, 4]
        file["u"], file["end"] = np.zeros(2), np.array([0, 1])
    data, _ = load_file(tmp_path / "log.h5", _columns(**SMALL))
    assert data.observations.tolist() == [[1, 2], [3, 4], [3, 4]]


def test_patterns_take_all_that_match_in_natural_order(csv: Callable[[str], Path]) -> None:
    path = csv("obs_10,obs_2,u,obs_1,end,note\n10,2,0,1,0,a\n20,4,1,3,1,b\n")
    data, _ = load_file(path, _columns(**SMALL | {"observations": "obs_*"}))
    assert data.observations[0].tolist() == [1, 2, 10]
    data, _ = load_file(path, _columns(**SMALL | {"observations": "obs_1? obs_[12]"}))
    assert data.observations[0].tolist() == [10, 1, 2]


def test_a_name_with_the_signs_of_a_pattern_is_a_name_first(csv: Callable[[str], Path]) -> None:
    path = csv("x[0],x0,u,end\n1,2,0,0\n3,4,0,1\n")
    data, _ = load_file(path, _columns(**SMALL | {"observations": "x[0]"}))
    assert data.observations[0].tolist() == [1]


def test_names_in_a_csv_header_may_have_blanks_around_and_within(csv: Callable[[str], Path]) -> None:
    data, _ = load_file(
        csv("joint 1, x, u, end\n1, 2.5, 0, 0\n3, 4, 0, 1\n"),
        _columns(**SMALL | {"observations": ["joint 1", "x"]}),
    )
    assert data.observations[0].tolist() == [1, 2.5]


def test_a_csv_column_may_turn_from_integers_to_fractions_late(csv: Callable[[str], Path]) -> None:
    rows = 300_000
    path = csv("x,u,end\n" + "1,0,0\n" * rows + "0.5,0,1\n")
    data, _ = load_file(path, _columns(**SMALL))
    assert (len(data), float(data.observations[rows])) == (rows + 1, 0.5)


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
    path = _write(tmp_path / name, _log(data, make_rewards(data)) | {"terminated": flags})
    found, _ = load_file(path, _columns_of(name))
    assert found.terminated.tolist() == [True, False]


@pytest.mark.parametrize("name", ARRAYS + TABLES)
@pytest.mark.parametrize(
    "ids", [[7, 7, 7, 3], [0.5, 0.5, 0.5, -1.0], [True, True, True, False], ["run b", "run b", "run b", "a"]]
)
def test_episode_ids_are_numbers_or_text(tmp_path: Path, name: str, ids: list[Any]) -> None:
    data = make_transitions([3, 1], [True, False])
    # Text is of variable length in HDF5 and tables; NPZ has it of fixed length alone.
    values = np.array(ids, dtype=object if isinstance(ids[0], str) and name != "log.npz" else None)
    path = _write(tmp_path / name, _log(data, make_rewards(data)) | {"episode": values})
    found, _ = load_file(path, _columns_of(name, episode="episode", terminated=None, truncated=None))
    assert found.lengths.tolist() == [3, 1]
    assert found.truncated.tolist() == [True, True]


def test_where_the_id_changes_without_a_flag_the_episode_was_truncated(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,end,id\n0,0,0,1\n1,0,0,1\n2,0,0,2\n3,0,1,2\n4,0,0,3\n5,0,0,3\n")
    data, _ = load_file(path, _columns(**SMALL | {"episode": "id"}))
    assert (data.terminated.tolist(), data.truncated.tolist()) == ([False, True, False], [True, False, True])
    assert [episode["observations"][:, 0].tolist() for episode in slices(data)] == [[0, 1], [2, 3, 3], [4, 5]]


def test_an_episode_that_terminates_where_the_id_changes_was_not_truncated(
    csv: Callable[[str], Path],
) -> None:
    path = csv("x,u,end,cut,id\n0,0,0,0,a\n1,0,1,0,a\n2,0,0,0,b\n3,0,0,1,b\n")
    data, _ = load_file(path, _columns(**SMALL | {"episode": "id", "truncated": "cut"}))
    assert (data.terminated.tolist(), data.truncated.tolist()) == ([True, False], [False, True])


def test_missing_rewards_come_out_as_nan_and_missing_successes_as_none(npz: Callable[..., Path]) -> None:
    _, rewards = load_file(npz(), _columns(rewards=None, successes=None))
    assert rewards.rewards.isnan().tolist() == [True] * 4
    assert rewards.successes.tolist() == [False] * 4


def test_a_vector_of_one_number_is_a_number(npz: Callable[..., Path]) -> None:
    _, rewards = load_file(npz(reward=np.array([[1.0], [2.0], [3.0], [4.0]])), _columns())
    assert rewards.rewards.tolist() == [1, 2, 3, 4]
    data, _ = load_file(npz(action=np.array([0.5, 1.0, 2.0, 3.0])), _columns())
    assert data.actions.tolist() == [[0.5], [1], [2], [3]]


def test_steps_may_start_anywhere_and_be_too_large_for_single_precision(npz: Callable[..., Path]) -> None:
    path = npz(step=np.arange(4) + 2**30)
    assert len(load_file(path, _columns(step="step"))[0]) == 4


# --- Discrete actions -------------------------------------------------------------------------------------

DISCRETE: dict[str, Any] = SMALL | {"discrete": True}


@pytest.mark.parametrize(("count", "size"), [(None, 3), (3, 3), (5, 5)])
def test_codes_become_one_hot(csv: Callable[[str], Path], count: int | None, size: int) -> None:
    path = csv("x,u,end\n0,2,0\n1,0,0\n2,2,1\n")
    data, _ = load_file(path, _columns(**DISCRETE | {"action_count": count}))
    validate_transitions(data)
    assert data.actions.argmax(1).tolist() == [2, 0, 2]
    assert data.actions.shape == (3, size)
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0] * size, [1] * size)
    assert bool(data.discrete)


@pytest.mark.parametrize(
    ("codes", "count", "parts"),
    [
        ([0, 1, -1], None, ["-1", "row 2", "0 to"]),
        ([0, 3, 1], 3, ["3", "row 1", "0 to 2", "action_count"]),
        ([0, 70000, 1], None, ["70000", "row 1"]),
        ([0, 2**40, 1], None, [str(2**40), "row 1"]),
        ([0.5, 1, 0], None, ["0.5", "integers"]),
        ([1.0, 0.0, 1.0], None, ["1.0", "float64", "integers"]),
        ([0, 0, 0], None, ["action_count"]),
    ],
)
def test_what_is_no_code_is_refused(
    csv: Callable[[str], Path], codes: list[float], count: int | None, parts: list[str]
) -> None:
    path = csv("x,u,end\n" + "".join(f"{i},{code},{i // 2}\n" for i, code in enumerate(codes)))
    text = _refusal(path, _columns(**DISCRETE | {"action_count": count}))
    for part in ["'u'", "dataset.columns.actions", *parts]:
        assert part in text


def test_discrete_actions_are_one_column_and_have_no_bounds(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,v,end\n0,1,0,0\n1,0,1,1\n")
    assert "2 numbers a row" in _refusal(path, _columns(**DISCRETE | {"actions": "u v"}))
    text = _refusal(path, _columns(**DISCRETE), action_low=(0.0, 0.0))
    assert "dataset.action_low" in text


# --- Bounds -----------------------------------------------------------------------------------------------


def test_bounds_are_the_logs_own_extremes_unless_given(npz: Callable[..., Path]) -> None:
    path = npz(action=np.array([[1.0, -3.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    data, _ = load_file(path, _columns())
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0, -3], [2, 1])
    data, _ = load_file(path, _columns(), action_low=(-4.0, -5.0))
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-4, -5], [2, 1])
    data, _ = load_file(path, _columns(), action_high=(4.0, 5.0))
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0, -3], [4, 5])


@pytest.mark.parametrize(
    ("bounds", "parts"),
    [
        ({"action_low": (-9.0,)}, ["dataset.action_low", "1 numbers", "2 dimensions"]),
        ({"action_high": (9.0, 9.0, 9.0)}, ["dataset.action_high", "3 numbers", "2 dimensions"]),
        (
            {"action_low": (-9.0, 8.0), "action_high": (9.0, 7.0)},
            ["dataset.action_low", "8 in dimension 1", "7"],
        ),
        ({"action_low": (0.5, -9.0)}, ["action 0 at row 2", "dimension 0", "[0.5, 2]"]),
        ({"action_high": (9.0, 0.5)}, ["action 1 at row 2", "dimension 1", "[-3, 0.5]"]),
    ],
)
def test_bounds_that_do_not_fit_are_refused(
    npz: Callable[..., Path], bounds: dict[str, Any], parts: list[str]
) -> None:
    path = npz(action=np.array([[1.0, -3.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    text = _refusal(path, **bounds)
    for part in parts:
        assert part in text


# --- Files that are not what they should be ---------------------------------------------------------------


def test_a_missing_file_a_folder_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in _refusal(tmp_path / "log.npz")
    (tmp_path / "log.h5").mkdir()
    assert "is a folder" in _refusal(tmp_path / "log.h5")
    (tmp_path / "log.pkl").write_bytes(b"x")
    assert ".hdf5, .h5, .npz, .parquet, .csv, .csv.gz" in _refusal(tmp_path / "log.pkl")


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_empty_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "is empty" in _refusal(tmp_path / name)


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_files_of_another_kind_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    text = _refusal(tmp_path / name)
    assert "cannot be read" in text
    assert "unpickle" not in text


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz", "log.parquet", "log.csv.gz"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, log: Log, name: str) -> None:
    whole = _write(tmp_path / name, log).read_bytes()
    for cut in {1, 10, *range(50, len(whole), len(whole) // 40), len(whole) - 1}:
        (tmp_path / name).write_bytes(whole[:cut])
        assert "cannot be read" in _refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["log.npz", "log.parquet", "log.csv.gz"])
def test_a_file_damaged_anywhere_never_gives_another_error(tmp_path: Path, log: Log, name: str) -> None:
    whole = _write(tmp_path / name, log).read_bytes()
    refused = 0
    for start in range(0, len(whole) - 8, len(whole) // 60):
        (tmp_path / name).write_bytes(
            whole[:start] + b"\xff\x00\xa5\x5a\x80\x7f\x01\xfe" + whole[start + 8 :]
        )
        try:
            load_file(tmp_path / name, _columns_of(name))
        except InputError:
            refused += 1
    assert refused > 20


def test_damaged_hdf5_data_is_refused_with_the_name_of_the_array(tmp_path: Path, log: Log) -> None:
    path = _write(tmp_path / "log.h5", {name: log[name] for name in log if name != "observation"})
    with h5py.File(path, "a") as file:
        file.create_dataset("observation", data=log["observation"], compression="gzip", fletcher32=True)
        start = file["observation"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start + 20] ^= 255
    path.write_bytes(content)
    text = _refusal(path)
    assert "'observation': cannot be read" in text


class _Trap:
    """Whoever unpickles this leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_objects_in_an_npz_are_refused_and_never_unpickled(tmp_path: Path, npz: Callable[..., Path]) -> None:
    objects = np.array([_Trap(tmp_path / "trace")] * 4, dtype=object)
    text = _refusal(npz(action=objects))
    assert "'action': holds Python objects, which are never unpickled; save an array of numbers" in text
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("x,u,end\n1,2\n", "Expected 3 columns, got 2"),
        ("x,u,end\n1,2,0\n1,2,0,5\n", "Expected 3 columns, got 4"),
        ("x,u,end\n", "has no row"),
        ("x,x,u,end\n1,2,3,0\n", "there are 2 of that name"),
        ("x,u,end\n1,2,0\n,2,0\n", "'x' (dataset.columns.observations): nan at row 1"),
        ("x,u,end\n1,2,0\n1,2,\n", "'end' (dataset.columns.terminated): nothing at row 1"),
        ("x,u,end\n1,2,0\n1,two,0\n", "'u' (dataset.columns.actions): 'two' at row 1"),
        ("x,u,end\n,2,0\n,2,0\n", "'x' (dataset.columns.observations): nothing at row 0"),
        (
            "x,u,end\n1,2,0\n1,2,2\n",
            "'end' (dataset.columns.terminated): 2 at row 1 (the first is 0) is no flag",
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
    assert part in _refusal(csv(text), _columns(**SMALL))


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
        ({"action": np.ones((5, 2))}, "'action' (dataset.columns.actions): 5 rows, but 'observation' has 4"),
        ({"reward": np.ones((4, 2))}, "'reward' (dataset.columns.rewards): 2 numbers a row"),
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
        ({"terminated": np.zeros((4, 2))}, "has shape (4, 2); one value a row"),
        ({"success": np.array([0, 3, 0, 1])}, "'success' (dataset.columns.successes): 3 at row 1"),
        (
            {"next": np.ones((4, 2))},
            "next_observations are 2 numbers a row and dataset.columns.observations 3",
        ),
    ],
)
def test_a_faulty_array_is_refused_by_name_row_and_value(
    npz: Callable[..., Path], changes: Log, part: str
) -> None:
    assert part in _refusal(npz(**changes))


def test_ragged_rows_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"x": [[1.0, 2.0], [3.0]], "u": [1, 2], "end": [0, 1]}).to_parquet(tmp_path / "log.parquet")
    text = _refusal(tmp_path / "log.parquet", _columns(**SMALL))
    assert (
        "'x' (dataset.columns.observations): 1 values at row 1 (the first is 0), but 2 in the first" in text
    )
    pd.DataFrame({"x": [[1.0, 2.0], None], "u": [1, 2], "end": [0, 1]}).to_parquet(tmp_path / "log.parquet")
    assert "at row 1" in _refusal(tmp_path / "log.parquet", _columns(**SMALL))
    pd.DataFrame({"x": [[[1.0], [2.0, 3.0]]], "u": [1], "end": [0]}).to_parquet(tmp_path / "log.parquet")
    assert "at row 0" in _refusal(tmp_path / "log.parquet", _columns(**SMALL))


def test_an_hdf5_group_or_an_array_without_data_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file["x/place"], file["u"], file["end"] = np.ones(2), np.ones(2), np.array([0, 1])
        file["void"] = h5py.Empty("f4")
        file["pair"] = np.zeros(2, dtype=[("a", "f4"), ("b", "f4")])
    text = _refusal(tmp_path / "log.h5", _columns(**SMALL))
    assert "no array 'x' (dataset.columns.observations)" in text
    assert "x/place" in text
    text = _refusal(tmp_path / "log.h5", _columns(**SMALL | {"observations": "void"}))
    assert "'void' (dataset.columns.observations): is a single value or empty" in text
    assert "not numbers" in _refusal(tmp_path / "log.h5", _columns(**SMALL | {"observations": "pair"}))


def test_an_hdf5_name_that_is_no_text_hinders_nobody(tmp_path: Path, log: Log) -> None:
    path = _write(tmp_path / "log.h5", log)
    with h5py.File(path, "a") as file:
        file[b"\xff\xfe"] = np.zeros(3)
    load_file(path, _columns())
    assert "did you mean 'reward'?" in _refusal(path, _columns(rewards="rewards"))


def test_an_episode_id_that_is_missing_is_refused(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,id\n0,0,a\n1,0,\n2,0,b\n")
    text = _refusal(path, _columns(**SMALL | {"terminated": None, "episode": "id"}))
    assert "'id' (dataset.columns.episode): nothing at row 1" in text


def test_episode_ids_that_are_vectors_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2.0], "u": [1, 2], "id": [[1, 2], [1, 2]]}).to_parquet(tmp_path / "log.parquet")
    text = _refusal(tmp_path / "log.parquet", _columns(**SMALL | {"terminated": None, "episode": "id"}))
    assert "'id' (dataset.columns.episode): has shape (2, 2)" in text


# --- Names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.h5", "log.npz", "log.parquet", "log.csv"])
def test_an_unknown_name_is_refused_with_near_and_known_ones(tmp_path: Path, log: Log, name: str) -> None:
    text = _refusal(_write(tmp_path / name, log), _columns_of(name, rewards="rewrad"))
    assert "no column 'rewrad'" in text or "no array 'rewrad'" in text
    for part in ["(dataset.columns.rewards)", "did you mean 'reward'?", "terminated, truncated", "null if"]:
        assert part in text


def test_of_many_names_some_are_listed(csv: Callable[[str], Path]) -> None:
    path = csv(",".join(f"c{i}" for i in range(100)) + "\n" + ",".join("0" * 100) + "\n")
    text = _refusal(path, _columns(**SMALL))
    assert "c2, c3" in text
    assert "c29 and 70 more" in text


def test_a_pattern_that_matches_nothing_is_refused(csv: Callable[[str], Path]) -> None:
    text = _refusal(csv("x,u,end\n1,2,0\n"), _columns(**SMALL | {"observations": "obs_*"}))
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
    """A reward among the observations would pass unseen."""
    assert part in _refusal(csv("x,xr,xn,u,end\n1,2,0,0,1\n"), _columns(**SMALL | changes))


def test_a_name_given_twice_is_refused(csv: Callable[[str], Path]) -> None:
    assert "taken twice" in _refusal(csv("x,u,end\n1,2,0\n"), _columns(**SMALL | {"observations": "x x"}))


@pytest.mark.parametrize(
    ("given_names", "names"),
    [
        ("x", ("x",)),
        ("x  y z", ("x", "y", "z")),
        (["a b", "c"], ("a b", "c")),
        (0, ("0",)),
        ([0, 1], ("0", "1")),
    ],
)
def test_names_come_as_a_list_or_as_one_string(given_names: Any, names: tuple[str, ...]) -> None:
    assert _columns(observations=given_names).observations == names


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"observations": None}, "observations"),
        ({"actions": ""}, "actions"),
        ({"actions": []}, "actions"),
        ({"rewards": ""}, "rewards"),
        ({"reward": "r"}, "reward"),
        ({"terminated": None, "truncated": None}, "one of episode, terminated and truncated"),
        ({"terminated": "done", "truncated": "done"}, "both 'done'"),
        ({"action_count": 3}, "action_count is for discrete actions"),
        ({"discrete": True, "action_count": 1}, "action_count"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _columns(**changes)
    assert part in str(caught.value)


@pytest.mark.parametrize("field", list(Columns.model_fields))
def test_every_field_must_be_spelled(field: str) -> None:
    values = _columns().model_dump()
    del values[field]
    with pytest.raises(ValidationError, match=rf"{field}\s+Field required"):
        Columns(**values)


# --- Rows that do not follow each other -------------------------------------------------------------------


def test_an_id_that_returns_is_refused(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,id\n0,0,a\n1,0,a\n2,0,b\n3,0,a\n")
    text = _refusal(path, _columns(**SMALL | {"terminated": None, "episode": "id"}))
    assert (
        "'id' (dataset.columns.episode): 'a' returns at row 3 (the first is 0) after another episode" in text
    )


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_a_flag_in_the_middle_of_an_episode_is_refused(csv: Callable[[str], Path], flag: str) -> None:
    path = csv("x,u,end,id\n0,0,0,7\n1,0,1,7\n2,0,0,7\n3,0,1,8\n")
    text = _refusal(path, _columns(**SMALL | {"terminated": None, "episode": "id"} | {flag: "end"}))
    assert (
        f"'end' (dataset.columns.{flag}): set at row 1 (the first is 0), but episode 7 of 'id' goes on"
        in text
    )


@pytest.mark.parametrize(
    ("steps", "part"),
    [("0 1 3 0", "3 at row 2 (the first is 0) after 1"), ("0 1 1 0", "1 at row 2"), ("0 1 0 0", "0 at row 2"),
     ("0 0.5 1 0", "0.5 at row 1")],
)  # fmt: skip
def test_a_step_that_does_not_follow_is_refused(csv: Callable[[str], Path], steps: str, part: str) -> None:
    rows = "".join(f"{i},0,{int(i == 2)},{step}\n" for i, step in enumerate(steps.split()))
    text = _refusal(csv("x,u,end,t\n" + rows), _columns(**SMALL | {"step": "t"}))
    assert f"'t' (dataset.columns.step): {part}" in text


def test_rows_that_do_not_start_where_the_last_one_led_are_refused(npz: Callable[..., Path]) -> None:
    data = labelled_transitions([4], [False])
    log = _log(data, make_rewards(data))
    changes = {"observation": log["observation"][[0, 2, 1, 3]], "next": log["next"][[0, 2, 1, 3]]}
    text = _refusal(npz(**changes))
    assert (
        "next_observations is 1 at row 0 (the first is 0), dimension 1, but the row after it starts from 2"
        in text
    )


def test_next_observations_that_were_rounded_pass(npz: Callable[..., Path]) -> None:
    data = make_transitions([4], [False])
    following = _log(data, make_rewards(data))["next"]
    assert len(load_file(npz(next=following.round(4)), _columns())[0]) == 4
    assert "starts from" in _refusal(npz(next=following.round(1)))
