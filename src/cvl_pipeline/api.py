"""The Python interface: from episodes to a policy, without Kedro.

The nodes of the Kedro pipelines call these functions, so a notebook and ``kedro run`` do the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import nn

from cvl_pipeline.deploy.folder import check_no_other_files, write_folder
from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.deploy.runner import CONTRACT
from cvl_pipeline.dynamics.job import CriticJob
from cvl_pipeline.dynamics.parameters import DynamicsParameters
from cvl_pipeline.environments.evaluation import evaluate as run_policy
from cvl_pipeline.environments.evaluation import rollout_table
from cvl_pipeline.episodes.bounds import bound_actions
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.parameters import IngestionParameters, OutOfBounds
from cvl_pipeline.episodes.validation import check_splittable, checked_rewards, validate_transitions
from cvl_pipeline.errors import InputError, naming_what_to_lower
from cvl_pipeline.imports import check_return
from cvl_pipeline.io.artifacts import kind_of, load_artifact, save_artifact
from cvl_pipeline.io.location import Location, is_url
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.methods.cvl import CVL
from cvl_pipeline.methods.job import PolicyJob
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.networks.goal_policy import ObservedGoal
from cvl_pipeline.objectives.base import OBJECTIVES, ObjectiveParameters, TrainedPolicy
from cvl_pipeline.parameters import with_inherited
from cvl_pipeline.paths import expanded
from cvl_pipeline.readout.build import build_readout
from cvl_pipeline.readout.parameters import READOUTS, REWARDS, ReadoutParameters, RewardParameters
from cvl_pipeline.readout.q_function import QFunction
from cvl_pipeline.readout.readouts import Readout
from cvl_pipeline.readout.rewards import label, warn_of_rare_goal
from cvl_pipeline.reports.exported import exported_files, judged_by
from cvl_pipeline.schema import Strict, check_seed, validated
from cvl_pipeline.sources.arrays import load_arrays
from cvl_pipeline.sources.base import SOURCES, SourceParameters
from cvl_pipeline.sources.environment import EvaluationEnvironment, environment_named
from cvl_pipeline.training import launch

if TYPE_CHECKING:
    from cvl_pipeline.dynamics.module import TrainedCritic
    from cvl_pipeline.schema import Registry
    from cvl_pipeline.training.callbacks import Watcher


def episodes_from_arrays(
    observations: ArrayLike | Mapping[str, ArrayLike],
    actions: ArrayLike,
    rewards: ArrayLike | None = None,
    *,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    successes: ArrayLike | None = None,
    next_observations: ArrayLike | Mapping[str, ArrayLike] | None = None,
    action_low: ArrayLike | None = None,
    action_high: ArrayLike | None = None,
    action_count: int | None = None,
    actions_out_of_bounds: OutOfBounds = "refuse",
    seed: int = 0,
) -> EpisodeData:
    """Make episodes from arrays with one row per step, episode after episode.

    An episode ends after every row that is flagged as terminated or truncated, and after the last row. Without
    ``next_observations``, a truncated episode loses its last step: nothing says where it led. A warning counts these
    steps, ``rewards.dropped_steps``; arrays of which all successes, or all rewards other than one value, would be lost
    are refused.

    Args:
        observations: (N, O) numbers, or (N, H, W, C) uint8 images, or a dictionary of several such arrays; the action
            of the row was chosen from it.
        actions: (N, A) numbers, or (N,) integers from 0 on where actions are choices.
        rewards: (N,), counted on arrival in the next observation.
        terminated: (N,) flags, the world stopped after this step.
        truncated: (N,) flags, the log of the episode stops after this step and the world did not.
        successes: (N,) flags, the task counts as solved after this step.
        next_observations: like observations, where the step led.
        action_low: (A,), the smallest action the environment accepts; None: the smallest in the log.
        action_high: (A,), the largest, likewise.
        action_count: how many choices there are, if actions are choices; None: the largest number in the log, plus
            one.
        actions_out_of_bounds: for actions beyond the given bounds: ``refuse`` them; ``clip`` them, as an environment
            does that clips; or ``widen`` the bounds to the smallest and largest action.
        seed: of the choice of episodes that are held out.

    Raises:
        InputError: a fault in the arrays, with name, place and value.
    """
    check_seed(seed)
    transitions, logged = load_arrays(
        observations, actions, rewards, terminated=terminated, truncated=truncated, successes=successes,
        next_observations=next_observations, action_low=action_low, action_high=action_high,
        action_count=action_count, actions_out_of_bounds=actions_out_of_bounds,
    )  # fmt: skip
    return EpisodeData.prepare(transitions, logged, seed=seed)


def load_episodes(
    source: str | SourceParameters, seed: int = 0, *, workers: int | None = 1, **settings: Any
) -> EpisodeData:
    """Collect, download or read episodes by the name of their source.

    Args:
        source: such as ``metaworld``, ``minari`` or ``files``, or its parameters.
        seed: of a collection, and of the choice of episodes that are held out.
        workers: processes that collect; 1: this one, None: one per core. A script that starts processes needs
            ``if __name__ == "__main__":``.
        settings: of the source, such as ``task="reach-v3"`` or ``path="log.csv"``.

    Raises:
        InputError: an unknown source or setting, or a fault in the source.
    """
    parameters = _choose(SOURCES, "dataset", source, settings)
    transitions, rewards = ingest(parameters, seed, workers)
    return EpisodeData.prepare(transitions, rewards, seed=seed)


def episodes_from_file(
    path: Path | str,
    seed: int = 0,
    *,
    action_low: ArrayLike | None = None,
    action_high: ArrayLike | None = None,
    actions_out_of_bounds: OutOfBounds = "refuse",
    **columns: Any,
) -> EpisodeData:
    """Read a log of your own: HDF5, NPZ, Parquet or CSV, one row per step.

    Args:
        path: the file.
        seed: of the choice of episodes that are held out.
        action_low: (A,), the smallest action the environment accepts; None: the smallest in the log.
        action_high: (A,), the largest, likewise.
        actions_out_of_bounds: as in ``episodes_from_arrays``.
        columns: names of the log's columns, such as ``observations="obs_*"`` (docs/own-data.md).

    Raises:
        InputError: a fault in the file, with column, row and value.
    """
    low, high = (
        bound.tolist() if isinstance(bound, np.ndarray) else bound for bound in (action_low, action_high)
    )
    return load_episodes(
        "files", seed, path=str(path), columns=columns, action_low=low, action_high=high,
        actions_out_of_bounds=actions_out_of_bounds,
    )  # fmt: skip


def ingest(
    parameters: SourceParameters, seed: int, workers: int | None = None
) -> tuple[Transitions, Rewards]:
    """Collect, download or read the episodes that the parameters name, and check them.

    Args:
        parameters: parameters of the source.
        seed: seed of a collection; files ignore it.
        workers: number of processes that collect; None: one per core.

    Raises:
        InputError: a fault in the source, in one line.
    """
    check_seed(seed)
    with naming_what_to_lower("data_ingestion.workers or dataset.episodes, or read a smaller file"):
        source = SOURCES.create(parameters)
        loaded: Any = source.load(seed, workers)
    valid = isinstance(loaded, tuple) and [type(part) for part in loaded] == [Transitions, Rewards]
    check_return(source, "load", loaded, valid=valid, expected="(Transitions, Rewards)")
    transitions, rewards = loaded
    transitions = bound_actions(transitions, parameters.actions_out_of_bounds, parameters.label)
    validate_transitions(transitions)
    check_splittable(transitions)
    return transitions, checked_rewards(rewards, transitions)


def train_critic(
    data: EpisodeData,
    parameters: DynamicsParameters | None = None,
    seed: int = 0,
    *,
    checkpoints: Path | None = None,
    logs: Path | None = None,
    watch: Watcher | None = None,
    **settings: Any,
) -> TrainedCritic:
    """Train the contrastive critic on transitions alone; rewards are never read.

    Args:
        data: the episodes.
        parameters: of the stage; None: the defaults with ``settings``.
        seed: of the initial weights and the batches.
        checkpoints: folder that keeps unfinished training, which the same call resumes.
        logs: folder of metrics.csv and other logs.
        watch: receives every row of the history, and may raise to end the training.
        settings: fields of DynamicsParameters, such as ``training={"steps": 1000}``.

    Returns:
        The critic, on the CPU, and the history of its training, one row per validation interval.

    Raises:
        InputError: an unknown setting, or a damaged checkpoint.
        FloatingPointError: the loss is not a number.
    """
    if parameters is None:
        parameters = validated(DynamicsParameters, settings)
    elif settings:
        raise InputError("contrastive_dynamics: give parameters, or settings, not both")
    check_seed(seed)
    with naming_what_to_lower(
        "training.batch_size, hidden, representation_size, or validation_batches of contrastive_dynamics"
    ):
        trained: TrainedCritic = launch.train(  # type: ignore[assignment]
            CriticJob(data.without_rewards(), parameters, seed), checkpoints, logs, watch
        )
    return trained


def label_rewards(
    transitions: Transitions, logged: Rewards, reward: str | RewardParameters = "dataset", **settings: Any
) -> Rewards:
    """Label every transition with a reward, and warn if hardly any state reaches a goal of the user's own.

    Args:
        transitions: N transitions.
        logged: rewards and successes of the log itself.
        reward: ``dataset``, ``success``, ``goal_distance`` or ``module:function``, or its parameters.
        settings: of the reward, such as ``target``.

    Raises:
        InputError: an unknown reward or setting, or one that the log cannot give.
    """
    parameters = _choose(REWARDS, "reward", reward, settings)
    labels = label(transitions, logged, parameters)
    if not REWARDS.of(parameters).needs_logged_rewards:
        warn_of_rare_goal(labels)
    return labels


def read_out(
    critic: ContrastiveCritic,
    data: EpisodeData,
    method: str | ReadoutParameters = "exact",
    seed: int = 0,
    **settings: Any,
) -> Readout:
    """Weigh the future states of the training episodes with the data's rewards.

    Args:
        critic: the trained critic.
        data: the episodes, with rewards.
        method: of the readout, or its parameters.
        seed: of every draw.
        settings: of the readout, such as ``references``.

    Raises:
        InputError: data without rewards; an unknown method or setting; a discount that the critic cannot serve.
    """
    check_seed(seed)
    if data.rewards is None or data.rewards.missing:
        raise InputError("read_out: the data have no rewards; give some with data.with_rewards(rewards)")
    parameters = _choose(READOUTS, "value_readout", method, settings)
    with naming_what_to_lower("references, prototypes, features or horizons of value_readout"):
        return build_readout(critic, data.transitions, data.rewards, data.split, parameters, seed)


def extract_policy(
    critic: ContrastiveCritic,
    readout: Readout,
    data: EpisodeData,
    objective: str | ObjectiveParameters = "awr",
    seed: int = 0,
    *,
    checkpoints: Path | None = None,
    logs: Path | None = None,
    **settings: Any,
) -> TrainedPolicy:
    """Extract a policy from the frozen critic.

    Args:
        critic: the trained critic.
        readout: turns it into the values of actions.
        data: the episodes.
        objective: name of the objective, or its parameters.
        seed: of the initial weights and the batches.
        checkpoints: folder that keeps unfinished training, which the same call resumes.
        logs: folder of metrics.csv and other logs.
        settings: of the objective, such as ``beta=1.0``.

    Returns:
        The policy, on the CPU, whose ``act`` takes NumPy arrays, and the history of its training.

    Raises:
        InputError: an unknown objective or setting.
    """
    extraction = _choose(OBJECTIVES, "policy_extraction", objective, settings)
    values = QFunction(critic, readout)
    return train_parameters(data, CVL.Parameters(extraction=extraction), seed, values, checkpoints, logs)


def train_method(
    data: EpisodeData,
    method: str | Strict,
    seed: int = 0,
    *,
    values: QFunction | None = None,
    checkpoints: Path | None = None,
    logs: Path | None = None,
    **settings: Any,
) -> TrainedPolicy:
    """Train a policy by any method, such as ``bc`` or ``iql``.

    Args:
        data: the episodes; with rewards if the method needs them.
        method: name of the method, or its parameters.
        seed: of the initial weights and the batches.
        values: critic and readout, if the method needs them.
        checkpoints: folder that keeps unfinished training, which the same call resumes.
        logs: folder of metrics.csv and other logs.
        settings: of the method. As in the pipeline, a method that learns its values itself takes the gradient steps of
            CVL's critic, regression and policy together unless ``training={"steps": ...}`` says otherwise.

    Raises:
        InputError: an unknown method or setting, or data that lack what the method needs.
    """
    if isinstance(method, str):
        chosen = with_inherited({"baselines": {"it": {METHODS.field: method, **settings}}})["baselines"]["it"]
        settings = {name: value for name, value in chosen.items() if name != METHODS.field}
    parameters = _choose(METHODS, "method", method, settings)
    return train_parameters(data, parameters, seed, values, checkpoints, logs)


def train_parameters(
    data: EpisodeData,
    parameters: Strict,
    seed: int,
    values: QFunction | None = None,
    checkpoints: Path | None = None,
    logs: Path | None = None,
) -> TrainedPolicy:
    """Train a policy by the parameters of a method, as they are; see ``train_method``."""
    check_seed(seed)
    chosen = METHODS.of(parameters)
    if not chosen.needs_rewards:
        data = data.without_rewards()
    elif data.rewards is None or data.rewards.missing:
        raise InputError(f"method '{getattr(parameters, METHODS.field)}' needs data with rewards")
    if chosen.needs_critic and values is None:
        raise InputError(f"method '{getattr(parameters, METHODS.field)}' needs a critic and a readout")
    job = PolicyJob(data, parameters, seed, values if chosen.needs_critic else None)
    with naming_what_to_lower("training.batch_size or hidden of the policy, or references of value_readout"):
        return TrainedPolicy(*launch.train(job, checkpoints, logs))


def roll_out(
    policy: nn.Module,
    environment: EvaluationEnvironment,
    *,
    episodes: int = 50,
    seed: int = 0,
    workers: int | None = None,
    name: str = "the policy",
) -> tuple[Transitions, Rewards]:
    """Record episodes of a policy, on episode seeds that collection never uses.

    Args:
        policy: observations (B, O) to actions (B, A). A module of your own gets observations of several parts as a
            dictionary of tensors.
        environment: of ``environment_for``.
        episodes: how many.
        seed: determines the episodes.
        workers: processes; None: one per core.
        name: of the policy, in the progress bar.

    Raises:
        InputError: the environment's observations or actions are not the policy's; no episodes.
    """
    check_seed(seed)
    if episodes < 1:
        raise InputError(f"episodes is {episodes}; give at least 1")
    if environment.goals:
        policy = ObservedGoal(policy)
    with naming_what_to_lower("evaluation.workers, evaluation.episodes or evaluation.episode_steps"):
        return run_policy(
            policy, environment.make, episodes=episodes, seed=seed, workers=workers, name=name,
            tasks=len(environment.tasks) or 1,
        )  # fmt: skip


def evaluate(
    policy: nn.Module,
    environment: str | EvaluationEnvironment,
    *,
    episodes: int = 50,
    episode_steps: int | None = None,
    seed: int = 0,
    workers: int | None = 1,
) -> pd.DataFrame:
    """Judge a policy in an environment.

    Args:
        policy: observations (B, O) to actions (B, A). A module of your own gets observations of several parts as a
            dictionary of tensors.
        environment: a Gymnasium id, ``module:Class`` of an environment of your own, or of ``environment_for``.
        episodes: how many.
        episode_steps: steps after which an episode of that id is truncated; None: its own limit.
        seed: determines the episodes.
        workers: processes; 1: this one, None: one per core.

    Returns:
        One row per episode: ``length``, ``return``, ``success`` (missing where the environment reports none).

    Raises:
        InputError: an unknown environment, one without a time limit, or one whose observations or actions are not the
            policy's.
    """
    if isinstance(environment, str):
        environment = environment_named(environment, episode_steps)
    elif not isinstance(environment, EvaluationEnvironment):
        raise InputError(
            f"evaluate: environment is {environment!r:.100}; give an id of Gymnasium, 'module:Class' of one of your "
            "own, or what environment_for returns"
        )
    elif episode_steps is not None:
        raise InputError("evaluate: episode_steps is for an environment that is given by its id")
    recorded = roll_out(policy, environment, episodes=episodes, seed=seed, workers=workers)
    return rollout_table(*recorded, seed, environment.tasks)


def export_policy(
    policy: nn.Module,
    data: EpisodeData,
    folder: Path | str,
    *,
    values: QFunction | None = None,
    rollouts: pd.DataFrame | None = None,
    environment: str = "an environment of the user's own",
    task: str = "a log of the user's own",
    method: str = "cvl",
    reward: str = "dataset",
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Export a policy for robots and servers, as ``kedro run --pipelines export`` does (docs/deploy.md).

    Nothing is written unless the exported policy acts as the trained one on held-out observations.

    Args:
        policy: such as ``extract_policy`` returns; of a policy for goals, also ``policy.toward(goals)``.
        data: the episodes it learned from.
        folder: a folder on this machine: a new or empty one, or that of a former export, which is replaced.
        values: critic and readout, whose Q is exported beside the policy; None: no value is exported.
        rollouts: of ``evaluate``, for the card; None: the card says that nobody has judged the policy.
        environment: name of the environment of the rollouts, for the card.
        task: what the policy does, for the card.
        method: how it was trained, for the card: the name of a method, or any other.
        reward: what it was trained for, for the card.
        seed: of its training, for the card.
        settings: fields of ExportParameters, such as ``control_hz=20.0`` or ``action_names=("dx", "dy")``.

    Returns:
        The folder.

    Raises:
        InputError: a policy that cannot be exported, or one whose exported actions differ; episodes that are not those
            of the policy; an unknown setting; a folder with other files; the extra ``export`` is not installed.
    """
    if is_url(str(folder)):
        raise InputError(
            f"{folder} is a URL; export into a folder of this machine, or by kedro run with data.root"
        )
    for name, instead in (("methods", "method"), ("value", "values")):
        if name in settings:
            raise InputError(f"export_policy: {name} is a parameter of the pipeline; give {instead}")
    folder = expanded(folder)
    parameters = validated(ExportParameters, settings)
    check_no_other_files(folder / CONTRACT)
    about = {
        "task": str(task), "dataset": str(task), "seed": int(seed), "reward": str(reward), "provenance": {},
        "method": METHODS[method].title if method in METHODS.names else str(method),
        "judged": None if rollouts is None else judged_by(rollouts, data, environment, seed),
    }  # fmt: skip
    files = exported_files(policy, data.transitions, data.split, parameters, values=values, about=about)
    write_folder(Location(str(folder / CONTRACT)), files)
    return folder


