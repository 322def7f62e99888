"""Datasets of LeRobot, the robotics community's format: numbers in Parquet files, cameras as videos or images.

LeRobot's package is not needed. A frame has an observation and the action that was chosen from it. ``next.reward``,
``next.success``, ``next.done`` and ``next.truncated`` belong to what the action led to. The observation after the last
action of an episode is not logged, except in exports of this package (see ``lerobot_writer``): there, the last frame of
an episode is that observation, and its action has no meaning.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.errors import InputError, missing_extra, one_line, unknown_name
from cvl_pipeline.io.storage import files_below, shown
from cvl_pipeline.schema import Floats, Words, integers, operational
from cvl_pipeline.sources.base import LocalPath, Source, SourceParameters, Task
from cvl_pipeline.sources.columns import MOST_ACTIONS
from cvl_pipeline.sources.lerobot_format import (
    AFTER_LAST_ACTION,
    NUMBERS,
    PICTURES,
    Episodes,
    Folder,
    is_feature,
)
from cvl_pipeline.sources.lerobot_frames import Filler, Rows
from cvl_pipeline.sources.pictures import Videos, import_av
from cvl_pipeline.sources.progress import progress

logger = logging.getLogger(__name__)

Array = NDArray[Any]

PREFIX = "observation."
REWARDS, SUCCESSES = "next.reward", "next.success"
BLOCK_BYTES = 1 << 24
"""Size of the pictures that are decoded together."""
BLOCK_ROWS = 1 << 14
LISTED = 20
"""Tasks, at most, that an error lists."""


def _size(value: Any) -> Any:
    sizes = integers(value)
    if isinstance(sizes, list | tuple) and len(sizes) == 1:
        return (*sizes, *sizes)
    if not isinstance(sizes, list | tuple) or len(sizes) != 2:
        raise ValueError("must be one size, such as 64, or height and width, such as 48 64")
    return sizes


Pixels = Annotated[int, Field(ge=1, le=4096)]
ImageSize = Annotated[tuple[Pixels, Pixels], BeforeValidator(_size)]
# The command line reads 1 as a number.
Instruction = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
MOST_PATTERNS = 1000
"""Files of single episodes that are asked for by name, at most."""


LARGEST = float(np.finfo(np.float32).max)
"""Largest number of single precision, as a float of Python: bounds in info.json may be larger than a float can be."""


def load_lerobot(parameters: LeRobot.Parameters) -> tuple[Transitions, Rewards]:
    """Read a LeRobot dataset.

    One feature of numbers, or one camera, gives plain observations. Several give packed rows, whose parts are called
    like the features without ``observation.``. Except in exports of this package, an episode that was not terminated
    loses its last step, because nothing says where it led, and a terminated one ends in its last observation once more.

    Args:
        parameters: see ``LeRobot.Parameters``.

    Returns:
        The episodes and their rewards, which are all NaN if the log has none.

    Raises:
        InputError: a fault in the dataset or the parameters, with file, feature, frame and value.
    """
    return Log(_local(parameters), parameters).read()


def _local(p: LeRobot.Parameters) -> Folder:
    """Return the local folder; without a path, that of the hub's cache, to which missing files are downloaded."""
    if p.path is not None:
        return Folder(Path(p.path))
    assert p.task is not None  # checked with the parameters
    return Folder(_download(p.task, p.revision, ["meta/*"]))


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Download files of a repository of Hugging Face's hub to its cache, and return their folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise missing_extra("lerobot", error) from error
    try:
        return Path(
            snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # any error of the network, the hub or its client
        raise InputError(
            f"LeRobot dataset '{repository}' could not be downloaded ({one_line(error)[:200]}); check its name and the "
            "network, or download it elsewhere and give its folder as dataset.path"
        ) from error


@dataclass(frozen=True)
class _Observed:
    """A feature that is part of the observation."""

    name: str
    part: str
    kind: str  # numbers, image or video


class Log:
    """A dataset with the parameters that say what to read of it."""

    def __init__(self, folder: Folder, parameters: LeRobot.Parameters) -> None:
        """Keep both; features are looked up when they are used."""
        self.folder = folder
        self.p = parameters
        self.place = shown(folder.path)

    @cached_property
    def observed(self) -> list[_Observed]:
        """The features of the observation."""
        features = self.folder.features
        names = self.p.observations
        if names is None:
            names = tuple(name for name in features if name.startswith(PREFIX) or name == "observation")
        if not names:
            raise InputError(
                f"{self.place}: has no feature 'observation...'; name some in dataset.observations, of: "
                f"{', '.join(features)}"
            )
        return [self._observed(name) for name in dict.fromkeys(names)]

    def _observed(self, name: str) -> _Observed:
        feature = self._feature("observations", name)
        dtype = feature["dtype"]
        info = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        depth = info.get("is_depth_map") or info.get("video.is_depth_map")
        if depth or dtype not in (*NUMBERS, *PICTURES):
            raise InputError(
                f"{self.place}: feature '{name}' is {'a depth map' if depth else dtype}, which is not read; name other "
                "features in dataset.observations"
            )
        return _Observed(name, name.removeprefix(PREFIX), dtype if dtype in PICTURES else "numbers")

    def _feature(self, field: str, name: str) -> dict[str, Any]:
        if name not in self.folder.features:
            raise InputError(
                f"{self.place}: dataset.{field}: {unknown_name('feature', name, list(self.folder.features))}"
            )
        if not is_feature(self.folder.features[name]):
            raise InputError(
                f"{self.place}: feature '{name}' is not described in meta/info.json: its dtype, shape or info; correct "
                f"it, or name others in dataset.{field}"
            )
        return self.folder.features[name]

    def _optional(self, field: str, default: str) -> str | None:
        """Return the name of a feature of the parameters; None if it is the default, and the dataset lacks it."""
        name: str | None = getattr(self.p, field)
        if name is None or (name == default and name not in self.folder.features):
            return None
        self._feature(field, name)
        return name

    @cached_property
    def rewards(self) -> str | None:
        """Name of the feature of rewards, if there is one."""
        return self._optional("rewards", REWARDS)

    @cached_property
    def successes(self) -> str | None:
        """Name of the feature of successes, if there is one."""
        return self._optional("successes", SUCCESSES)

    @cached_property
    def actions(self) -> str:
        """Name of the feature of actions."""
        if self._feature("actions", self.p.actions)["dtype"] not in NUMBERS:
            raise InputError(
                f"{self.place}: dataset.actions: '{self.p.actions}' is not a feature of numbers; name another one"
            )
        return self.p.actions

    @cached_property
    def discrete(self) -> bool:
        """Whether an action is one whole number, which is a choice; checks the parameters that depend on it."""
        feature, p = self.folder.features[self.actions], self.p
        dtype, shape = feature["dtype"], feature["shape"]
        discrete = bool(dtype.startswith(("int", "uint")) and shape == [1])
        kind = f"'{self.actions}' is {dtype} of shape {shape} in info.json"
        if discrete and (p.action_low is not None or p.action_high is not None):
            raise InputError(
                f"{self.place}: dataset.action_low and action_high: {kind}, and discrete actions have no bounds; set "
                "both to null (None in Python)"
            )
        if p.action_count is not None and not discrete:
            raise InputError(
                f"{self.place}: dataset.action_count is for discrete actions, but {kind}; set it to null (None in "
                "Python)"
            )
        return discrete

    @cached_property
    def final_frames(self) -> bool:
        """Whether episodes have a frame for the observation after their last action.

        Other datasets have a flag ``is_last``, too, in the frame of the last action.
        """
        return self.has_flag("is_last") and self.folder.features["is_last"].get(AFTER_LAST_ACTION) is True

    def has_flag(self, name: str) -> bool:
        """Whether there is a feature of flags of that name."""
        feature: Any = self.folder.features.get(name)
        return is_feature(feature) and feature["dtype"] == "bool"

    @cached_property
    def ends(self) -> str:
        """What ends an episode for good: ``done``, ``success`` or ``never``."""
        ends = self.p.terminated or ("done" if self.has_flag("next.truncated") else "success")
        if ends == "done" and not self.has_flag("next.done"):
            raise InputError(
                f"{self.place}: dataset.terminated is done, but the dataset has no flag 'next.done'; set it to success "
                "or never"
            )
        if ends == "success" and self.successes is None:
            if self.p.terminated is None:
                return "never"
            raise InputError(
                f"{self.place}: dataset.terminated is success, but no feature of success is read; name one in "
                "dataset.successes, or set dataset.terminated to done or never"
            )
        return ends

    @cached_property
    def task(self) -> int | None:
        """Number of the chosen task; None: all."""
        text = self.p.instruction
        if text is None:
            return None
        if text in self.folder.tasks:
            return self.folder.tasks.index(text)
        if text.isdecimal() and len(text) < 10 and int(text) < len(self.folder.tasks):
            return int(text)
        known = [f"{number}: {task}" for number, task in enumerate(self.folder.tasks)]
        raise InputError(
            f"{self.place}: dataset.instruction is '{text[:100]}', which is no task; give the text or the number "
            f"of one: {'; '.join(known[:LISTED])}"
        )

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """Texts of the tasks of the one-hot part; empty without it."""
        several = self.p.tasks == "one_hot" and self.task is None and len(self.folder.tasks) > 1
        return tuple(self.folder.tasks) if several else ()

    @cached_property
    def cameras(self) -> list[str]:
        """Names of the features whose videos are read."""
        return [feature.name for feature in self.observed if feature.kind == "video"]

    def episodes(self) -> Episodes:
        """Return the episodes to read."""
        episodes = self.folder.episodes(self.cameras)
        if self.task is None:
            return episodes
        text = self.folder.tasks[self.task]
        mixed = sum(text in tasks and set(tasks) != {text} for tasks in episodes.tasks)
        if mixed:
            logger.warning(f"{self.place}: {mixed} episodes with other tasks beside '{text}' are left out")
        chosen = np.flatnonzero([set(tasks) == {text} for tasks in episodes.tasks])
        if not len(chosen):
            raise InputError(f"{self.place}: no episode has the task '{text}' (dataset.instruction) alone")
        return episodes.select(chosen)

    def _needed(self, episodes: Episodes) -> list[str]:
        """Patterns of the files of the episodes in a repository."""
        paths = {*episodes.data, *(path for paths in episodes.videos.values() for path in paths)}
        # The hub's client compares each file with each pattern.
        if self.task is None or len(paths) > MOST_PATTERNS:
            return ["data/*", *(f"videos/*{name}/*" for name in self.cameras)]
        return sorted(path.relative_to(self.folder.path).as_posix() for path in paths)

    def check(self) -> None:
        """Raise InputError if the dataset does not fit the parameters, or PyAV is missing."""
        if any(feature.kind != "numbers" for feature in self.observed):
            import_av()
        for field in ("discrete", "rewards", "successes", "ends", "task"):
            getattr(self, field)
        self._check_stored_bounds()

    def _check_stored_bounds(self) -> None:
        """Refuse bounds of the actions in info.json that are none."""
        feature = self.folder.features[self.actions]
        bounds = [feature.get(side) for side in ("low", "high")]
        for side, bound in zip(("low", "high"), bounds, strict=True):
            if isinstance(bound, list) and not all(
                isinstance(value, int | float) and abs(value) <= LARGEST for value in bound
            ):
                raise InputError(
                    f"{self.place}: features.{self.actions}.{side} in meta/info.json is {str(bound)[:80]}, not numbers "
                    "of single precision; correct it, or remove it for the smallest and largest logged actions"
                )
        low, high = bounds
        if isinstance(low, list) and isinstance(high, list) and any(map(operator.gt, low, high)):
            raise InputError(
                f"{self.place}: features.{self.actions}.low in meta/info.json is {low}, in part above high, {high}; "
                "correct them, or remove both"
            )

    def read(self) -> tuple[Transitions, Rewards]:
        """Read the episodes, block by block."""
        self.check()
        episodes = self.episodes()
        if self.p.path is None:
            assert self.p.task is not None
            _download(self.p.task, self.p.revision, ["meta/*", *self._needed(episodes)])
        files_below(self.folder.path)  # a pipe would never end
        filler = Filler(self, episodes)
        for rows in self._blocks(episodes):
            filler.add(rows)
        return filler.result()

    def _blocks(self, episodes: Episodes) -> Iterator[Rows]:
        """Yield the frames of the episodes block by block, with their pictures."""
        ends = np.cumsum(episodes.lengths)
        first, total = 0, int(ends[-1])
        size = max(1, min(BLOCK_ROWS, BLOCK_BYTES // self._frame_bytes))
        with ExitStack() as stack:
            cameras = {name: stack.enter_context(Videos(self.folder.rate)) for name in self.cameras}
            advance = stack.enter_context(progress(f"read {self.place}", total, total * self._frame_bytes))
            for table in self.folder.batches(episodes, self._columns(), size):
                row = np.arange(first, first + len(table))
                of = np.searchsorted(ends, row, side="right")
                rows = Rows(self, table, episodes.index[of], row - ends[of] + episodes.lengths[of])
                rows.last = row == ends[of] - 1
                rows.alone = episodes.lengths[of] == 1
                for name, videos in cameras.items():
                    rows.pictures[name] = self._pictures(name, videos, rows, episodes, of)
                yield rows
                first += len(table)
                advance(len(table))

    def _columns(self) -> list[str]:
        flags = ["is_last"] * self.final_frames + ["next.done"] * (self.ends == "done")
        flags += ["next.truncated"] * (self.ends == "done" and self.has_flag("next.truncated"))
        return [
            *(feature.name for feature in self.observed if feature.kind != "video"),
            self.actions, *filter(None, [self.rewards, self.successes]), *flags,
            *["task_index"] * bool(self.tasks), *["timestamp"] * bool(self.cameras),
        ]  # fmt: skip

    @property
    def _frame_bytes(self) -> int:
        """Bytes of the observation of a frame, as recorded; about, for numbers."""
        sizes = [
            (4 if feature.kind == "numbers" else 1)
            * int(np.prod(self.folder.features[feature.name]["shape"]))
            for feature in self.observed
        ]
        return sum(sizes)

    def _pictures(self, name: str, videos: Videos, rows: Rows, episodes: Episodes, of: Array) -> Array:
        times = rows.numbers("timestamp")[:, 0] + episodes.starts[name][of]
        parts = []
        for position in np.unique(of):
            inside = of == position
            parts.append(videos.at(episodes.videos[name][position], times[inside], self.p.image_size))
        for part in parts:
            if part.shape[1:] != parts[0].shape[1:]:
                raise self.changed(name, part.shape[1:], parts[0].shape[1:])
        return np.concatenate(parts)

    def changed(self, name: str, size: tuple[int, ...], first: tuple[int, ...]) -> InputError:
        """Create the error for pictures that change their size, (H, W, C)."""
        sizes = [f"{shape[0]} x {shape[1]}" for shape in (first, size)]
        return InputError(
            f"{self.place}: pictures of '{name}' are {sizes[0]} pixels, and later {sizes[1]}; set dataset.image_size"
        )


class LeRobot(Source):
    """A dataset in LeRobot's format v3.0 or v2.1, local or on Hugging Face's hub."""

    class Parameters(SourceParameters):
        """The settings of ``lerobot``."""

        source: Literal["lerobot"] = Field(
            "lerobot", description="A dataset in LeRobot's format v3.0 or v2.1."
        )
        task: Task | None = Field(
            None, description="Id of the dataset's repository on Hugging Face's hub, such as `lerobot/pusht`."
        )
        path: LocalPath | None = operational(
            None,
            description="Folder of the dataset, which has `meta/info.json`. null: download the repository.",
        )
        revision: str | None = Field(
            None, description="Branch, tag or commit of the repository. null: its main branch."
        )
        observations: Words | None = Field(
            None,
            description="Features that are the observation, such as `observation.state observation.images.top`. "
            "null: all whose names begin with `observation.`.",
        )
        actions: str = Field("action", description="Feature of the action.")
        rewards: str | None = Field(
            REWARDS,
            description="Feature of the reward. null, or a dataset without `next.reward`: the log has none.",
        )
        successes: str | None = Field(
            SUCCESSES,
            description="Flag: the task counts as solved after the frame's action. null, or a dataset without "
            "`next.success`: the log does not report success.",
        )
        terminated: Literal["success", "done", "never"] | None = Field(
            None,
            description="Episodes that ended for good, and keep their last step: those whose last frame is a "
            "`success`, or has `next.done` without `next.truncated` (`done`), or none (`never`). null: `done` if the "
            "dataset has `next.truncated`, else `success`, or `never` if no feature of success is read.",
        )
        instruction: Instruction | None = Field(
            None,
            description="Text or number of the one task whose episodes are read. null: those of all tasks.",
        )
        tasks: Literal["one_hot", "ignore"] = Field(
            "one_hot",
            description="With several tasks: `one_hot` adds a part `task` to the observations; `ignore` does not.",
        )
        image_size: ImageSize | None = Field(
            None,
            description="Size of all pictures in pixels, such as `64`, or height and width, `48 64`; larger pictures "
            "are averaged. null: as recorded.",
        )
        action_low: Floats | None = Field(
            None,
            description="Smallest action of each dimension. null: `low` of the feature in info.json, else the "
            "smallest in the log.",
        )
        action_high: Floats | None = Field(
            None,
            description="Largest action of each dimension. null: `high` of the feature in info.json, else the "
            "largest in the log.",
        )
        action_count: int | None = Field(
            None,
            ge=2,
            le=MOST_ACTIONS,
            description="Number of choices, if actions are single whole numbers. null: the largest in the log, plus "
            "one.",
        )

        @model_validator(mode="after")
        def _is_somewhere(self) -> LeRobot.Parameters:
            if self.path is None and self.task is None:
                raise ValueError(
                    "dataset.path is null: dataset.source lerobot needs the folder of a dataset, or dataset.task, the "
                    "id of a repository"
                )
            if self.path is None and self.task is not None and self.task.count("/") != 1:
                raise ValueError(
                    f"dataset.task is '{self.task}': a repository has an owner, such as lerobot/pusht"
                )
            return self

    parameters: Parameters

    @property
    def _log(self) -> Log:
        return Log(_local(self.parameters), self.parameters)

    def load(self, seed: int, workers: int | None) -> tuple[Transitions, Rewards]:
        """Read the dataset; download it first if it has no path."""
        return load_lerobot(self.parameters)

    @property
    def has_rewards(self) -> bool:
        """Whether the local dataset has rewards; assumed for one on the hub."""
        if self.parameters.rewards is None:
            return False
        return self.parameters.path is None or self._log.rewards is not None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Texts of the tasks of the one-hot part."""
        return self._log.tasks

    def files(self) -> list[Path]:
        """The dataset's folder, if ``path`` is set."""
        return [Path(self.parameters.path)] if self.parameters.path else []
