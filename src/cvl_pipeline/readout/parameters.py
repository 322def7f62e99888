"""Parameters of the value_readout stage, the reward among them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from cvl_pipeline.schema import MOST_ROWS, MOST_STEPS, MOST_UNITS, Floats, Hidden, Integers, Registry, Strict

if TYPE_CHECKING:
    from cvl_pipeline.readout.build import ReadoutMethod
    from cvl_pipeline.readout.rewards import Reward


def _folder_name(name: str | None) -> str | None:
    if name is not None and (not re.fullmatch(r"[\w.\-]+", name) or name.startswith(".")):
        raise ValueError("must be letters, digits, '.', '_' and '-', no '.' first: it names a folder")
    return name


class RewardParameters(Strict):
    """The settings that every reward has. A reward adds its own."""

    source: str = Field(
        description="`dataset`, `success`, `goal_distance`, or `module:function`, a function of your own."
    )
    name: Annotated[str | None, AfterValidator(_folder_name)] = Field(
        None,
        description="Subfolder of the results for this reward. null: none for `dataset`, else named after the "
        "source.",
    )

    @property
    def folder(self) -> str:
        """Subfolder of the dataset's and seed's folder; empty for the dataset's own reward."""
        return self.name or self.source.replace(":", ".")


class LoggedReward(RewardParameters):
    """The settings of ``dataset``: none."""

    source: Literal["dataset"] = Field("dataset", description="The reward as the log has it.")

    @property
    def folder(self) -> str:
        """Subfolder of the dataset's and seed's folder; empty unless the reward has a name."""
        return self.name or ""


class SuccessReward(RewardParameters):
    """The settings of ``success``: none."""

    source: Literal["success"] = Field(
        "success", description="1 where the log counts the task as solved, else 0."
    )


class GoalDistanceReward(RewardParameters):
    """The settings of ``goal_distance``."""

    source: Literal["goal_distance"] = Field(
        "goal_distance",
        description="1 / (1 + (d / scale)^2) with the distance d between the state arrived in and a target.",
    )
    part: str | None = Field(
        None, description="Name of the part that is compared, if observations have several, such as `state`."
    )
    indices: Integers | None = Field(None, description="Dimensions of the observation that are compared.")
    target: Floats | None = Field(
        None, description="Values of these dimensions at the goal, in the observation's units."
    )
    scale: float | None = Field(
        None, gt=0.0, description="Distance at which the reward has fallen to a half."
    )
    tolerance: float | None = Field(None, gt=0.0, description="Distance that counts as success.")

    @model_validator(mode="after")
    def _goal_is_whole(self) -> GoalDistanceReward:
        needed = ("indices", "target", "scale", "tolerance")
        missing = [f"reward.{name}" for name in needed if getattr(self, name) is None]
        if self.indices is None or self.target is None or missing:
            raise ValueError(f"goal_distance needs {', '.join(missing)}")
        if len(self.indices) != len(self.target) or not self.indices:
            raise ValueError(
                f"reward.indices has {len(self.indices)} entries and reward.target {len(self.target)}; "
                "each index needs its target"
            )
        return self


class FunctionReward(RewardParameters):
    """The settings of a function of your own: none."""


class RegressionParameters(Strict):
    """How networks are regressed on returns, beside the readout (docs/method.md)."""

    readout_share: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="Share of the readout in Q; the networks have the rest. Where the log holds, on average, less "
        "than 60 % of what a return counts, as in windows, it is multiplied by what the log holds: the readout "
        "sees nothing beyond a window. With 0, nothing but the encoder of observations comes from the critic; for "
        "the readout alone, set value_readout.regression=null.",
    )
    steps: int = Field(
        2000, ge=1, le=MOST_STEPS, description="Gradient steps of the networks of Q, all at once."
    )
    members: int = Field(
        2,
        ge=1,
        le=MOST_UNITS,
        description="Number of networks of Q, which differ in their initial weights. Their mean counts.",
    )
    value_steps: int = Field(
        500,
        ge=1,
        le=MOST_STEPS,
        description="Gradient steps of the network of V that it builds on, in each round.",
    )
    rounds: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Rounds of V: the first is regressed on returns, each further one on the lambda-returns that "
        "follow from the one before, which is TD learning; Q has as many, within its steps. null: 1; but 32, of a "
        "quarter of the steps each, where the log holds, on average, less than 60 % of what a return counts, as in "
        "windows cut out of episodes.",
    )
    hidden: Hidden = Field((256, 256), description="Sizes of all networks' hidden layers.")
    batch_size: int = Field(256, ge=1, le=MOST_ROWS, description="Size of a batch.")
    learning_rate: float = Field(
        1e-3, gt=0.0, description="Learning rate of Adam. It falls to zero along half a cosine."
    )
    weight_decay: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        description="Decoupled weight decay: what a network remembers of single returns fades.",
    )

    @property
    def all_steps(self) -> int:
        """Gradient steps of both networks; a number of rounds that the log decides counts as one.

        So in logs of windows, where that number is 32, the networks take more steps than this.
        """
        return self.steps + self.value_steps * (self.rounds or 1)


