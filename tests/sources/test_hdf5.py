from __future__ import annotations

import math
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.d4rl import D4RL, load_d4rl
from cvl_pipeline.sources.files import Files, load_file
from cvl_pipeline.sources.hdf5 import log_files, open_hdf5
from tests.sources.rows import SMALL, mapping, refusal

ROWS = {"x": np.arange(4.0), "u": np.array([1.0, 0.0, 0.0, -1.0]), "end": np.array([0, 1, 0, 1])}


def _write(path: Path, arrays: dict[str, Any]) -> Path:
    """Write arrays and links to an HDF5 file."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def _read(path: Path, **changes: Any) -> list[float]:
    return load_file(path, mapping(**SMALL | changes))[0].observations.flatten().tolist()


def test_soft_and_hard_links_are_read_like_the_arrays_they_lead_to(tmp_path: Path) -> None:
    expected = _read(_write(tmp_path / "plain.h5", ROWS))
    soft = {f"raw/{name}": values for name, values in ROWS.items()}
    soft |= {name: h5py.SoftLink(f"/raw/{name}") for name in ROWS}
    assert _read(_write(tmp_path / "soft.h5", soft)) == expected
    relative = soft | {"x": h5py.SoftLink("raw/./x")}
    assert _read(_write(tmp_path / "relative.h5", relative)) == expected
    path = _write(tmp_path / "hard.h5", ROWS)
    with h5py.File(path, "a") as file:
        file["a_name_that_sorts_first"] = file["x"]
        file["inner/x"] = file["x"]
        file["group"] = h5py.SoftLink("inner")
    for name in ("x", "a_name*", "inner/x", "group/x"):
        assert _read(path, observations=name) == expected


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    path = _write(tmp_path / "log.h5", ROWS | {"a/b/x": np.arange(4.0), "self": h5py.SoftLink("other")})
    with h5py.File(path, "a") as file:
        file["a/b/up"] = file["/"]
        file["a/soft"] = h5py.SoftLink("/a")
        file["other"] = h5py.SoftLink("/self")
        file["out"] = h5py.ExternalLink("log.h5", "/out")
    assert _read(path)
    assert log_files(path) == [path]
    text = refusal(path, mapping(**SMALL | {"observations": "self"}))
    assert "array 'self' (dataset.columns.observations): its links lead to one another" in text


def test_links_that_multiply_names_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.h5"
    with h5py.File(path, "w") as file:
        for level in range(40):
            group = file.create_group(f"g{level}")
            group["a"] = group["b"] = h5py.SoftLink(f"/g{level + 1}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvl_pipeline.sources.hdf5.MOST_NAMES", 1000)
        assert "links give its arrays and groups more than 1000 names" in refusal(path, mapping(**SMALL))


def test_external_links_are_read_and_their_files_are_part_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts").mkdir()
    part = _write(tmp_path / "parts" / "raw.h5", ROWS | {"more": h5py.ExternalLink("deep.h5", "/x")})
    deep = _write(tmp_path / "parts" / "deep.h5", {"x": np.arange(4.0) + 10})
    links = {name: h5py.ExternalLink("parts/raw.h5", f"/{name}") for name in (*ROWS, "more")}
    path = _write(tmp_path / "log.h5", links)
    # HDF5 itself would look here first.
    monkeypatch.setenv("HDF5_EXT_PREFIX", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere" / "parts").mkdir(parents=True)
    _write(tmp_path / "elsewhere" / "parts" / "raw.h5", {name: values + 1 for name, values in ROWS.items()})
    assert _read(path) == [0, 1, 1, 2, 3, 3]
    assert _read(path, observations="more")[0] == 10
    source = Files(Files.Parameters(path=str(path), columns=mapping(**SMALL)))
    assert source.files() == log_files(path) == [path, part, deep]
    assert D4RL(D4RL.Parameters(path=str(path))).files() == [path, part, deep]
    (tmp_path / "far").mkdir()  # a symbolic link to the file changes nothing
    (tmp_path / "far" / "link.h5").symlink_to(path)
    assert _read(tmp_path / "far" / "link.h5") == [0, 1, 1, 2, 3, 3]


def test_an_index_of_one_file_per_episode_is_read_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    for episode in range(3):
        _write(tmp_path / f"e{episode}.h5", {"x": np.arange(3.0) + episode, "u": np.zeros(2)})
    index = {f"episode_{episode}": h5py.ExternalLink(f"e{episode}.h5", "/") for episode in range(3)}
    path = _write(tmp_path / "index.h5", index)
    columns = mapping(**SMALL | {"groups": "episode_*", "terminated": None})
    data, _ = load_file(path, columns)
    assert data.observations.flatten().tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4]
    (tmp_path / "e1.h5").unlink()
    text = refusal(path, columns)
    assert "group 'episode_1' (dataset.columns.groups)" in text
    assert "e1.h5, which does not exist" in text
    os.mkfifo(tmp_path / "e1.h5")
    assert "e1.h5, which is a pipe, not a file" in refusal(path, columns)
    (tmp_path / "e1.h5").unlink()
    (tmp_path / "e1.h5").write_bytes(b"no HDF5")
    assert "e1.h5, which cannot be read" in refusal(path, columns)


def _external(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (4,), "f4", external=[("raw.bin", 0, 16)])


def _virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("gone.h5", "x", (4,))
    file.create_virtual_dataset(name, layout)


def _late(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (4,), "f4")


def _half(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (4,), "f4", chunks=(1,))[:3] = 1


FAULTS: list[tuple[Callable[[h5py.File, str], None], str]] = [
    (_external, "from another file, 'raw.bin' (external storage), which is not read; save the values themselves"),
    (_virtual, "from other files, such as 'gone.h5' (a virtual dataset), which are not read; save the values"),
    (_late, "1 of its 1 parts (chunks) were never written, and would be read as 0.0; write all rows"),
    (_half, "1 of its 4 parts (chunks) were never written"),
    (lambda file, name: file.__setitem__(name, h5py.SoftLink("/nowhere/x")), "is a link to '/nowhere/x', which"),
    (lambda file, name: file.__setitem__(name, h5py.ExternalLink("no.h5", "/x")), "no.h5, which does not exist; put"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "part"), FAULTS)
def test_values_that_are_not_in_the_file_are_refused_by_name(
    tmp_path: Path, make: Callable[[h5py.File, str], None], part: str
) -> None:
    (tmp_path / "raw.bin").write_bytes(bytes(16))
    path = _write(tmp_path / "log.h5", {name: values for name, values in ROWS.items() if name != "x"})
    with h5py.File(path, "a") as file:
        make(file, "x")
        file["y"] = np.arange(4.0)
    text = refusal(path, mapping(**SMALL))
    assert (
        "array 'x' (dataset.columns.observations): it" in text
        or "array 'x' (dataset.columns.observations): 1" in text
    )
    assert part in text
    assert _read(path, observations="y")  # arrays that are not read do not matter
    with h5py.File(path, "w") as file:
        make(file, "observations")
        file["actions"], file["rewards"] = np.zeros((4, 1)), np.zeros(4)
        file["terminals"] = ROWS["end"]
    with pytest.raises(InputError) as caught:
        load_d4rl(path)
    assert part in str(caught.value)
    assert "array 'observations'" in str(caught.value)


def test_an_array_of_no_rows_or_written_whole_has_no_fault(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file.create_dataset("empty", (0, 3), "f4", chunks=(1, 3), maxshape=(None, 3))
        file.create_dataset("zeros", data=np.zeros((100, 7)), chunks=(16, 4), compression="gzip")
        file["scalar"], file["text"] = 1.0, "text"
    with open_hdf5(tmp_path / "log.h5") as opened:
        assert sorted(opened.arrays) == ["empty", "scalar", "text", "zeros"]
        assert [opened.fault(name) for name in opened.arrays] == [None] * 4
        assert opened.shape("zeros") == (100, 7)


def test_an_unknown_compression_is_refused_with_its_number(tmp_path: Path) -> None:
    path = _write(tmp_path / "log.h5", {name: values for name, values in ROWS.items() if name != "x"})
    with h5py.File(path, "a") as file:
        space = h5py.h5s.create_simple((4,))
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4,))
        plan.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (4,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plan)
        file["x"][:] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("h5py.h5z.filter_avail", lambda code: False)
        text = refusal(path, mapping(**SMALL))
    assert (
        "'x' (dataset.columns.observations): it is compressed with filter 1 (deflate), which is not" in text
    )


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((200_000, 50), (200_000, 1)), ((200_001, 50), (70_000, 3)), ((100_000, 7, 5, 3), (50_000, 2, 5, 3))],
)
def test_chunks_that_are_columns_are_not_held_in_memory(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> None:
    values = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    with h5py.File(tmp_path / "log.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=chunks)
    with open_hdf5(tmp_path / "log.h5") as opened:
        tracemalloc.start()
        first = 0
        for block in opened.blocks("x"):
            assert np.array_equal(block, values[first : first + len(block)])
            first += len(block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert first == len(values)
    assert peak < 2e7  # the array takes 40 MB


def test_an_array_takes_no_memory_before_it_is_read(tmp_path: Path) -> None:
    def objects() -> int:
        kinds = h5py.h5f.OBJ_DATASET | h5py.h5f.OBJ_GROUP
        return int(h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, kinds))

    path = _write(tmp_path / "log.h5", {f"episode_{i}/x": np.full(2, float(i)) for i in range(20)})
    before = objects()
    with open_hdf5(path) as file:
        assert objects() == before  # an open chunked array takes 80 KB, and Minari writes 130,000
        assert [file.fault(name) for name in file.arrays] == [None] * 20
        assert [file.shape(name) for name in file.arrays] == [(2,)] * 20
        assert {float(next(file.blocks(f"episode_{i}/x"))[1]) for i in range(20)} == set(range(20))
        assert objects() == before


def test_only_names_that_links_multiply_count_towards_their_limit(tmp_path: Path) -> None:
    path = _write(tmp_path / "log.h5", ROWS | {f"more/{i}/x": np.zeros(1) for i in range(20)})
    with h5py.File(path, "a") as file:
        file["again"] = h5py.SoftLink("more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvl_pipeline.sources.hdf5.MOST_NAMES", 40)  # "again" adds 20 groups and 20 arrays
        assert _read(path)
        patch.setattr("cvl_pipeline.sources.hdf5.MOST_NAMES", 39)
        assert "log.h5: links give its arrays and groups more than 39 names" in refusal(
            path, mapping(**SMALL)
        )


@pytest.fixture
def few_open_files() -> Iterator[None]:
    """Let this process open 100 files, as a system with a low ``ulimit -n`` does."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_index_may_link_to_more_files_than_can_be_open(tmp_path: Path, few_open_files: None) -> None:
    for episode in range(150):
        _write(tmp_path / f"e{episode}.h5", {"x": np.arange(2.0) + episode, "u": np.zeros(1)})
    index = {f"episode_{episode}": h5py.ExternalLink(f"e{episode}.h5", "/") for episode in range(150)}
    path = _write(tmp_path / "index.h5", index)
    columns = mapping(**SMALL | {"groups": "episode_*", "terminated": None})
    data, _ = load_file(path, columns)
    assert data.observations.flatten().tolist() == [row for i in range(150) for row in (i, i + 1)]
    assert log_files(path) == [path, *sorted(tmp_path.glob("e*.h5"))]


