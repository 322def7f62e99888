"""Nodes of the judging pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cvl_pipeline.judging.measures import MEASURES
from cvl_pipeline.judging.parameters import JudgingParameters
from cvl_pipeline.kedro.workspace import workspace
from cvl_pipeline.readout.parameters import READOUTS
from cvl_pipeline.sources.base import SOURCES
from cvl_pipeline.training.keeping import kept_checkpoints

if TYPE_CHECKING:
    from torch import nn

    from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
    from cvl_pipeline.judging.judge import Judge
    from cvl_pipeline.judging.networks import ValueNetworks
    from cvl_pipeline.networks.critic import ContrastiveCritic
    from cvl_pipeline.readout.readouts import Readout


def regress(**log: Any) -> ValueNetworks:
    """Fit networks of Q to the held-out episodes."""
    from cvl_pipeline.judging.critics import regress_critics

    judge = _judge(**log)
    return regress_critics(judge.critic, judge.held_out, judge.discount, judge.parameters, judge.seed)


def train_critic(
    transitions: Transitions,
    split: Split,
    normalisation: Normalisation,
    parameters: dict[str, Any],
    seed: int,
) -> ContrastiveCritic:
    """Train a second contrastive critic, on the held-out episodes."""
    from cvl_pipeline.api import train_critic as train
    from cvl_pipeline.dynamics.parameters import DynamicsParameters
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.judging.judge import swapped

    place = workspace.get()
    with kept_checkpoints():
        return train(
            EpisodeData(transitions, swapped(split), normalisation), DynamicsParameters.model_validate(parameters),
            seed, checkpoints=place.checkpoints, logs=place.logs,
        )[0]  # fmt: skip


def read_out(
    critic: ContrastiveCritic,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    normalisation: Normalisation,
    judging: dict[str, Any],
    value_readout: dict[str, Any],
    seed: int,
) -> Readout:
    """Weigh the labelled future states of the held-out episodes."""
    from cvl_pipeline.api import read_out as read_out_values
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.judging.judge import swapped

    chosen: Any = READOUTS.validate(value_readout)
    wanted = JudgingParameters.model_validate(judging).discount
    if wanted is not None:
        chosen = chosen.model_copy(update={"discount": wanted})
    data = EpisodeData(transitions, swapped(split), normalisation, labels)
    return read_out_values(critic, data, chosen, seed)


def judge(
    policy: nn.Module,
    judging_critics: ValueNetworks | None = None,
    judging_critic: ContrastiveCritic | None = None,
    judging_readout: Readout | None = None,
    **log: Any,
) -> dict[str, float | None]:
    """Judge a policy by all measures."""
    from cvl_pipeline.readout.q_function import QFunction

    critics: Any = judging_critics
    if judging_critic is not None and judging_readout is not None:
        critics = QFunction(judging_critic, judging_readout)
    return _judge(**log).judge(policy, critics)


def summarise(
    titles: Mapping[str, str], /, dataset: dict[str, Any], reward: dict[str, Any], **others: Any
) -> dict[str, Any]:
    """Report all policies side by side, with the value of the behaviour and what each measure says."""
    judgements = {name: others.pop(f"{name}_judgement") for name in titles}
    judge = _judge(**others)
    parameters: Any = SOURCES.validate(dataset)
    return {
        **{
            f"{name}.{key}": number for name, numbers in judgements.items() for key, number in numbers.items()
        },
        **judge.behaviour_value().named("behaviour.value"),
        "methods": dict(titles),
        "training_episodes": len(judge.split.train),
        "held_out_episodes": len(judge.split.validation),
        "task": parameters.label,
        "dataset": parameters.folder,
        "reward": reward["source"],
        **({"reward_name": reward["name"]} if reward.get("name") else {}),
        "seed": judge.seed,
        "critic": judge.parameters.critic,
        "discount": judge.discount,
        "confidence": judge.parameters.confidence,
        "measures": MEASURES,
    }


def _judge(
    critic: ContrastiveCritic,
    transitions: Transitions,
    labels: Rewards,
    split: Split,
    normalisation: Normalisation,
    judging: dict[str, Any],
    value_readout: dict[str, Any],
    seed: int,
) -> Judge:
    from cvl_pipeline.judging.judge import Judge

    parameters = JudgingParameters.model_validate(judging)
    readout: Any = READOUTS.validate(value_readout)
    discount = parameters.discount or readout.discount or critic.shape.discount
    return Judge(critic, transitions, labels, split, normalisation, discount, parameters, seed)