class ReadoutParameters(Strict):
    """The settings that every readout has. A readout adds its own."""

    method: str = Field(description="Name of the readout, or `module:Class` for one of your own.")
    self_normalised: bool = Field(
        True,
        description="Divide by the estimated normaliser, which cancels any term c(s, a) in the critic.",
    )
    references: int | None = Field(
        8192,
        ge=1,
        le=MOST_ROWS,
        description="Number K of reference states, drawn as in training. null: every logged future state.",
    )
    reference_distribution: Literal["marginal", "reward"] = Field(
        "marginal", description="`reward` draws half of the reference states in proportion to |reward|."
    )
    discount: float | None = Field(
        0.97,
        gt=0.0,
        lt=1.0,
        description="Discount gamma of the values, at least the critic's unless that has horizon_conditioning. null: "
        "the critic's.",
    )
    horizons: int = Field(
        8, ge=1, le=MOST_UNITS, description="Offsets that a horizon-conditioned critic is averaged over."
    )
    regression: RegressionParameters | None = Field(
        RegressionParameters(),
        description="Networks regressed on returns, beside the readout. null: the readout alone.",
    )


class ExactParameters(ReadoutParameters):
    """The settings of ``exact``."""

    method: Literal["exact"] = Field(
        "exact", description="Self-normalised importance sampling over the reference states."
    )
    prototypes: int | None = Field(
        None,
        ge=1,
        le=MOST_ROWS,
        description="Compress the reference states to this many cluster centres. null: keep them.",
    )


class FeatureParameters(ReadoutParameters):
    """The settings of readouts by random features."""

    features: int = Field(4096, ge=2, le=MOST_ROWS, description="Number of random features.")


class FourierParameters(FeatureParameters):
    """The settings of ``random_fourier``."""

    method: Literal["random_fourier"] = Field("random_fourier", description="The paper's random features.")


class PositiveParameters(FeatureParameters):
    """The settings of ``positive_random``."""

    method: Literal["positive_random"] = Field(
        "positive_random", description="Positive orthogonal random features."
    )


class ValueReportParameters(Strict):
    """How values are judged on held-out episodes."""

    compared_transitions: int = Field(
        2000,
        ge=2,
        le=MOST_ROWS,
        description="Held-out transitions on which the readout's own error is measured.",
    )


REWARDS: Registry[Reward] = Registry(
    "reward source",
    "source",
    "cvl_pipeline.readout.rewards:Reward",
    {
        "dataset": ("cvl_pipeline.readout.rewards:Logged", LoggedReward),
        "success": ("cvl_pipeline.readout.rewards:Success", SuccessReward),
        "goal_distance": ("cvl_pipeline.readout.rewards:GoalDistance", GoalDistanceReward),
    },
    functions="cvl_pipeline.readout.rewards:UserReward",
)
READOUTS: Registry[ReadoutMethod] = Registry(
    "readout",
    "method",
    "cvl_pipeline.readout.build:ReadoutMethod",
    {
        "exact": ("cvl_pipeline.readout.build:Exact", ExactParameters),
        "random_fourier": ("cvl_pipeline.readout.build:RandomFourier", FourierParameters),
        "positive_random": ("cvl_pipeline.readout.build:PositiveRandom", PositiveParameters),
    },
)
