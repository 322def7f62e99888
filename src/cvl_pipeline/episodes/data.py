"""Episodes with the split, statistics and rewards that training needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cvl_pipeline.episodes.container import Normalisation, Rewards, Split, Transitions
from cvl_pipeline.episodes.parameters import IngestionParameters
from cvl_pipeline.episodes.preparation import fit_normalisation, split_episodes
from cvl_pipeline.episodes.validation import checked_rewards, validate_transitions
from cvl_pipeline.errors import InputError


@dataclass(frozen=True)
class EpisodeData:
    """Episodes, their split and statistics, and optionally rewards.

    Attributes:
        transitions: all episodes.
        split: training and held-out episodes.
        normalisation: statistics of the training episodes.
        rewards: rewards and successes of all transitions; None if training must not see them.
    """

    transitions: Transitions
    split: Split
    normalisation: Normalisation
    rewards: Rewards | None = None

    @staticmethod
    def prepare(
        transitions: Transitions,
        rewards: Rewards | None = None,
        parameters: IngestionParameters | None = None,
        seed: int = 0,
    ) -> EpisodeData:
        """Check episodes, split them and compute the statistics.

        Args:
            transitions: all episodes.
            rewards: rewards of all transitions.
            parameters: held-out share and smallest standard deviation.
            seed: seed of the split.

        Raises:
            InputError: a fault in the episodes, with field and place.
        """
        parameters = parameters or IngestionParameters()
        validate_transitions(transitions)
        if rewards is not None:
            rewards = checked_rewards(rewards, transitions)
        split = split_episodes(transitions, parameters.validation_fraction, seed)
        return EpisodeData(
            transitions, split, fit_normalisation(transitions, split, parameters.std_floor), rewards
        )

    def __post_init__(self) -> None:
        """Raise InputError if the parts are of different logs."""
        episodes = self.transitions.episodes
        named = max(
            (int(part.max()) for part in (self.split.train, self.split.validation) if len(part)), default=0
        )
        if named >= episodes:
            raise InputError(
                f"the split names episode {named}, but the transitions have {episodes}: they are of different logs; "
                "make both again, kedro run --pipelines data_ingestion"
            )

    def parts(self) -> dict[str, Any]:
        """Return the parts, by kind of artifact."""
        parts: dict[str, Any] = {
            "transitions": self.transitions, "split": self.split, "normalisation": self.normalisation,
            "rewards": self.rewards,
        }  # fmt: skip
        return {kind: part for kind, part in parts.items() if part is not None}

    def with_rewards(self, rewards: Rewards) -> EpisodeData:
        """Return the same episodes with other rewards, in single precision.

        Raises:
            InputError: rewards of another number of transitions, or that are not finite; successes that are not bool.
        """
        return replace(self, rewards=checked_rewards(rewards, self.transitions))

    def without_rewards(self) -> EpisodeData:
        """Return the same episodes without their rewards, as contrastive training sees them."""
        return replace(self, rewards=None)
