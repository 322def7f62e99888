"""The card of an exported policy, as Markdown and as a page: what it learned from, how it was judged, its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cvl_pipeline.reports.judgement import numbers_of, sentences
from cvl_pipeline.reports.page import DATA, Cell, Table, render
from cvl_pipeline.sources.environment import GOALS_OF

MARKDOWN, PAGE, VIDEO = "README.md", "policy.html", "video.mp4"
"""Files of the exported folder. Hubs show README.md as the card of a model."""
Rows = Sequence[tuple[str, str]]
JUDGED = {"success_rate": ("Success rate", 2), "return_mean": ("Return, undiscounted", 1)}


def judged(metrics: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return what ``metrics.json`` says about one policy and the behaviour data; None if nothing was evaluated."""
    if metrics is None:
        return None
    shared = ("environment", "episodes", "behaviour_episodes", "confidence", "protocol")
    parts = {"policy": name, "behaviour": DATA}
    return {key: metrics[key] for key in shared} | {
        part: {
            key.removeprefix(f"{own}."): value for key, value in metrics.items() if key.startswith(f"{own}.")
        }
        for part, own in parts.items()
    }


def judged_from_log(judgement: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """Return what ``judgement.json`` says about one policy, in words; None if it was not judged from the log."""
    if judgement is None:
        return None
    return {"numbers": dict(numbers_of(judgement, name)), "measures": list(sentences(judgement))}


def card(contract: Mapping[str, Any], video: bool = False) -> dict[str, bytes]:
    """Return the card's files.

    Args:
        contract: of ``deploy.export``, with its field ``about`` as the export's node fills it.
        video: whether the folder has one.
    """
    about = contract["about"]
    title = f"{about['method']} for {about['task']}"
    from_log = about.get("judged_from_log")  # contracts of earlier versions do not have it
    sections = [
        ("Trained on", _trained_on(contract)),
        ("Judged", _judged(about["judged"])),
        *([("Judged from the log alone", list(from_log["numbers"].items()))] if from_log else []),
        ("Input and output", _interface(contract)),
        ("Compared with the trained policy", _parity(contract["parity"])),
        ("Versions", list(contract["versions"].items())),
    ]
    limits = _limits(contract)
    page = render(
        "card.html",
        script=None,
        title=title,
        tables=[
            (name, Table(("", ""), [(Cell(key), Cell(value)) for key, value in rows]))
            for name, rows in sections
        ],
        limits=limits,
        video=VIDEO if video else None,
    )
    return {MARKDOWN: _markdown(title, sections, limits, video).encode(), PAGE: page.encode()}


def _markdown(title: str, sections: Sequence[tuple[str, Rows]], limits: Sequence[str], video: bool) -> str:
    lines = [
        "---",
        "library_name: cvl-pipeline",
        "tags: [robotics, offline-reinforcement-learning, onnx]",
        "---",
    ]
    lines += [f"# {title}", ""]
    lines += [f"[Video of an evaluation episode]({VIDEO}), the median one by return.", ""] if video else []
    for name, rows in sections:
        lines += [f"## {name}", "", "| | |", "|---|---|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows] + [""]
    lines += ["## Limits", "", *(f"- {limit}" for limit in limits), ""]
    lines += [
        "## Use",
        "",
        "```python",
        "from runner import load_policy  # needs numpy and onnxruntime alone",
        "",
    ]
    lines += [
        'policy = load_policy(".")',
        "policy.reset()",
        "action = policy.select_action(observation)",
        "```",
        "",
    ]
    return "\n".join(lines)


def _trained_on(contract: Mapping[str, Any]) -> Rows:
    about = contract["about"]
    return [
        ("Dataset", about["dataset"]),
        ("Task", about["task"]),
        ("Reward", about["reward"]),
        ("Seed", str(about["seed"])),
        (
            "Episodes",
            f"{about['training_episodes']} for training, {about['held_out_episodes']} held out; "
            f"{about['transitions']} transitions",
        ),
    ]


def _judged(found: Mapping[str, Any] | None) -> Rows:
    if found is None:
        return [("Environment", "none is known: the policy was not run before it was exported")]
    level = f"{100 * found['confidence']:g} % interval"
    rows = [
        ("Environment", found["environment"]),
        ("Episodes", f"{found['episodes']}; {found['protocol']}"),
    ]
    for key, (name, digits) in JUDGED.items():
        logged = f"{found['behaviour_episodes']} logged episodes"
        for part, who in (("policy", "this policy"), ("behaviour", logged))[
            : 2 if found["behaviour_episodes"] else 1
        ]:
            mean, low, high = (found[part].get(f"{key}{end}") for end in ("", "_ci_low", "_ci_high"))
            text = "unknown"
            if mean is not None and low is not None and high is not None:
                text = f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}], {level}"
            rows.append((f"{name}, {who}", text))
    return rows


