"""What methods share that learn Q from single transitions, by gradient steps on several networks at once.

A method is a module that extends ``OffPolicy`` with its networks and its loss, and a short ``OffPolicyMethod``. All use
this project's trainer and networks, so a comparison differs in the method alone: the same episodes, the same MLPs, the
same Adam and learning-rate schedule, the same actor and evaluation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from cvl_pipeline.episodes.container import Normalisation
from cvl_pipeline.episodes.data import EpisodeData
from cvl_pipeline.episodes.preparation import goes_on, last_steps
from cvl_pipeline.episodes.shifts import random_shift
from cvl_pipeline.errors import InputError
from cvl_pipeline.methods.base import Method, MethodParameters
from cvl_pipeline.networks.actor import Actor, make_actor
from cvl_pipeline.networks.encoder import ObservationEncoder, PartsEncoder, observation_encoder
from cvl_pipeline.networks.mlp import MLP, Standardise
from cvl_pipeline.objectives.base import TrainedPolicy
from cvl_pipeline.schema import Hidden, Strict
from cvl_pipeline.training.fit import fit, run_fingerprint
from cvl_pipeline.training.module import OfflineModule
from cvl_pipeline.training.prefetch import SHARE, fits
from cvl_pipeline.training.processes import own_share
from cvl_pipeline.training.seeds import stream_seed

if TYPE_CHECKING:
    from cvl_pipeline.readout.q_function import QFunction


HELD_OUT_STATES = 2048
"""Held-out images of one measurement, evenly spaced."""

TOLERATED_MEAN = 3.0
"""Mean of rewards, in standard deviations, from which on they hardly differ."""


class ValueParameters(MethodParameters):
    """The settings of every method that learns Q by itself."""

    discount: float = Field(0.99, gt=0.0, lt=1.0, description="Discount of the values.")
    target_rate: float = Field(
        0.005, gt=0.0, le=1.0, description="Share of the online networks that enters the targets per update."
    )
    scale_rewards: bool = Field(
        True,
        description="Divide rewards by their standard deviation in the log, or nearly by their size if they hardly "
        "differ, so that Q has about the same size for any reward. The publications do not.",
    )


class Ensemble(nn.Module):
    """Several Q functions of encoded observations and standardised actions."""

    def __init__(
        self,
        normalisation: Normalisation,
        hidden: Hidden,
        members: int = 2,
        encoder: ObservationEncoder | PartsEncoder | None = None,
    ) -> None:
        """Build the networks.

        Args:
            normalisation: statistics of the inputs.
            hidden: sizes of the hidden layers.
            members: number of Q functions.
            encoder: which all members share; None: observations are vectors, which are standardised.
        """
        super().__init__()
        action = len(normalisation.action_mean)
        self.features = len(normalisation.observation_mean) if encoder is None else encoder.features
        self.encode_observation: nn.Module
        if encoder is None:
            standardise = Standardise(self.features)
            standardise.fit(normalisation.observation_mean, normalisation.observation_std)
            self.encode_observation = standardise
        else:
            self.encode_observation = encoder
        self.standardise_action = Standardise(action)
        self.standardise_action.fit(normalisation.action_mean, normalisation.action_std)
        self.networks = nn.ModuleList(MLP(self.features + action, hidden, 1) for _ in range(members))

    def forward(self, observations: Tensor, actions: Tensor, members: int | None = None) -> Tensor:
        """Values of all members or of the first few, (..., O) and (..., A) -> (members, ...).

        The leading axes are broadcast, so a state with many actions, (B, 1, O) and (B, M, A), is encoded once.
        """
        features = self.encode_observation(observations)
        if features.shape[:-1] != actions.shape[:-1]:
            features = features.expand(*actions.shape[:-1], -1)
        inputs = torch.cat([features, self.standardise_action(actions)], -1)
        return torch.stack([network(inputs).squeeze(-1) for network in islice(self.networks, members)])


class Fixed:
    """A network that always has the numbers of a trained one, but passes no gradient to them.

    For losses of the actor through Q: the actor learns from Q, and Q must not learn from the actor.
    """

    def __init__(self, network: nn.Module) -> None:
        """Share the parameters and buffers of the network."""
        self._network, self._copy = network, copy.deepcopy(network).requires_grad_(False)
        self.link()

    def link(self) -> None:
        """Share them anew, after the trained network has moved its parameters."""
        for mine, theirs in (
            *zip(self._copy.parameters(), self._network.parameters(), strict=True),
            *zip(self._copy.buffers(), self._network.buffers(), strict=True),
        ):
            mine.data = theirs.data

    def __call__(self, *arguments: Any) -> Tensor:
        """Output of the network."""
        outputs: Tensor = self._copy(*arguments)
        return outputs


def reward_unit(rewards: Tensor) -> float:
    """Return the standard deviation of rewards, (N,), plus, at right angles, what their mean has beyond three of them.

    Sums of rewards that hardly differ would be huge in their standard deviations: the unit of equal rewards is their
    size. If all are zero, 1.
    """
    spread, mean = float(rewards.std(correction=0)), float(rewards.mean())
    return math.hypot(spread, max(0.0, abs(mean) - TOLERATED_MEAN * spread)) or 1.0


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, rate: float | Tensor) -> None:
    """Move the parameters of a target towards those of the online network by a share of the difference."""
    for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
        mine.lerp_(theirs, rate)


@dataclass(frozen=True)
class Steps:
    """A batch of transitions (s, a, r, s', a').

    Attributes:
        states: (B, O).
        actions: (B, A), one-hot if discrete.
        rewards: (B,), scaled if ``scale_rewards``.
        goes_on: (B,), 0 after a termination, else 1.
        next_states: (B, O).
        next_actions: (B, A), the logged action in the next state; meaningless where ``has_next`` is 0.
        has_next: (B,), 0 for the last step of an episode, else 1.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    goes_on: Tensor
    next_states: Tensor
    next_actions: Tensor
    has_next: Tensor


