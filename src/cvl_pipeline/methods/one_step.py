"""What methods share that learn Q of the behaviour first, and then extract a policy as CVL does.

They differ from CVL in where Q comes from, and in nothing else: AWR, its state values and the actor are CVL's own.
"""

from __future__ import annotations

import copy
import shutil
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd
import torch
from pydantic import Field
from torch import Generator, Tensor

from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.preparation import logged_shares, observed_returns
from cvl_pipeline.io.checked import read_checkpoint, write_checkpoint
from cvl_pipeline.methods.base import MethodParameters
from cvl_pipeline.methods.off_policy import Ensemble, OffPolicy, OffPolicyMethod
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.base import PolicyTraining, TrainedPolicy
from cvl_pipeline.objectives.parameters import AdvantageWeights
from cvl_pipeline.objectives.training import train_policy
from cvl_pipeline.readout.action_values import ActionValues
from cvl_pipeline.schema import Strict
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.keeping import checkpoints_are_kept, kept_checkpoints
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.processes import own_share, rank

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction


class OneStepParameters(AdvantageWeights, MethodParameters):
    """The settings of every one-step method."""

    scale_rewards: ClassVar[bool] = False  # Q has a unit of its own, see Unit
    discount: float = Field(0.97, gt=0.0, lt=1.0, description="Discount of the values.")
    value_share: float = Field(
        0.75,
        gt=0.0,
        lt=1.0,
        description="Share of `training.steps` before the policy's own; about that of a default CVL's critic and "
        "regression.",
    )


@dataclass(frozen=True)
class Unit:
    """The unit of a network of values: ``Q = (mean + std network) / (1 - gamma)``.

    Values are mean rewards, standardised, so that the network has the same task for any reward and discount. If all are
    equal, ``std`` is 0 and so Q is constant: what a network makes of nothing is chance.
    """

    mean: float
    std: float
    discount: float

    @staticmethod
    def of(rewards: Tensor, weights: Tensor, discount: float) -> Unit:
        """Unit of mean rewards, (N,), with weights, (N,)."""
        mean = float((weights * rewards).sum() / weights.sum())
        spread = float(rewards.std(correction=0))
        return Unit(mean, spread if spread > 1e-6 * float(rewards.abs().max()) else 0.0, discount)

    def standard(self, rewards: Tensor | float) -> Any:
        """Mean rewards in this unit."""
        return (rewards - self.mean) / (self.std or 1.0)


