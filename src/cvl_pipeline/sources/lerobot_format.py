"""The folder of a LeRobot dataset: its features, tasks and episodes, in format v3.0 or v2.1.

v3.0 has many episodes in a file: ``meta/episodes`` says in which one, and where an episode begins in a video. v2.1 has
one Parquet file and one video per episode, and its metadata are lists of JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.io.storage import files_below, kind_at, shown

Array = NDArray[Any]

VERSIONS = ("v3.0", "v2.1")
AGAIN = "download or record the dataset again"
INFO = "meta/info.json"
VALIDATION = "val"
"""Name of the split of held-out episodes."""
AFTER_LAST_ACTION = "after_last_action"
"""In info.json, says that the flag ``is_last`` marks a frame after the last action, as in exports of this package."""
NUMBERS = (
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
"""Types of features of numbers."""
MOST_NUMBERS = 1 << 31
"""Numbers that a feature has per frame, at most."""
PICTURES = ("image", "video")
"""Types of features of cameras."""


@dataclass(frozen=True)
class Episodes:
    """The episodes of a dataset.

    Attributes:
        index: (E,) int64, their numbers, ascending.
        lengths: (E,) int64, their frames.
        tasks: texts of the tasks of each.
        data: Parquet file of each.
        videos: by camera, the video of each.
        starts: by camera, (E,) float64, seconds at which each begins in its video.
    """

    index: Array
    lengths: Array
    tasks: list[list[str]]
    data: list[Path]
    videos: dict[str, list[Path]] = field(default_factory=dict)
    starts: dict[str, Array] = field(default_factory=dict)

    def select(self, chosen: Array) -> Episodes:
        """Return the episodes at the given positions, (M,) int64."""

        def of(values: list[Any]) -> list[Any]:
            return [values[position] for position in chosen]

        return Episodes(
            self.index[chosen],
            self.lengths[chosen],
            of(self.tasks),
            of(self.data),
            {name: of(paths) for name, paths in self.videos.items()},
            {name: starts[chosen] for name, starts in self.starts.items()},
        )


class Folder:
    """A local dataset.

    Attributes:
        path: its folder.
        version: ``v3.0`` or ``v2.1``.
        rate: frames per second.
        features: description of each feature, by name.
        frames: number of frames.
        tasks: texts of all tasks, by number.
    """

    def __init__(self, path: Path) -> None:
        """Read the description of the dataset and its tasks.

        Raises:
            InputError: the folder is missing, no LeRobot dataset, of another version, damaged or unreadable.
        """
        self.path = path
        kind = kind_at(path)
        if kind != "folder":
            fault = "does not exist" if kind is None else f"is a {kind}"
            raise InputError(f"dataset.path: {shown(path)} {fault}; name the folder of a LeRobot dataset")
        info = self._info()
        self.version = str(info.get("codebase_version"))
        if self.version not in VERSIONS:
            raise InputError(
                f"{self._place(INFO)}: codebase_version is {self.version}; only {' and '.join(VERSIONS)} are read, so "
                "convert the dataset with LeRobot"
            )
        self.rate = self._number(info, "fps")
        self.frames = int(self._number(info, "total_frames"))
        self._count = int(self._number(info, "total_episodes"))
        chunks = {"chunks_size": info.get("chunks_size") or 1000}
        self._per_chunk = max(1, int(self._number(chunks, "chunks_size")))
        self._info_paths = info
        features = info.get("features")
        if not isinstance(features, dict):
            raise InputError(f"{self._place(INFO)}: features are not described; {AGAIN}")
        self.features: dict[str, dict[str, Any]] = features
        self.tasks = self._tasks()
        self._listed: Array = np.empty(0, dtype=np.int64)

    def _place(self, name: str) -> str:
        return shown(self.path / name)

    def _info(self) -> dict[str, Any]:
        content = self._read(INFO, Path.read_bytes)
        try:
            info = json.loads(content)
        except ValueError as error:
            raise InputError(f"{self._place(INFO)}: is not JSON ({one_line(error)}); {AGAIN}") from error
        if not isinstance(info, dict):
            raise InputError(f"{self._place(INFO)}: does not describe a dataset; {AGAIN}")
        return info

    def _number(self, info: dict[str, Any], name: str) -> float:
        value = info.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**53:
            raise InputError(
                f"{self._place(INFO)}: {name} is {value!r}; it must be a positive number; {AGAIN}"
            )
        return value

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        """Read a file of the dataset; convert the errors of a missing, damaged or unreadable one."""
        path = self.path / name
        kind = kind_at(path)
        if kind != "file":
            fault = "does not exist" if kind is None else f"is a {kind}"
            raise InputError(
                f"{shown(path)} {fault}; name a folder with a whole LeRobot dataset of format {' or '.join(VERSIONS)}"
            )
        try:
            return read(path)
        except InputError:
            raise
        except Exception as error:  # a damaged file can raise any error of its library
            raise InputError(f"{shown(path)}: cannot be read ({one_line(error)[:200]}); {AGAIN}") from error

    def _lines(self, name: str) -> list[dict[str, Any]]:
        rows = self._read(  # a text may hold other characters that end a line
            name, lambda path: [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
        )
        if not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{self._place(name)}: has a line that is not a JSON object; {AGAIN}")
        return rows  # type: ignore[no-any-return]

    def _tasks(self) -> list[str]:
        if self.version == "v3.0":
            place = "meta/tasks.parquet"
            table = self._read(place, pyarrow.parquet.read_table)
            # pandas stores the texts as its index, whose name is not always kept.
            text = next((name for name in table.column_names if name != "task_index"), None)
            columns = [
                table.column(name).to_pylist() for name in (text, "task_index") if name in table.column_names
            ]
            rows = list(zip(*columns, strict=True)) if len(columns) == 2 else []
        else:
            place = "meta/tasks.jsonl"
            rows = [(row.get("task"), row.get("task_index")) for row in self._lines(place)]
        by_number = {number: text for text, number in rows if isinstance(number, int | float)}
        tasks = [by_number.get(number) for number in range(len(rows))]
        if not rows or not all(isinstance(task, str) for task in tasks):
            raise InputError(f"{self._place(place)}: does not number the texts of tasks from 0; {AGAIN}")
        return tasks  # type: ignore[return-value]

    @property
    def first_held_out(self) -> int | None:
        """First of the last episodes if info.json holds them out, ``{"train": "0:8", "val": "8:10"}``; else None."""
        splits = self._info_paths.get("splits")
        train = splits.get("train") if isinstance(splits, dict) else None
        first = str(train).removeprefix("0:")
        known = splits == {"train": f"0:{first}", VALIDATION: f"{first}:{self._count}"}
        return int(first) if known and re.fullmatch("[0-9]{1,9}", first) else None

    def episodes(self, cameras: list[str]) -> Episodes:
        """Read where episodes are.

        Args:
            cameras: names of the features whose videos are needed.

        Raises:
            InputError: metadata are missing, damaged or contradict each other, or name a file out of the folder.
        """
        episodes = self._episodes_v30(cameras) if self.version == "v3.0" else self._episodes_v21(cameras)
        place = self._place("meta")
        if len(episodes.index) != self._count or int(episodes.lengths.sum()) != self.frames:
            raise InputError(
                f"{place}: lists {len(episodes.index)} episodes with {int(episodes.lengths.sum())} frames, but "
                f"info.json says {self._count} with {self.frames}; {AGAIN}"
            )
        wrong = np.flatnonzero((np.diff(episodes.index) <= 0) | (episodes.lengths[1:] < 1))
        if len(wrong) or episodes.lengths[0] < 1:
            raise InputError(f"{place}: episodes are not in order, or have no frames; {AGAIN}")
        self._listed = episodes.index
        return episodes

    def _episodes_v30(self, cameras: list[str]) -> Episodes:
        places = {
            name: [f"videos/{name}/{what}" for what in ("chunk_index", "file_index")] for name in cameras
        }
        starts = {name: f"videos/{name}/from_timestamp" for name in cameras}
        data = ["data/chunk_index", "data/file_index"]
        names = ["episode_index", "length", "tasks", *data, *chain(*places.values()), *starts.values()]
        folder = self.path / "meta/episodes"
        files = [path for path in files_below(folder) if path.suffix == ".parquet"] if kind_at(folder) else []
        tables = [
            self._read(str(path.relative_to(self.path)), lambda path: _columns(path, names)) for path in files
        ]
        if not tables:
            raise InputError(f"{shown(folder)}: has no Parquet file; {AGAIN}")

        def numbers(name: str, dtype: type = np.int64) -> Array:
            parts = []
            for table in tables:  # converted one by one, because files may differ in their types
                values = table.column(name).to_numpy()
                if values.dtype.kind not in "iuf" or not ((values >= 0) & (values < 2.0**53)).all():
                    raise InputError(
                        f"{shown(folder)}: '{name}' has something else than numbers from 0 on; {AGAIN}"
                    )
                parts.append(values.astype(dtype))
            return np.concatenate(parts)

        def paths(template: str, names: list[str], **more: str) -> list[Path]:
            chunks, files = (numbers(name).tolist() for name in names)
            known = {
                pair: self._file(template, chunk_index=pair[0], file_index=pair[1], **more)
                for pair in set(zip(chunks, files, strict=True))
            }
            return [known[pair] for pair in zip(chunks, files, strict=True)]

        return Episodes(
            numbers("episode_index"),
            numbers("length"),
            [self._texts(cell, folder) for table in tables for cell in table.column("tasks").to_pylist()],
            paths("data_path", data),
            {name: paths("video_path", places[name], video_key=name) for name in cameras},
            {name: numbers(starts[name], np.float64) for name in cameras},
        )

    def _episodes_v21(self, cameras: list[str]) -> Episodes:
        place = "meta/episodes.jsonl"
        rows = self._lines(place)
        try:
            index, lengths = (
                np.array([row[name] for row in rows], dtype=np.int64) for name in ("episode_index", "length")
            )
            tasks = [self._texts(row.get("tasks"), self.path / place) for row in rows]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{self._place(place)}: lacks a number or a length of an episode; {AGAIN}"
            ) from error
        if not rows:
            raise InputError(f"{self._place(place)}: has no episode; {AGAIN}")

        def paths(template: str, **more: str) -> list[Path]:
            return [
                self._file(template, episode_chunk=number // self._per_chunk, episode_index=number, **more)
                for number in index.tolist()
            ]

        return Episodes(
            index, lengths, tasks, paths("data_path"),
            {name: paths("video_path", video_key=name) for name in cameras},
            {name: np.zeros(len(index)) for name in cameras},
        )  # fmt: skip

    def _texts(self, tasks: Any, place: Path) -> list[str]:
        """Texts of the tasks of an episode."""
        if tasks is not None and not isinstance(tasks, list):
            raise InputError(f"{shown(place)}: 'tasks' is {str(tasks)[:40]!r}, not a list of texts; {AGAIN}")
        return list(map(str, tasks or ()))

    def _file(self, template: str, **values: int | str) -> Path:
        """Path of a file by a template of info.json, which must not lead out of the folder."""
        pattern = self._info_paths.get(template)
        try:
            name = PurePosixPath(str(pattern).format(**values))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._place(INFO)}: {template} is {pattern!r}; {AGAIN}") from error
        if pattern is None or name.is_absolute() or ".." in name.parts:
            raise InputError(
                f"{self._place(INFO)}: {template} is {pattern!r}, which is no place in the dataset's folder; {AGAIN}"
            )
        return self.path / name

    def batches(self, episodes: Episodes, names: list[str], rows: int) -> Iterator[pa.Table]:
        """Read columns of the frames of episodes, block by block, in order.

        Args:
            episodes: some or all of the dataset's.
            names: columns; those that say where a row belongs are added.
            rows: number of rows of a block, at most.

        Yields:
            Rows of the episodes, all of whose places are as the metadata say.

        Raises:
            InputError: a file is missing or damaged, lacks a column, or has other rows than the metadata say.
        """
        names = list(dict.fromkeys(["episode_index", "frame_index", *names]))
        ends = np.cumsum(episodes.lengths)
        done = 0
        for path in dict.fromkeys(episodes.data):
            for table in self._blocks(path, names, rows):
                numbers = _whole(table, "episode_index", path)
                unknown = numbers[~np.isin(numbers, self._listed)]
                if len(unknown):
                    raise InputError(
                        f"{shown(path)}: has rows of episode {unknown[0]}, which meta does not list; {AGAIN}"
                    )
                chosen = np.isin(numbers, episodes.index)
                block = table if chosen.all() else table.filter(pa.array(chosen))
                if not len(block):
                    continue
                row = np.arange(done, done + len(block))
                of = np.minimum(np.searchsorted(ends, row, side="right"), len(ends) - 1)
                expected = {
                    "episode_index": episodes.index[of],
                    "frame_index": row - ends[of] + episodes.lengths[of],
                }
                found = {name: _whole(block, name, path) for name in expected}
                wrong = np.flatnonzero(np.any([found[name] != expected[name] for name in expected], axis=0))
                if len(wrong):
                    places = [
                        f"frame {values['frame_index'][wrong[0]]} of episode {values['episode_index'][wrong[0]]}"
                        for values in (found, expected)
                    ]
                    raise InputError(
                        f"{shown(path)}: has {places[0]} where the metadata expect {places[1]}; rows are missing, "
                        f"repeated or not in order; {AGAIN}"
                    )
                done += len(block)
                yield block
        if done != ends[-1]:
            at = int(np.searchsorted(ends, done, side="right"))
            raise InputError(
                f"{shown(episodes.data[at])}: ends within episode {episodes.index[at]}: the metadata say "
                f"{ends[-1]} frames, and the files have {done}; {AGAIN}"
            )

    def _blocks(self, path: Path, names: list[str], rows: int) -> Iterator[pa.Table]:
        def open_file(path: Path) -> Any:
            # Pages are read one by one: a group of rows may be as large as the file.
            file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            missing = [name for name in names if name not in file.schema_arrow.names]
            return file, missing

        name = str(path.relative_to(self.path))
        file, missing = self._read(name, open_file)
        with file:
            if missing:
                raise InputError(
                    f"{shown(path)}: has no column '{missing[0]}', which info.json describes; {AGAIN}"
                )
            batches = file.iter_batches(rows, columns=names, use_threads=False)
            while (batch := self._read(name, lambda _: next(batches, None))) is not None:
                yield pa.Table.from_batches([batch])


def is_feature(feature: Any) -> bool:
    """Whether the description of a feature in info.json has all that is needed to read it."""
    return (
        isinstance(feature, dict)
        and isinstance(feature.get("dtype"), str)
        and isinstance(feature.get("shape"), list)
        and all(isinstance(size, int) and size > 0 for size in feature["shape"])
        and math.prod(feature["shape"]) <= MOST_NUMBERS
        and all(isinstance(feature.get(name), dict | None) for name in ("info", "video_info"))
    )


def _columns(path: Path, names: list[str]) -> Any:
    """Read columns of a Parquet file; raise KeyError if one is missing."""
    with pyarrow.parquet.ParquetFile(path) as file:
        for name in names:
            if name not in file.schema_arrow.names:
                raise KeyError(f"no column {name}")
        return file.read(columns=names).select(names)


def _whole(table: pa.Table, name: str, path: Path) -> Array:
    """A column of whole numbers, (N,) int64."""
    column = table.column(name)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise InputError(
            f"{shown(path)}: '{name}' is {column.type}, or has gaps; it must be whole numbers; {AGAIN}"
        )
    values: Array = column.to_numpy().astype(np.int64)
    return values
