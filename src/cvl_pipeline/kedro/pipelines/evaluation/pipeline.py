"""The evaluation pipeline."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.evaluation import nodes


def create_pipeline() -> Pipeline:
    """Run both policies in the environment and compare them with the behaviour data."""
    return Pipeline(
        [
            node(
                nodes.roll_out,
                ["policy", "params:dataset", "params:evaluation", "params:seed"],
                ["rollout_transitions", "rollout_rewards"],
                name="roll_out",
                tags=["simulator"],
            ),
            node(
                nodes.roll_out_bc,
                ["bc_policy", "params:dataset", "params:evaluation", "params:seed"],
                ["bc_rollout_transitions", "bc_rollout_rewards"],
                name="roll_out_bc",
                tags=["simulator"],
            ),
            node(
                nodes.score,
                [
                    "rollout_transitions",
                    "rollout_rewards",
                    "bc_rollout_transitions",
                    "bc_rollout_rewards",
                    "params:dataset",
                    "params:reward",
                    "params:evaluation",
                    "params:seed",
                ],
                ["rollouts", "bc_rollouts"],
                name="score",
            ),
            node(
                nodes.summarise,
                [
                    "rollouts",
                    "bc_rollouts",
                    "transitions",
                    "labels",
                    "split",
                    "params:dataset",
                    "params:reward",
                    "params:evaluation",
                    "params:seed",
                ],
                "metrics",
                name="summarise",
                tags=["report"],
            ),
            node(nodes.plot, "metrics", "comparison_plot", name="plot", tags=["report"]),
        ],
        namespace="evaluation",
        prefix_datasets_with_namespace=False,
        tags=["evaluation"],
    )
