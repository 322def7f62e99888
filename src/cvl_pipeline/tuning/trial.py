"""What one point of a space is worth: the stages' own functions, each called once for what it depends on."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from cvl_pipeline.dynamics.module import train_dynamics
from cvl_pipeline.environments.evaluation import evaluate, rollout_table
from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.objectives.module import extract_policy
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.diagnostics import returns_correlation
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.rewards import label
from cvl_pipeline.sources.load import load
from cvl_pipeline.sources.simulators import make_environment, shared_tasks
from cvl_pipeline.training import launch
from cvl_pipeline.training.callbacks import Watcher
from cvl_pipeline.training.fit import run_fingerprint
from cvl_pipeline.tuning.objectives import OBJECTIVES
from cvl_pipeline.tuning.space import below, with_values

ROLLOUT_SEEDS = 1_000_000
"""Added to the seed of a trial's rollouts: what is chosen by them must not be judged by the same again."""


@dataclass(frozen=True)
class Log:
    """The episodes of a study, as data_ingestion left them."""

    transitions: Transitions
    rewards: Rewards
    split: Split
    normalisation: Normalisation


class Bench:
    """Measures points of a space on one log.

    Trained networks and measured rollouts are kept in a folder under a fingerprint of all that they depend
    on. Whatever two trials have in common (the critic, where only the policy is searched) is made by one of
    them; another that needs it at the same time waits.
    """

    def __init__(
        self,
        log: Log,
        stages: StageParameters,
        searched: tuple[str, ...],
        returns_discount: float,
        folder: Path,
        workers: int | None,
    ) -> None:
        """Measure on a log.

        Args:
            log: the episodes.
            stages: all parameters, but for what a point changes.
            searched: names of what points may change.
            returns_discount: of the returns that ``returns_correlation`` ranks Q against.
            folder: keeps what trials share.
            workers: processes of rollouts; None: one a core.
        """
        self._log = log
        self._stages = stages
        self._searched = searched
        self._discount = returns_discount
        self._folder = folder
        self._workers = workers

    def measure(
        self, values: Mapping[str, Any], seed: int, names: tuple[str, ...], watch: Watcher | None = None
    ) -> dict[str, float]:
        """What the stages report at a point.

        Args:
            values: of the point, by full name.
            seed: of the trainings and the rollouts; the log and its split are the study's.
            names: of objectives. Stages that none of them needs do not run.
            watch: is shown the rows of the critic's history as they are measured, and may raise.

        Raises:
            InputError: values that do not go together, or what a stage refuses.
            FloatingPointError: training diverged.
        """
        stages = with_values(self._stages, values)
        log = self._episodes(stages)
        critic, history = self._critic(log, stages, seed, watch)
        found = {
            name: float(history[str(OBJECTIVES[name].column)].iloc[-1])
            for name in names
            if OBJECTIVES[name].stage == "contrastive_dynamics"
        }
        if len(found) == len(names):
            return found
        labels = label(log.transitions, log.rewards, stages.reward)
        readout = build_readout(critic, log.transitions, labels, log.split, stages.value_readout, seed)
        q = QFunction(critic, readout)
        if "returns_correlation" in names:
            found["returns_correlation"] = returns_correlation(
                q, log.transitions, labels, log.split, self._discount
            )
        if any(OBJECTIVES[name].online for name in names):
            found |= self._rollouts(log, labels, q, stages, seed)
        return {name: found[name] for name in names}

    def _episodes(self, stages: StageParameters) -> Log:
        """The log, made anew only as far as the space reaches."""
        if any(below(name, ["dataset"]) for name in self._searched):
            return self._collected(stages)
        if any(below(name, ["data_ingestion"]) for name in self._searched):
            return _prepared(self._log.transitions, self._log.rewards, stages)
        return self._log

    def _collected(self, stages: StageParameters) -> Log:
        key = run_fingerprint(stages.dataset, stages.seed)
        paths = [self._folder / f"{kind}-{key}.safetensors" for kind in ("transitions", "rewards")]
        with self._alone(f"dataset-{key}"):
            if not all(path.exists() for path in paths):
                made = load(stages.dataset, stages.seed, self._workers)
                for path, kind, value in zip(paths, ("transitions", "rewards"), made, strict=True):
                    save_artifact(path, kind, value)
        transitions, rewards = (load_artifact(path) for path in paths)
        return _prepared(transitions, rewards, stages)

    def _critic(
        self, log: Log, stages: StageParameters, seed: int, watch: Watcher | None
    ) -> tuple[ContrastiveCritic, pd.DataFrame]:
        parameters = stages.contrastive_dynamics
        inputs = {"transitions": log.transitions, "split": log.split, "normalisation": log.normalisation}
        key = run_fingerprint(parameters, seed, *inputs.values())
        return self._trained(
            f"critic-{key}", "critic",
            lambda unfinished: launch.train(
                train_dynamics, "critic", parameters, seed, unfinished, None, inputs, watch
            ),
        )  # fmt: skip

    def _policy(
        self, log: Log, labels: Rewards, q: QFunction, stages: StageParameters, seed: int
    ) -> tuple[nn.Module, str]:
        parameters = stages.policy_extraction
        inputs = {
            "transitions": log.transitions, "split": log.split, "normalisation": log.normalisation,
            "labels": labels, "critic": q.critic, "readout": q.readout,
        }  # fmt: skip
        key = run_fingerprint(parameters, seed, *inputs.values())
        policy, _ = self._trained(
            f"policy-{key}", "policy",
            lambda unfinished: launch.train(
                extract_policy, "policy", parameters, seed, unfinished, None, inputs
            ),
        )  # fmt: skip
        return policy, key

    def _rollouts(
        self, log: Log, labels: Rewards, q: QFunction, stages: StageParameters, seed: int
    ) -> dict[str, float]:
        policy, key = self._policy(log, labels, q, stages, seed)
        judged = stages.evaluation.model_dump(mode="json", exclude={"workers"})
        path = self._folder / f"rollouts-{key}.json"
        with self._alone(f"rollouts-{key}"):
            if path.exists():
                kept = json.loads(path.read_text())
                if kept["evaluation"] == judged:
                    return dict(kept["measured"])
            tasks = shared_tasks(stages.dataset, stages.evaluation)
            seed += ROLLOUT_SEEDS
            transitions, rewards = evaluate(
                policy, make_environment(stages.dataset, stages.evaluation),
                episodes=stages.evaluation.episodes, seed=seed, workers=self._workers, name="a trial",
                tasks=len(tasks) or 1,
            )  # fmt: skip
            table = rollout_table(transitions, label(transitions, rewards, stages.reward), seed, tasks)
            measured = {
                "success_rate": float(table["success"].mean()), "return_mean": float(table["return"].mean())
            }  # fmt: skip
            record = json.dumps({"evaluation": judged, "measured": measured})
            write_atomically(path, lambda partial: partial.write_text(record))
        return measured

    def _trained(
        self, name: str, kind: str, train: Callable[[Path], tuple[Any, pd.DataFrame]]
    ) -> tuple[Any, pd.DataFrame]:
        """A network and its history: kept, or trained now and kept."""
        network, history = self._folder / f"{name}.safetensors", self._folder / f"{name}.parquet"
        unfinished = self._folder / f"{name}.unfinished"
        with self._alone(name):
            if network.exists() and history.exists():
                return load_artifact(network, kind), read_table(history)
            try:
                trained, rows = train(unfinished)
            except Exception:  # diverged, pruned, out of memory: nobody goes on from there
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            shutil.rmtree(unfinished, ignore_errors=True)
            write_table(history, rows)
            save_artifact(network, kind, trained)
        return trained, rows

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock that ends with this process, however it ends."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def mean_over_seeds(measured: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the trainings of a trial."""
    return {name: float(np.mean([found[name] for found in measured])) for name in measured[0]}


def _prepared(transitions: Transitions, rewards: Rewards, stages: StageParameters) -> Log:
    parameters = stages.data_ingestion
    split = split_episodes(transitions, parameters.validation_fraction, stages.seed)
    return Log(transitions, rewards, split, fit_normalisation(transitions, split, parameters.std_floor))
