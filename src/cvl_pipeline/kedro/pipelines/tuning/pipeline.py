"""The tuning pipeline."""

from kedro.pipeline import Pipeline, node

from cvl_pipeline.kedro.pipelines.tuning import nodes


def create_pipeline() -> Pipeline:
    """Search, choose the best parameters, and say what the study found."""
    found = ["tuning_trials", "params:tuning"]
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
            node(nodes.choose, found, "best_parameters", name="choose"),
            node(nodes.report, found, "tuning_report", name="report", tags=["report"]),
            node(nodes.plot_history, found, "tuning_history_plot", name="history", tags=["report"]),
            node(
                nodes.plot_importance,
                found,
                "tuning_importance_plot",
                name="importance",
                tags=["report"],
            ),
            node(nodes.plot_parallel, found, "tuning_parallel_plot", name="parallel", tags=["report"]),
        ],
        namespace="tuning",
        prefix_datasets_with_namespace=False,
        tags=["tuning"],
    )
