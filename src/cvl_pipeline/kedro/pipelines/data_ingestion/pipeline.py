"""The data_ingestion pipeline."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.data_ingestion import nodes


def create_pipeline() -> Pipeline:
    """Load, check, split, measure and tabulate episodes."""
    return Pipeline(
        [
            node(
                nodes.ingest,
                ["params:dataset", "params:data_ingestion.workers", "params:seed"],
                ["transitions", "rewards"],
                name="ingest",
            ),
            node(
                nodes.split,
                ["transitions", "params:data_ingestion.validation_fraction", "params:seed"],
                "split",
                name="split",
            ),
            node(
                nodes.normalise,
                ["transitions", "split", "params:data_ingestion.std_floor"],
                "normalisation",
                name="normalise",
            ),
            node(
                nodes.tabulate,
                ["transitions", "rewards", "split", "params:dataset"],
                "episodes",
                name="tabulate",
            ),
            node(
                nodes.report,
                ["episodes", "transitions", "rewards"],
                "data_report",
                name="report",
                tags=["report"],
            ),
            node(
                nodes.plot,
                ["transitions", "episodes", "normalisation", "params:seed"],
                "data_plot",
                name="plot",
                tags=["report"],
            ),
        ],
        namespace="data_ingestion",
        prefix_datasets_with_namespace=False,
        tags=["data_ingestion"],
    )
