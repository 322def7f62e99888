"""The interface of methods: what trains a policy from episodes and rewards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from cvl_pipeline.objectives.base import ActorParameters, TrainedPolicy
from cvl_pipeline.schema import Registry, Strict
from cvl_pipeline.training.parameters import TrainingParameters

if TYPE_CHECKING:
    from cvl_pipeline.episodes.data import EpisodeData
    from cvl_pipeline.readout.q_function import QFunction


class MethodParameters(ActorParameters):
    """The settings that every method has: the actor and its training. A method adds its own.

    In ``baselines``, ``hidden``, ``encoder`` and ``training`` follow ``policy_extraction`` unless they are set.
    """

    method: str = Field(description="Name of the method, or `module:Class` for one of your own.")


class Method(ABC):
    """Trains a policy.

    A method of your own extends this class, with a model ``Parameters`` of its own settings. Run it beside CVL
    with ``baselines: {name: {method: "module:Class"}}``.
    """

    Parameters: ClassVar[type[Strict]] = MethodParameters
    title: ClassVar[str]
    """Its name in tables and pictures."""
    needs_rewards: ClassVar[bool] = True
    """Whether it needs the reward of every transition. If not, one policy serves every reward."""
    needs_critic: ClassVar[bool] = False
    """Whether it needs the values of actions: CVL's critic and readout."""
    learns_values: ClassVar[bool] = False
    """Whether it learns values itself. By default it then takes the gradient steps of critic and policy."""

    def __init__(self, parameters: Any) -> None:
        """Keep the parameters, an instance of ``Parameters``."""
        self.parameters = parameters

    @classmethod
    def inherited(cls, policy_extraction: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the method takes over as a baseline, unless it sets them itself.

        Args:
            policy_extraction: network, encoder and training of CVL's policy, as far as they are set.
        """
        return {
            name: value for name, value in policy_extraction.items() if name in cls.Parameters.model_fields
        }

    @property
    def training(self) -> TrainingParameters:
        """How the policy is trained: how many processes, among others."""
        training: TrainingParameters = self.parameters.training
        return training

    @abstractmethod
    def train(
        self,
        data: EpisodeData,
        seed: int,
        *,
        values: QFunction | None = None,
        checkpoints: Path | None = None,
        logs: Path | None = None,
    ) -> TrainedPolicy:
        """Train a policy.

        Args:
            data: the episodes; with rewards if the method needs them.
            seed: of the initial weights and the batches.
            values: Q of the behaviour policy, if the method needs a critic.
            checkpoints: folder that keeps unfinished training, which the same call resumes.
            logs: folder of metrics.csv and other logs.

        Raises:
            InputError: a setting that does not fit the data.
            FloatingPointError: the loss is not a number.
        """


METHODS: Registry[Method] = Registry(
    "method",
    "method",
    "cvl_pipeline.methods.base:Method",
    {
        "cvl": "cvl_pipeline.methods.cvl:CVL",
        "bc": "cvl_pipeline.methods.bc:BC",
        "filtered_bc": "cvl_pipeline.methods.filtered_bc:FilteredBC",
        "iql": "cvl_pipeline.methods.iql:IQL",
        "td3_bc": "cvl_pipeline.methods.td3_bc:TD3BC",
        "rebrac": "cvl_pipeline.methods.rebrac:ReBRAC",
        "cql": "cvl_pipeline.methods.cql:CQL",
        "crl": "cvl_pipeline.methods.crl:CRL",
        "mc_awr": "cvl_pipeline.methods.mc_awr:MonteCarloAWR",
        "mopo": "cvl_pipeline.methods.mopo:MOPO",
        "one_step_model": "cvl_pipeline.methods.one_step_model:OneStepModel",
        "sarsa": "cvl_pipeline.methods.sarsa:SARSA",
    },
)
