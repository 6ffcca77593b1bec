"""Configuration of the methods; every default is written here, once, with the paper's value.

Needs no torch, so that a workflow can be validated in a fraction of a second.
"""

from typing import Annotated, Literal

from pydantic import Field

from preprocessing.config import Section


class AbmilConfig(Section):
    """Gated ABMIL as in the ACMIL repository."""

    name: Literal["abmil"] = "abmil"
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    attention_dim: int = Field(default=128, ge=1)
    scoring: Literal["gated", "tanh", "relu"] = "gated"
    activation: Literal["relu", "gelu"] = "relu"
    embedding_bias: bool = False
    attention_bias: bool = True
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after the embedding")
    initialisation: Literal["kaiming", "xavier"] = "kaiming"


class AcmilConfig(Section):
    """ACMIL, gated-attention form; `drop` 0.0 is a candidate worth trying with strong encoders."""

    name: Literal["acmil"] = "acmil"
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    attention_dim: int = Field(default=128, ge=1)
    branches: int = Field(default=5, ge=1, description="1: no branch heads, no diversity loss")
    top_k: int = Field(default=10, ge=0, description="best tiles per branch that may be masked")
    drop: float = Field(default=0.6, ge=0, le=1, description="share of these that is masked")
    mode: Literal["count", "bernoulli"] = Field(
        default="count", description="a fixed count, as published, or each tile with this chance"
    )
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after the embedding")


class MhimConfig(Section):
    """MHIM v1 on an ABMIL base; defaults are the paper's for Camelyon16."""

    name: Literal["mhim"] = "mhim"
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    attention_dim: int = Field(default=128, ge=1)
    scoring: Literal["gated", "tanh", "relu"] = "relu"
    activation: Literal["relu", "gelu"] = "relu"
    attention_bias: bool = False
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after the embedding")
    mask_random: float = Field(default=0.5, ge=0, le=1, description="beta_r, share of all tiles")
    mask_low: float = Field(default=0.0, ge=0, le=1, description="beta_l, lowest teacher attention")
    mask_high: float = Field(default=0.01, ge=0, le=1, description="beta_h, highest attention")
    high_share: float = Field(
        default=0.5, gt=0, le=1, description="share masked of the mask_high / high_share hardest"
    )
    high_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="cosine: mask_high decays to 0 over the training"
    )
    consistency_weight: float = Field(default=0.1, ge=0, description="alpha")
    student_temperature: float = Field(default=1.0, gt=0)
    teacher_temperature: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9999, ge=0, le=1, description="of the teacher, per step")
    momentum_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="cosine: momentum rises to 1 over the training"
    )
    teacher_dropout: bool = Field(default=False, description="True reproduces the published code")


MethodConfig = Annotated[AbmilConfig | AcmilConfig | MhimConfig, Field(discriminator="name")]
