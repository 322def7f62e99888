"""Parameters of the contrastive_dynamics stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cvl_pipeline.training.parameters import Hidden, Strict, TrainingParameters


class DynamicsParameters(Strict):
    """What the contrastive critic is and how it is trained."""

    discount: float = Field(gt=0.0, lt=1.0)  # gamma of p_gamma, per step
    loss: Literal["symmetric_infonce", "infonce", "nce"]
    logsumexp_penalty: float = Field(ge=0.0)  # weight of the squared log-normaliser; published: 0.01, infonce
    horizon_conditioning: bool  # phi also takes the offset k: one critic then serves any discount
    representation: Literal["unit_norm", "raw"]
    representation_size: int = Field(ge=1)  # D, size of phi and psi
    hidden: Hidden  # hidden layers of phi and psi
    temperature: float = Field(gt=0.0)  # divides the logits
    learned_temperature: bool  # train it, starting from the value above
    segments_per_episode: int = Field(ge=1)  # of a batch; with more, some negatives come from within it
    validation_batches: int = Field(ge=1)  # held-out batches, as large as in training, that metrics average
    keep: Literal["last", "best"]  # the weights of the last step, or those of the lowest held-out loss
    patience: int | None = Field(
        ge=1
    )  # measurements without a lower held-out loss that end it; null: none do
    training: TrainingParameters

    @model_validator(mode="after")
    def _raw_representations_scale_themselves(self) -> DynamicsParameters:
        if self.representation == "raw" and self.learned_temperature:
            raise ValueError("learned_temperature needs unit_norm representations: raw ones scale themselves")
        return self
