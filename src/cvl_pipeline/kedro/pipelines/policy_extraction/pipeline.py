"""The policy_extraction pipeline."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.policy_extraction import nodes


def create_pipeline() -> Pipeline:
    """Extract the CVL policy and clone the behaviour beside it."""
    return Pipeline(
        [
            node(
                nodes.extract,
                [
                    "critic",
                    "readout",
                    "transitions",
                    "labels",
                    "split",
                    "normalisation",
                    "params:policy_extraction",
                    "params:seed",
                    "policy_checkpoints",
                    "policy_logs",
                ],
                ["policy", "policy_history"],
                name="extract",
                tags=["training"],
            ),
            node(
                nodes.clone,
                [
                    "transitions",
                    "split",
                    "normalisation",
                    "params:policy_extraction",
                    "params:seed",
                    "bc_checkpoints",
                    "bc_logs",
                ],
                ["bc_policy", "bc_history"],
                name="clone",
                tags=["training"],
            ),
            node(nodes.plot, ["policy_history", "bc_history"], "policy_plot", name="plot", tags=["report"]),
        ],
        namespace="policy_extraction",
        prefix_datasets_with_namespace=False,
        tags=["policy_extraction"],
    )
