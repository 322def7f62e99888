"""Parameters that every training stage shares."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from cvl_pipeline.schema import (
    MOST_PROCESSES,
    MOST_ROWS,
    MOST_STEPS,
    Strict,
    listed,
    operational,
)

Loggers = Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(listed)]


class TrainingParameters(Strict):
    """How a network is trained."""

    steps: int = Field(4000, ge=1, le=MOST_STEPS, description="Gradient steps.")
    batch_size: int = Field(
        256, ge=2, le=MOST_ROWS, description="Size of a batch, of all processes together."
    )
    learning_rate: float = Field(
        1e-3,
        gt=0.0,
        description="Learning rate of Adam at the first step. It falls to zero along half a cosine.",
    )
    weight_decay: float | None = Field(
        None,
        ge=0.0,
        le=100.0,
        description="Decoupled weight decay: a step multiplies parameters by 1 - learning rate * this, as in AdamW. "
        "The noise of CVL's policies does not decay. null: 1 for policies of the objective `awr` (not in `crl`) and of "
        "one-step methods, and for values of the latter, else 0.",
    )
    validation_interval: int = Field(
        500, ge=1, le=MOST_STEPS, description="Gradient steps between held-out measurements."
    )
    random_shift: int = Field(
        0,
        ge=0,
        le=64,
        description="Largest shift of images in training, in pixels down and right, drawn for each image of a batch: "
        "DrQ's augmentation. 0: none.",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="Precision of the networks' matrix products. `tf32` rounds their factors to 10 bits, on GPUs that "
        "can. Losses stay in float32 with `bfloat16`.",
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="`auto` uses an NVIDIA or AMD GPU if there is one."
    )
    devices: int = operational(
        1,
        ge=1,
        le=MOST_PROCESSES,
        description="Processes on each machine, one per GPU. See docs/training.md.",
    )
    nodes: int = operational(1, ge=1, le=MOST_PROCESSES, description="Machines.")
    rendezvous: str | None = operational(
        None, description="`host:port` where the machines meet. null: found through SLURM, or one machine."
    )
    checkpoint_seconds: float = operational(
        10.0, gt=0.0, description="Seconds between saves of unfinished training."
    )
    checkpoint_steps: int | None = operational(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Gradient steps between saves of unfinished training. null: by time alone.",
    )
    loggers: Loggers = operational(
        ("tensorboard",),
        description="Loggers beside metrics.csv: `tensorboard` (if it is installed), `mlflow`, `wandb`.",
    )

    @model_validator(mode="after")
    def _processes_share_the_batch(self) -> TrainingParameters:
        processes = self.devices * self.nodes
        if self.batch_size % processes:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {processes} processes (devices * nodes) cannot "
                "share evenly; it is the batch of all processes together"
            )
        if self.rendezvous is not None:
            address = re.fullmatch(r"[\w.\-]+:(\d{1,5})", self.rendezvous)
            if address is None or not 0 < int(address[1]) < 65536:
                raise ValueError(
                    f"rendezvous is '{self.rendezvous}': it must be host:port, such as node0:29500"
                )
        return self
