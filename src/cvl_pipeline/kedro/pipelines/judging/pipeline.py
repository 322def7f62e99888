"""The judging pipeline."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from cvl_pipeline.kedro.pipelines.judging import nodes
from cvl_pipeline.kedro.rows import Plan, Row, bound

LOG = ("transitions", "labels", "split", "normalisation")
SETTINGS = {name: f"params:{name}" for name in ("judging", "value_readout", "seed")}


def create_pipeline(plan: Plan) -> Pipeline:
    """Fit critics of the held-out episodes, judge all policies by them and by other measures, and report.

    If policies are not judged from the log, the pipeline is empty.
    """
    titles = {row.name: row.title for row in plan.rows}
    contrastive = plan.judging_critic == "contrastive"
    return Pipeline(
        [
            *(_contrastive_critic() if contrastive else [_regressed_critics()]),
            *(_judge(row, contrastive) for row in plan.rows),
            node(
                bound(nodes.summarise, titles),
                {name: name for name in ("critic", *LOG)}
                | SETTINGS
                | {name: f"params:{name}" for name in ("dataset", "reward")}
                | {f"{row.name}_judgement": f"{row.name}_judgement" for row in plan.rows},
                "judgement",
                name="summarise",
                tags=["report"],
            ),
        ]
        if plan.judges
        else [],
        namespace="judging",
        prefix_datasets_with_namespace=False,
        tags=["judging"],
    )


def _regressed_critics() -> Node:
    inputs = {name: name for name in ("critic", *LOG)} | SETTINGS
    return node(nodes.regress, inputs, "judging_critics", name="regress")


def _contrastive_critic() -> list[Node]:
    episodes = {name: name for name in LOG if name != "labels"}
    return [
        node(
            nodes.train_critic,
            episodes | {"parameters": "params:contrastive_dynamics", "seed": "params:seed"},
            "judging_critic",
            name="train_critic",
            tags=["training"],
        ),
        node(
            nodes.read_out,
            {"critic": "judging_critic"} | {name: name for name in LOG} | SETTINGS,
            "judging_readout",
            name="read_out",
        ),
    ]


def _judge(row: Row, contrastive: bool) -> Node:
    inputs = {name: name for name in ("critic", *LOG)} | SETTINGS | {"policy": row.dataset("policy")}
    judges = ("judging_critic", "judging_readout") if contrastive else ("judging_critics",)
    return node(
        nodes.judge,
        inputs | {name: name for name in judges},
        f"{row.name}_judgement",
        name=f"judge_{row.name}",
    )
