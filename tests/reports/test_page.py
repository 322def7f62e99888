from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.reports import figures, series
from cvl_pipeline.reports.page import RunResults, run_page, suite_page
from tests.reports.pages import Page, check_numbers
from tests.reports.test_plots import METRICS

ODD = "</script><script>alert('x')</script> & \"quoted\" <b>"
STEPS = pd.DataFrame({"step": [10, 20], "train/loss": [2.0, math.nan], "validation/action_error": [0.5, 0.4]})
ROLLOUTS = pd.DataFrame(
    {"return": [3.0, 1.0, 2.0], "success": pd.array([True, None, False], "boolean"), "length": [7, 8, 9]}
)
RUN_METRICS: dict[str, Any] = {
    **METRICS,
    "behaviour_episodes": 180,
    "task": "reach",
    "environment": "reach",
    "protocol": "strict",
}
RESULTS = RunResults(
    metrics=RUN_METRICS,
    episodes=pd.DataFrame({"return": [1.0, 2.0, 5.0], "length": [3, 3, 4], "success": [True, False, True]}),
    places=pd.DataFrame({"first": [0.0, 1.0, 1.0], "second": [0.0, 2.0, -2.0]}),
    critic=pd.DataFrame({"step": [10], "train/loss": [3.0], "validation/loss": [4.0]}),
    histories={"cvl": STEPS, "bc": STEPS.drop(columns="validation/action_error")},
    rollouts={"cvl": ROLLOUTS, "bc": ROLLOUTS},
    values=pd.DataFrame(
        {"episode": [1, 1, 2], "step": [0, 1, 0], "q": [1.0, 2.0, 3.0], "return": [1.0, 2.0, 2.5]}
    ),
    value_report={"spearman": 0.5, "pearson": 0.25, "slope": 1.5, "intercept": -1.0},
    videos={"cvl": {"best": (0, b"film")}, "bc": {}},
    parameters={"seed": 3, "dataset.task": "reach", "baselines.x.beta": None},
    defaults={"seed": 0, "dataset.task": "reach"},
    provenance={"critic": "0123456789abcdef" * 4},
    packages={"torch": "2.13.0"},
)


def test_numbers_of_a_run_are_those_of_its_metrics() -> None:
    page = Page(run_page(RESULTS))
    check_numbers(page, RUN_METRICS)
    assert page.table("Figure")["Pearson correlation"] == [("0.25", "0.25")]
    success = {trace["name"]: trace["x"] for trace in page.figures["Success rate"]["data"]}
    assert success == {"CVL": [0.8], "BC": [0.5], "behaviour data": [0.6]}
    assert page.addresses.count("plotly.min.js") == 1


def test_unknown_success_and_a_score_of_d4rl_are_in_the_table() -> None:
    unknown = {name: None for name in RUN_METRICS if ".success_rate" in name}
    metrics = {**RUN_METRICS, **unknown, "cvl.normalised_score": 93.25}
    page = Page(run_page(replace(RESULTS, metrics=metrics)))
    check_numbers(page, metrics)
    assert page.table("Policy")["CVL"][3] == ("93.2", "93.25")
    assert page.table("Policy")["BC"][3] == ("n/a", None)
    assert page.figures["Success rate"]["data"] == []


def test_success_by_task_is_shown_if_there_are_several() -> None:
    metrics = {**RUN_METRICS, "cvl.success_rate.push-v3": 0.25, "behaviour.success_rate.push-v3": 1.0}
    table = Page(run_page(replace(RESULTS, metrics=metrics))).table("Task")
    assert table["push-v3"] == [("0.25", "0.25"), ("n/a", None), ("1.00", "1.0")]


JUDGEMENT: dict[str, Any] = {
    "methods": {"cvl": "CVL", "bc": "BC"}, "dataset": "log", "task": "log", "reward": "dataset", "seed": 3,
    "confidence": 0.9, "discount": 0.97, "held_out_episodes": 4, "measures": {"advantage": "It says; it cannot say."},
    "cvl.advantage": 0.25, "cvl.advantage_ci_low": -0.125, "cvl.advantage_ci_high": 0.5,
    "bc.advantage": None, "bc.advantage_ci_low": None, "bc.advantage_ci_high": None,
    "cvl.fqe_value": 12.0, "bc.fqe_value": 11.0, "behaviour.value": 10.0, "cvl.visited_rank": None,
}  # fmt: skip