def _interface(contract: Mapping[str, Any]) -> Rows:
    rows = []
    for part in contract["observations"]:
        names = part.get("names")
        detail = f"{part['dtype']} {tuple(part['shape'])}, in the units of the dataset"
        rows.append((f"Observation `{part['name']}`", f"{detail}: {', '.join(names)}" if names else detail))
    action = contract["action"]
    names = f": {', '.join(action['names'])}" if action["names"] else ""
    if action["discrete"]:
        rows.append(("Action", f"one of {action['size']}, as a whole number from 0 on{names}"))
    else:
        bounds = f"from {_numbers(action['low'])} to {_numbers(action['high'])}"
        rows.append(("Action", f"{action['dtype']} ({action['size']},), {bounds}{names}"))
    rate = contract["control_hz"]
    rows.append(("Actions per second", "unknown" if rate is None else f"{rate:g}"))
    rows.append(("Normalisation", contract["normalisation"]))
    return rows


def _numbers(values: Sequence[float]) -> str:
    same = len(set(values)) == 1
    return f"{values[0]:g}" if same else ", ".join(f"{value:g}" for value in values)


def _parity(parity: Mapping[str, Any]) -> Rows:
    rows = [
        ("Held-out observations", str(parity["observations"])),
        (
            "Largest difference of an action",
            f"{parity['largest_error']:.2g} of its range (allowed: {parity['tolerance']:.2g})",
        ),
    ]
    if parity["other_choices"]:
        rows.append(("Another of two equally good actions", f"{parity['other_choices']} times"))
    if "value_error" in parity:
        rows.append(
            ("Largest difference of a value", f"{parity['value_error']:.2g} of {parity['largest_value']:.3g}")
        )
    return rows


def _limits(contract: Mapping[str, Any]) -> list[str]:
    """Return what a reader must not conclude."""
    about = contract["about"]
    limits = [
        "It learned from a log alone. On states unlike those of the log, its actions mean nothing; the runner warns if "
        "numbers leave the range of the log.",
        "It has no memory: the observation must tell it all that it needs.",
    ]
    if about["judged"] is None:
        limits.append("Nobody has judged it in an environment.")
    else:
        limits.append(
            f"It was judged in {about['judged']['environment']} alone; nothing is known of other machines, sensors or "
            "tasks. The interval covers the episodes of this one policy, not other seeds of training."
        )
    if about["goals"] is not None:
        limits.append(
            f"It moves to {about['goals']} goals, observations of the log's kind that are stored in it. For others, "
            "export it again (`policy.toward(goals)`)."
        )
    if (
        about["judged"] is not None
        and about["goals"] is not None  # others are judged without
        and about["judged"]["environment"].startswith(GOALS_OF)
    ):
        limits.append(
            "It was judged as a policy that sees the goal of each episode. The exported one does not see it: nobody "
            "has judged that."
        )
    limits += (about.get("judged_from_log") or {}).get("measures", [])
    if contract["control_hz"] is None:
        limits.append(
            "The control rate of the log is unknown. At another rate, the same actions do something else."
        )
    if contract["value"] is not None:
        limits.append(
            "The exported value is that of the behaviour in the log, for monitoring: it says which of two actions was "
            "better in the log, not what this policy will reach."
        )
    return limits