def test_a_circle_through_more_files_than_can_be_open_ends(tmp_path: Path) -> None:
    for number in range(5):
        members = {"next": h5py.ExternalLink(f"f{(number + 1) % 5}.h5", "/"), "x": np.full(2, number)}
        _write(tmp_path / f"f{number}.h5", members)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvl_pipeline.sources.hdf5.MOST_OPEN", 2)
        with open_hdf5(tmp_path / "f0.h5") as file:
            assert file.groups == ["next" + "/next" * depth for depth in range(5)]
            assert [next(file.blocks("next/" * depth + "x"))[0] for depth in range(5)] == list(range(5))
            assert list(file.files) == [tmp_path / f"f{number}.h5" for number in (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["n" * 300, "circle.h5"])
def test_a_link_to_a_file_that_cannot_be_asked_for_is_a_fault_of_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "circle.h5").symlink_to("circle.h5")
    part = _write(tmp_path / "part.h5", {"x": np.arange(4.0)})
    links = {"far": h5py.ExternalLink(name, "/x"), "near": h5py.ExternalLink("part.h5", "/x")}
    path = _write(tmp_path / "log.h5", ROWS | links)
    assert _read(path)
    assert "array 'far' (dataset.columns.observations): it is in another file: cannot read" in refusal(
        path, mapping(**SMALL | {"observations": "far"})
    )
    assert log_files(path) == [path, part]
