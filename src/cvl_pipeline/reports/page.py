"""Static pages of a run and of a suite of runs, for a browser without a network.

A page is one HTML file with its tables and videos. Its charts need plotly's script, one file that all pages share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from typing import Any

import numpy as np
import pandas as pd

from cvl_pipeline.errors import masked
from cvl_pipeline.reports import figures, series
from cvl_pipeline.reports import judgement as judged
from cvl_pipeline.reports.comparison import BEHAVIOUR, OURS, THRESHOLDS, Comparison, interval
from cvl_pipeline.reports.figures import Figure
from cvl_pipeline.reports.html import PREVIEW, SCRIPT, video_address
from cvl_pipeline.reports.statistics import Estimate
from cvl_pipeline.reports.summary import return_digits

PACKAGES = ("cvl-pipeline", "torch", "numpy", "gymnasium", "mujoco", "metaworld")
DATA = "behaviour"
"""Key of the behaviour data in ``metrics.json``."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what the reader sees.
        value: by which the column is sorted; None sorts last.
        colour: of a dot before the text.
        share: between 0 and 1, shown by the background.
    """

    text: str
    value: float | str | None = None
    colour: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table whose columns can be sorted.

    Attributes:
        headings: one per column.
        rows: of cells.
        caption: above the table.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart and its title."""

    title: str
    figure: Figure


@dataclass(frozen=True)
class Video:
    """A video.

    Attributes:
        caption: below it.
        source: its address, a file's or ``data:``.
        name: of the method, before the caption.
        colour: of a dot before the name.
    """

    caption: str
    source: str
    name: str = ""
    colour: str | None = None