def test_without_an_environment_the_page_has_the_judgement_and_what_it_says() -> None:
    page = Page(run_page(replace(RESULTS, metrics=None, rollouts={}, videos={}, judgement=JUDGEMENT)))
    assert page.table("Policy") == {
        "CVL": [("0.25 [-0.125, 0.5]", "0.25"), ("12", "12.0")],
        "BC": [("n/a", None), ("11", "11.0")],
        "behaviour data": [("", None), ("10", "10.0")],
    }
    assert "It says; it cannot say." in page.text
    assert "none is known" in page.text
    assert "judgement" in page.ids
    assert "results" not in page.ids
    both = Page(run_page(replace(RESULTS, judgement=JUDGEMENT)))
    assert {"results", "judgement"} <= set(both.ids)
    with pytest.raises(ValueError, match="metrics or a judgement"):
        run_page(replace(RESULTS, metrics=None))


def test_videos_have_captions_and_need_no_file() -> None:
    page = Page(run_page(RESULTS))
    assert "data:video/mp4;base64,ZmlsbQ==" in page.addresses
    assert "Best, return 3.00, solved, 7 steps" in page.text
    assert "videos" in page.ids
    middle = replace(RESULTS, videos={"bc": {"median": (1, b"film")}})
    assert "Median, return 1.00, 8 steps" in Page(run_page(middle)).text, "nobody says whether it was solved"
    assert "videos" not in Page(run_page(replace(RESULTS, videos={"cvl": {}}))).ids


def test_parameters_that_differ_from_the_defaults_are_listed_first() -> None:
    page = Page(run_page(RESULTS))
    start = page.rows.index([("Parameter", None), ("Value", None), ("Default", None)])
    texts = [[text for text, _ in row] for row in page.rows[start + 1 :]]
    assert texts[:2] == [["seed", "3", "0"], ["baselines.x.beta", "null", ""]]
    assert ["dataset.task", "reach", "reach"] in texts[2:]
    assert ["critic", "0123456789abcdef"] in texts
    same = Page(run_page(replace(RESULTS, parameters=RESULTS.defaults, provenance={})))
    assert "All parameters have their defaults." in same.text
    assert "Fingerprint" not in same.text


def test_names_are_shown_and_never_run() -> None:
    metrics = {**RUN_METRICS, "dataset": ODD, "task": ODD, "methods": {"cvl": ODD, "bc": "BC"}}
    odd = {ODD: ODD}
    source = run_page(replace(RESULTS, metrics=metrics, parameters=odd, provenance=odd, packages=odd))
    page = Page(source)
    assert source.count("<script") == 2, "plotly's and the page's own"
    assert page.text.count(ODD) >= 8
    assert {trace["name"] for trace in page.figures["Success rate"]["data"]} == {ODD, "BC", "behaviour data"}
    assert page.figures[f"{ODD}: training loss"]["data"][0]["y"] == [2.0, None]


def test_secrets_of_addresses_are_masked() -> None:
    page = run_page(replace(RESULTS, parameters={"dataset.path": "s3://me:secret@host/x"}))
    assert "secret" not in page
    assert "s3://me:***@host/x" in page


def test_every_method_has_a_colour_of_its_own_that_never_changes() -> None:
    colours = [figures.colour(name) for name in METHODS.names]
    assert len(set(colours)) == len(colours)
    assert figures.colour("mine") == figures.colour("mine") != series.BEHAVIOUR
    run, suite = Page(run_page(RESULTS)), Page(suite_page(_results(), title="x"))
    (of_run,) = [trace for trace in run.figures["Success rate"]["data"] if trace["name"] == "BC"]
    (of_suite,) = [trace for trace in suite.figures["Score against time"]["data"] if trace["name"] == "bc"]
    assert of_run["marker"]["color"] == of_suite["marker"]["color"] == figures.colour("bc")


RATES = {"cvl": 1.0, "bc": 0.5, "behaviour data": 0.25}


def _results(**changes: Any) -> pd.DataFrame:
    """Four episodes of every run; methods solve a fixed share, behaviour data took no time."""
    axes: dict[str, Any] = {
        "tasks": ["push-v3", "reach-v3"], "presets": ["mixed", "noisy"], "seeds": [0, 1],
        "methods": list(RATES), **changes,
    }  # fmt: skip
    return pd.DataFrame(
        [
            {
                "task": task, "preset": preset, "seed": seed, "method": method, "episode": episode,
                "success": episode < 4 * RATES[method], "return": 100.0 * RATES[method] + seed,
                "seconds": None if method == "behaviour data" else 10.0 * RATES[method] + seed,
            }
            for task in axes["tasks"]
            for preset in axes["presets"]
            for seed in axes["seeds"]
            for method in axes["methods"]
            for episode in range(4)
        ]
    )  # fmt: skip