def save(artifact: Any, path: Path | str) -> None:
    """Write episodes, rewards, a critic, a readout or a policy to a ``.safetensors`` file, atomically.

    Args:
        artifact: the object; of EpisodeData, its parts, such as ``data.transitions``.
        path: the file, whose name ends in ``.safetensors``; missing folders are created.

    Raises:
        InputError: an object that is none of these, or another name.
    """
    if Path(path).suffix != ".safetensors":  # load refuses it, too
        raise InputError(f"{path} does not end in .safetensors; name the file {path}.safetensors")
    save_artifact(path, kind_of(artifact), artifact)


def load(path: Path | str) -> Any:
    """Read an object that ``save`` or the pipeline wrote, and check that its file is whole.

    Args:
        path: the file.

    Raises:
        InputError: a missing, damaged or foreign file.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file; read reports with json.load and tables with pandas.read_parquet"
        )
    return load_artifact(path)


def _choose(registry: Registry[Any], section: str, given: Any, settings: dict[str, Any]) -> Any:
    """Return parameters of a choice from a name and settings, or as they are."""
    if isinstance(given, Strict):
        if settings:
            raise InputError(f"{section}: give parameters, or a name with settings, not both")
        return given
    return validated(registry.parameters(given), {registry.field: given, **settings})


__all__ = [
    "EpisodeData",
    "IngestionParameters",
    "QFunction",
    "episodes_from_arrays",
    "episodes_from_file",
    "evaluate",
    "export_policy",
    "extract_policy",
    "ingest",
    "label_rewards",
    "load",
    "load_episodes",
    "read_out",
    "roll_out",
    "save",
    "train_critic",
    "train_method",
]
