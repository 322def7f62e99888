"""Values of actions in simulators, compared with those of critics, and with the success of the critics' policies.

The benchmark brings the simulator to held-out logged states and tries actions there (see ``benchmarks.branches``). Two
values of an action are estimated. ``once``: the action is taken once, and the behaviour follows. ``held``: an action
of a random burst is held for the rest of the burst, as in the log. Critics learn from such a log, so ``held`` is what
they estimate.

The returns are kept in benchmarks/results, one Parquet file per task and seed. Run the same command again to resume,
or to score other critics without simulation; delete a file to simulate again. Episodes are kept in data/simulators.

    python -m benchmarks.simulators
    python -m benchmarks.simulators --tasks reach-v3 --states 10 --workers 1
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from scipy import stats

from benchmarks.branches import After, Brancher, Branches
from benchmarks.common import PROJECT, RESULTS, markdown, record_path, write_record
from benchmarks.regression import regress_returns
from cvl_pipeline import api
from cvl_pipeline.api import EpisodeData, QFunction
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.environments.parameters import EvaluationParameters
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.sources.simulated import SimulatedParameters, SimulatedSource
from cvl_pipeline.training.devices import available_cores

Floats = NDArray[np.float64]

CACHE = PROJECT / "data/simulators"
MAZE = "PointMaze_"
TASKS = ["reach-v3", "push-v3", "door-open-v3", "PointMaze_Medium-v3"]
AFTER: tuple[After, ...] = ("once", "held")
EARLY = 2 / 3
"""States are chosen from this first share of an episode."""
SPLITS = 100
"""Largest number of divisions of the rollouts into halves."""
RESAMPLES = 2000
REGRESSION = "regression"
CRITICS = (
    "default", "contrastive alone", "first version", "discount 0.3", "twice the temperature", REGRESSION
)  # fmt: skip
"""``default``: the task's settings in conf/, a network regressed on returns included. All others but ``regression`` are
without it. ``contrastive alone`` changes nothing else. ``first version``: the critic looks as far ahead
as the values, and every logged state is a reference, unless conf/ says otherwise. The next two change one setting of
``contrastive alone`` and give bad policies in Meta-World."""


def configuration(task: str) -> dict[str, Any]:
    """Settings of the pipeline's sections for a task, where ``kedro run`` has others than the library."""
    if not task.startswith(MAZE):
        return {"dataset": {"source": "metaworld", "task": task}}
    sections: dict[str, Any] = yaml.safe_load((PROJECT / "conf/pointmaze/parameters.yml").read_text())
    sections["dataset"]["task"] = task
    return sections


@dataclass(frozen=True)
class Run:
    """A task and the seed of its episodes, its critics and its evaluation."""

    task: str
    seed: int

    @property
    def discount(self) -> float:
        """Gamma of the values, which the pipeline uses for the task."""
        return 0.99 if self.task.startswith(MAZE) else 0.97

    @property
    def dataset(self) -> SimulatedParameters:
        """Parameters of the source."""
        return SOURCES.validate(configuration(self.task)["dataset"])  # type: ignore[return-value]

    @property
    def rollouts(self) -> int:
        """Rollouts of this task per rollout of other tasks: the maze has a sparse reward, so its returns are noisy."""
        return 4 if self.task.startswith(MAZE) else 1

    def section(self, name: str) -> dict[str, Any]:
        """Settings of a section, such as ``contrastive_dynamics``."""
        settings: dict[str, Any] = configuration(self.task).get(name, {})
        return dict(settings)

    @property
    def table(self) -> Path:
        """File of the exact values."""
        return RESULTS / f"simulators_{self.task}_{self.seed}.parquet"

    @property
    def episodes(self) -> Path:
        """Folder of the episodes."""
        return CACHE / self.task / f"seed_{self.seed}"


