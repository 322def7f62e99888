"""Training a policy by an objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.shifts import random_shift
from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import check_return
from cvl_pipeline.networks.actor import Actor, GaussianActor, make_actor
from cvl_pipeline.objectives.base import OBJECTIVES, Objective, ObjectiveParameters, Setting, TrainedPolicy
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.seeds import stream_seed
from cvl_pipeline.training.vector import Part

if TYPE_CHECKING:
    from cvl_pipeline.readout.action_values import ActionValues

VALIDATION_STATES = 2048
"""Held-out states of one measurement; the same seed draws them every time."""


class PolicyExtraction(OfflineModule):
    """Trains an actor by an objective; the critic and the readout stay as they are."""

    def __init__(
        self,
        data: EpisodeData,
        parameters: ObjectiveParameters,
        seed: int,
        values: ActionValues | None = None,
    ) -> None:
        """Build the actor and hold the episodes.

        Args:
            data: the episodes; with rewards where the objective needs them.
            parameters: of the objective.
            seed: of the initial weights and the batches.
            values: Q of the behaviour policy, where the objective needs it.

        Raises:
            InputError: an objective that lacks what it needs.
        """
        super().__init__(parameters.training, seed, parameters)
        self.objective = OBJECTIVES.create(parameters)
        for need, given, name in (
            (self.objective.needs_critic, values, "a critic and a readout"),
            (self.objective.needs_rewards, data.rewards, "rewards"),
        ):
            if need and given is None:
                raise InputError(f"policy_extraction.objective '{parameters.objective}' needs {name}")
        self.default_decay = self.objective.default_decay
        self.own_code = ":" in parameters.objective or parameters.own_encoder
        self.graphable = not self.own_code
        self.own_read = ":" in parameters.objective
        self._data, self._values = data, values
        self.augmentation = random_shift(data.transitions, parameters.training.random_shift)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 1))
            self.actor: Actor = make_actor(
                data.transitions,
                data.normalisation,
                parameters.hidden,
                parameters.encoding,
            )

    def parts(self) -> Sequence[tuple[Iterable[nn.Parameter], Part]]:
        """The noise, which does not decay, and all else."""
        if not isinstance(self.actor, GaussianActor):
            return ()
        return self.without_decay(self.actor.log_std)

    def on_fit_start(self) -> None:
        """Put the data where the network is, if they fit, and let the objective prepare."""
        # A frozen copy, so that the caller's critic stays trainable and where it is. Its holder is no module,
        # so it is neither trained nor checkpointed.
        self._values = self._values.frozen(self.device) if self._values else None
        log, own = self._data.transitions, type(self.objective)
        device = self.place(log.observations, log.actions)
        if own.draw is not Objective.draw and own.read is Objective.read:
            name = own.__name__
            if self._prefetch is not None:
                raise InputError(
                    f"the log does not fit the GPU, and {name} draws its own batches: define {name}.read, "
                    "or set policy_extraction.training.accelerator=cpu"
                )
            if self.augmentation is not None:
                raise InputError(
                    f"{name} draws its own batches: define {name}.read, or set "
                    "policy_extraction.training.random_shift=0"
                )
        transitions = log.to(device)
        split = self._data.split
        self._transitions = transitions
        self._validation_index = transitions.transition_index(split.validation)
        # Without what the objective does not declare to need: the fingerprint of its training leaves it out.
        rewards = self._data.rewards if self.objective.needs_rewards else None
        self.objective.setting = Setting(
            transitions=transitions,
            train_index=transitions.transition_index(split.train),
            train_episodes=split.train,
            actor=self.actor,
            seed=self.seed,
            values=self._values if self.objective.needs_critic else None,
            rewards=rewards.to(device) if rewards else None,
        )
        self.objective.prepare(self.objective.setting)

    def draw(self, batches: int, generator: Generator) -> list[object]:
        """Draw the next batches, as the objective does."""
        drawn: Any = self.objective.draw(batches, self.training_parameters.batch_size, generator)
        entries = list(drawn) if isinstance(drawn, Iterable) else []
        expected = f"{batches} batches"
        check_return(self.objective, "draw", drawn, valid=len(entries) == batches, expected=expected)
        return entries

    def read(self, entry: object) -> Any:
        """Read the rows of one batch, as the objective does."""
        return self.objective.read(entry)

    def training_loss(self, batch: object) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective's loss on this process's share of one batch."""
        result: Any = self.objective.loss(batch)
        parts: Any = result if isinstance(result, tuple) and len(result) == 2 else (None, None)
        loss, metrics = parts
        scalar = isinstance(loss, Tensor) and loss.ndim == 0
        recorded = isinstance(metrics, dict) and all(
            isinstance(value, Tensor) and value.numel() == 1 for value in metrics.values()
        )
        expected = "a scalar tensor and a dictionary of scalar tensors"
        check_return(self.objective, "loss", result, valid=scalar and recorded, expected=expected)
        expected = "a loss that depends on the actor"
        check_return(self.objective, "loss", result, valid=loss.requires_grad, expected=expected)
        return loss, metrics

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Measure how far the policy is from the logged actions on held-out states, and its gain in Q."""
        count = len(self._validation_index)
        positions = torch.randint(count, (VALIDATION_STATES,), generator=generator, device=generator.device)
        index = self._validation_index[positions]
        observations = self._transitions.states(index).to(self.device)
        logged = self._transitions.actions.index_select(0, index).to(self.device)
        actions = self.actor(observations)
        metrics = {
            "action_error": (actions - logged).square().mean(),
            "log_prob": self.actor.log_prob(observations, logged).mean(),
        }
        if self._values is not None:
            before = self._values(observations, logged)
            metrics["q_gain"] = (self._values(observations, actions) - before).mean()
        return metrics


@torch.no_grad()
def fit_noise(actor: Actor, data: EpisodeData) -> None:
    """Set a Gaussian actor's noise to its errors on held-out episodes, within ``LOG_STD_RANGE``.

    That is the most likely noise in this range for its means. Gradient steps move it too slowly, because it begins with
    half of the action range.
    """
    if not isinstance(actor, GaussianActor):
        return
    log, index = data.transitions, data.transitions.transition_index(data.split.validation)
    total = torch.zeros(actor.shape.action_size)
    for rows in torch.split(index, VALIDATION_STATES):
        total += actor.distance(actor(log.states(rows)), log.actions[rows]).sum(0)
    actor.log_std.copy_(0.5 * (total / len(index)).log()).clamp_(*actor.LOG_STD_RANGE)


def train_policy(
    data: EpisodeData,
    parameters: ObjectiveParameters,
    seed: int,
    *,
    values: ActionValues | None = None,
    checkpoints: Path | None = None,
    logs: Path | None = None,
) -> TrainedPolicy:
    """Extract a policy by an objective.

    Args:
        data: the episodes, with the rewards of all transitions; ``published`` alone needs them.
        parameters: of the objective.
        seed: of the initial weights and the batches.
        values: Q of the behaviour policy; every objective but ``bc`` needs it.
        checkpoints: folder that keeps unfinished training, which the same call resumes.
        logs: folder of metrics.csv and other logs.

    Raises:
        InputError: unknown objective, or one that lacks what it needs.
    """
    module = PolicyExtraction(data, parameters, seed, values)
    if not module.objective.needs_rewards:
        data = data.without_rewards()
    history = fit(
        module,
        description=f"Training the policy ({parameters.objective})",
        checkpoints=checkpoints,
        fingerprint=run_fingerprint(
            parameters, seed, *data.parts().values(), *(values.parts if values else ())
        ),
        logs=logs,
    )
    values = values if module.objective.needs_critic else None
    actor = module.actor.cpu().eval()
    if module.objective.acts_with_noise:
        fit_noise(actor, data)
    policy: Any = module.objective.policy(actor, values, seed)
    valid = isinstance(policy, nn.Module)
    check_return(module.objective, "policy", policy, valid=valid, expected="a policy")
    return TrainedPolicy(policy.eval(), history)
