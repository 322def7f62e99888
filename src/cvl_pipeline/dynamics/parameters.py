"""Parameters of the contrastive_dynamics stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from cvl_pipeline.networks.parameters import EncodingParameters
from cvl_pipeline.schema import MOST_ROWS, MOST_STEPS, MOST_UNITS, Choice, Hidden, Registry, Strict
from cvl_pipeline.training.parameters import TrainingParameters

if TYPE_CHECKING:
    from cvl_pipeline.dynamics.losses import Loss


class LossParameters(Strict):
    """Settings that all contrastive losses share. A loss adds its own."""

    name: str = Field(description="Name of the loss, or `module:Class` for one of your own.")
    logsumexp_penalty: float = Field(
        0.0,
        ge=0.0,
        description="Weight of the squared log-normaliser. The published code has 0.01 with infonce.",
    )


class SymmetricInfoNCEParameters(LossParameters):
    """The settings of ``symmetric_infonce``."""

    name: Literal["symmetric_infonce"] = Field(
        "symmetric_infonce",
        description="Which future belongs to a pair, and which pair to a future: the mean of both cross-entropies.",
    )


class InfoNCEParameters(LossParameters):
    """The settings of ``infonce``."""

    name: Literal["infonce"] = Field(
        "infonce",
        description="Which future belongs to a pair: the cross-entropy over the futures of the batch.",
    )


class NCEParameters(LossParameters):
    """The settings of ``nce``."""

    name: Literal["nce"] = Field(
        "nce",
        description="Whether a pair and a future belong together: the binary cross-entropy of every combination.",
    )


LOSSES: Registry[Loss] = Registry(
    "loss",
    "name",
    "cvl_pipeline.dynamics.losses:Loss",
    {
        "symmetric_infonce": ("cvl_pipeline.dynamics.losses:SymmetricInfoNCE", SymmetricInfoNCEParameters),
        "infonce": ("cvl_pipeline.dynamics.losses:InfoNCE", InfoNCEParameters),
        "nce": ("cvl_pipeline.dynamics.losses:NCE", NCEParameters),
    },
)


class DynamicsTraining(TrainingParameters):
    """How the critic is trained."""

    steps: int = Field(3000, ge=1, le=MOST_STEPS, description="Gradient steps.")


class DynamicsParameters(EncodingParameters):
    """What the contrastive critic is and how it is trained."""

    discount: float = Field(
        0.83,
        gt=0.0,
        lt=1.0,
        description="Discount c of the future-state distribution p_c, per step: how far ahead the critic looks. At "
        "most value_readout.discount, gamma; 1 - sqrt(1 - gamma) served well in all worlds (docs/truth.md).",
    )
    loss: Annotated[LossParameters, Choice(LOSSES)] = Field(
        SymmetricInfoNCEParameters(), description="Contrastive loss (docs/method.md)."
    )
    horizon_conditioning: bool = Field(
        False,
        description="phi also takes the offset k of the future state. One critic then serves any discount.",
    )
    representation: Literal["unit_norm", "raw"] = Field(
        "unit_norm", description="Whether phi and psi are on the unit sphere."
    )
    representation_size: int = Field(64, ge=1, le=MOST_UNITS, description="Size D of phi and psi.")
    hidden: Hidden = Field((256, 256), description="Sizes of the hidden layers of phi and psi.")
    temperature: float = Field(0.1, gt=0.0, description="The logits are divided by it.")
    learned_temperature: bool = Field(
        False, description="Train the temperature, starting from the value above (unit_norm only)."
    )
    segments_per_episode: int = Field(
        4,
        ge=1,
        le=MOST_ROWS,
        description="Segments of a batch that share an episode. With more than one, some negatives come from the "
        "anchor's own episode.",
    )
    validation_batches: int = Field(
        8,
        ge=1,
        le=MOST_STEPS,
        description="Held-out batches, as large as in training, that the metrics average.",
    )
    keep: Literal["last", "best"] = Field(
        "last", description="Keep the weights of the last step, or those of the lowest held-out loss."
    )
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Measurements without a lower held-out loss that end training. null: training runs to its end.",
    )
    training: DynamicsTraining = Field(DynamicsTraining(), description="How the critic is trained.")

    @model_validator(mode="after")
    def _raw_representations_scale_themselves(self) -> DynamicsParameters:
        if self.representation == "raw" and self.learned_temperature:
            raise ValueError("learned_temperature needs unit_norm representations: raw ones scale themselves")
        return self
