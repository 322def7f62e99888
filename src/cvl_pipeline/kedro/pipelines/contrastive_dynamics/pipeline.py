"""The contrastive_dynamics pipeline. None of its inputs holds a reward."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.contrastive_dynamics import nodes


def create_pipeline() -> Pipeline:
    """Train the critic and report its held-out metrics."""
    return Pipeline(
        [
            node(
                nodes.train,
                ["transitions", "split", "normalisation", "params:contrastive_dynamics", "params:seed"],
                ["critic", "dynamics_history"],
                name="train",
                tags=["training"],
            ),
            node(nodes.report, "dynamics_history", "dynamics_report", name="report", tags=["report"]),
            node(nodes.plot, "dynamics_history", "dynamics_plot", name="plot", tags=["report"]),
        ],
        namespace="contrastive_dynamics",
        prefix_datasets_with_namespace=False,
        tags=["contrastive_dynamics"],
    )