def test_a_suite_is_compared_with_intervals_best_method_first() -> None:
    page = Page(suite_page(_results(), title="quick"))
    table = page.table("Method")
    assert [text for text, _ in table["cvl"]] == ["1.00 [1.00, 1.00]"] * 3 + ["0.00 [0.00, 0.00]"]
    assert list(table)[:3] == ["cvl", "bc", "behaviour data"]
    assert page.table("cvl beats")["bc"][0] == ("1.00 [1.00, 1.00]", "1.0")
    assert "8 of 8 runs are there" not in page.text
    assert "16 of 16 runs are there." in page.text
    profiles = [
        trace for trace in page.figures["Performance profiles"]["data"] if trace.get("showlegend") is None
    ]
    assert {trace["name"]: trace["y"][49] for trace in profiles} == {"cvl": 1.0, "bc": 1.0}
    assert {trace["name"]: trace["y"][51] for trace in profiles} == {"cvl": 1.0, "bc": 0.0}
    times = {trace["name"]: trace["x"] for trace in page.figures["Score against time"]["data"]}
    assert times == {"cvl": [10.5], "bc": [5.5]}


def test_a_suite_without_known_success_is_compared_by_scaled_returns() -> None:
    results = _results()
    results["success"] = results["success"].astype(object)
    results.loc[5, "success"] = None
    page = Page(suite_page(results, title="x"))
    assert "because success is not known" in page.text
    # Returns are 100 and 101 of cvl, 50 and 51 of bc.
    assert page.table("Preset")["mixed"]  # one row per task
    rows = [row for row in page.rows if row[0][0] == "mixed" and row[1][0] == "push-v3" and len(row) == 5]
    assert [float(str(value)) for _, value in rows[0][2:4]] == pytest.approx([50.5 / 51, 0.5 / 51])
    unknown = Page(suite_page(results.assign(success=None), title="x"))
    assert unknown.table("Method")["cvl"] == page.table("Method")["cvl"]


def test_methods_are_compared_by_success_if_that_of_the_behaviour_data_alone_is_unknown() -> None:
    results = _results()
    results["success"] = results["success"].astype(object)
    results.loc[results["method"] == "behaviour data", "success"] = None
    page = Page(suite_page(results, title="x"))
    assert "because success is not known" not in page.text
    assert page.table("Method")["bc"][0] == ("0.50 [0.50, 0.50]", "0.5")
    assert "behaviour data" not in page.table("Method")


def test_one_method_one_seed_and_one_task_make_a_page() -> None:
    results = _results(tasks=["reach-v3"], presets=["mixed"], seeds=[3], methods=["bc"])
    page = Page(suite_page(results.assign(seconds=None), title="alone"))
    assert "There is one seed, so intervals have no width." in page.text
    assert "Probability of improvement" not in page.text
    assert "Score against time" not in page.figures
    assert page.table("Method")["bc"][0] == ("0.50 [0.50, 0.50]", "0.5")


def test_a_suite_says_how_much_of_it_is_there() -> None:
    results = _results()
    lacking = results[(results["task"] != "push-v3") | (results["method"] != "bc") | (results["seed"] != 1)]
    axes = {"tasks": ["push-v3", "reach-v3", "door-open-v3"], "methods": ["cvl", "bc"]}
    page = Page(suite_page(lacking, title="x", axes=axes, notes=["Made of <two> kinds."]))
    assert "14 of 24 runs are there." in page.text
    assert "on the 2 of 6 tasks and presets" in " ".join(page.text.split())
    assert "Made of <two> kinds." in page.text
    nothing = Page(suite_page(results, title="x", axes={"methods": ["cvl", "bc"], "seeds": [0, 1, 2]}))
    assert "No task has a run of every method and seed yet." in nothing.text
    assert nothing.figures == {}


def test_odd_names_of_a_suite_are_shown() -> None:
    RATES[ODD] = 0.75
    try:
        results = _results(tasks=[ODD], methods=["cvl", ODD])
    finally:
        del RATES[ODD]
    page = Page(suite_page(results, title=ODD))
    assert ODD in page.table("Method")
    assert any(row[:2] == [("mixed", "mixed"), (ODD, ODD)] for row in page.rows)


@pytest.mark.parametrize("column", ["success", "method", "seconds"])
def test_results_without_a_column_are_refused(column: str) -> None:
    with pytest.raises(ValueError, match=f"the results have no {column}"):
        suite_page(_results().drop(columns=column), title="x")
    with pytest.raises(ValueError, match="the results have no rows"):
        suite_page(_results().iloc[:0], title="x")


def test_numbers_of_charts_are_json() -> None:
    assert figures.numbers([1.234567, math.nan, math.inf, None, pd.NA, np.float32(2.0)]) == [
        1.2346, None, None, None, None, 2.0,
    ]  # fmt: skip
