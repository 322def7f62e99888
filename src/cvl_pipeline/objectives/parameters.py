"""Parameters of advantages: the state values that are subtracted from Q, and the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cvl_pipeline.schema import MOST_ROWS, MOST_STEPS, MOST_UNITS, Choice, Hidden, Registry, Strict

if TYPE_CHECKING:
    from cvl_pipeline.objectives.advantages import StateValue


class StateValueParameters(Strict):
    """The settings that every V(s) has. Each adds its own."""

    name: str = Field(description="Name of the state value, or `module:Class` for one of your own.")


class MarginalActionsParameters(StateValueParameters):
    """The settings of ``marginal_actions``."""

    name: Literal["marginal_actions"] = Field(
        "marginal_actions", description="The mean of Q over actions logged anywhere in the data."
    )
    actions: int = Field(4, ge=1, le=MOST_UNITS, description="Number of actions that the mean takes.")


class FittedValueParameters(StateValueParameters):
    """The settings of ``fitted_value``."""

    name: Literal["fitted_value"] = Field(
        "fitted_value", description="A network fitted to the Q of the logged actions."
    )
    steps: int = Field(1000, ge=1, le=MOST_STEPS, description="Gradient steps. More of them memorise states.")
    hidden: Hidden = Field((256, 256), description="Sizes of the network's hidden layers.")
    batch_size: int = Field(256, ge=1, le=MOST_ROWS, description="Size of a batch.")
    learning_rate: float = Field(1e-3, gt=0.0, description="Learning rate of Adam.")


STATE_VALUES: Registry[StateValue] = Registry(
    "state value",
    "name",
    "cvl_pipeline.objectives.advantages:StateValue",
    {
        "marginal_actions": ("cvl_pipeline.objectives.advantages:MarginalActions", MarginalActionsParameters),
        "fitted_value": ("cvl_pipeline.objectives.advantages:FittedValue", FittedValueParameters),
    },
)


class AdvantageWeights(Strict):
    """The settings of weights that grow with the advantage; see ``objectives.awr``."""

    beta: float = Field(
        3.0, ge=0.0, description="Transitions are weighted by exp(beta * advantage / its standard deviation)."
    )
    max_weight: float = Field(100.0, gt=0.0, description="Largest weight of a transition, and of an episode.")
    episode_weight: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="How far an episode that is one of few, steadily better ones counts as a whole, by its mean "
        "advantage (docs/method.md). 0: never.",
    )
    state_value: Annotated[StateValueParameters, Choice(STATE_VALUES)] = Field(
        MarginalActionsParameters(), description="V(s) of the advantage Q(s, a) - V(s)."
    )
