"""Parameters of encoders, which every network has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cvl_pipeline.schema import MOST_UNITS, Choice, Hidden, Registry, Strict

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
    features: int = Field(128, ge=2, le=MOST_UNITS, description="Size of the output.")


class ResNetEncoderParameters(EncoderParameters):
    """The settings of ``resnet``."""

    name: Literal["resnet"] = Field(
        "resnet", description="A small residual network, for images of 64 to 128 pixels."
    )
    channels: int = Field(
        32,
        ge=1,
        le=MOST_UNITS // 4,
        description="Channels of the first blocks; later ones have twice and four times as many.",
    )
    features: int = Field(128, ge=2, le=MOST_UNITS, description="Size of the output.")


class MLPEncoderParameters(EncoderParameters):
    """The settings of ``mlp``."""

    name: Literal["mlp"] = Field("mlp", description="Layers of its own for a vector, such as beside images.")
    hidden: Hidden = Field((64,), description="Sizes of the hidden layers.")
    features: int = Field(64, ge=2, le=MOST_UNITS, description="Size of the output.")


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
        "resnet": ("cvl_pipeline.networks.encoder:ResNetEncoder", ResNetEncoderParameters),
        "mlp": ("cvl_pipeline.networks.encoder:MLPEncoder", MLPEncoderParameters),
    },
)


class EncodingParameters(Strict):
    """How observations are encoded, in every network."""

    encoder: Annotated[EncoderParameters, Choice(ENCODERS)] = Field(
        AutomaticEncoderParameters(),
        description="What turns observations into features. If observations have several parts, it is for every image, "
        "and vectors stay as they are.",
    )
    part_encoders: Annotated[
        dict[str, EncoderParameters], Choice(ENCODERS, mapping=True, labels=r"\S(.*\S)?")
    ] = Field(
        {},
        description="Encoders of single parts of the observations, by the part's name, such as "
        "`{images.wrist: {name: resnet}}`.",
    )

    @property
    def encoding(self) -> dict[str, Any]:
        """Plain parameters of all encoders, as networks take them."""
        parts = {name: part.model_dump(mode="json") for name, part in self.part_encoders.items()}
        return self.encoder.model_dump(mode="json") | ({"parts": parts} if parts else {})

    @property
    def own_encoder(self) -> bool:
        """Whether an encoder is the user's own code."""
        return any(":" in part.name for part in (self.encoder, *self.part_encoders.values()))
