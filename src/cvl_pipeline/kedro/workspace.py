"""Folders for the unfinished work and the logs of the node that runs.

They are no data, so they are no datasets: a hook sets them before a node runs, and the node hands them to training.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvl_pipeline.tuning.storage import StudyLocation


@dataclass(frozen=True)
class Workspace:
    """Folders of a node for files that are not artifacts.

    Attributes:
        checkpoints: folder for checkpoints, which a hook deletes when the outputs are saved; None: not resumable.
        logs: folder for metrics.csv and other logs; None: no logs.
        study: storage of the study.
        study_folder: the study's folder on this machine.
        fingerprints: of the recipes of the node's inputs, by their names; for the page of a run.
    """

    checkpoints: Path | None = None
    logs: Path | None = None
    study: StudyLocation | None = None
    study_folder: Path | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)


PROVENANCE = "provenance"
"""Tag of a node that gets the fingerprints of its inputs."""
_NONE = Workspace()
workspace: ContextVar[Workspace] = ContextVar("workspace", default=_NONE)
"""The workspace of the node that runs in this thread; without Kedro's hooks, an empty one."""
beside: ContextVar[bool] = ContextVar("beside", default=False)
"""Whether the process beside the run computes the nodes of this thread."""
