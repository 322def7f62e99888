"""Measurement of one point of a space; trials share the results of equal stages."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from cvl_pipeline import api
from cvl_pipeline.environments.evaluation import rollout_table
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.io.checked import read_table, write_table
from cvl_pipeline.io.storage import write_atomically
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.readout.diagnostics import returns_correlation
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.rewards import label, label_rollouts
from cvl_pipeline.schema import below, effective
from cvl_pipeline.sources.environment import environment_for
from cvl_pipeline.training.callbacks import Watcher
from cvl_pipeline.training.fit import run_fingerprint
from cvl_pipeline.training.keeping import kept_checkpoints
from cvl_pipeline.tuning.objectives import OBJECTIVES
from cvl_pipeline.tuning.space import with_values

ROLLOUT_SEEDS = 1_000_000
"""Added to the seed of a trial's rollouts: the final evaluation must use other episodes."""


@dataclass(frozen=True)
class Bench:
    """Measures points of a space on one log.

    Trained networks and measured rollouts are stored in a folder, under a fingerprint of everything they depend
    on. If two trials need the same network (the critic, if only the policy is searched), one trains it and the
    other waits.

    Attributes:
        data: the episodes, with the log's rewards.
        stages: all parameters, except those that a point changes.
        searched: names of the parameters that points may change.
        returns_discount: discount of the returns in ``returns_correlation``.
        folder: folder of the files that trials share.
        workers: number of processes for rollouts; None: one per core.
    """

    data: EpisodeData
    stages: StageParameters
    searched: tuple[str, ...]
    returns_discount: float
    folder: Path
    workers: int | None

    def measure(
        self, values: Mapping[str, Any], seed: int, names: tuple[str, ...], watch: Watcher | None = None
    ) -> dict[str, float]:
        """Return the objectives' values at a point.

        Success, and a reward that is made of it, are NaN if the environment never mentioned success and the log of
        the same simulator does not report it either.

        Args:
            values: the point, by full name.
            seed: seed of the trainings and the rollouts; the log and its split are the study's.
            names: objectives. Only the stages that they need run.
            watch: receives each new row of the critic's history, and may raise.

        Raises:
            InputError: incompatible values, or an error of a stage.
            FloatingPointError: training diverged.
        """
        stages = with_values(self.stages, values)
        data = self._episodes(stages)
        critic, history = self._critic(data, stages, seed, watch)
        measured = {
            name: float(history[str(OBJECTIVES[name].column)].iloc[-1])
            for name in names
            if OBJECTIVES[name].stage == "contrastive_dynamics"
        }
        if len(measured) == len(names):
            return measured
        assert data.rewards is not None  # a study has the log's rewards
        labels = label(data.transitions, data.rewards, stages.reward)
        data = data.with_rewards(labels)
        readout = api.read_out(critic, data, stages.value_readout, seed)
        q = QFunction(critic, readout)
        if "returns_correlation" in names:
            measured["returns_correlation"] = returns_correlation(
                q, data.transitions, labels, data.split, self.returns_discount
            )
        if any(OBJECTIVES[name].online for name in names):
            measured |= self._rollouts(data, q, stages, seed)
        return {name: measured[name] for name in names}

    def _episodes(self, stages: StageParameters) -> EpisodeData:
        """Return the episodes; collect or prepare them again only if the space contains such parameters."""
        if any(below(name, ["dataset"]) for name in self.searched):
            return self._collected(stages)
        if any(below(name, ["data_ingestion"]) for name in self.searched):
            return EpisodeData.prepare(
                self.data.transitions, self.data.rewards, stages.data_ingestion, stages.seed
            )
        return self.data

    def _collected(self, stages: StageParameters) -> EpisodeData:
        key = run_fingerprint(stages.dataset, stages.seed)
        paths = [self.folder / f"{kind}-{key}.safetensors" for kind in ("transitions", "rewards")]
        with self._alone(f"dataset-{key}"):
            if not all(path.exists() for path in paths):
                episodes = api.ingest(stages.dataset, stages.seed, self.workers)
                for path, value in zip(paths, episodes, strict=True):
                    api.save(value, path)
        transitions, rewards = (api.load(path) for path in paths)
        return EpisodeData.prepare(transitions, rewards, stages.data_ingestion, stages.seed)

    def _critic(
        self, data: EpisodeData, stages: StageParameters, seed: int, watch: Watcher | None
    ) -> tuple[ContrastiveCritic, pd.DataFrame]:
        parameters = stages.contrastive_dynamics
        key = run_fingerprint(parameters, seed, *data.without_rewards().parts().values())
        return self._trained(
            f"critic-{key}", "critic",
            lambda unfinished: api.train_critic(data, parameters, seed, checkpoints=unfinished, watch=watch),
        )  # fmt: skip

    def _policy(
        self, data: EpisodeData, q: QFunction, stages: StageParameters, seed: int
    ) -> tuple[nn.Module, str]:
        parameters = stages.policy_extraction
        key = run_fingerprint(parameters, seed, *data.parts().values(), q.critic, q.readout)
        policy, _ = self._trained(
            f"policy-{key}", "policy",
            lambda unfinished: api.extract_policy(
                q.critic, q.readout, data, parameters, seed, checkpoints=unfinished
            ),
        )  # fmt: skip
        return policy, key

    def _rollouts(
        self, data: EpisodeData, q: QFunction, stages: StageParameters, seed: int
    ) -> dict[str, float]:
        policy, key = self._policy(data, q, stages, seed)
        protocol = effective(stages.evaluation)
        path = self.folder / f"rollouts-{key}.json"
        with self._alone(f"rollouts-{key}"):
            if path.exists():
                stored = json.loads(path.read_text())
                if stored["evaluation"] == protocol:
                    return dict(stored["measured"])
            environment = environment_for(stages.dataset, stages.evaluation)
            seed += ROLLOUT_SEEDS
            transitions, rewards = api.roll_out(
                policy, environment, episodes=stages.evaluation.episodes, seed=seed, workers=self.workers,
                name="a trial",
            )  # fmt: skip
            assert self.data.rewards is not None  # a study has the log's rewards
            rewards = environment.with_known_success(rewards, self.data.rewards)
            goals = stages.evaluation.goals  # of the episodes, which only the environment can judge
            labels = rewards if goals else label_rollouts(transitions, rewards, stages.reward)
            table = rollout_table(transitions, labels, seed, environment.tasks)
            success = float(table["success"].mean()) if labels.reports_success else math.nan
            measured = {"success_rate": success, "return_mean": float(table["return"].mean())}
            record = json.dumps({"evaluation": protocol, "measured": measured})
            write_atomically(path, lambda partial: partial.write_text(record))
        return measured

    def _trained(
        self, name: str, kind: str, train: Callable[[Path], tuple[Any, pd.DataFrame]]
    ) -> tuple[Any, pd.DataFrame]:
        """Return a network and its history; train and store them if they are not stored yet."""
        network, history = self.folder / f"{name}.safetensors", self.folder / f"{name}.parquet"
        unfinished = self.folder / f"{name}.unfinished"
        with self._alone(name):
            if network.exists() and history.exists():
                return load_artifact(network, kind), read_table(history)
            try:
                with kept_checkpoints():
                    trained, rows = train(unfinished)
            except Exception:  # diverged, pruned, out of memory: not resumed
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            write_table(history, rows)
            save_artifact(network, kind, trained)
            shutil.rmtree(unfinished, ignore_errors=True)
        return trained, rows

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock, which the system releases if the process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f".{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
