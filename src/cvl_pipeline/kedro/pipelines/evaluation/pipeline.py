"""The evaluation pipeline."""

from __future__ import annotations

from kedro.pipeline import Pipeline, node
from kedro.pipeline.node import Node

from cvl_pipeline.environments.parameters import RANKS
from cvl_pipeline.kedro.pipelines.evaluation import nodes
from cvl_pipeline.kedro.rows import Plan, Row, bound
from cvl_pipeline.kedro.workspace import PROVENANCE
from cvl_pipeline.parameters import StageParameters


def create_pipeline(plan: Plan) -> Pipeline:
    """Run all policies in the environment and compare them with the behaviour data.

    Without an environment there is nothing to run. If policies were judged from the log instead, their page is left;
    otherwise, the pipeline is empty.
    """
    titles = {row.name: row.title for row in plan.rows}
    page = [_write_page(plan, titles)] if plan.evaluates or plan.judges else []
    return Pipeline(
        [
            *(part for row in plan.rows for part in (_roll_out(row), _score(row))),
            node(
                bound(nodes.summarise, titles),
                {
                    **{name: name for name in ("transitions", "labels", "split")},
                    **{name: f"params:{name}" for name in ("dataset", "reward", "seed")},
                    **{
                        name: f"params:evaluation.{name}"
                        for name in ("environment", "episode_steps", "goals", "confidence")
                    },
                    **{f"{row.name}_rollouts": f"{row.name}_rollouts" for row in plan.rows},
                },
                "metrics",
                name="summarise",
                tags=["report"],
            ),
            node(nodes.plot, "metrics", "comparison_plot", name="plot", tags=["report"]),
            *(_record(row) for row in plan.rows if plan.records),
            *page,
        ]
        if plan.evaluates
        else page,
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
        tags=["evaluation"],
    )


def _roll_out(row: Row) -> Node:
    return node(
        bound(nodes.roll_out, row.title),
        {
            "policy": row.dataset("policy"),
            "dataset": "params:dataset",
            "seed": "params:seed",
            **{
                name: f"params:evaluation.{name}"
                for name in ("environment", "episode_steps", "goals", "episodes", "workers")
            },
        },
        [row.dataset("rollout_transitions"), row.dataset("rollout_rewards")],
        name=f"roll_out_{row.name}",
        tags=["simulator", *row.tags],
    )


def _score(row: Row) -> Node:
    return node(
        nodes.score,
        {
            "transitions": row.dataset("rollout_transitions"),
            "rewards": row.dataset("rollout_rewards"),
            "labels": "labels",
            **{name: f"params:{name}" for name in ("dataset", "reward", "seed")},
            **{name: f"params:evaluation.{name}" for name in ("environment", "goals")},
        },
        f"{row.name}_rollouts",
        name=f"score_{row.name}",
    )


def _record(row: Row) -> Node:
    return node(
        bound(nodes.record, row.title),
        {
            "transitions": row.dataset("rollout_transitions"),
            "rollouts": f"{row.name}_rollouts",
            "dataset": "params:dataset",
            **{
                name: f"params:evaluation.{name}"
                for name in ("environment", "episode_steps", "goals", "videos")
            },
        },
        [f"{row.name}_video_{rank}" for rank in RANKS],
        name=f"record_{row.name}",
        tags=["report"],
    )


def _write_page(plan: Plan, titles: dict[str, str]) -> Node:
    artifacts = ["episodes", "transitions", "normalisation", "dynamics_history", "values"]
    artifacts += ["judgement"] if plan.judges else []
    if plan.evaluates:
        artifacts += ["metrics", *(f"{row.name}_rollouts" for row in plan.rows)]
        artifacts += [f"{row.name}_video_{rank}" for row in plan.rows if plan.records for rank in RANKS]
    return node(
        bound(nodes.write_page, titles),
        {
            **{name: name for name in artifacts},
            "report": "value_report",
            **{f"{row.name}_history": row.dataset("history") for row in plan.rows},
            **{name: f"params:{name}" for name in StageParameters.model_fields},
        },
        "page",
        name="write_page",
        tags=["report", PROVENANCE],
    )