def collect(run: Run, workers: int) -> None:
    """Collect the episodes as ``kedro run`` does, unless they are in the cache."""
    kinds = ("transitions", "split", "normalisation", "rewards")
    if all((run.episodes / f"{kind}.safetensors").exists() for kind in kinds):
        return
    data = api.load_episodes(run.dataset, run.seed, workers=workers)
    run.episodes.mkdir(parents=True, exist_ok=True)
    for kind, part in data.parts().items():
        api.save(part, run.episodes / f"{kind}.safetensors")


@lru_cache(maxsize=1)
def load_data(run: Run) -> EpisodeData:
    """Read the episodes."""
    kinds = ("transitions", "split", "normalisation", "rewards")
    return EpisodeData(*(api.load(run.episodes / f"{kind}.safetensors") for kind in kinds))


def choose_states(data: EpisodeData, count: int, seed: int) -> list[tuple[int, int]]:
    """Choose held-out steps, uniformly over the first part of the held-out episodes, as (episode, step), sorted."""
    steps = [
        (int(episode), step)
        for episode in data.split.validation
        for step in range(max(1, int(EARLY * int(data.transitions.lengths[episode]))))
    ]
    chosen = np.random.default_rng([seed, 6]).choice(len(steps), min(count, len(steps)), replace=False)
    return [steps[index] for index in sorted(chosen)]


@lru_cache(maxsize=1)
def make_brancher(run: Run) -> Brancher:
    """Build the simulation of a task, once per process."""
    source = SOURCES.create(run.dataset)
    assert isinstance(source, SimulatedSource)
    return Brancher(source, load_data(run).transitions, run.seed)


