"""The methods in force: one row of nodes, artifacts and results each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cvl_pipeline.deploy.parameters import ExportParameters
from cvl_pipeline.kedro.parameters import RunParameters
from cvl_pipeline.methods.base import METHODS, Method
from cvl_pipeline.methods.cvl import CVL
from cvl_pipeline.parameters import REWARD_FREE
from cvl_pipeline.sources.environment import has_environment

OWN = "cvl"
"""The row of CVL itself, whose parameters are the stages'."""
BESIDE = "beside"
"""Tag of the nodes that may run in a process beside the run: no other row waits for them."""


@dataclass(frozen=True)
class Row:
    """One method in force.

    Attributes:
        name: label of its nodes, artifacts and results.
        method: its class.
        parameters: name of the node input that holds its parameters.
    """

    name: str
    method: type[Method]
    parameters: str

    @property
    def title(self) -> str:
        """Its name in tables and pictures."""
        own = self.name == OWN or (self.name in METHODS.names and METHODS[self.name] is self.method)
        return self.method.title if own else f"{self.name} ({self.method.title})"

    @property
    def tags(self) -> list[str]:
        """Tags of the nodes that train its policy and roll it out."""
        return [] if self.name == OWN else [BESIDE]

    def dataset(self, kind: str) -> str:
        """Return the name of one of its datasets, such as ``policy``.

        Artifacts of a method that needs no rewards serve every reward, so they are filed apart.
        """
        return f"{'' if self.method.needs_rewards else REWARD_FREE}{self.name}_{kind}"


@dataclass(frozen=True)
class Plan:
    """The part of the parameters that decides which nodes there are.

    Attributes:
        rows: the methods in force, CVL first.
        evaluates: whether policies can be evaluated in an environment.
        records: whether videos of the evaluation are wanted.
        judges: whether policies are judged from the log.
        judging_critic: kind of the critic that judges them.
        export: which policies the export pipeline exports, and whether with values.
    """

    rows: tuple[Row, ...]
    evaluates: bool = True
    records: bool = False
    judges: bool = False
    judging_critic: str = "regression"
    export: ExportParameters = field(default_factory=ExportParameters)

    @staticmethod
    def of(parameters: RunParameters) -> Plan:
        """Return the plan of a run."""
        rows = [Row(OWN, CVL, "params:policy_extraction")]
        rows += [
            Row(name, METHODS.of(chosen), f"params:baselines.{name}")
            for name, chosen in parameters.baselines.items()
        ]
        evaluates = has_environment(parameters.dataset, parameters.evaluation)
        judging = parameters.judging
        return Plan(
            rows=tuple(rows),
            evaluates=evaluates,
            records=parameters.evaluation.videos is not None,
            judges=not evaluates if judging.enabled is None else judging.enabled,
            judging_critic=judging.critic,
            export=parameters.export,
        )


def bound(function: Callable[..., Any], *values: object) -> Callable[..., Any]:
    """Return a node's function with its first arguments given, under its own name.

    Not ``functools.update_wrapper``: Kedro would match inputs with the arguments that are given already.
    """
    node_function = partial(function, *values)
    vars(node_function).update(__name__=function.__name__, __doc__=function.__doc__, __annotations__={})
    return node_function