class OffPolicy(OfflineModule):
    """Gradient steps on transitions drawn uniformly, with replacement, from the training episodes.

    A subclass builds its networks after this class's ``__init__``, in ``networks``, and defines ``training_loss``. It
    may weigh the learning rates of its networks (``parts``), use a network without training it (``Fixed``), and
    move targets (``follow``).
    """

    has_actor: ClassVar[bool] = True
    """Whether there is an actor; a module that learns values alone has none."""
    columns: ClassVar[tuple[str, ...]] = (
        "_observations", "_rows", "_actions", "_rewards", "_goes_on", "_has_next",
    )  # fmt: skip
    """Attributes with the data, which have to be where the networks are."""

    def __init__(self, data: EpisodeData, parameters: Any, seed: int) -> None:
        """Build the actor and the method's networks, and hold the episodes, whose rewards are known."""
        super().__init__(parameters.training, seed, parameters)
        self.own_code = parameters.own_encoder
        self.graphable = not self.own_code
        assert data.rewards is not None  # checked by the method
        self.settings = parameters
        self.normalisation = data.normalisation
        train = data.transitions.select(data.split.train)
        labels = data.rewards.select(data.transitions.transition_index(data.split.train)).rewards
        index = torch.arange(len(train))
        episodes = train.episode_of(index)
        self._layout = data.transitions.parts
        self.augmentation = random_shift(data.transitions, parameters.training.random_shift)
        self._noise: Tensor | None = None
        self._observations, self._rows = train.observations, index + episodes
        self._actions = train.actions
        self.reward_scale = 1.0 / reward_unit(labels) if parameters.scale_rewards else 1.0
        self._rewards = labels * self.reward_scale
        self._goes_on = goes_on(train).float()
        self._has_next = (~last_steps(train)).float()
        self._held_out = data.transitions.select(data.split.validation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "initialisation", 2))
            self.networks()
            if self.has_actor:
                self.actor: Actor = make_actor(
                    train, data.normalisation, parameters.hidden, parameters.encoding
                )
        self.finish()

    def networks(self) -> None:
        """Build the networks besides the actor, from ``self.normalisation`` and ``self.settings``."""
        raise NotImplementedError

    def ensemble(self, members: int = 2) -> Ensemble:
        """Q functions, with an encoder if observations are images or have parts, or if one was chosen."""
        shape = tuple(self._observations.shape[1:])
        encoder, plain = None, self.settings.encoder.name in ("auto", "identity")
        if self._layout is not None or len(shape) > 1 or not plain:
            encoder = observation_encoder(shape, self.normalisation, self.settings.encoding, self._layout)
        return Ensemble(self.normalisation, self.settings.hidden, members, encoder)

    def finish(self) -> None:
        """Build what follows from all networks, such as targets."""

    def make_optimizer(self, values: nn.Parameter) -> torch.optim.Optimizer:
        """Let fixed networks share the vector, and create Adam."""
        for fixed in vars(self).values():
            if isinstance(fixed, Fixed):
                fixed.link()
        return super().make_optimizer(values)

    def on_fit_start(self) -> None:
        """Put the data where the networks are; raise InputError if a GPU lacks the memory."""
        if not fits(self.device, *(getattr(self, name) for name in self.columns)):
            raise InputError(
                f"method '{self.settings.method}' needs the whole log on the GPU, and it takes more than {SHARE:.0%} "
                "of its free memory; set training.accelerator=cpu for this method"
            )
        for name in self.columns:
            setattr(self, name, getattr(self, name).to(self.device))
        self._held_out = self._held_out.to(self.device)

    def draw(self, batches: int, generator: Generator) -> Sequence[Any]:
        """Draw transitions of the next batches, (B,) int64 each; a method that needs noise overrides it."""
        size, count = self.training_parameters.batch_size, len(self._rows)
        return torch.split(
            torch.randint(count, (batches * size,), generator=generator, device=self.device), size
        )

    def prepared(self, batch: Any) -> Any:
        """What ``training_loss`` gets: an entry of ``draw``. The noise of its observations is for ``read_states``."""
        if self.augmentation is None:
            return batch
        self._noise = own_share(batch.noise)
        return batch.rows

    def read_states(self, rows: Tensor, place: int = 0) -> Tensor:
        """Observations of rows, (B,), augmented if that is asked for; ``place`` is 1 for next states."""
        states = self._observations[rows]
        if self.augmentation is None or self._noise is None:
            return states
        return self.augmentation.changed(states, self._noise, place)

    def steps(self, batch: Tensor) -> Steps:
        """Read this process's share of a batch of transitions, (B,) int64."""
        index = own_share(batch)
        rows, following = self._rows[index], (index + 1).clamp(max=len(self._rows) - 1)
        return Steps(
            states=self.read_states(rows),
            actions=self._actions[index],
            rewards=self._rewards[index],
            goes_on=self._goes_on[index],
            next_states=self.read_states(rows + 1, 1),
            next_actions=self._actions[following],
            has_next=self._has_next[index],
        )

    def validation_metrics(self, generator: Generator) -> dict[str, Tensor]:
        """Measure the policy on held-out states: all, or a share if they are images or have parts."""
        index = None
        if self._held_out.wide:  # their features take gigabytes
            index = torch.arange(len(self._held_out), device=self._held_out.actions.device)
            index = index[:: -(-len(index) // HELD_OUT_STATES)]
        states = self._held_out.states(index)
        logged = self._held_out.actions if index is None else self._held_out.actions[index]
        return {
            "action_error": (self.actor(states) - logged).square().mean(),
            "log_prob": self.actor.log_prob(states, logged).mean(),
        }


class OffPolicyMethod(Method):
    """Trains the networks of ``module`` together; the policy is its actor."""

    Parameters: ClassVar[type[Strict]] = ValueParameters
    learns_values = True
    module: ClassVar[type[OffPolicy]]
    discrete_actions: ClassVar[bool] = True
    """Whether it can learn from discrete actions."""
    vectors_alone: ClassVar[bool] = False
    """Whether an observation has to be one vector, such as of a method that predicts observations."""

    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Train all networks together."""
        self.check(data)
        module = self.module_for(data)(data, self.parameters, seed)
        history = fit(
            module,
            description=f"Training {self.title}",
            checkpoints=checkpoints,
            fingerprint=run_fingerprint(self.parameters, seed, *data.parts().values()),
            logs=logs,
        )
        return TrainedPolicy(module.actor.cpu().eval(), history)

    def module_for(self, data: EpisodeData) -> type[OffPolicy]:
        """The module to train; a method may have another one for discrete actions."""
        return self.module

    def check(self, data: EpisodeData) -> None:
        """Raise InputError for episodes that the method cannot learn from."""
        name = self.parameters.method
        if data.rewards is None:
            raise InputError(f"method '{name}' needs rewards")
        if data.transitions.wide and self.vectors_alone:
            raise InputError(f"method '{name}' takes vectors: images and several parts are not supported")
        if data.transitions.discrete and not self.discrete_actions:
            raise InputError(f"method '{name}' takes continuous actions: these are discrete")
