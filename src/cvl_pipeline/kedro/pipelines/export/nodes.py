"""Nodes of the export pipeline.

torch's exporter and ONNX Runtime come with the extra ``export``. They are imported when a node runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.kedro.workspace import workspace
from cvl_pipeline.sources.base import SOURCES

if TYPE_CHECKING:
    from torch import nn

    from cvl_pipeline.episodes.container import Split, Transitions
    from cvl_pipeline.networks.critic import ContrastiveCritic
    from cvl_pipeline.readout.readouts import Readout


def export(
    name: str,
    title: str,
    /,
    policy: nn.Module,
    transitions: Transitions,
    split: Split,
    dataset: dict[str, Any],
    reward: dict[str, Any],
    seed: int,
    export: dict[str, Any],
    critic: ContrastiveCritic | None = None,
    readout: Readout | None = None,
    metrics: dict[str, Any] | None = None,
    judgement: dict[str, Any] | None = None,
    video: bytes | None = None,
) -> dict[str, bytes]:
    """Export a policy as the files of a folder, checked on held-out observations."""
    from cvl_pipeline.readout.q_function import QFunction
    from cvl_pipeline.reports.card import judged, judged_from_log
    from cvl_pipeline.reports.exported import exported_files

    chosen: Any = SOURCES.validate(dataset)
    about = {
        "task": chosen.label,
        "dataset": chosen.folder,
        "seed": seed,
        "reward": reward.get("name") or reward["source"],
        "method": title,
        "judged": judged(metrics, name),
        "judged_from_log": judged_from_log(judgement, name),
        "provenance": dict(workspace.get().fingerprints),
    }
    values = None if critic is None or readout is None else QFunction(critic, readout)
    return exported_files(
        policy,
        transitions,
        split,
        ExportParameters.model_validate(export),
        values=values,
        about=about,
        video=video,
    )
