"""Classes and functions of a user's own, right and wrong, which tests choose as ``tests.own:Name``."""

from __future__ import annotations

import sys
from typing import Any, SupportsFloat

import torch
from pydantic import Field
from torch import Tensor

from cvl_pipeline.environments.base import Array
from cvl_pipeline.methods.bc import BC
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.base import Objective
from cvl_pipeline.sources.gymnasium import Gymnasium
from tests.environments.toys import Push, Walk


class MyAWR(AdvantageWeightedRegression):
    """Extends a built-in objective, without settings of its own."""


class ShyAWR(AdvantageWeightedRegression):
    """Extends a built-in objective and its settings."""

    class Parameters(AdvantageWeightedRegression.Parameters):
        """One more setting."""

        shyness: float = Field(0.5, ge=0.0, description="A setting.")


class MyBC(BC):
    """Extends a built-in method."""

    title = "mine"


class MyGymnasium(Gymnasium):
    """Extends a built-in source."""


class Unparametrised(Objective):
    """Its settings are no model."""

    Parameters = dict  # type: ignore[assignment]

    def loss(self, drawn: Any) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError


class BareLoss(AdvantageWeightedRegression):
    """Forgets the metrics."""

    def loss(self, drawn: Any) -> Any:
        return super().loss(drawn)[0]


class FailingLoss(AdvantageWeightedRegression):
    """Has a mistake."""

    def loss(self, drawn: Any) -> Any:
        return dict[str, Any]()["missing"]


class Forgetful(BC):
    """Returns nothing."""

    def train(self, *arguments: Any, **options: Any) -> Any:
        return None


class Emptyhanded(Gymnasium):
    """Returns no episodes."""

    def load(self, seed: int, workers: int | None) -> Any:
        return []


class Ready(Gymnasium):
    """Returns an environment in place of a function that makes one."""

    def make_environment(self, episode_steps: int | None = None) -> Any:
        return Walk()


class Leaving(Walk):
    """An environment that ends Python."""

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        sys.exit(0)


class Broken(Walk):
    """An environment with a mistake."""

    def step(self, action: Array) -> tuple[Array, SupportsFloat, bool, bool, dict[str, Any]]:
        raise ZeroDivisionError("no step")


class LeavingPush(Push):
    """A policy that ends Python."""

    def act(self, observations: list[Array], running: list[int]) -> list[Array]:
        raise SystemExit


def leaving(*_: Any) -> Any:
    """End Python."""
    sys.exit(0)


def failing(*_: Any) -> Any:
    """Have a mistake."""
    return 1 / 0


def nothing(*_: Any) -> None:
    """Return nothing."""


def generated(*_: Any) -> Any:
    """Return a generator."""
    yield torch.zeros(1)
