"""Classes and functions of a user's own, right and wrong, which tests choose as ``tests.own:Name``."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, SupportsFloat

import gymnasium
import torch
from pydantic import Field
from torch import Tensor, nn

from cvl_pipeline.environments.base import Array
from cvl_pipeline.methods.base import Method
from cvl_pipeline.methods.bc import BC
from cvl_pipeline.networks.encoder import Encoder
from cvl_pipeline.objectives.awr import AdvantageWeightedRegression
from cvl_pipeline.objectives.base import Objective
from cvl_pipeline.objectives.bc import BehaviourCloning
from cvl_pipeline.schema import Strict
from cvl_pipeline.sources.base import Source
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


class Misparametrised(BehaviourCloning):
    """Its settings lack those of every objective."""

    class Parameters(Strict):
        """Its own alone."""

        objective: str


class VectorLoss(BehaviourCloning):
    """Forgets the mean."""

    def loss(self, drawn: Any) -> Any:
        loss, metrics = super().loss(drawn)
        return loss.expand(2), metrics


class DetachedLoss(BehaviourCloning):
    """Loses the gradient."""

    def loss(self, drawn: Any) -> Any:
        loss, metrics = super().loss(drawn)
        return loss.detach(), metrics


class NumberMetric(BehaviourCloning):
    """Records a number that is no tensor."""

    def loss(self, drawn: Any) -> Any:
        return super().loss(drawn)[0], {"loss": 1.0}


class OneBatch(BehaviourCloning):
    """Draws one batch, however many it is asked for."""

    def draw(self, batches: int, size: int, generator: Any) -> Any:
        return super().draw(1, size, generator)


class NoPolicy(BehaviourCloning):
    """Returns no policy."""

    def policy(self, actor: Any, values: Any, seed: int) -> Any:
        return None


class Undeclared(BehaviourCloning):
    """Uses Q, and says that it needs no critic."""

    def prepare(self, setting: Any) -> None:
        setting.q  # noqa: B018


class PreparesItself(BehaviourCloning):
    """Does not call its base class's ``prepare``."""

    def prepare(self, setting: Any) -> None:
        pass


class LossTakesNothing(BehaviourCloning):
    """Its loss takes no batch."""

    def loss(self) -> Any:  # type: ignore[override]
        raise NotImplementedError


class OwnStart(BehaviourCloning):
    """Does not call its base class's ``__init__``."""

    def __init__(self, parameters: Any) -> None:
        pass


class Forgetful(BC):
    """Returns nothing."""

    def train(self, *arguments: Any, **options: Any) -> Any:
        return None


class PolicyAlone(BC):
    """Forgets the history."""

    def train(self, *arguments: Any, **options: Any) -> Any:
        return super().train(*arguments, **options).policy


class TakesData(BC):
    """Takes the data alone."""

    def train(self, data: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


class NoTitle(Method):
    """Forgets its title."""

    def train(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError


class Swapped(Gymnasium):
    """Returns the episodes after their rewards."""

    def load(self, seed: int, workers: int | None) -> Any:
        return super().load(seed, workers)[::-1]


class TakesNoSeed(Source):
    """Takes nothing."""

    def load(self) -> Any:  # type: ignore[override]
        raise NotImplementedError


class TakesNoSteps(Gymnasium):
    """Its episodes have no length."""

    def make_environment(self) -> Any:  # type: ignore[override]
        raise NotImplementedError


class Rewarded(Gymnasium):
    """Answers by a method what its base class answers by a property."""

    def has_rewards(self) -> bool:  # type: ignore[override]
        raise NotImplementedError


class Bare(Gymnasium):
    """Makes an environment of Gymnasium alone."""

    def make_environment(self, episode_steps: int | None = None) -> Any:
        return partial(gymnasium.make, "Pendulum-v1")


class Linear(Encoder):
    """A right encoder."""

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.features = 4
        self.layer = nn.Linear(shape[0], 4)

    def forward(self, observations: Tensor) -> Any:
        features: Tensor = self.layer(observations)
        return features


class Noisy(Linear):
    """Random on purpose."""

    def forward(self, observations: Tensor) -> Any:
        return super().forward(observations) + torch.randn(4)


class PlainTensor(Linear):
    """Draws a tensor that is neither parameter nor buffer."""

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.w = torch.randn(4, 4)

    def forward(self, observations: Tensor) -> Any:
        return super().forward(observations) @ self.w


class InnerTensor(Linear):
    """Has such a tensor in a layer of its own."""

    class Layer(nn.Module):
        """Its layer."""

        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.randn(4)

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.inner = InnerTensor.Layer()


class ListOfLayers(Linear):
    """Keeps a layer in a list."""

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.layers = [nn.Linear(4, 4)]

    def forward(self, observations: Tensor) -> Any:
        return self.layers[0](super().forward(observations))


class UnstoredBuffer(Linear):
    """Draws a buffer that is not stored."""

    w: Tensor

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        super().__init__(parameters, shape)
        self.register_buffer("w", torch.randn(4), persistent=False)

    def forward(self, observations: Tensor) -> Any:
        return super().forward(observations) * self.w


class TwoOutputs(Linear):
    """Returns a tuple."""

    def forward(self, observations: Tensor) -> Any:
        features = super().forward(observations)
        return features, features


class OneRow(Linear):
    """Averages the rows."""

    def forward(self, observations: Tensor) -> Any:
        return super().forward(observations).mean(0)


class UninitialisedLayers(Linear):
    """Does not call its base class's ``__init__``."""

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        self.layer = nn.Linear(shape[0], 4)


class Uninitialised(Linear):
    """Does not either, and has no layers that fail."""

    def __init__(self, parameters: Any, shape: tuple[int, ...]) -> None:
        self.features = 4


class TakesShape(Linear):
    """Its constructor takes the shape alone."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        raise NotImplementedError


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


class WithTable(Linear):
    """Keeps a table in its class."""

    table = torch.tensor([1.0, 2.0, 3.0])


class InheritsTable(WithTable):
    """Inherits the table, which no file stores."""


class Roots(Linear):
    """Gives NaN for negative numbers."""

    def forward(self, observations: Tensor) -> Tensor:
        """Return the roots of the linear features."""
        features: Tensor = super().forward(observations)
        return features.sqrt()