@dataclass(frozen=True)
class RunResults:
    """What the page of a run shows; all tables are artifacts of the run.

    Attributes:
        metrics: content of ``metrics.json``; None: no environment is known.
        episodes: one row per logged episode: ``return``, ``length``, ``success``.
        places: of observations in their first two principal components, ``first`` and ``second``.
        critic: history of the critic's training.
        histories: of the training of policies, by the name of the method.
        rollouts: one row per evaluation episode, by the name of the method.
        values: Q and returns of held-out transitions.
        value_report: content of ``value_report.json``.
        videos: MP4 files by the name of the method and the rank of the episode, ``best``, ``median`` and ``worst``;
            with the position of the episode.
        parameters: all that may change a result, by full name.
        defaults: of these parameters.
        provenance: fingerprints of the artifacts that the page is made from, by name; empty if unknown.
        packages: versions, by name.
        judgement: content of ``judgement.json``; None: policies were not judged from the log, and there are metrics.
    """

    metrics: Mapping[str, Any] | None
    episodes: pd.DataFrame
    places: pd.DataFrame
    critic: pd.DataFrame
    histories: Mapping[str, pd.DataFrame]
    rollouts: Mapping[str, pd.DataFrame]
    values: pd.DataFrame
    value_report: Mapping[str, float | None]
    videos: Mapping[str, Mapping[str, tuple[int, bytes]]]
    parameters: Mapping[str, Any]
    defaults: Mapping[str, Any]
    provenance: Mapping[str, str]
    packages: Mapping[str, str]
    judgement: Mapping[str, Any] | None = None


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that results depend on most."""
    return {name: metadata.version(name) for name in PACKAGES if util.find_spec(name.replace("-", "_"))}


def run_page(results: RunResults) -> str:
    """Return the page of a run, as HTML; its charts need ``html.SCRIPT`` beside it."""
    metrics = results.metrics
    about = results.judgement if metrics is None else metrics
    if about is None:
        raise ValueError("a page needs metrics or a judgement")
    title = f"{about['dataset']}, seed {about['seed']}"
    names = {**about["methods"], DATA: "behaviour data"}
    titled = {name: names[name] for name in results.histories}
    facts = {
        "Task": about["task"],
        "Dataset": about["dataset"],
        "Seed": about["seed"],
        "Policies": ", ".join(about["methods"].values()),
        "Environment": "none is known" if metrics is None else metrics["environment"],
        "Reward": about.get("reward_name", about["reward"]),
        "Evaluation": "from the log alone"
        if metrics is None
        else f"{metrics['episodes']} episodes per policy; {metrics['protocol']}",
        "Logged data": f"{len(results.episodes)} episodes",
    }
    curves = [Chart(*pair) for pair in figures.critic(results.critic)]
    curves += [
        Chart(
            f"{titled[name]}: training loss", figures.histories({name: table}, titled, "train/loss", "loss")
        )
        for name, table in results.histories.items()
    ]
    errors = figures.histories(results.histories, titled, "validation/action_error", "squared distance")
    if errors["data"]:
        curves.append(Chart("Held-out distance to logged actions", errors))
    return render(
        "run.html",
        title=title,
        facts=facts,
        results=None if metrics is None else _results_table(metrics, names),
        by_task=None if metrics is None else _task_table(metrics, names),
        comparison=[] if metrics is None else _comparison(metrics, names),
        judgement=None if results.judgement is None else _judgement_table(results.judgement, names),
        sentences=[] if results.judgement is None else judged.sentences(results.judgement),
        videos={
            names[name]: [
                Video(_caption(rank, results.rollouts[name].iloc[episode]), video_address(content))
                for rank, (episode, content) in recorded.items()
            ]
            for name, recorded in results.videos.items()
            if recorded
        },
        value_table=_value_table(results.value_report),
        values=[
            Chart(
                "Held-out transitions", figures.values_against_returns(results.values, results.value_report)
            ),
            Chart("Worst, middle and best held-out episode", figures.values_in_episodes(results.values)),
        ],
        data=[
            Chart("Coverage: observations, log10", figures.coverage(results.places)),
            Chart(
                "Returns in the data", figures.histogram(results.episodes, "return", "return, undiscounted")
            ),
            Chart("Lengths of episodes", figures.histogram(results.episodes, "length", "steps")),
        ],
        curves=curves,
        changed=_parameter_table(results, changed=True),
        parameters=_parameter_table(results, changed=False),
        packages=Table(("Package", "Version"), [(_text(n), _text(v)) for n, v in results.packages.items()]),
        provenance=Table(
            ("Artifact", "Fingerprint"), [(_text(n), _text(v[:16])) for n, v in results.provenance.items()]
        ),
    )


def suite_page(
    results: pd.DataFrame,
    *,
    title: str,
    axes: Mapping[str, Sequence[Any]] | None = None,
    notes: Sequence[str] = (),
    videos: Mapping[tuple[str, str], Mapping[str, tuple[str, bytes]]] | None = None,
    tuning_tasks: Sequence[str] = (),
    by_success: bool = False,
) -> str:
    """Return the page of a suite of runs, as HTML; its charts need ``html.SCRIPT`` beside it.

    Methods are compared by success rates. If an episode's success is unknown, they are compared by returns, which are
    scaled per task so that the worst run scores 0 and the best run 1.

    Args:
        results: one row per episode: ``task``, ``preset``, ``seed``, ``method``, ``episode``, ``success`` (None:
            unknown), ``return`` and ``seconds`` (of training; None: unknown). The method ``behaviour data`` is the log.
        title: of the page.
        axes: ``tasks``, ``presets``, ``seeds`` and ``methods`` that the suite will have when it is complete; None:
            those that it has.
        notes: sentences on what the results are made from.
        videos: by preset and task, a caption and an MP4 file of each method that has one.
        tuning_tasks: tasks on which settings were chosen; there is a comparison without them, too.
        by_success: compare success even if that of some tasks is unknown, which are left out.

    Raises:
        ValueError: there are no rows, or a column is missing.
    """
    missing = {"task", "preset", "seed", "method", "success", "return", "seconds"} - set(results.columns)
    if missing or results.empty:
        raise ValueError(f"the results have no {', '.join(sorted(missing)) or 'rows'}")
    runs, score = _runs(results, by_success)
    present = {f"{name}s": list(dict.fromkeys(runs[name])) for name in ("task", "preset", "seed", "method")}
    axes = {**present, **(axes or {})}
    methods = [name for name in axes["methods"] if name != BEHAVIOUR]
    table = Comparison(runs.assign(success=runs["score"]), methods, axes)
    untuned = table.without(tuning_tasks)
    total = math.prod(len(axes[name]) for name in ("tasks", "presets", "seeds")) * len(methods)
    done = int((runs["method"] != BEHAVIOUR).sum())
    facts = {
        "Methods": ", ".join(methods),
        "Tasks": len(axes["tasks"]),
        "Collection presets": ", ".join(map(str, axes["presets"])),
        "Seeds": ", ".join(map(str, axes["seeds"])),
        "Episodes per run": _span(runs.loc[runs["method"] != BEHAVIOUR, "episodes"]),
        "Score": score,
    }
    seconds = runs.groupby("method")["seconds"].median()
    ours = (
        OURS if OURS in table.methods else (table.by_success()[0] if table.places and table.methods else "")
    )
    improvement = None
    if table.places and len(table.methods) > 1:
        improvement = _estimates(f"{ours} beats", table.improvement(ours))
    return render(
        "suite.html",
        title=title,
        facts=facts,
        notes=notes,
        done=done,
        total=max(total, done),
        compared=len(table.places),
        wanted=len(table.wanted),
        resampling=table.resampling,
        ours=ours,
        aggregates=_estimates("Method", table.success()) if table.places else None,
        untuned=_estimates("Method", untuned.success()) if untuned else None,
        tuning_tasks=", ".join(tuning_tasks),
        improvement=improvement,
        videos={
            f"{task}, {preset}": [
                Video(caption, video_address(content), name, figures.colour(name))
                for name, (caption, content) in recorded.items()
            ]
            for (preset, task), recorded in (videos or {}).items()
            if recorded
        },
        times=_time_table(table, seconds),
        charts=_suite_charts(table, seconds),
        tasks=_suite_tasks(table),
        runs=_run_table(runs),
    )  # fmt: skip


def render(template: str, script: str | None = SCRIPT, **content: Any) -> str:
    """Fill in a template of a page.

    Args:
        template: file in ``templates``.
        script: address of plotly's script; None: the page has no charts.
        content: of the template.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cvl_pipeline.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return environment.get_template(template).render(preview=PREVIEW, script=script, **content)


