"""Write episodes in LeRobot's format v3.0, without LeRobot's package.

A LeRobot dataset has no observation after the last action of an episode. So that none is lost, an episode of T steps
becomes T + 1 frames. The last one has that observation, repeats the last action, and has the flag ``is_last``.
``next.done`` is set in the last two frames, and beside it ``next.truncated`` if the log ended and the world did not.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import Layout, named_parts
from cvl_pipeline.errors import InputError, one_line
from cvl_pipeline.sources.lerobot_format import AFTER_LAST_ACTION, VALIDATION
from cvl_pipeline.sources.pictures import encode_image, import_av

Array = NDArray[Any]

DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILE_BYTES = 100 << 20
"""Size of a Parquet file or a video, from which the next episode begins another one."""
PER_FOLDER = 1000
PICTURES_OF_STATISTICS = 50
"""Pictures of an episode, at most, whose pixels are in its statistics."""
VIDEO = {"g": "2", "crf": "30", "preset": "12"}
"""Settings of AV1, those of LeRobot's package."""
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
INDICES = ("frame_index", "episode_index", "index", "task_index")


@dataclass
class _File:
    """Number of the current file of a kind, and its size so far."""

    number: int = 0
    bytes: int = 0

    @property
    def place(self) -> dict[str, int]:
        return {"chunk_index": self.number // PER_FOLDER, "file_index": self.number % PER_FOLDER}


@dataclass
class _Camera:
    """The videos of a camera: of the current one, container, stream and number of frames."""

    name: str
    folder: Path
    rate: int
    size: tuple[int, int]
    file: _File = field(default_factory=_File)
    container: Any = None
    stream: Any = None
    frames: int = 0

    def add(self, pictures: Array) -> dict[str, Any]:
        """Encode the pictures of an episode, (T, H, W, 3); return where they are."""
        if self.file.bytes > FILE_BYTES:
            self.close()
            self.file = _File(self.file.number + 1)
        if self.container is None:
            self._open()
        start = self.frames
        for picture in pictures:
            frame = import_av().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.frames, Fraction(1, self.rate)
            self._mux(self.stream.encode(frame))
            self.frames += 1
        times = {"from_timestamp": start / self.rate, "to_timestamp": self.frames / self.rate}
        return {f"videos/{self.name}/{key}": value for key, value in {**self.file.place, **times}.items()}

    def _mux(self, packets: list[Any]) -> None:
        self.file.bytes += sum(packet.size for packet in packets)
        self.container.mux(packets)

    def _open(self) -> None:
        os.environ.setdefault("SVT_LOG", "1")  # errors only
        path = self.folder / VIDEOS.format(video_key=self.name, **self.file.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.container = import_av().open(str(path), "w")
        self.stream = self.container.add_stream("libsvtav1", self.rate, options=VIDEO)
        self.stream.height, self.stream.width = self.size
        self.stream.pix_fmt = "yuv420p"
        with _priority_kept():
            self.stream.codec_context.open()
        self.frames = 0

    def close(self) -> None:
        """Finish the current video."""
        if self.container is not None:
            self._mux(self.stream.encode(None))
            self.container.close()
            self.container = None


@contextmanager
def _priority_kept() -> Iterator[None]:
    """Take back the real-time priority that SVT-AV1 gives itself and its caller on Linux, if the user is root.

    This process and all that it starts later would leave no time of a core to anything else.
    """
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    before = {task.name for task in tasks.iterdir()} - {str(threading.get_native_id())}
    try:
        yield
    finally:
        for task in tasks.iterdir():
            if task.name not in before:
                with suppress(OSError):  # it has ended
                    os.sched_setscheduler(int(task.name), policy, parameters)


class LeRobotWriter:
    """Writes episodes as a dataset of LeRobot, v3.0."""

    def __init__(
        self,
        folder: Path,
        transitions: Transitions,
        rewards: Rewards,
        tasks: Sequence[str],
        task_of: Array,
        rate: int,
        videos: bool = False,
        left_out: str | None = None,
    ) -> None:
        """Describe the dataset.

        Args:
            folder: a folder that does not exist.
            transitions: the episodes.
            rewards: their rewards and successes.
            tasks: texts of the tasks.
            task_of: (E,) int64, each episode's number in ``tasks``.
            rate: frames per second.
            videos: whether pictures become AV1 videos, which change them a little, or PNG images, which do not.
            left_out: name of a part that is not written, such as the one-hot vector of the task.

        Raises:
            InputError: pictures are not RGB; PyAV is not installed.
        """
        self.folder, self.transitions, self.rewards = folder, transitions.to("cpu"), rewards.to("cpu")
        self.tasks, self.task_of, self.rate, self.videos = tasks, task_of, rate, videos
        parts = named_parts(tuple(transitions.observations.shape[1:]), transitions.parts)
        self.parts = {f"observation.{part.name}": part for part in parts if part.name != left_out}
        self.data = _File()
        self.cameras = {
            name: _Camera(name, folder, rate, (part.shape[0], part.shape[1]))
            for name, part in self.parts.items()
            if part.image and videos
        }
        self.features = self._features()
        self.statistics: dict[str, list[dict[str, Array]]] = {name: [] for name in self.features}
        self.parquet: Any = None

    def _features(self) -> dict[str, dict[str, Any]]:
        data = self.transitions
        features: dict[str, dict[str, Any]] = {}
        for name, part in self.parts.items():
            if part.image and part.shape[2] != 3:
                raise InputError(
                    f"part '{part.name}' has pictures with {part.shape[2]} channels, but those of LeRobot are RGB; "
                    "export to minari or hdf5"
                )
            kind = ("video" if self.videos else "image") if part.image else "float32"
            names = ["height", "width", "channels"] if part.image else None
            features[name] = {"dtype": kind, "shape": list(part.shape), "names": names}
            if (
                data.parts is not None and len(self.parts) == 1
            ):  # otherwise read as an observation without parts
                features[name]["part"] = True
            if name in self.cameras:
                features[name]["info"] = {
                    "video.height": part.shape[0], "video.width": part.shape[1], "video.codec": "av1",
                    "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "video.fps": self.rate,
                    "video.channels": 3, "has_audio": False,
                }  # fmt: skip
        size = data.actions.shape[1]
        features["action"] = {"dtype": "float32", "shape": [size], "names": None}
        if data.discrete:
            features["action"] = {"dtype": "int64", "shape": [1], "names": None, "action_count": size}
        else:
            features["action"] |= {"low": data.action_low.tolist(), "high": data.action_high.tolist()}
        single: dict[str, str] = {"next.done": "bool", "next.truncated": "bool", "is_last": "bool"}
        if not self.rewards.missing:
            single["next.reward"] = "float32"
        if self.rewards.reports_success:
            single["next.success"] = "bool"
        single |= {"timestamp": "float32", **dict.fromkeys(INDICES, "int64")}
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in single.items()}
        features["is_last"][AFTER_LAST_ACTION] = True
        return features

    def write(self) -> None:
        """Write the folder.

        Raises:
            InputError: pictures cannot be encoded.
            OSError: the folder cannot be written.
        """
        (self.folder / "meta").mkdir(parents=True)
        rows = [self._write_episode(*episode) for episode in enumerate(self._episodes())]
        self.parquet.close()
        for camera in self.cameras.values():
            self._encoding(camera.close)
        self._write_meta(rows)

    def _episodes(self) -> Iterator[dict[str, Array]]:
        """Yield the columns of each episode, (T + 1, ...); pictures are (T + 1, H, W, 3) uint8."""
        data = self.transitions
        for episode, (start, end) in enumerate(pairwise(data.episode_starts.tolist())):
            packed = data.observations[start + episode : end + episode + 1]
            layout: Layout | None = data.parts
            columns: dict[str, Array] = {
                name: (packed if layout is None else layout.part(packed, part.name)).numpy()
                for name, part in self.parts.items()
            }
            count = end - start + 1
            actions = data.actions[start:end].argmax(1)[:, None] if data.discrete else data.actions[start:end]
            columns["action"] = np.concatenate([actions.numpy(), actions[-1:].numpy()])
            done = np.arange(count) >= count - 2
            columns["next.done"] = done
            columns["next.truncated"] = done & ~bool(data.terminated[episode])
            columns["is_last"] = np.arange(count) == count - 1
            columns["next.reward"] = np.append(self.rewards.rewards[start:end].numpy(), np.float32(0.0))
            columns["next.success"] = np.append(self.rewards.successes[start:end].numpy(), False)
            columns["timestamp"] = (np.arange(count) / self.rate).astype(np.float32)
            columns["frame_index"] = np.arange(count)
            columns["episode_index"] = np.full(count, episode)
            columns["index"] = np.arange(start + episode, end + episode + 1)
            columns["task_index"] = np.full(count, self.task_of[episode])
            yield {name: columns[name] for name in self.features}

    def _write_episode(self, episode: int, columns: dict[str, Array]) -> dict[str, Any]:
        count = len(columns["index"])
        row: dict[str, Any] = {
            "episode_index": episode, "tasks": [self.tasks[self.task_of[episode]]], "length": count,
            "dataset_from_index": int(columns["index"][0]), "dataset_to_index": int(columns["index"][-1]) + 1,
        }  # fmt: skip
        for name, camera in self.cameras.items():
            row |= self._encoding(camera.add, columns[name])
        table = pa.table(
            {name: self._arrow(name, columns[name]) for name in columns if name not in self.cameras}
        )
        if self.parquet is None or self.data.bytes + table.nbytes > FILE_BYTES:
            if self.parquet is not None:
                self.parquet.close()
                self.data = _File(self.data.number + 1)
            path = self.folder / DATA.format(**self.data.place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parquet = pyarrow.parquet.ParquetWriter(path, table.schema)
        self.parquet.write_table(table)
        self.data.bytes += table.nbytes
        row |= {f"data/{key}": value for key, value in self.data.place.items()}
        for name, values in columns.items():
            statistics = _statistics(values)
            self.statistics[name].append(statistics)
            row |= {f"stats/{name}/{kind}": value.tolist() for kind, value in statistics.items()}
        return row

    def _encoding(self, function: Any, *arguments: Any) -> Any:
        """Call a function that encodes pictures; convert the errors of the encoder."""
        try:
            return function(*arguments)
        except (InputError, OSError):
            raise
        except Exception as error:  # any error of the encoder, such as for an odd size
            raise InputError(
                f"pictures cannot be encoded as AV1 ({one_line(error)[:200]}); export without --videos"
            ) from error

    def _arrow(self, name: str, values: Array) -> pa.Array:
        if self.features[name]["dtype"] == "image":
            cells = [
                {"bytes": encode_image(picture), "path": f"frame-{index:06d}.png"}
                for index, picture in enumerate(values)
            ]
            return pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        if self.features[name]["shape"] == [1]:
            return pa.array(values.reshape(-1))
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    def _splits(self, episodes: int) -> dict[str, str]:
        train = episodes - int(self.transitions.held_out)
        splits = {"train": f"0:{train}"}
        return splits if train == episodes else splits | {VALIDATION: f"{train}:{episodes}"}

    def _write_meta(self, rows: list[dict[str, Any]]) -> None:
        meta = self.folder / "meta"
        episodes = meta / "episodes/chunk-000/file-000.parquet"
        episodes.parent.mkdir(parents=True)
        place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        pyarrow.parquet.write_table(pa.Table.from_pylist([row | place for row in rows]), episodes)
        texts = pd.Index(list(self.tasks), name="task")
        pd.DataFrame({"task_index": np.arange(len(texts))}, index=texts).to_parquet(meta / "tasks.parquet")
        totals = {
            name: {kind: value.tolist() for kind, value in _joined(parts).items()}
            for name, parts in self.statistics.items()
        }
        info = {
            "codebase_version": "v3.0", "fps": self.rate, "features": self.features,
            "total_episodes": len(rows), "total_frames": rows[-1]["dataset_to_index"], "total_tasks": len(texts),
            "chunks_size": PER_FOLDER, "data_files_size_in_mb": FILE_BYTES >> 20,
            "video_files_size_in_mb": FILE_BYTES >> 20,
            "data_path": DATA, "video_path": VIDEOS if self.cameras else None,
            "robot_type": None, "splits": self._splits(len(rows)),
        }  # fmt: skip
        for name, content in (("info", info), ("stats", totals)):
            (meta / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n")


def _statistics(values: Array) -> dict[str, Array]:
    """Summary of a feature, as in LeRobot: numbers by dimension, (K,), pictures by channel, (3, 1, 1), in [0, 1]."""
    shape: tuple[int, ...] = (-1,)
    count = len(values)
    if values.ndim == 4:
        values = values[:: -(-count // PICTURES_OF_STATISTICS)]
        count = len(values)
        values, shape = values.reshape(-1, values.shape[-1]) / 255.0, (-1, 1, 1)
    values = values.reshape(len(values), -1).astype(np.float64)
    found = {kind: getattr(values, kind)(axis=0) for kind in ("min", "max", "mean", "std")}
    found |= dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))
    return {kind: value.reshape(shape) for kind, value in found.items()} | {"count": np.array([count])}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Summary of all episodes from their summaries; quantiles are means of theirs, as in LeRobot."""
    stacked = {kind: np.stack([part[kind] for part in parts]) for kind in parts[0]}
    counts = stacked["count"].reshape(-1)
    means = {kind: np.average(stacked[kind], axis=0, weights=counts) for kind in ("mean", *QUANTILES)}
    square = np.average(stacked["std"] ** 2 + (stacked["mean"] - means["mean"]) ** 2, axis=0, weights=counts)
    return {
        "min": stacked["min"].min(0), "max": stacked["max"].max(0), "std": np.sqrt(square),
        "count": np.array([counts.sum()]), **means,
    }  # fmt: skip
