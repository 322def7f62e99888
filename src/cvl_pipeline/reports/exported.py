"""The files of an exported policy: its models, what it learned from, how it was judged, and its card."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cvl_pipeline.episodes.preparation import episode_table
from cvl_pipeline.networks.goal_policy import GoalPolicy
from cvl_pipeline.reports.card import VIDEO, card, judged
from cvl_pipeline.reports.page import DATA
from cvl_pipeline.reports.summary import summarise_rollouts

if TYPE_CHECKING:
    import pandas as pd

    from cvl_pipeline.deploy.parameters import ExportParameters
    from cvl_pipeline.episodes.container import Split, Transitions
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.readout.action_values import ActionValues

PROTOCOL = "deterministic policy; success at any step of an episode"
CONFIDENCE = 0.95


def judged_by(
    rollouts: pd.DataFrame, data: EpisodeData, environment: str, seed: int
) -> dict[str, Any] | None:
    """Return what a card says about a policy's rollouts beside the log's own episodes.

    Args:
        rollouts: of ``api.evaluate``, one row per episode.
        data: the log; without rewards, its episodes are left out.
        environment: name of the environment of the rollouts.
        seed: of the intervals.
    """
    tables = {"policy": rollouts}
    if data.rewards is not None:
        tables[DATA] = episode_table(data.transitions, data.rewards, data.split)
    metrics = {
        **summarise_rollouts(tables, CONFIDENCE, seed), "environment": environment, "episodes": len(rollouts),
        "behaviour_episodes": len(tables.get(DATA, ())), "confidence": CONFIDENCE, "protocol": PROTOCOL,
    }  # fmt: skip
    return judged(metrics, "policy")


def exported_files(
    policy: Any,
    transitions: Transitions,
    split: Split,
    parameters: ExportParameters,
    *,
    values: ActionValues | None,
    about: Mapping[str, Any],
    video: bytes | None = None,
) -> dict[str, bytes]:
    """Return the files of an exported folder by their names, the contract last; see ``deploy.export``.

    Args:
        policy: trained, as it acts in the environment.
        transitions: the episodes it learned from.
        split: held-out episodes, on which the exported policy is compared with it.
        parameters: tolerances and names.
        values: Q of the behaviour policy; None: no value is exported.
        about: ``task``, ``dataset``, ``seed``, ``reward``, ``method``, ``judged`` (see ``card.judged``) and
            ``provenance``.
        video: MP4 of an evaluation episode, if there is one.

    Raises:
        InputError: a policy that cannot be exported, or one whose exported actions differ.
    """
    from cvl_pipeline.deploy.export import export_policy  # slow to import

    facts = {
        **about,
        "training_episodes": len(split.train),
        "held_out_episodes": len(split.validation),
        "transitions": len(transitions),
        "goals": len(policy.goals) if isinstance(policy, GoalPolicy) else None,
    }
    return export_policy(
        policy, transitions, split, parameters, values=values, about=facts,
        card=partial(card, video=bool(video)), extra={VIDEO: video} if video else {},
    )  # fmt: skip
