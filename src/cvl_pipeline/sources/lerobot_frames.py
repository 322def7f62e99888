"""The frames of a LeRobot dataset: checks of a block of them, and the episodes that they become."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from cvl_pipeline.episodes.bounds import bound_actions
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.parts import Layout
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.pieces import Column
from cvl_pipeline.sources.columns import MOST_ACTIONS
from cvl_pipeline.sources.lerobot_format import AGAIN, Episodes
from cvl_pipeline.sources.pictures import decode_images, resized
from cvl_pipeline.sources.precision import EXACT, single_precision
from cvl_pipeline.sources.steps import bounds_of, one_hot, refuse_loss, report_dropped

if TYPE_CHECKING:
    from cvl_pipeline.sources.lerobot import Log

Array = NDArray[Any]

TASK_PART = "task"
"""Name of the part that is the one-hot vector of the task."""
REMEDY = (
    "set dataset.terminated to done or success if these episodes ended there for good, or dataset.rewards and "
    "dataset.successes to null (None in Python) if you do not need them"
)


class Rows:
    """A block of frames.

    Attributes:
        episode: (N,) int64, the episode's number.
        frame: (N,) int64, the frame's number in it.
        last: (N,) bool, it is the last of its episode.
        alone: (N,) bool, its episode has no other frame.
        pictures: by camera, (N, H, W, 3) uint8.
    """

    def __init__(self, log: Log, table: pa.Table, episode: Array, frame: Array) -> None:
        """Keep the frames; columns are checked when they are read."""
        self._log, self._table = log, table
        self.episode, self.frame = episode, frame
        self.last = self.alone = np.zeros(len(table), dtype=bool)
        self.pictures: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self.episode)

    def where(self, name: str, row: int) -> str:
        """Name of a value in errors."""
        return f"{self._log.place}: '{name}' in episode {self.episode[row]}, frame {self.frame[row]} (the first is 0)"

    def numbers(self, name: str) -> Array:
        """A feature of numbers, (N, K), as stored; lists of lists are flattened."""
        column = self._table.column(name).combine_chunks()
        # The format's own columns, such as task_index, have one number; info.json may leave them out.
        shape = self._log.folder.features.get(name, {"shape": [1]})["shape"]
        size = int(np.prod(shape))
        if isinstance(column, pa.ExtensionArray):  # of the library `datasets`
            column = column.storage
        values = column
        count = len(column)
        while values.null_count == 0 and _is_list(values.type):
            values = values.flatten()
        if values.null_count or not (_is_number(values.type)):
            raise InputError(
                f"{self._log.place}: '{name}' is {column.type}, or has gaps; it must be numbers without gaps; {AGAIN}"
            )
        array: Array = values.to_numpy(zero_copy_only=False)
        if array.size != count * size or not self._even(column, shape):
            raise InputError(
                f"{self._log.place}: '{name}' has other numbers of values per frame than {size}, its shape in "
                f"info.json; {AGAIN}"
            )
        array = array.reshape(count, size)
        bad = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(1, dtype=bool)
        if bad.any():
            row, entry = np.argwhere(bad)[0]
            raise InputError(
                f"{self.where(name, row)}: {array[row, entry]} at entry {entry} is not a finite number; repair "
                "that frame"
            )
        return array

    def _even(self, column: Any, shape: list[int]) -> bool:
        """Whether all lists have the length that the shape says; a list of one number may be the number itself."""
        sizes = [*shape]
        while _is_list(column.type):
            size = sizes.pop(0) if sizes else 1
            fixed = pa.types.is_fixed_size_list(column.type)
            if not fixed and (np.asarray(column.value_lengths()) != size).any():
                return False
            column = column.flatten()
        return math.prod(sizes) == 1

    def flags(self, name: str) -> Array:
        """A feature of flags, (N,) bool."""
        values = self.numbers(name)
        wrong = np.flatnonzero((values[:, 0] != 0) & (values[:, 0] != 1))
        if values.shape[1] != 1 or len(wrong):
            row = wrong[0] if len(wrong) else 0
            raise InputError(
                f"{self.where(name, row)}: {values[row].tolist()} is not a flag; record one 0 or 1 per frame"
            )
        return values[:, 0].astype(bool)

    def images(self, name: str) -> Array:
        """Images of a column, (N, H, W, 3) uint8."""
        column = self._table.column(name)
        cells = column.to_pylist()
        data = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
        place = f"{self._log.place}: '{name}' from episode {self.episode[0]}, frame {self.frame[0]} on"
        if not all(isinstance(item, bytes) for item in data):
            row = next(row for row, item in enumerate(data) if not isinstance(item, bytes))
            raise InputError(
                f"{self.where(name, row)}: the Parquet file does not contain the image; save the dataset with embedded "
                "images"
            )
        return resized(decode_images(data, place), self._log.p.image_size)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


class Filler:
    """Collects the frames of episodes, block by block."""

    def __init__(self, log: Log, episodes: Episodes) -> None:
        """Start without frames."""
        self._log, self._episodes = log, episodes
        self._layout: Layout | None = None
        self._shape: tuple[int, ...] = ()
        self._converted: set[str] = set()
        self._before = False  # whether the last step of the block before terminated its episode
        names = (
            "observations",
            "actions",
            "rewards",
            "successes",
            "lost_rewards",
            "lost_successes",
            "terminated",
        )
        self._columns = {name: Column() for name in names}
        self._discrete = log.discrete

    def add(self, rows: Rows) -> None:
        """Add the next frames."""
        log = self._log
        final = rows.last if log.final_frames else np.zeros(len(rows), dtype=bool)
        if log.final_frames and (rows.flags("is_last") != rows.last).any():
            row = int(np.flatnonzero(rows.flags("is_last") != rows.last)[0])
            raise InputError(
                f"{rows.where('is_last', row)}: must be set in the last frame of an episode, and only there"
            )
        successes = np.zeros(len(rows), dtype=bool) if log.successes is None else rows.flags(log.successes)
        fell = np.zeros(len(rows), dtype=bool)
        if log.ends == "success":
            fell = successes
        elif log.ends == "done":
            fell = rows.flags("next.done")
            if log.has_flag("next.truncated"):
                fell = fell & ~rows.flags("next.truncated")
        self._add_ends(rows, fell)
        unknown = rows.last & ~fell & (not log.final_frames)  # steps that lead nowhere
        gone = unknown & rows.alone  # and the whole episode with them
        observations = self._observations(rows)
        again = np.where(rows.last & fell & (not log.final_frames), 2, 1)
        again[gone] = 0
        self._columns["observations"].append(
            observations if (again == 1).all() else np.repeat(observations, again, axis=0)
        )
        steps = ~final
        self._columns["actions"].append(self._actions(rows)[steps & ~unknown])
        if log.rewards is None:
            rewards = np.full(len(rows), np.nan, dtype=np.float32)
        else:
            values = rows.numbers(log.rewards)
            if values.shape[1] != 1:
                raise InputError(
                    f"{log.place}: '{log.rewards}' has {values.shape[1]} numbers per frame; name one reward"
                )
            rewards = self._single(values[:, 0], f"{log.place}: {log.rewards}")
        for name, column in (("rewards", rewards), ("successes", successes)):
            self._columns[name].append(column[steps & ~unknown])
            self._columns[f"lost_{name}"].append(column[unknown])

    def _add_ends(self, rows: Rows, fell: Array) -> None:
        """Keep whether episodes terminated: what is flagged in their last step."""
        steps = rows.last
        if self._log.final_frames:  # the step before the last frame, which may be in the block before
            before, self._before = self._before, bool(fell[-1])
            fell = np.append(before, fell[:-1])
            if (rows.alone & rows.last).any():
                row = int(np.flatnonzero(rows.alone & rows.last)[0])
                raise InputError(f"{rows.where('is_last', row)}: the episode has no step; remove it")
        self._columns["terminated"].append(fell[steps])

    def _observations(self, rows: Rows) -> Array:
        """Observations of a block, (N, O), (N, H, W, C) or packed, (N, B)."""
        log = self._log
        values: dict[str, Array] = {}
        for feature in log.observed:
            if feature.kind == "video":
                values[feature.part] = rows.pictures[feature.name]
            elif feature.kind == "image":
                values[feature.part] = rows.images(feature.name)
            else:
                numbers = rows.numbers(feature.name)
                values[feature.part] = self._single(numbers, f"{log.place}: {feature.name}")
        if log.tasks:
            numbers = rows.numbers("task_index")[:, 0]
            if (numbers < 0).any() or (numbers >= len(log.tasks)).any():
                row = int(np.flatnonzero((numbers < 0) | (numbers >= len(log.tasks)))[0])
                raise InputError(
                    f"{rows.where('task_index', row)}: {numbers[row]} is no task's number; {AGAIN}"
                )
            values[TASK_PART] = np.eye(len(log.tasks), dtype=np.float32)[numbers]
        if len(values) == 1 and log.folder.features[log.observed[0].name].get("part") is not True:
            (only,) = values.values()
            self._shape = self._shape or only.shape[1:]
            if only.shape[1:] != self._shape:
                raise log.changed(log.observed[0].name, only.shape[1:], self._shape)
            return only
        layout = Layout.of(values)
        self._layout = self._layout or layout
        if layout != self._layout:
            raise InputError(f"{log.place}: pictures of a camera change their size; set dataset.image_size")
        return layout.pack(values).numpy()

    def _single(self, values: Array, place: str) -> Array:
        """Convert numbers to single precision; fractions that become the same are reported once."""
        known = place in self._converted
        self._converted.add(place)
        if known and values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                singles: Array = values.astype(np.float32)
            # Different whole numbers may become the same.
            whole = (np.abs(singles) > EXACT) & (values == np.rint(values))
            if np.isfinite(singles).all() and not whole.any():
                return singles
        return single_precision(values, place)

    def _actions(self, rows: Rows) -> Array:
        """Actions of a block, (N, A) float32, or codes, (N, 1) int64."""
        name = self._log.actions
        values = rows.numbers(name)
        if not self._discrete:
            return self._single(values, f"{self._log.place}: {name}")
        if values.dtype.kind not in "iu":
            raise InputError(
                f"{rows.where(name, 0)}: {values[0, 0]} is stored as {values.dtype}, but info.json says whole numbers; "
                "save the codes of discrete actions as integers from 0, or correct info.json if actions are vectors"
            )
        limit = self._choices or MOST_ACTIONS
        wrong = np.flatnonzero((values[:, 0] < 0) | (values[:, 0] >= limit))
        if len(wrong):
            raise InputError(
                f"{rows.where(name, int(wrong[0]))}: {values[wrong[0], 0]} is not an action, 0 to {limit - 1}; see "
                "dataset.action_count"
            )
        return values.astype(np.int64)

    @property
    def _choices(self) -> int | None:
        known = self._log.folder.features[self._log.actions].get("action_count")
        return self._log.p.action_count or (
            known if isinstance(known, int) and 2 <= known <= MOST_ACTIONS else None
        )

    def result(self) -> tuple[Transitions, Rewards]:
        """Return all frames as episodes."""
        log, p = self._log, self._log.p
        arrays = {name: column.array() for name, column in self._columns.items()}
        fell = arrays["terminated"]
        lengths = self._episodes.lengths - (1 if log.final_frames else ~fell)
        some = lengths > 0
        if not some.any():
            raise InputError(f"{log.place}: every episode has one frame, so no next observation is known")
        kept = arrays["rewards"], arrays["successes"]
        lost = arrays["lost_rewards"], arrays["lost_successes"]
        refuse_loss(kept, lost, log.place, "dataset.", remedy=REMEDY)
        actions = arrays["actions"]
        if self._discrete:
            size = self._choices or int(actions.max()) + 1
            if size < 2:
                raise InputError(
                    f"{log.place}: every action is 0; give the number of actions in dataset.action_count"
                )
            actions = one_hot(actions[:, 0], size)
            low, high = np.zeros(size, np.float32), np.ones(size, np.float32)
        else:
            low, high = bounds_of(actions, *map(self._bound, ("low", "high")))
        first = log.folder.first_held_out
        transitions = Transitions(
            observations=torch.from_numpy(arrays["observations"]),
            actions=torch.from_numpy(actions),
            episode_starts=torch.from_numpy(np.concatenate([[0], lengths[some].cumsum()]).astype(np.int64)),
            terminated=torch.from_numpy(fell[some]),
            truncated=torch.from_numpy(~fell[some]),
            action_low=torch.from_numpy(low),
            action_high=torch.from_numpy(high),
            discrete=torch.tensor(self._discrete),
            held_out=torch.tensor(0 if first is None else int((self._episodes.index[some] >= first).sum())),
            parts=self._layout,
        )
        rewards = Rewards(
            torch.from_numpy(kept[0]),
            torch.from_numpy(kept[1]),
            torch.tensor(log.successes is not None),
            **report_dropped(*lost, len(lost[0]), int((~some).sum()), log.place, cure=""),
        )
        return bound_actions(transitions, p.actions_out_of_bounds, log.place), rewards

    def _bound(self, side: str) -> Array | None:
        """Smallest or largest action: as the parameters or the feature say; None: as in the log."""
        feature = self._log.folder.features[self._log.actions]
        given = getattr(self._log.p, f"action_{side}")
        if given is None:
            given = feature.get(side)
            if not (isinstance(given, list) and all(isinstance(value, int | float) for value in given)):
                return None
        size = int(np.prod(feature["shape"]))
        if len(given) != size:
            raise InputError(
                f"dataset.action_{side}: {len(given)} numbers, but the actions of {self._log.place} have {size} "
                "dimensions; give one number per dimension, or null (None in Python)"
            )
        return np.array(given, dtype=np.float32)
