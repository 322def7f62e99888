"""The policy_extraction pipeline."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from cvl_pipeline.kedro.pipelines.policy_extraction import nodes
from cvl_pipeline.kedro.rows import OWN, Plan, Row, bound

EPISODES = ("transitions", "split", "normalisation")


def create_pipeline(plan: Plan) -> Pipeline:
    """Extract CVL's policy and train the baselines beside it."""
    titles = {row.name: row.title for row in plan.rows}
    return Pipeline(
        [
            *(_train(row) for row in plan.rows),
            node(
                bound(nodes.plot, titles),
                {row.name: row.dataset("history") for row in plan.rows},
                "policy_plot",
                name="plot",
                tags=["report"],
            ),
        ],
        namespace="policy_extraction",
        prefix_datasets_with_namespace=False,
        tags=["policy_extraction"],
    )


def _train(row: Row) -> Node:
    """Return the node that trains a method's policy, given no more than the method needs."""
    needs = [*EPISODES]
    needs += ["labels"] if row.method.needs_rewards else []
    needs += ["critic", "readout"] if row.method.needs_critic else []
    inputs = {name: name for name in needs} | {"parameters": row.parameters, "seed": "params:seed"}
    baseline = nodes.train_baseline_with_critic if row.method.needs_critic else nodes.train_baseline
    return node(
        nodes.extract if row.name == OWN else baseline,
        inputs,
        [row.dataset("policy"), row.dataset("history")],
        name=f"train_{row.name}",
        tags=["training", *row.tags],
    )
