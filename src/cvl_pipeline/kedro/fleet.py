"""Runs of several seeds whose critics are trained as one: the command ``kedro fleet``.

Each seed has its own runs, with their hooks, locks and records: one up to the inputs of the critic, and one for the
rest. Between them, the fleet leaves the checkpoints from which the second ones resume.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kedro.framework.project import settings
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from pluggy import PluginManager

from cvl_pipeline.dynamics.fleet import Member, train_fleet
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.runner import BesideRunner
from cvl_pipeline.kedro.workspace import Workspace, workspace
from cvl_pipeline.schema import LARGEST_SEED

logger = logging.getLogger(__name__)

TRAIN = "contrastive_dynamics.train"
"""The node that trains the critic."""


def seeds_of(text: str) -> list[int]:
    """Return the seeds of a list such as ``0-3,8``, ascending; raises InputError."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + 10_000 or last > LARGEST_SEED:
            raise InputError(
                f"--seeds {text}: '{part}' is not a seed or a range; write seeds such as 0-3,8, at most "
                f"{LARGEST_SEED}"
            )
        seeds |= set(range(first, last + 1))
    return sorted(seeds)


def run_fleet(
    seeds: Sequence[int], env: str | None, params: Mapping[str, Any], conf_source: str | None
) -> None:
    """Make the missing and stale artifacts of every seed.

    Args:
        seeds: of the runs.
        env: as of ``kedro run``.
        params: as of ``kedro run``, without the seed.
        conf_source: as of ``kedro run``.

    Raises:
        InputError: the parameters cannot be used in a fleet, or differ between seeds.
        FloatingPointError: trainings of some seeds diverged; all other seeds are done.
    """

    def run(seed: int, runner: SequentialRunner, *to_nodes: str) -> None:
        own = {**params, "seed": seed}
        with settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=own) as session:
            session.run(runner=runner, to_nodes=to_nodes, only_missing_outputs=True)

    members: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        logger.info("Seed %d: inputs of the critic", seed)
        runner = _BeforeTraining()
        run(seed, runner, TRAIN)
        if runner.inputs is not None:
            members[seed] = runner.inputs
    failures = _train(members) if members else {}
    for seed in seeds:
        if seed not in failures:
            logger.info("Seed %d: all that follows", seed)
            try:
                run(seed, BesideRunner())
            except FloatingPointError as error:  # of the critic's last steps, or of a policy
                failures[seed] = f"seed {seed}: {error}"
    if failures:
        raise FloatingPointError(
            f"{len(failures)} of {len(seeds)} seeds failed, the others are done: {'; '.join(failures.values())}"
        )


def _train(inputs: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Train the critics whose inputs are given, by seed; return why some have diverged, by seed."""
    members = []
    for seed, own in inputs.items():
        data = EpisodeData(own["transitions"], own["split"], own["normalisation"])
        members.append(Member(data, seed, own["checkpoints"]))
    parameters = [
        DynamicsParameters.model_validate(own["params:contrastive_dynamics"]) for own in inputs.values()
    ]
    first = next(iter(inputs))
    for seed, other in zip(inputs, parameters, strict=True):
        if other != parameters[0]:
            raise InputError(
                f"contrastive_dynamics of seed {seed} differs from that of seed {first}, so their critics cannot be "
                "trained as one; use kedro run for each seed"
            )
    return train_fleet(members, parameters[0])


class _BeforeTraining(BesideRunner):
    """Runs what the critic's training needs, and keeps its inputs instead of training.

    Attributes:
        inputs: the training's, by name, with its folder for ``checkpoints``; None: the critic is fresh.
    """

    inputs: dict[str, Any] | None = None

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        training = [node for node in pipeline.nodes if node.name == TRAIN]
        super()._run(Pipeline(set(pipeline.nodes) - set(training)), catalog, hook_manager, run_id)
        for node in training:
            assert hook_manager is not None
            inputs = {name: catalog.load(name) for name in node.inputs}
            # A hook knows the folder from which this seed's own run resumes.
            hook_manager.hook.before_node_run(
                node=node, catalog=catalog, inputs=inputs, is_async=False, run_id=run_id
            )
            folder = workspace.get().checkpoints
            if folder is None:
                raise InputError("a fleet needs a critic that the catalog stores as a file; use kedro run")
            self.inputs = inputs | {"checkpoints": folder}
            workspace.set(Workspace())
