"""The interface of objectives: how a policy is extracted from the frozen critic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import Field

from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.parameters import EncodingParameters
from cvl_pipeline.schema import MOST_STEPS, Hidden, Registry
from cvl_pipeline.training.parameters import TrainingParameters

if TYPE_CHECKING:
    import pandas as pd
    from torch import Generator, Tensor, nn

    from cvl_pipeline.episodes.container import Rewards, Transitions
    from cvl_pipeline.networks.actor import Actor
    from cvl_pipeline.readout.action_values import ActionValues


class TrainedPolicy(NamedTuple):
    """A policy, on the CPU, and the history of its training (see ``fit``)."""

    policy: nn.Module
    history: pd.DataFrame


class PolicyTraining(TrainingParameters):
    """How a policy is trained."""

    steps: int = Field(2000, ge=1, le=MOST_STEPS, description="Gradient steps.")


class ActorParameters(EncodingParameters):
    """The actor's network and its training, which every policy has."""

    hidden: Hidden = Field(
        (256, 256),
        description="Sizes of the hidden layers of the actor, and of the other networks of a baseline.",
    )
    training: PolicyTraining = Field(PolicyTraining(), description="How the policy is trained.")

    @property
    def actor_settings(self) -> dict[str, Any]:
        """What every policy's parameters have, by name, for those of another one."""
        return {name: getattr(self, name) for name in ActorParameters.model_fields}


class ObjectiveParameters(ActorParameters):
    """The settings that every objective has. An objective adds its own."""

    objective: str = Field(description="Name of the objective, or `module:Class` for one of your own.")


@dataclass(frozen=True)
class Setting:
    """Everything an objective may use, on the device that trains.

    A log that does not fit the GPU stays on the CPU: ``transitions``, ``train_index`` and ``rewards``.

    Attributes:
        transitions: all episodes.
        train_index: (M,) int64, the transitions that train.
        train_episodes: (E,) int64 ids of the episodes that train.
        actor: the network that is trained.
        seed: of the run.
        values: frozen Q of the behaviour policy; None unless the objective has ``needs_critic``.
        rewards: labels of all transitions; None unless the objective has ``needs_rewards``.
    """

    transitions: Transitions
    train_index: Tensor
    train_episodes: Tensor
    actor: Actor
    seed: int
    values: ActionValues | None = None
    rewards: Rewards | None = None

    @property
    def q(self) -> ActionValues:
        """Q of the behaviour policy; raises InputError if the objective does not declare that it needs it."""
        if self.values is None:
            raise InputError(
                "setting.q is for an objective that needs a critic: set needs_critic = True in its class"
            )
        return self.values


@dataclass(frozen=True)
class Batch:
    """Logged transitions: observations (B, O), actions (B, A), and their positions (B,) in ``train_index``."""

    observations: Tensor
    actions: Tensor
    positions: Tensor


class Objective(ABC):
    """What a policy minimises.

    An objective of your own extends this class, with a model ``Parameters`` of its own settings, and says what
    it needs, prepares, draws and minimises. Choose it with ``policy_extraction.objective=module:Class``.
    """

    Parameters: ClassVar[type[ObjectiveParameters]] = ObjectiveParameters
    needs_critic: ClassVar[bool] = True
    """Whether it needs the values of actions: a critic and a readout."""
    needs_rewards: ClassVar[bool] = False
    """Whether it needs the reward of every transition."""
    acts_with_noise: ClassVar[bool] = False
    """Whether the policy needs the actor's noise, which is then set to its errors on held-out episodes."""
    default_decay: ClassVar[float] = 0.0
    """Weight decay of the actor, if ``training.weight_decay`` is null."""
    setting: Setting
    """Data, actor and values, which are known from ``prepare`` on."""

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters, an instance of ``Parameters``."""
        self.parameters = parameters

    def prepare(self, setting: Setting) -> None:  # noqa: B027, most objectives have nothing to prepare
        """Compute constants from ``self.setting``. Called before the first step."""

    def draw(self, batches: int, size: int, generator: Generator) -> Sequence[Any]:
        """Draw the next batches; by default positions (size,) in the training transitions, with replacement.

        Every process draws the same and takes its own share in ``batch``.
        """
        import torch  # not above: parameters are checked without it

        count = len(self.setting.train_index)
        device = self.setting.train_index.device
        positions = torch.randint(count, (batches * size,), generator=generator, device=device)
        return torch.split(positions, size)

    def read(self, drawn: Any) -> Any:
        """Rows of one entry of ``draw``, a dataclass of tensors, which ``loss`` gets instead of the entry.

        Used if the log does not fit the GPU, in another thread. ``batch`` by default; an objective with a ``draw`` of
        its own needs its own.
        """
        return self.batch(drawn)

    def batch(self, positions: Tensor | Batch) -> Batch:
        """Read this process's share of the transitions at the given positions, unless that is done already."""
        from cvl_pipeline.training.processes import own_share

        if isinstance(positions, Batch):
            return positions
        own = own_share(positions)
        index = self.setting.train_index[own]
        data = self.setting.transitions
        return Batch(data.states(index), data.actions.index_select(0, index), own)

    @abstractmethod
    def loss(self, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one entry of ``draw``, and metrics to record (scalars)."""

    def policy(self, actor: Actor, values: ActionValues | None, seed: int) -> nn.Module:
        """Return the policy that acts, given the trained actor; by default the actor itself."""
        return actor


OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    "objective",
    "cvl_pipeline.objectives.base:Objective",
    {
        "awr": "cvl_pipeline.objectives.awr:AdvantageWeightedRegression",
        "ddpg_bc": "cvl_pipeline.objectives.ddpg_bc:DDPGPlusBC",
        "best_of_n": "cvl_pipeline.objectives.best_of_n:BestOfNProposals",
        "published": "cvl_pipeline.objectives.published:Published",
        "bc": "cvl_pipeline.objectives.bc:BehaviourCloning",
    },
)
