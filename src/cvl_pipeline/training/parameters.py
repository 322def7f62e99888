"""Parameters that every training stage shares."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Hidden = tuple[Annotated[int, Field(ge=1)], ...]
"""Sizes of hidden layers, first to last."""


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return value.split()
    return [value] if isinstance(value, int | float) else value


# Kedro's --params cannot carry a list: there, several numbers are one string with spaces between them, and a
# single one is a bare number.
Integers = Annotated[tuple[int, ...], BeforeValidator(_listed)]
Floats = Annotated[tuple[float, ...], BeforeValidator(_listed)]
Loggers = Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(_listed)]


class Strict(BaseModel):
    """A frozen model that refuses unknown fields, so that a typo never passes silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


OPERATION = ("devices", "nodes", "rendezvous", "checkpoint_seconds", "checkpoint_steps", "loggers")
"""Parameters of training that change none of its results."""


class TrainingParameters(Strict):
    """How a network is trained."""

    steps: int = Field(ge=1)  # gradient steps
    batch_size: int = Field(ge=2)  # of all processes together
    learning_rate: float = Field(gt=0.0)  # of Adam at the first step; falls to zero along half a cosine
    validation_interval: int = Field(ge=1)  # gradient steps between held-out measurements
    precision: Literal["float32", "bfloat16"]  # of the networks' matrix products; losses stay in float32
    accelerator: Literal["auto", "cpu", "gpu"]  # auto takes an NVIDIA or AMD GPU if there is one
    devices: int = Field(ge=1)  # processes on each machine, one a GPU; see docs/training.md
    nodes: int = Field(ge=1)  # machines
    rendezvous: str | None  # host:port where the machines meet; null: found by SLURM, or one machine
    checkpoint_seconds: float = Field(gt=0.0)  # unfinished training is saved as often, after a chunk of steps
    checkpoint_steps: int | None = Field(ge=1)  # and after so many gradient steps; null: by time alone
    loggers: Loggers  # beside metrics.csv: tensorboard (if it is installed), mlflow, wandb

    @model_validator(mode="after")
    def _processes_share_the_batch(self) -> TrainingParameters:
        processes = self.devices * self.nodes
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {processes} processes (devices * nodes) cannot "
                "share evenly: it is that of all of them together"
            )
        if self.rendezvous is not None and not re.fullmatch(r"[\w.\-]+:\d{1,5}", self.rendezvous):
            raise ValueError(f"rendezvous is '{self.rendezvous}': it must be host:port, such as node0:29500")
        return self
