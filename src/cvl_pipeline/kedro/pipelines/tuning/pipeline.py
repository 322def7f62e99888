"""The tuning pipeline."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.tuning import nodes


def create_pipeline() -> Pipeline:
    """Search, choose the best parameters and report the results."""
    inputs = ["tuning_trials", "params:tuning"]
    return Pipeline(
        [
            node(
                nodes.search,
                [
                    "transitions",
                    "rewards",
                    "split",
                    "normalisation",
                    "parameters",
                ],
                "tuning_trials",
                name="search",
                tags=["training"],
            ),
            node(nodes.choose, inputs, "best_parameters", name="choose"),
            node(nodes.report, inputs, "tuning_report", name="report", tags=["report"]),
            node(nodes.plot_history, inputs, "tuning_history_plot", name="history", tags=["report"]),
            node(
                nodes.plot_importance,
                inputs,
                "tuning_importance_plot",
                name="importance",
                tags=["report"],
            ),
            node(nodes.plot_parallel, inputs, "tuning_parallel_plot", name="parallel", tags=["report"]),
        ],
        namespace="tuning",
        prefix_datasets_with_namespace=False,
        tags=["tuning"],
    )
