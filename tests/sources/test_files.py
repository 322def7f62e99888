from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.validation import validate_rewards, validate_transitions
from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.files import Files, load_file
from cvl_pipeline.testing.builders import labelled_transitions, make_transitions, slices
from tests.sources.rows import (
    ARRAYS,
    GROUPS,
    SMALL,
    TABLES,
    Array,
    Log,
    assert_equal,
    groups_of,
    log_of,
    mapping,
    mapping_of,
    refusal,
    write,
    write_groups,
)


def _logged_bounds(data: Transitions) -> dict[str, Any]:
    return {"action_low": data.actions.amin(0), "action_high": data.actions.amax(0)}


@pytest.mark.parametrize("name", ARRAYS + TABLES)
def test_every_format_gives_the_same_episodes(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log, name: str
) -> None:
    bounds: dict[str, Any] = {"action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}
    found = load_file(write(tmp_path / name, log), mapping_of(name), **bounds)
    validate_transitions(found[0])
    validate_rewards(found[1], found[0])
    assert_equal(found, (transitions, rewards))


@st.composite
def _episodes(draw: st.DrawFn) -> tuple[Transitions, Rewards]:
    endings = draw(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4))
    data = make_transitions([length for length, _ in endings], [fell for _, fell in endings])
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    sizes = {"observations": data.observations.shape, "actions": data.actions.shape}
    values = {
        name: torch.from_numpy(draw(arrays(np.float32, tuple(shape), elements=numbers)))
        for name, shape in sizes.items()
    }
    data = Transitions(**(vars(data) | values))
    data = Transitions(**(vars(data) | _logged_bounds(data)))
    rewards = torch.from_numpy(draw(arrays(np.float32, len(data), elements=numbers)))
    return data, Rewards(rewards, torch.from_numpy(draw(arrays(np.bool_, len(data)))))


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
def test_episodes_are_loaded_as_they_were_written(
    episodes: tuple[Transitions, Rewards], marks: tuple[str, ...]
) -> None:
    given_marks = dict.fromkeys(("terminated", "truncated", "episode", "step")) | {
        mark: mark for mark in marks
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in ("log.hdf5", "log.npz", "log.parquet", "log.csv"):
            path = write(Path(folder, name), log_of(*episodes))
            assert_equal(load_file(path, mapping_of(name, **given_marks)), episodes)


@pytest.mark.parametrize("name", ARRAYS + TABLES)
@pytest.mark.parametrize(
    "ids", [[7, 7, 7, 3], [0.5, 0.5, 0.5, -1.0], [True, True, True, False], ["run b", "run b", "run b", "a"]]
)
def test_episode_ids_are_numbers_or_text(tmp_path: Path, name: str, ids: list[Any]) -> None:
    data = make_transitions([3, 1], [True, False])
    # Text has a variable length in HDF5 and tables, but a fixed length in NPZ.
    values = np.array(ids, dtype=object if isinstance(ids[0], str) and name != "log.npz" else None)
    path = write(tmp_path / name, log_of(data) | {"episode": values})
    found, _ = load_file(path, mapping_of(name, episode="episode", terminated=None, truncated=None))
    assert found.lengths.tolist() == [3, 1]
    assert found.truncated.tolist() == [True, True]


def test_an_id_that_changes_without_a_flag_truncates_the_episode(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,end,id\n0,0,0,1\n1,0,0,1\n2,0,0,2\n3,0,1,2\n4,0,0,3\n5,0,0,3\n")
    data, _ = load_file(path, mapping(**SMALL | {"episode": "id"}))
    assert (data.terminated.tolist(), data.truncated.tolist()) == ([False, True, False], [True, False, True])
    assert [episode["observations"][:, 0].tolist() for episode in slices(data)] == [[0, 1], [2, 3, 3], [4, 5]]


def test_a_flag_decides_how_an_episode_ends_whose_id_changes(
    csv: Callable[[str], Path],
) -> None:
    path = csv("x,u,end,cut,id\n0,0,0,0,a\n1,0,1,0,a\n2,0,0,0,b\n3,0,0,1,b\n")
    data, _ = load_file(path, mapping(**SMALL | {"episode": "id", "truncated": "cut"}))
    assert (data.terminated.tolist(), data.truncated.tolist()) == ([True, False], [False, True])


def test_a_log_may_lack_rewards_and_successes(npz: Callable[..., Path]) -> None:
    _, rewards = load_file(npz(), mapping(rewards=None, successes=None))
    assert rewards.rewards.isnan().tolist() == [True] * 4
    assert rewards.missing
    assert rewards.successes.tolist() == [False] * 4
    assert not rewards.reports_success
    _, rewards = load_file(npz(success=np.zeros(4)), mapping())
    assert rewards.successes.tolist() == [False] * 4
    assert rewards.reports_success


def test_steps_may_start_anywhere_and_be_too_large_for_single_precision(npz: Callable[..., Path]) -> None:
    path = npz(step=np.arange(4) + 2**30)
    assert len(load_file(path, mapping(step="step"))[0]) == 4


DISCRETE: dict[str, Any] = SMALL | {"discrete": True}


@pytest.mark.parametrize(("count", "size"), [(None, 3), (3, 3), (5, 5)])
def test_codes_become_one_hot(csv: Callable[[str], Path], count: int | None, size: int) -> None:
    path = csv("x,u,end\n0,2,0\n1,0,0\n2,2,1\n")
    data, _ = load_file(path, mapping(**DISCRETE | {"action_count": count}))
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
def test_a_number_that_is_no_action_code_is_refused(
    csv: Callable[[str], Path], codes: list[float], count: int | None, parts: list[str]
) -> None:
    path = csv("x,u,end\n" + "".join(f"{i},{code},{i // 2}\n" for i, code in enumerate(codes)))
    text = refusal(path, mapping(**DISCRETE | {"action_count": count}))
    for part in ["'u'", "dataset.columns.actions", *parts]:
        assert part in text


def test_discrete_actions_are_one_column_and_have_no_bounds(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,v,end\n0,1,0,0\n1,0,1,1\n")
    assert "2 numbers per row" in refusal(path, mapping(**DISCRETE | {"actions": "u v"}))
    text = refusal(path, mapping(**DISCRETE), action_low=(0.0, 0.0))
    assert "dataset.action_low" in text


def test_bounds_are_the_logs_own_extremes_unless_given(npz: Callable[..., Path]) -> None:
    path = npz(action=np.array([[1.0, -3.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    data, _ = load_file(path, mapping())
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([0, -3], [2, 1])
    data, _ = load_file(path, mapping(), action_low=(-4.0, -5.0))
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-4, -5], [2, 1])
    data, _ = load_file(path, mapping(), action_high=(4.0, 5.0))
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
    text = refusal(path, **bounds)
    for part in parts:
        assert part in text


def test_an_id_that_returns_is_refused(csv: Callable[[str], Path]) -> None:
    path = csv("x,u,id\n0,0,a\n1,0,a\n2,0,b\n3,0,a\n")
    text = refusal(path, mapping(**SMALL | {"terminated": None, "episode": "id"}))
    assert (
        "'id' (dataset.columns.episode): 'a' returns at row 3 (the first is 0) after another episode" in text
    )


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_a_flag_in_the_middle_of_an_episode_is_refused(csv: Callable[[str], Path], flag: str) -> None:
    path = csv("x,u,end,id\n0,0,0,7\n1,0,1,7\n2,0,0,7\n3,0,1,8\n")
    text = refusal(path, mapping(**SMALL | {"terminated": None, "episode": "id"} | {flag: "end"}))
    assert (
        f"'end' (dataset.columns.{flag}): set at row 1 (the first is 0), but episode '7' of 'id' goes on"
        in text
    )


@pytest.mark.parametrize(
    ("steps", "part"),
    [("0 1 3 0", "3 at row 2 (the first is 0) after 1"), ("0 1 1 0", "1 at row 2"), ("0 1 0 0", "0 at row 2"),
     ("0 0.5 1 0", "0.5 at row 1")],
)  # fmt: skip
def test_a_step_that_does_not_follow_is_refused(csv: Callable[[str], Path], steps: str, part: str) -> None:
    rows = "".join(f"{i},0,{int(i == 2)},{step}\n" for i, step in enumerate(steps.split()))
    text = refusal(csv("x,u,end,t\n" + rows), mapping(**SMALL | {"step": "t"}))
    assert f"'t' (dataset.columns.step): {part}" in text


def test_rows_that_do_not_start_where_the_last_one_led_are_refused(npz: Callable[..., Path]) -> None:
    data = labelled_transitions([4], [False])
    log = log_of(data)
    changes = {"observation": log["observation"][[0, 2, 1, 3]], "next": log["next"][[0, 2, 1, 3]]}
    text = refusal(npz(**changes))
    assert (
        "next_observations is 1 at row 0 (the first is 0), dimension 1, but the row after it starts from 2"
        in text
    )


def test_next_observations_that_were_rounded_pass(npz: Callable[..., Path]) -> None:
    data = make_transitions([4], [False])
    following = log_of(data)["next"]
    assert len(load_file(npz(next=following.round(4)), mapping())[0]) == 4
    assert "starts from" in refusal(npz(next=following.round(1)))


def test_the_source_reads_its_file(npz: Callable[..., Path]) -> None:
    path = npz()
    parameters = Files.Parameters(path=str(path), columns=mapping(), action_low="-1 -1", action_high=[1, 1])
    source = Files(parameters)
    expected = load_file(path, mapping(), (-1.0, -1.0), (1.0, 1.0))
    assert_equal(source.load(0, None), expected)
    assert source.files() == [path]
    assert source.make_environment() is None
    assert not source.may_have_environment


def test_the_source_needs_a_path() -> None:
    message = r"dataset\.path is null: dataset\.source files needs the path of your log"
    with pytest.raises(ValidationError, match=message):
        Files.Parameters()


# --- A group for each episode ----------------------------------------------------------------------------


@settings(max_examples=20)
@given(episodes=_episodes())
def test_every_group_is_loaded_as_one_episode(episodes: tuple[Transitions, Rewards]) -> None:
    data = episodes[0]
    nothing_reported = torch.zeros(len(data), dtype=torch.bool), torch.tensor(False)
    rewards = Rewards(episodes[1].rewards, *nothing_reported)
    with tempfile.TemporaryDirectory() as folder:
        path = write_groups(Path(folder, "log.h5"), groups_of(data, rewards))
        assert_equal(load_file(path, mapping(**GROUPS)), (data, rewards))


def test_groups_have_natural_order_and_a_star_matches_one_part_of_a_path(tmp_path: Path) -> None:
    data = labelled_transitions([1] * 12, [False] * 12)
    groups = groups_of(data)  # HDF5 itself sorts demo_10 before demo_2
    others = {"data/demo_2/demo_3": groups["data/demo_3"], "demo_1": groups["data/demo_1"], "data/mask": {}}
    path = write_groups(tmp_path / "log.h5", groups | others)
    for pattern in ("data/demo_*", "/data/demo_*/", "*/demo_?*"):
        found, _ = load_file(path, mapping(**GROUPS | {"groups": pattern}))
        assert found.observations[::2, 0].tolist() == list(range(12))
    found, _ = load_file(path, mapping(**GROUPS | {"groups": "data/demo_7"}))
    assert found.observations[:, 0].tolist() == [7, 7]


def test_groups_that_robomimic_lists_as_valid_are_held_out(tmp_path: Path) -> None:
    data = labelled_transitions([1] * 12, [False] * 12)
    lists = {
        "train": np.array([b"demo_0"]),
        "valid": np.array([b"demo_10", b"demo_2"]),
        "other": np.array([b"demo_1"]),
    }
    path = write_groups(tmp_path / "log.h5", groups_of(data) | {"mask": lists})
    found, _ = load_file(path, mapping(**GROUPS))
    assert int(found.held_out) == 2
    assert found.observations[::2, 0].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 11, 2, 10]
    with h5py.File(path, "a") as file:
        del file["mask/valid"]
        file["mask/valid"] = np.array(["demo_3"], dtype=h5py.string_dtype())
    found, _ = load_file(path, mapping(**GROUPS))
    assert found.observations[-2:, 0].tolist() == [3, 3]


def test_episodes_that_are_an_axis_of_their_own_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    np.savez(path, observation=np.zeros((40, 30, 3)), action=np.zeros((40, 30, 2)), reward=np.zeros((40, 30)))
    text = refusal(path, mapping())
    assert (
        "If these are 40 episodes of 30 steps, reshape every array to 1200 rows, and flag the last row"
        in text
    )


def test_a_short_form_of_a_name_is_suggested_first(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    np.savez(path, obs=np.zeros((4, 3)), actions=np.zeros((4, 2)))
    assert "did you mean 'obs'?" in refusal(path, mapping(observations="observations", actions="actions"))


def test_images_with_channels_first_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.npz"
    np.savez(path, camera=np.zeros((4, 3, 8, 8), np.uint8), action=np.zeros((4, 2)))
    text = refusal(path, mapping(observations="camera"))
    assert "'camera'" in text
    assert "images of shape (3, 8, 8) have more channels than rows or columns; transpose them" in text


def test_compressed_pictures_are_no_numbers_of_a_state(tmp_path: Path) -> None:
    data = labelled_transitions([3, 2], [False, False])
    groups = groups_of(data)
    for log in groups.values():
        pictures = np.zeros((len(log["obs/rest"]), 50), np.uint8)
        pictures[:, :3] = 0xFF, 0xD8, 0xFF
        log["obs/rest"] = pictures
    text = refusal(write_groups(tmp_path / "log.h5", groups), mapping(**GROUPS))
    assert "holds compressed images, whose bytes are no numbers of a state; decode them" in text


def test_without_the_last_observation_a_truncated_group_loses_its_last_step(tmp_path: Path) -> None:
    data = labelled_transitions([3, 3, 1], [True, False, False])
    groups = groups_of(data)
    for log in groups.values():
        log |= {name: log[name][:-1] for name in ("obs/place", "obs/rest")}
    found, _ = load_file(write_groups(tmp_path / "log.h5", groups), mapping(**GROUPS))
    assert found.lengths.tolist() == [3, 2]
    assert found.terminated.tolist() == [True, False]
    assert found.observations[:, 1].tolist() == [0, 1, 2, 2, 0, 1, 2]


def test_next_observations_of_groups_say_where_the_last_action_led(tmp_path: Path) -> None:
    data = labelled_transitions([3, 2], [False, False])
    groups = groups_of(data)
    for log in groups.values():
        log |= {f"next_{name}": log[name][1:].copy() for name in ("obs/place", "obs/rest")}
        log |= {name: log[name][:-1] for name in ("obs/place", "obs/rest")}
    columns = mapping(**GROUPS | {"observations": "obs/*", "next_observations": "next_obs/*"})
    path = write_groups(tmp_path / "log.h5", groups)
    found, _ = load_file(path, columns)
    assert torch.equal(found.observations, data.observations)
    groups["data/demo_1"]["next_obs/rest"][0] = 9.0
    text = refusal(write_groups(path, groups), columns)
    assert "group 'data/demo_1': dataset.columns.next_observations is 9 at row 0 (the first is 0)" in text


def test_discrete_actions_of_groups_count_over_all_of_them(tmp_path: Path) -> None:
    data = labelled_transitions([2, 2], [False, False])
    groups = groups_of(data)
    for number, log in enumerate(groups.values()):
        log["actions"] = np.array([0, 2 * number])
    found, _ = load_file(
        write_groups(tmp_path / "log.h5", groups), mapping(**GROUPS | {"discrete": True, "rewards": None})
    )
    assert found.actions.argmax(1).tolist() == [0, 0, 0, 2]
    assert found.actions.shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "change", "columns", "parts"),
    [
        ("actions", lambda a: a[:-1], {},
         ["array 'obs/place' (dataset.columns.observations): 4 rows, but 'actions' has 2", "one more of"]),
        ("obs/rest", lambda a: a[:-1], {}, ["array 'obs/rest'", "3 rows, but 'obs/place' has 4"]),
        ("rewards", lambda a: np.append(a, 0), {}, ["array 'rewards'", "4 rows, but 'actions' has 3"]),
        ("rewards", lambda a: a * np.nan, {}, ["array 'rewards'", "nan at row 0 (the first is 0)", "repair"]),
        ("actions", lambda a: a[:, :1], {}, ["dataset.columns.actions are 1 numbers per row, but 2 numbers in",
                                             "group 'data/demo_0'; save the same arrays in every group"]),
        ("dones", lambda a: ~a, {}, ["array 'dones' (dataset.columns.terminated): set at row 0",
                                     "the group, which is one episode, goes on", "to null"]),
        ("dones", lambda a: ~a, {"truncated": "dones", "terminated": None}, ["dataset.columns.truncated"]),
        ("obs/place", lambda a: a[:-1], {"observations": "obs/place"},
         ["have no row after the last action", "group 'data/demo_0' they have one row after the last action", "one"]),
        ("obs/place", None, {"observations": "obs/*"}, ["differ in 'obs/place'", "that every group has"]),
        ("obs/place", None, {}, ["no array 'obs/place'", "there is actions, dones, obs/rest, rewards"]),
        ("actions", lambda a: a + 9, {}, ["action 9", "at row", "is outside [-1, 1]", "3 actions are beyond the bounds",
                                          "set dataset.actions_out_of_bounds to clip"]),
    ],
)  # fmt: skip
def test_a_faulty_group_is_refused_by_its_name(
    tmp_path: Path, name: str, change: Callable[[Array], Array] | None, columns: Log, parts: list[str]
) -> None:
    groups = groups_of(make_transitions([2, 3, 2], [False] * 3))
    values = groups["data/demo_1"].pop(name)
    groups["data/demo_1"] |= {} if change is None else {name: change(values)}
    path = write_groups(tmp_path / "log.h5", groups)
    text = refusal(path, mapping(**GROUPS | columns), action_low=(-1.0, -1.0), action_high=(1.0, 1.0))
    for part in ["log.h5, group 'data/demo_1': ", *parts]:
        assert part in text


def test_last_observations_and_next_observations_both_are_refused(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "log.h5", groups_of(make_transitions([2, 3], [False] * 2)))
    columns = GROUPS | {"observations": "obs/place", "next_observations": "actions"}
    assert "set dataset.columns.next_observations to null" in refusal(path, mapping(**columns))


def test_damage_within_a_group_is_refused_with_its_name(tmp_path: Path) -> None:
    data = make_transitions([2, 3], [False] * 2)
    groups = groups_of(data)
    actions = groups["data/demo_1"].pop("actions")
    path = write_groups(tmp_path / "log.h5", groups)
    with h5py.File(path, "a") as file:
        stored = file.create_dataset("data/demo_1/actions", data=actions, chunks=True, fletcher32=True)
        start = stored.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[start] ^= 255
    path.write_bytes(content)
    assert "log.h5, group 'data/demo_1', 'actions': cannot be read" in refusal(path, mapping(**GROUPS))


@pytest.mark.parametrize(
    ("pattern", "part"), [("data/deme_*", "did you mean"), ("x", "there is data, data/")]
)
def test_groups_that_do_not_exist_are_refused_with_those_that_do(
    tmp_path: Path, pattern: str, part: str
) -> None:
    path = write_groups(tmp_path / "log.h5", groups_of(make_transitions([2, 3], [False] * 2)))
    text = refusal(path, mapping(**GROUPS | {"groups": pattern}))
    assert f"no group matches '{pattern}' (dataset.columns.groups)" in text
    assert part in text


def test_episodes_in_groups_that_no_field_names_are_pointed_out(tmp_path: Path) -> None:
    path = write_groups(tmp_path / "log.h5", groups_of(make_transitions([2, 3], [False] * 2)))
    text = refusal(path, mapping(**GROUPS | {"groups": None, "episode": None}))
    assert "if each group 'data/demo_*' is an episode, set dataset.columns.groups to 'data/demo_*'" in text
    assert text.endswith("name what a group contains: actions, dones, obs/place, obs/rest, rewards")


@pytest.mark.parametrize("name", ["log.npz", "log.csv"])
def test_only_hdf5_has_groups(tmp_path: Path, log: Log, name: str) -> None:
    text = refusal(write(tmp_path / name, log), mapping_of(name, groups="*"))
    assert (
        "no group matches '*' (dataset.columns.groups); there is nothing; set null (None in Python) if the log has none"
        in text
    )


def _image_log(tmp_path: Path, suffix: str, **changes: Array) -> Path:
    """Two episodes of three steps with images that all differ."""
    pictures = np.arange(8 * 6 * 5 * 3).reshape(8, 6, 5, 3).astype(np.uint8)
    arrays: dict[str, Array] = {
        "x": pictures[[0, 1, 2, 4, 5, 6]], "next": pictures[[1, 2, 3, 5, 6, 7]],
        "u": np.linspace(-1.0, 1.0, 6), "end": np.array([0, 0, 1, 0, 0, 1]),
    }  # fmt: skip
    path = tmp_path / f"log{suffix}"
    if suffix == ".npz":
        np.savez(path, **(arrays | changes))  # type: ignore[arg-type]
    else:
        with h5py.File(path, "w") as file:
            for name, values in (arrays | changes).items():
                file[name] = values
    return path


@pytest.mark.parametrize("suffix", [".hdf5", ".npz"])
def test_images_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    columns = mapping(**SMALL | {"next_observations": "next"})
    transitions, _ = load_file(_image_log(tmp_path, suffix), columns)
    validate_transitions(transitions)
    pictures = np.arange(8 * 6 * 5 * 3).reshape(8, 6, 5, 3).astype(np.uint8)
    assert transitions.observations.dtype == torch.uint8
    np.testing.assert_array_equal(transitions.observations, pictures)


def test_images_of_groups_keep_their_last(tmp_path: Path) -> None:
    pictures = np.arange(7 * 6 * 5 * 3).reshape(7, 6, 5, 3).astype(np.uint8)
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for name, rows in (("demo_0", slice(0, 4)), ("demo_1", slice(4, 7))):
            file[f"{name}/eye"], file[f"{name}/u"] = pictures[rows], np.zeros((rows.stop - rows.start - 1, 2))
    columns = mapping(**SMALL | {"groups": "demo_*", "observations": "eye", "terminated": None})
    transitions, _ = load_file(tmp_path / "log.hdf5", columns)
    assert transitions.lengths.tolist() == [3, 2]
    np.testing.assert_array_equal(transitions.observations, pictures)


def test_images_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    columns = mapping(**SMALL | {"next_observations": "next"})
    other = np.zeros((6, 6, 5, 3), dtype=np.uint8)
    with pytest.raises(
        InputError, match=r"next_observations at row 0 .* is not the image that the row after"
    ):
        load_file(_image_log(tmp_path, ".npz", next=other), columns)
    with pytest.raises(
        InputError, match=r"next_observations are images \(6, 4, 3\) per row and .*\(6, 5, 3\)"
    ):
        load_file(_image_log(tmp_path, ".npz", next=other[:, :, :4]), columns)


def test_images_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = _image_log(tmp_path, ".npz", x=np.zeros((6, 6, 5, 3), dtype=np.float32))
    with pytest.raises(InputError, match=r"shape \(6, 6, 5, 3\) and type float32; .* one image"):
        load_file(path, mapping(**SMALL))
    path = _image_log(tmp_path, ".npz", v=np.zeros((6, 2, 2)))
    with pytest.raises(InputError, match=r"array 'v' .* shape \(6, 2, 2\) and type float64; .* one image"):
        load_file(path, mapping(**SMALL | {"observations": "x v"}))


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz", "log.parquet", "log.csv"])
@pytest.mark.parametrize("field", ["observation", "next", "action", "reward"])
@pytest.mark.parametrize("start", [2**24, 2**53, 2**62])
def test_whole_numbers_that_would_become_the_same_are_refused_by_column(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log, name: str, field: str, start: int
) -> None:
    """Such as ids, or times in nanoseconds since 1970."""
    ids = start + np.arange(len(transitions))
    shape = log[field].shape
    changed = log | {field: np.broadcast_to(ids.reshape(-1, *[1] * (len(shape) - 1)), shape)}
    changed = {key: values for key, values in changed.items() if key != "next" or field == "next"}
    path = write(tmp_path / name, changed)
    columns = mapping_of(name) if field == "next" else mapping_of(name, next_observations=None)
    text = refusal(path, columns)
    assert f"{len(ids)} different numbers from {start} to {start + len(ids) - 1} become " in text
    assert f"dataset.columns.{ {'next': 'next_observations'}.get(field, field + 's') }" in text
    assert "subtract the smallest number" in text


@pytest.mark.parametrize("name", ["log.hdf5", "log.npz", "log.parquet", "log.csv"])
@pytest.mark.parametrize("start", [2**53, 2**62])
def test_steps_are_counted_exactly_beyond_double_precision(
    tmp_path: Path, transitions: Transitions, rewards: Rewards, log: Log, name: str, start: int
) -> None:
    counted = log | {"step": log["step"].astype(np.int64) + start}
    columns = mapping_of(name, step="step")
    assert len(load_file(write(tmp_path / name, counted), columns)[0]) == len(transitions)
    counted["step"][1] += 1
    assert f"{start + 2} at row 1 (the first is 0) after {start}" in refusal(
        write(tmp_path / name, counted), columns
    )


def test_steps_that_wrap_around_are_refused(tmp_path: Path) -> None:
    data = make_transitions([3, 2], [True, True])
    log = log_of(data) | {"step": np.array([126, 127, -128, 0, 1], np.int8)}
    path = write(tmp_path / "log.npz", log)
    assert "-128 at row 2 (the first is 0) after 127" in refusal(path, mapping_of("log.npz", step="step"))


def test_a_choice_beyond_int64_is_refused_with_its_own_value(tmp_path: Path) -> None:
    data = make_transitions([3, 2], [True, True])
    codes = np.array([0, 1, 2**64 - 1, 0, 1], np.uint64)
    path = write(tmp_path / "log.npz", log_of(data) | {"action": codes})
    text = refusal(path, mapping_of("log.npz", discrete=True))
    assert "18446744073709551615 at row 2 (the first is 0) is not an action code" in text


@pytest.mark.parametrize("field", ["obs/place", "rewards"])
def test_whole_numbers_that_become_the_same_only_across_groups_are_refused(
    tmp_path: Path, field: str
) -> None:
    """Such as the id of the demonstration as an observation."""
    data = make_transitions([2, 3, 2], [True] * 3)
    groups = groups_of(data)
    for number, log in enumerate(groups.values()):
        log[field] = np.full(log[field].shape, 2**40 + number)
    text = refusal(write_groups(tmp_path / "log.h5", groups), mapping(**GROUPS))
    assert "3 different numbers from 1099511627776" in text


@pytest.mark.parametrize("start", [2**53, 2**60])
@pytest.mark.parametrize("mixed", ["beside", "across"])
def test_integers_of_groups_are_compared_as_they_are_stored(tmp_path: Path, mixed: str, start: int) -> None:
    """Fractions beside them, or in the same array of another group, make them double precision."""
    groups = groups_of(make_transitions([2, 3, 2, 2], [True] * 4))
    logs = list(groups.values())
    for number, log in enumerate(logs):
        log["obs/rest"] = np.full(log["obs/rest"].shape, start + min(number, 2))
        log["obs/place"] = log["obs/place"].astype(np.float64)
    if mixed == "across":
        logs[3]["obs/rest"] = np.full(logs[3]["obs/rest"].shape, float(start))
    columns = GROUPS | ({} if mixed == "beside" else {"observations": "obs/rest"})
    text = refusal(write_groups(tmp_path / "log.h5", groups), mapping(**columns))
    assert "array 'obs/rest' (dataset.columns.observations)" in text
    assert f"3 different numbers from {start}" in text
    for log in logs:  # a constant is as good as any other
        log["obs/rest"] = np.full(log["obs/rest"].shape, 2**60 + 1)
    data, _ = load_file(write_groups(tmp_path / "log.h5", groups), mapping(**columns))
    assert (data.observations[:, -1] == 2.0**60).all()
