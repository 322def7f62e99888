"""Parameters of encoders, which every network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cvl_pipeline.schema import MOST_UNITS, Registry, Strict

if TYPE_CHECKING:
    from cvl_pipeline.networks.encoder import Encoder


class EncoderParameters(Strict):
    """The settings that every encoder has. An encoder adds its own."""

    name: str = Field(description="Name of the encoder, or `module:Class` for one of your own.")


class AutomaticEncoderParameters(EncoderParameters):
    """The settings of ``auto``: none."""

    name: Literal["auto"] = Field("auto", description="`identity` for vectors, `convolutional` for images.")


class IdentityEncoderParameters(EncoderParameters):
    """The settings of ``identity``: none."""

    name: Literal["identity"] = Field("identity", description="Standardised vectors, without an encoder.")


class ConvolutionalEncoderParameters(EncoderParameters):
    """The settings of ``convolutional``."""

    name: Literal["convolutional"] = Field("convolutional", description="Convolutions, for images.")
    channels: int = Field(32, ge=1, le=MOST_UNITS, description="Channels of every convolution.")
    features: int = Field(128, ge=1, le=MOST_UNITS, description="Size of the output.")


ENCODERS: Registry[Encoder] = Registry(
    "encoder",
    "name",
    "cvl_pipeline.networks.encoder:Encoder",
    {
        "auto": ("cvl_pipeline.networks.encoder:AutomaticEncoder", AutomaticEncoderParameters),
        "identity": ("cvl_pipeline.networks.encoder:IdentityEncoder", IdentityEncoderParameters),
        "convolutional": (
            "cvl_pipeline.networks.encoder:ConvolutionalEncoder",
            ConvolutionalEncoderParameters,
        ),
    },
)
