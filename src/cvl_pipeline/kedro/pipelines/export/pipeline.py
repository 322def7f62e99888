"""The export pipeline."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from cvl_pipeline.kedro.pipelines.export import nodes
from cvl_pipeline.kedro.rows import Plan, Row, bound
from cvl_pipeline.kedro.workspace import PROVENANCE


def create_pipeline(plan: Plan) -> Pipeline:
    """Export the policies that ``export.methods`` names."""
    return Pipeline(
        [_export(row, plan) for row in plan.rows if row.name in plan.export.methods],
        namespace="export",
        prefix_datasets_with_namespace=False,
        tags=["export"],
    )


def _export(row: Row, plan: Plan) -> Node:
    needs = ["transitions", "split"]
    needs += ["critic", "readout"] if plan.export.value else []
    needs += ["metrics"] if plan.evaluates else []
    needs += ["judgement"] if plan.judges else []
    inputs = {name: name for name in needs} | {"policy": row.dataset("policy")}
    inputs |= {"video": f"{row.name}_video_median"} if plan.evaluates and plan.records else {}
    return node(
        bound(nodes.export, row.name, row.title),
        inputs | {name: f"params:{name}" for name in ("dataset", "reward", "seed", "export")},
        f"{row.name}_exported",
        name=f"export_{row.name}",
        tags=[PROVENANCE],
    )
