"""The value_readout pipeline."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.value_readout import nodes


def create_pipeline() -> Pipeline:
    """Label the transitions, read out values and judge them on held-out episodes."""
    return Pipeline(
        [
            node(nodes.label, ["transitions", "rewards", "params:reward"], "labels", name="label"),
            node(
                nodes.read_out,
                [
                    "critic",
                    "transitions",
                    "split",
                    "normalisation",
                    "labels",
                    "params:value_readout",
                    "params:seed",
                ],
                "readout",
                name="read_out",
            ),
            node(
                nodes.evaluate,
                [
                    "critic",
                    "readout",
                    "transitions",
                    "labels",
                    "split",
                    "params:value_report",
                    "params:seed",
                ],
                "values",
                name="evaluate",
            ),
            node(
                nodes.report,
                ["values", "labels", "params:value_readout"],
                "value_report",
                name="report",
                tags=["report"],
            ),
            node(nodes.plot, ["values", "value_report"], "value_plot", name="plot", tags=["report"]),
        ],
        namespace="value_readout",
        prefix_datasets_with_namespace=False,
        tags=["value_readout"],
    )