@dataclass(frozen=True)
class LearnedValues(ActionValues):
    """The mean of an ensemble of networks as Q, in the reward's unit."""

    ensemble: Ensemble
    unit: Unit

    def __call__(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of pairs, (..., O) and (..., A) -> (...)."""
        rewards = self.unit.mean + self.unit.std * self.ensemble(observations, actions).mean(0)
        values: Tensor = rewards / (1.0 - self.unit.discount)
        return values

    def of_actions(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of several actions per state, (B, O) and (B, M, A) -> (B, M)."""
        return self(observations.unsqueeze(1), actions)

    def encode(self, observations: Tensor) -> Tensor:
        """Standardised or encoded states, (B, O) -> (B, F)."""
        states: Tensor = self.ensemble.encode_observation(observations)
        return states

    def frozen(self, device: torch.device | str) -> Self:
        """Copy to a device, without gradients for the weights."""
        return type(self)(copy.deepcopy(self.ensemble).to(device).requires_grad_(False), self.unit)

    @property
    def parts(self) -> tuple[Any, ...]:
        """Networks and unit."""
        return self.ensemble, self.unit

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.ensemble.standardise_action.mean.device

    @property
    def action_size(self) -> int:
        """Size of an action, A."""
        return len(self.ensemble.standardise_action.mean)


class ValueLearning(OffPolicy):
    """Trains Q of the behaviour, without an actor. A subclass defines ``unit`` and the loss."""

    has_actor = False
    default_decay = 1.0  # as in CVL's regression
    unit: Unit

    def __init__(self, data: EpisodeData, parameters: Any, seed: int) -> None:
        """Build Q, and compute the returns that it is measured by."""
        super().__init__(data, parameters, seed)
        assert data.rewards is not None  # checked by the method
        self._returns = observed_returns(data.rewards.rewards, data.transitions, parameters.discount)
        held_out = data.transitions.transition_index(data.split.validation)
        self._held_out_returns = self._returns[held_out].float()

    def networks(self) -> None:
        """Build Q."""
        self.q = self.ensemble()

    @property
    def values(self) -> LearnedValues:
        """The trained Q, on the CPU."""
        return LearnedValues(self.q.cpu().eval(), self.unit)

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Correlate Q with the returns of held-out episodes (see ``observed_returns``)."""
        values = LearnedValues(self.q, self.unit).in_batches(self._held_out.states(), self._held_out.actions)[
            0
        ]
        pair = torch.stack([values, self._held_out_returns.to(values.device)])
        pair = pair - pair.mean(1, keepdim=True)
        product, scales = pair.prod(0).mean(), pair.square().mean(1).sqrt()
        return {"return_correlation": product / scales.prod().clamp(min=1e-12)}


class ReturnRegression(ValueLearning):
    """Regresses Q on returns of transitions.

    ``targets`` sets them: by default the logged ones. The unlogged future of a truncated episode counts as the logged
    part of it, with the weight of the logged share, as in CVL's own regression.
    """

    columns = (*OffPolicy.columns, "_pairs", "_targets", "_weights")

    def __init__(self, data: EpisodeData, parameters: Any, seed: int) -> None:
        """Build Q with the logged returns as targets."""
        super().__init__(data, parameters, seed)
        train = data.transitions.transition_index(data.split.train)
        shares = logged_shares(data.transitions, parameters.discount)[train]
        self.targets(torch.arange(len(train)), (1.0 - parameters.discount) * self._returns[train], shares)

    def targets(self, pairs: Tensor, rewards: Tensor, weights: Tensor) -> None:
        """Set what Q is regressed on.

        Args:
            pairs: (N,) int64, training transitions that provide states and actions.
            rewards: (N,), returns as mean rewards.
            weights: (N,) of the squared errors.
        """
        self.unit = Unit.of(rewards, weights, self.settings.discount)
        self._pairs, self._weights = pairs, (weights / weights.mean()).float()
        self._targets = self.unit.standard(rewards).float()

    def draw(self, batches: int, generator: Generator) -> Any:
        """Draw places in the targets, (B,) int64 per batch."""
        size = self.training_parameters.batch_size
        places = torch.randint(len(self._pairs), (batches * size,), generator=generator, device=self.device)
        return torch.split(places, size)

    def training_loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted squared error, summed over the networks."""
        place = own_share(batch)
        pair = self._pairs[place]
        values = self.q(self.read_states(self._rows[pair]), self._actions[pair])
        errors = (values - self._targets[place]).square()
        return (self._weights[place] * errors).mean(1).sum(), {"q": self._targets[place].mean()}


class Phases:
    """Trainings one after another that together make a policy, and their joint history.

    A finished one stays in the folder of checkpoints until the last one has ended, so that an interrupted method
    resumes in the phase in which it stopped.
    """

    def __init__(self, checkpoints: Path | None, logs: Path | None) -> None:
        """Name the folders of the whole training."""
        self._checkpoints, self._logs = checkpoints, logs
        self._histories: list[pd.DataFrame] = []
        self._names: list[str] = []

    @staticmethod
    def of(parameters: Any, share: float) -> Any:
        """Parameters of a method with the training of a phase: a share of the gradient steps, at least one."""
        training: PolicyTraining = parameters.training
        steps = max(1, round(share * training.steps))
        return parameters.model_copy(update={"training": training.model_copy(update={"steps": steps})})

    def folder(self, name: str) -> Path | None:
        """Checkpoints of a phase."""
        return self._checkpoints / name if self._checkpoints else None

    def run(self, name: str, description: str, module: OfflineModule, fingerprint: str) -> None:
        """Train a module, or read it if this phase has already ended."""
        folder = self.folder(name)
        self._names.append(name)
        done = folder / f"{fingerprint}.ckpt" if folder else None
        if done is not None and done.exists():
            state = read_checkpoint(done)
            module.load_state_dict(state["networks"])
            history = pd.DataFrame(state["history"]).astype({"step": int})
        else:
            with kept_checkpoints():
                history = fit(
                    module,
                    description=description,
                    checkpoints=folder,
                    fingerprint=fingerprint,
                    logs=self._logs / name if self._logs else None,
                )
            module.cpu()
            if done is not None and rank() == 0:
                rows = history.to_dict("records")
                write_checkpoint(done, {"networks": module.state_dict(), "history": rows})
                shutil.rmtree(done.with_suffix(""), ignore_errors=True)
        self._add(history, name)

    def _add(self, history: pd.DataFrame, name: str | None = None) -> None:
        """Add a phase's history; its columns get the phase's name, ``train/q_loss``, except those of the policy."""
        before = int(self._histories[-1]["step"].iloc[-1]) if self._histories else 0
        history = history.assign(step=history["step"] + before)
        if name is not None:
            history = history.rename(columns=lambda column: column.replace("/", f"/{name}_"))
        self._histories.append(history)

    def last(self, name: str, description: str, module: OfflineModule, fingerprint: str) -> pd.DataFrame:
        """Train the module of the policy, and return the joint history."""
        history = fit(
            module,
            description=description,
            checkpoints=self.folder(name),
            fingerprint=fingerprint,
            logs=self._logs,
        )
        return self.end(history)

    def end(self, history: pd.DataFrame) -> pd.DataFrame:
        """Join all histories with the policy's, and delete what was kept to resume (but see ``keeping``)."""
        self._add(history)
        for name in self._names:
            folder = self.folder(name)
            if folder is not None and rank() == 0 and not checkpoints_are_kept():
                shutil.rmtree(folder, ignore_errors=True)
        joint = pd.concat(self._histories, ignore_index=True)
        own = [column for column in history.columns if column != "step"]
        return joint[["step", *own, *(c for c in joint.columns if c not in {"step", *own})]]


class OneStep(OffPolicyMethod):
    """Learns Q of the behaviour, and extracts a policy by CVL's advantage-weighted regression.

    ``training.steps`` are those of all phases together, of which each takes at least one.
    """

    Parameters: ClassVar[type[Strict]] = OneStepParameters

    @abstractmethod
    def learn(self, data: EpisodeData, seed: int, phases: Phases) -> ActionValues:
        """Train Q of the behaviour in one or more phases."""

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Train Q, then the policy."""
        self.check(data)
        phases = Phases(checkpoints, logs)
        learned = self.learn(data, seed, phases)
        own = self.parameters
        extraction = AdvantageWeightedRegression.Parameters(
            **phases.of(own, 1.0 - own.value_share).actor_settings,
            **{name: getattr(own, name) for name in AdvantageWeights.model_fields},
        )
        policy, history = train_policy(
            data, extraction, seed, values=learned, checkpoints=phases.folder("policy"), logs=logs
        )
        return TrainedPolicy(policy, phases.end(history))

    def fingerprint(self, parameters: Any, seed: int, data: EpisodeData, *others: Any) -> str:
        """Identify a phase by parameters, seed, episodes and what else it learns from."""
        return run_fingerprint(parameters, seed, *data.parts().values(), *others)