def _text(value: Any) -> Cell:
    return Cell(str(value), str(value))


def _number(value: float | None, digits: int = 2) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("n/a")
    return Cell(f"{value:.{digits}f}", float(value))


def _method(name: str, title: str | None = None) -> Cell:
    shade = series.BEHAVIOUR if name in (DATA, BEHAVIOUR) else figures.colour(name)
    return Cell(title or name, title or name, shade)


def _results_table(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    level = f"{100 * metrics['confidence']:g} %"
    scored = any(f"{key}.normalised_score" in metrics for key in names)
    headings = ["Policy", "Episodes", f"Success rate [{level} interval]", f"Return [{level} interval]"]
    decimals = return_digits(metrics[f"{key}.return_mean"] for key in names)
    rows = []
    for key, title in names.items():
        episodes = metrics["behaviour_episodes" if key == DATA else "episodes"]
        row = [_method(key, title), Cell(str(episodes), episodes)]
        for metric, digits in (("success_rate", 2), ("return_mean", decimals)):
            mean, low, high = (metrics[f"{key}.{metric}{end}"] for end in ("", "_ci_low", "_ci_high"))
            text = "n/a" if mean is None else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            row.append(Cell(text, mean))
        if scored:
            row.append(_number(metrics.get(f"{key}.normalised_score"), 1))
        rows.append(row)
    return Table([*headings, *(["D4RL score"] if scored else [])], rows)


def _comparison(metrics: Mapping[str, Any], names: Mapping[str, str]) -> list[Chart]:
    return [
        Chart(text, figures.intervals(_interval_rows(metrics, names, metric), text, limits))
        for metric, text, limits in (
            ("success_rate", "Success rate", (-0.03, 1.03)),
            ("return_mean", "Return, undiscounted", None),
        )
    ]


def _judgement_table(judgement: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    headings, rows = judged.judgement_table(judgement)
    level = f"{100 * judgement['confidence']:g} %"
    return Table(
        ["Policy", *headings],
        [[_method(name, names[name]), *(Cell(*entry) for entry in row)] for name, row in rows],
        f"{level} intervals; discount {judgement['discount']:g}; {judgement['held_out_episodes']} held-out episodes",
    )


def _task_table(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Table | None:
    """Success by task, for environments of several tasks."""
    prefixes = {key: f"{key}.success_rate." for key in names}
    tasks = dict.fromkeys(
        name.removeprefix(prefix)
        for prefix in prefixes.values()
        for name in metrics
        if name.startswith(prefix)
    )
    if not tasks:
        return None
    rows = [
        [_text(task), *(_share(metrics.get(f"{prefix}{task}")) for prefix in prefixes.values())]
        for task in tasks
    ]
    return Table(["Task", *names.values()], rows, "Success rate by task")


def _share(value: float | None) -> Cell:
    cell = _number(value)
    return (
        cell
        if cell.value is None
        else Cell(cell.text, cell.value, share=min(1.0, max(0.0, float(cell.value))))
    )


def _interval_rows(
    metrics: Mapping[str, Any], names: Mapping[str, str], metric: str
) -> list[tuple[str, str, float | None, float | None, float | None]]:
    return [
        (
            title,
            series.BEHAVIOUR if key == DATA else figures.colour(key),
            metrics[f"{key}.{metric}"], metrics[f"{key}.{metric}_ci_low"], metrics[f"{key}.{metric}_ci_high"],
        )
        for key, title in names.items()
    ]  # fmt: skip


def _caption(rank: str, episode: pd.Series[Any]) -> str:
    parts = [rank.capitalize()]
    if not pd.isna(episode["return"]):
        parts.append(f"return {episode['return']:.{return_digits([episode['return']])}f}")
    if not pd.isna(episode["success"]):
        parts.append("solved" if episode["success"] else "not solved")
    return ", ".join([*parts, f"{episode['length']} steps"])


VALUE_FIGURES = {
    "spearman": "Spearman correlation of Q with held-out returns",
    "pearson": "Pearson correlation",
    "slope": "Slope of returns over Q (calibrated: 1)",
    "intercept": "Intercept",
    "q_mean": "Mean of Q",
    "return_mean": "Mean of the returns",
    "effective_sample_size_median": "Effective sample size, median",
}


def _value_table(report: Mapping[str, float | None]) -> Table:
    return Table(
        ("Figure", "Value"),
        [(_text(text), _number(report.get(name))) for name, text in VALUE_FIGURES.items()],
    )


def _parameter_table(results: RunResults, *, changed: bool) -> Table:
    rows = [
        [
            _text(name),
            _text(_plain(value)),
            _text(_plain(results.defaults[name]) if name in results.defaults else ""),
        ]
        for name, value in results.parameters.items()
        if not changed or name not in results.defaults or results.defaults[name] != value
    ]
    return Table(("Parameter", "Value", "Default"), rows)


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else masked(str(value))


def _runs(results: pd.DataFrame, by_success: bool) -> tuple[pd.DataFrame, str]:
    """One row per run with its mean success, return and score; and what the score is."""
    keys = ["preset", "task", "seed", "method"]
    known = results.copy()
    for name in ("success", "return", "seconds"):
        known[name] = pd.to_numeric(results[name].astype(object), errors="coerce").astype(float)
    runs = known.groupby(keys, sort=False, dropna=False).agg(
        episodes=("return", "size"),
        success=("success", lambda values: values.mean(skipna=False)),
        **{"return": ("return", "mean")},
        seconds=("seconds", "median"),
    )
    runs = runs.reset_index()
    if by_success or known.loc[known["method"] != BEHAVIOUR, "success"].notna().all():
        return runs.assign(score=runs["success"]), "success rate"
    methods = runs[runs["method"] != BEHAVIOUR].groupby(["preset", "task"])["return"]
    low, high = methods.min(), methods.max()
    at = pd.MultiIndex.from_frame(runs[["preset", "task"]])
    least, most = low.reindex(at).to_numpy(), high.reindex(at).to_numpy()
    spread = np.where(most > least, most - least, 1.0)
    scaled = np.where(most > least, (runs["return"].to_numpy() - least) / spread, 0.5)
    return runs.assign(score=np.where(runs["return"].isna(), np.nan, scaled)), (
        "return, scaled per task from the worst run (0) to the best (1), because success is not known"
    )


def _estimates(heading: str, rows: Mapping[str, Mapping[str, Estimate]]) -> Table:
    headings = list(next(iter(rows.values()))) if rows else []
    return Table(
        [heading, *headings],
        [
            [_method(name), *(Cell(interval(numbers), float(numbers.value)) for numbers in row.values())]
            for name, row in rows.items()
        ],
    )


def _time_table(table: Comparison, seconds: pd.Series[float]) -> Table | None:
    """Median seconds of training, fastest first; None if no run has any."""
    rows = [
        [
            _method(name),
            _number(time, 0),
            Cell("n/a") if score is None else Cell(interval(score), float(score.value)),
        ]
        for name, time, score in table.times(seconds)
        if not math.isnan(time)
    ]
    if not rows:
        return None
    return Table(("Method", "Seconds of training, median", "Score, interquartile mean"), rows)


def _suite_charts(table: Comparison, seconds: pd.Series[float]) -> list[Chart]:
    if not table.places:
        return []
    profiles = {name: table.profile(name) for name in table.methods}
    charts = [Chart("Performance profiles", figures.profiles(THRESHOLDS.tolist(), profiles, "score"))]
    points = [
        (name, time, float(score.value), float(score.low), float(score.high))
        for name, time, score in table.times(seconds)
        if score is not None and not math.isnan(time)
    ]
    if points:
        charts.append(Chart("Score against time", figures.against_time(points, "score, interquartile mean")))
    return charts


def _suite_tasks(table: Comparison) -> Table:
    rows = table.by_task(complete=False)
    names = [name for name in [*table.methods, BEHAVIOUR] if any(row[name] == row[name] for row in rows)]
    presets = len({row["preset"] for row in rows}) > 1
    return Table(
        [*(["Preset"] if presets else []), "Task", *names],
        [
            [
                *([_text(row["preset"])] if presets else []),
                _text(row["task"]),
                *(_share(row[name]) for name in names),
            ]
            for row in rows
        ],
    )


def _run_table(runs: pd.DataFrame) -> Table:
    rows = [
        [
            _text(run["preset"]),
            _text(run["task"]),
            Cell(str(run["seed"]), run["seed"]),
            _method(run["method"]),
            Cell(str(run["episodes"]), run["episodes"]),
            _share(run["success"]),
            _number(run["return"], 1),
            _number(run["seconds"], 0),
        ]
        for run in runs.to_dict("records")
    ]
    return Table(("Preset", "Task", "Seed", "Method", "Episodes", "Success", "Return", "Seconds"), rows)


def _span(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    if not values:
        return "none"
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