def branch(job: tuple[Run, int, int, int, int, After]) -> Branches:
    """Try the actions at one state."""
    run, episode, step, choices, rollouts, after = job
    return make_brancher(run).branch(
        episode, step, choices=choices, rollouts=rollouts, discount=run.discount, after=after
    )


Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def exact_table(run: Run, states: int, choices: int, rollouts: int, over: Map) -> pd.DataFrame:
    """Read the exact values of a task and seed, or simulate them.

    Args:
        run: task and seed.
        states: number of states, N.
        choices: actions per state, C.
        rollouts: per action, M, as many times as ``Run.rollouts`` says.
        over: maps a function over jobs, in parallel or not.

    Returns:
        One row per value (``after``), state (``episode``, ``step``) and action: ``observation`` (O,), ``action``
        (A,), ``burst`` (of the action), ``returns`` (M,), and the ``discount``.
    """
    data, rollouts = load_data(run), rollouts * run.rollouts
    chosen = choose_states(data, states, run.seed)
    if run.table.exists():
        table = pd.read_parquet(run.table)
        if _fits(table, run, chosen, choices, rollouts):
            return table
    jobs = [(run, *state, choices, rollouts, after) for after in AFTER for state in chosen]
    rows = [
        {
            "after": after, "episode": b.episode, "step": b.step, "observation": b.observation.astype(np.float32),
            "action": action, "burst": bool(burst), "returns": returns, "discount": run.discount,
        }
        for (*_, after), b in zip(jobs, over(branch, jobs), strict=True)
        for action, burst, returns in zip(b.actions, b.bursts, b.returns, strict=True)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    run.table.parent.mkdir(parents=True, exist_ok=True)
    partial = run.table.with_suffix(".partial")
    table.to_parquet(partial)
    partial.replace(run.table)
    return table


def _fits(table: pd.DataFrame, run: Run, states: list[tuple[int, int]], choices: int, rollouts: int) -> bool:
    """Whether a table has the wanted size and belongs to these episodes."""
    expected = [state for _ in AFTER for state in states for _ in range(choices)]
    if list(zip(table["episode"], table["step"], strict=True)) != expected:
        return False
    transitions = load_data(run).transitions
    index = transitions.episode_starts[torch.tensor(table["episode"].to_numpy())]
    logged = transitions.states(index + torch.tensor(table["step"].to_numpy())).numpy()
    same_size = all(len(returns) == rollouts for returns in table["returns"])
    same_discount = bool((table["discount"] == run.discount).all())
    return same_size and same_discount and np.array_equal(np.stack(list(table["observation"])), logged)


def halves(rollouts: int) -> list[tuple[list[int], list[int]]]:
    """Divisions of the rollouts into two equal halves, at most SPLITS, each with its reverse."""
    size = rollouts // 2
    firsts = list(combinations(range(rollouts), size))
    if len(firsts) > SPLITS:
        order = np.random.default_rng(0).permutation(len(firsts))[: SPLITS // 2]
        firsts = [firsts[index] for index in order]
    pairs = []
    for first in firsts:
        rest = [m for m in range(rollouts) if m not in first][:size]
        pairs += [(list(first), rest), (rest, list(first))]
    return pairs


def rank_correlations(first: Floats, second: Floats) -> Floats:
    """Spearman's correlation over the actions of each state, (N, C) each -> (N,); NaN where one has no order."""
    ranks = [stats.rankdata(values, axis=1) for values in (first, second)]
    centred = [values - values.mean(1, keepdims=True) for values in ranks]
    norms = [np.sqrt((values**2).sum(1)) for values in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = (centred[0] * centred[1]).sum(1) / (norms[0] * norms[1])
    return result


def ceiling(returns: Floats) -> float:
    """Rank correlation that the exact values themselves would reach, limited by the noise of the rollouts.

    It is the square root of the reliability of the mean over rollouts: the correlation of two halves of the rollouts,
    corrected for their length (Spearman and Brown).

    Args:
        returns: (N, C, M).
    """
    correlations = np.concatenate(
        [
            rank_correlations(returns[..., a].mean(-1), returns[..., b].mean(-1))
            for a, b in halves(returns.shape[-1])[::2]
        ]
    )
    correlations = correlations[np.isfinite(correlations)]
    half = max(0.0, float(correlations.mean())) if len(correlations) else float("nan")
    return float(np.sqrt(2.0 * half / (1.0 + half)))


def advantages(returns: Floats, estimates: Floats) -> tuple[Floats, Floats]:
    """Advantage over the mean action of the critic's choice and of the best action, (N,) each.

    The best action is chosen by one half of the rollouts and valued by the other, because the largest of noisy values
    is too large. It is so a lower bound on the advantage of the best action.

    Args:
        returns: (N, C, M).
        estimates: (N, C), of the critic.
    """
    rows = np.arange(len(returns))
    exact = returns.mean(-1)
    chosen = exact[rows, estimates.argmax(1)] - exact.mean(1)
    best = np.zeros(len(returns))
    pairs = halves(returns.shape[-1])
    for first, second in pairs:
        values = returns[..., second].mean(-1)
        best += values[rows, returns[..., first].mean(-1).argmax(1)] - values.mean(1)
    return chosen, best / len(pairs)


def score(returns: Floats, estimates: Floats) -> dict[str, float]:
    """Compare a critic with exact values.

    States at which all actions have the same exact value have no order and are left out of the correlation.

    Args:
        returns: (N, C, M).
        estimates: (N, C), of the critic.

    Returns:
        ``correlation``: mean over states of Spearman's correlation over actions. ``advantage``: sum over states of the
        advantage of the chosen action, divided by the sum of that of the best one. ``gain``: mean over states of the
        advantage of the chosen action, in the units of returns. Each with ``_ci``, half of its 95 % bootstrap interval
        over states.
    """
    correlations = rank_correlations(returns.mean(-1), estimates)
    correlations = correlations[np.isfinite(correlations)]
    chosen, best = advantages(returns, estimates)
    generator = np.random.default_rng(0)

    def draws(count: int) -> NDArray[np.int64]:
        return generator.integers(count, size=(RESAMPLES, count))

    means = correlations[draws(len(correlations))].mean(1) if len(correlations) else np.full(1, np.nan)
    states = draws(len(chosen))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = float(np.divide(chosen.sum(), best.sum()))
        ratios = chosen[states].sum(1) / best[states].sum(1)
    return {
        "correlation": float(correlations.mean()) if len(correlations) else float("nan"),
        "correlation_ci": _half_width(means),
        "advantage": ratio,
        "advantage_ci": _half_width(ratios),
        "gain": float(chosen.mean()),
        "gain_ci": _half_width(chosen[states].mean(1)),
    }


def _half_width(values: Floats) -> float:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(high - low) / 2


def settings_of(run: Run, name: str) -> tuple[DynamicsParameters, dict[str, Any]]:
    """Parameters of the critic, and settings of the readout, that a name stands for."""
    default = DynamicsParameters.model_validate(run.section("contrastive_dynamics"))
    changes: dict[str, dict[str, Any]] = {
        "first version": {"discount": run.discount},
        "discount 0.3": {"discount": 0.3},
        "twice the temperature": {"temperature": 2.0 * default.temperature},
    }
    readout = run.section("value_readout") | {"discount": run.discount}
    if name != "default":
        readout["regression"] = None
    if name == "first version":
        readout.setdefault("references", None)
    return DynamicsParameters.model_validate(default.model_dump() | changes.get(name, {})), readout


def train(run: Run, name: str) -> QFunction:
    """Train the critic of a name on the episodes and read out its values."""
    data = load_data(run)
    if name == REGRESSION:
        return regress_returns(data, run.discount, seed=run.seed)
    parameters, readout = settings_of(run, name)
    critic = api.train_critic(data, parameters, run.seed).critic
    return QFunction(critic, api.read_out(critic, data, seed=run.seed, **readout))


def success(run: Run, q: QFunction, episodes: int) -> float:
    """Share of episodes that the policy of a critic solves."""
    data = load_data(run)
    policy = api.extract_policy(
        q.critic, q.readout, data, seed=run.seed, **run.section("policy_extraction")
    ).policy
    environment = environment_for(run.dataset, EvaluationParameters())
    table = api.evaluate(policy, environment, episodes=episodes, seed=run.seed, workers=1)
    return float(table["success"].astype(float).mean())


def judge(job: tuple[Run, str, pd.DataFrame, int]) -> dict[str, Any]:
    """Train a critic, score its values, and evaluate its policy."""
    run, name, table, episodes = job
    torch.set_num_threads(1)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    start = time.perf_counter()
    q = train(run, name)
    row: dict[str, Any] = {"task": run.task, "seed": run.seed, "critic": name, **value_scores(q, table)}
    row["success"] = success(run, q, episodes)
    row["seconds"] = time.perf_counter() - start
    return row


@torch.no_grad()
def value_scores(q: ActionValues, table: pd.DataFrame) -> dict[str, float]:
    """Scores of values by their names in ``score``, each after the kind of value: ``held correlation``."""
    scores: dict[str, float] = {}
    for after, part in table.groupby("after", sort=False):
        exact = returns_of(part)
        pairs = (torch.from_numpy(np.stack(list(part[name]))) for name in ("observation", "action"))
        estimates = q(*pairs).double().numpy().reshape(len(exact), -1)
        scores |= {f"{after} {name}": value for name, value in score(exact, estimates).items()}
    return scores


def returns_of(part: pd.DataFrame) -> Floats:
    """Returns of the rows of one kind of value, (N, C, M)."""
    states = part.groupby(["episode", "step"], sort=False).ngroups
    values: Floats = np.stack(list(part["returns"]))
    return values.reshape(states, -1, values.shape[-1])


def describe(run: Run, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Describe the exact values of a task: their spread within states, their noise, and the ceiling of scores.

    Returns:
        One row per value, ``after``. ``spread``: root mean square over states of the standard deviation over actions.
        ``standard error``: likewise, of the difference of one action from the mean action. ``ordered states``: share
        of states whose actions differ in value.
    """
    rows = []
    for after, part in table.groupby("after", sort=False):
        returns = returns_of(part)
        exact, shared = returns.mean(-1), returns - returns.mean(1, keepdims=True)
        _, best = advantages(returns, exact)
        rows.append(
            {
                "task": run.task, "seed": run.seed, "after": after, "mean": float(exact.mean()),
                "spread": float(np.sqrt(exact.var(1).mean())),
                "standard error": float(np.sqrt(shared.var(-1, ddof=1).mean() / returns.shape[-1])),
                "best advantage": float(best.mean()),
                "ordered states": float((np.ptp(exact, axis=1) > 0).mean()),
                "ceiling": ceiling(returns),
            }
        )  # fmt: skip
    return rows


SCORES = [f"{after} {name}" for after in AFTER for name in ("correlation", "gain")]
"""Scores that may predict success. Within a task, the gain has the order of the advantage, and no noisy divisor."""


def prediction(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation over critics, within each task and seed, of every score with the success of the policy."""
    entries = []
    for score_name in SCORES:
        entry: dict[str, Any] = {"score": score_name}
        for (task, seed), part in rows.groupby(["task", "seed"], sort=False):
            values = rank_correlations(
                part[score_name].to_numpy(np.float64)[None], part["success"].to_numpy(np.float64)[None]
            )
            entry[f"{task}, seed {seed}"] = float(values[0])
        over = [value for value in list(entry.values())[1:] if np.isfinite(value)]
        entries.append(entry | {"mean": float(np.mean(over)) if over else float("nan")})
    return pd.DataFrame(entries)


@contextmanager
def pool(workers: int) -> Iterator[Map]:
    """Map functions over jobs in processes; in this one if ``workers`` is 1."""
    if workers == 1:
        yield map
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
            yield executor.map


def main() -> None:
    """Simulate, train, score, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[30])
    parser.add_argument("--critics", nargs="*", default=CRITICS, choices=CRITICS)
    parser.add_argument("--states", type=int, default=40, help="held-out states per task and seed")
    parser.add_argument("--actions", type=int, default=16, help="at each state")
    parser.add_argument(
        "--rollouts", type=int, default=4, help="per action, at least 2; the maze has four times as many"
    )  # fmt: skip
    parser.add_argument("--episodes", type=int, default=50, help="of a policy's evaluation")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    arguments = parser.parse_args()
    if arguments.rollouts < 2 or arguments.actions < 2:
        parser.error("--rollouts and --actions must be at least 2")
    start = time.perf_counter()
    runs = [Run(task, seed) for task in arguments.tasks for seed in arguments.seeds]
    for run in runs:
        collect(run, arguments.workers)
    sizes = arguments.states, arguments.actions, arguments.rollouts
    with pool(arguments.workers) as over:
        tables = {run: exact_table(run, *sizes, over) for run in runs}
        simulated = time.perf_counter() - start
        exact = pd.DataFrame([row for run, table in tables.items() for row in describe(run, table)])
        print("\nExact values\n\n" + markdown(exact.astype({"seed": str})))  # noqa: T201
        jobs = [
            (run, name, table, arguments.episodes)
            for run, table in tables.items()
            for name in arguments.critics
        ]
        rows = pd.DataFrame(list(over(judge, jobs)))
    predicted = prediction(rows) if len(rows) else pd.DataFrame()
    write_record(
        record_path(RESULTS / "simulators.json", parser, arguments),
        seconds={"simulation": simulated, "all": time.perf_counter() - start},
        exact=exact.to_dict("records"),
        critics=rows.to_dict("records"),
        prediction=predicted.to_dict("records"),
    )
    if len(rows):
        hidden = ["seconds", *(name for name in rows.columns if " gain" in str(name))]
        print("\nCritics\n\n" + markdown(rows.drop(columns=hidden).astype({"seed": str}), 2))  # noqa: T201
        print("\nRank correlation of a score with success, over critics\n\n" + markdown(predicted, 2))  # noqa: T201
        means = ", ".join(f"{row['score']} {row['mean']:+.2f}" for _, row in predicted.iterrows())
        print(f"\nprediction of success within tasks: {means}")  # noqa: T201


if __name__ == "__main__":
    main()
