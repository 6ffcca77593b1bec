"""Configuration of the methods; every default is written here, once, with the paper's value.

Needs no torch, so that a workflow can be validated in a fraction of a second.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from mil.models.presets import PRESETS, preset_values
from preprocessing.config import Section
from preprocessing.errors import ConfigError

DEFAULT_HIDDEN_DIM = 512


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


class PresetSection(Section):
    """A method with `preset`: recommended values for the keys that its section does not write."""

    preset: str | None = Field(
        default=None, description="recommended values of the keys that are not written"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, written: Any) -> Any:
        if not isinstance(written, dict) or not isinstance(written.get("preset"), str):
            return written
        method = cls.model_fields["name"].default
        return {**preset_values(method, written["preset"]), **written}


class _StkimFields(PresetSection):
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    branches: int = Field(default=5, ge=1, description="1: no branch heads, no diversity loss")
    top_k: int = Field(default=10, ge=0, description="best tiles per branch that may be masked")
    drop: float = Field(default=0.6, ge=0, le=1, description="share of these that is masked")
    mode: Literal["count", "bernoulli"] = Field(
        default="count", description="a fixed count, as published, or each tile with this chance"
    )
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after the embedding")


class AcmilConfig(_StkimFields):
    """ACMIL, gated-attention form; `drop` 0.0 is a candidate worth trying with strong encoders."""

    name: Literal["acmil"] = "acmil"
    attention_dim: int = Field(default=128, ge=1)


class AcmilMhaConfig(_StkimFields):
    """ACMIL, multi-head attention form: every branch asks with a query of its own."""

    name: Literal["acmil_mha"] = "acmil_mha"
    heads: int = Field(default=8, ge=1, description="attention heads; must divide hidden_dim")
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="after the attention")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        hidden_dim = self.hidden_dim or DEFAULT_HIDDEN_DIM
        if hidden_dim % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide hidden_dim: {hidden_dim}")
        return self


class _PoolFields(Section):
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after the embedding")
    initialisation: Literal["kaiming", "xavier"] = "xavier"


class MeanConfig(_PoolFields):
    """Mean pooling, a baseline."""

    name: Literal["mean"] = "mean"


class MaxConfig(_PoolFields):
    """Max pooling of every output's logits over tiles, a baseline."""

    name: Literal["max"] = "max"


class ClamConfig(Section):
    """CLAM-SB, or CLAM-MB if `multi_branch`; the sizes are those that the paper calls small."""

    name: Literal["clam"] = "clam"
    multi_branch: bool = Field(default=False, description="an attention branch per output: CLAM-MB")
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    attention_dim: int = Field(default=256, ge=1)
    instances: int = Field(
        default=8, ge=1, description="k: tiles of highest, and of lowest, attention with a label"
    )
    instance_loss: Literal["svm", "cross_entropy"] = "svm"
    subtyping: bool = Field(
        default=False, description="classes exclude one another, and each has tissue of its own"
    )
    bag_weight: float = Field(default=0.7, ge=0, le=1, description="the instance loss has the rest")
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after embedding and gates")
    initialisation: Literal["kaiming", "xavier"] = "xavier"


class InsConfig(Section):
    """An instance classifier after INS on frozen features; for targets of one class of several."""

    name: Literal["ins"] = "ins"
    negative: str | None = Field(
        default=None,
        coerce_numbers_to_str=True,
        description="the class of normal tissue, which tiles of every slide may have; None: tiles "
        "have their slide's class",
    )
    pooling: Literal["mean", "max"] = "mean"
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    instance_weight: float = Field(default=1.0, ge=0, description="of the loss of single tiles")
    prototype_momentum: float = Field(default=0.9, ge=0, lt=1, description="per step")
    belief_start: float = Field(
        default=0.95, ge=0, le=1, description="phi: share of the classifier in a soft label"
    )
    belief_end: float = Field(default=0.8, ge=0, le=1, description="phi at the end of training")
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after the embedding")
    initialisation: Literal["kaiming", "xavier"] = "xavier"


class TransmilConfig(Section):
    """TransMIL, in the form that MHIM-MIL trains."""

    name: Literal["transmil"] = "transmil"
    hidden_dim: int | None = Field(
        default=None, ge=8, multiple_of=8, description="embedding width; None: 512"
    )
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after the embedding")
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="after each attention")
    initialisation: Literal["kaiming", "xavier"] = "xavier"


class DsmilConfig(Section):
    """DSMIL, in the form that MHIM-MIL trains."""

    name: Literal["dsmil"] = "dsmil"
    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    query_dim: int = Field(default=128, ge=1)
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after the embedding")
    initialisation: Literal["kaiming", "xavier"] = "xavier"


class _MhimFields(PresetSection):
    """What MHIM adds to its base; defaults are v1's for Camelyon16, `preset: v2` makes it v2."""

    hidden_dim: int | None = Field(default=None, ge=1, description="embedding width; None: 512")
    activation: Literal["relu", "gelu"] = "relu"
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after the embedding")
    mask_random: float = Field(default=0.5, ge=0, le=1, description="beta_r, share of all tiles")
    mask_low: float = Field(default=0.0, ge=0, le=1, description="beta_l, the easiest tiles")
    mask_high: float = Field(default=0.01, ge=0, le=1, description="beta_h, the hardest tiles")
    high_share: float = Field(
        default=0.5, gt=0, le=1, description="share masked of the mask_high / high_share hardest"
    )
    high_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="cosine: mask_high decays to 0 over the training"
    )
    score: Literal["attention", "instance_probability"] = Field(
        default="attention",
        description="hard: what the teacher attends to (DSMIL: high instance logits), or what "
        "makes it sure of a class",
    )
    keep_ratio: float = Field(
        default=1.0, gt=0, le=1, description="of the tiles left that stay; 1: none is recycled"
    )
    recycled_tokens: int = Field(default=5, ge=1, description="that the other tiles become")
    recycle_heads: int = Field(default=8, ge=1)
    recycle_head_dim: int = Field(default=64, ge=1)
    recycle_dropout: float = Field(default=0.1, ge=0, lt=1)
    query_momentum: float = Field(default=0.9999, ge=0, le=1, description="of the global queries")
    merge_test: bool = Field(default=False, description="tokens of all tiles at inference too")
    consistency_weight: float = Field(default=0.1, ge=0, description="alpha")
    student_temperature: float = Field(default=1.0, gt=0)
    teacher_temperature: float = Field(default=0.1, gt=0)
    student_init: Literal["none", "embedding", "all"] = Field(
        default="embedding", description="what the student takes over from the trained baseline"
    )
    momentum: float = Field(default=0.9999, ge=0, le=1, description="of the teacher, per step")
    momentum_schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="cosine: momentum rises to 1 over the training"
    )
    teacher_dropout: bool = Field(default=False, description="True reproduces the published code")

    @model_validator(mode="after")
    def _merging_recycles(self) -> Self:
        if self.merge_test and self.keep_ratio == 1:
            raise ValueError("merge_test: true, but keep_ratio: 1 trains no tokens; set it below 1")
        return self


class MhimConfig(_MhimFields):
    """MHIM on an ABMIL base."""

    name: Literal["mhim"] = "mhim"
    attention_dim: int = Field(default=128, ge=1)
    scoring: Literal["gated", "tanh", "relu"] = "relu"
    attention_bias: bool = False


class MhimTransmilConfig(_MhimFields):
    """MHIM on a TransMIL base."""

    name: Literal["mhim_transmil"] = "mhim_transmil"
    hidden_dim: int | None = Field(
        default=None, ge=8, multiple_of=8, description="embedding width; None: 512"
    )
    attention_dropout: float = Field(default=0.1, ge=0, lt=1, description="after each attention")
    mask_random: float = Field(default=0.0, ge=0, le=1, description="beta_r, share of all tiles")
    mask_low: float = Field(default=0.8, ge=0, le=1, description="beta_l, the easiest tiles")
    mask_high: float = Field(default=0.03, ge=0, le=1, description="beta_h, the hardest tiles")
    momentum_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="cosine: momentum rises to 1 over the training"
    )


class MhimDsmilConfig(_MhimFields):
    """MHIM on a DSMIL base."""

    name: Literal["mhim_dsmil"] = "mhim_dsmil"
    query_dim: int = Field(default=128, ge=1)


AnyMhimConfig = MhimConfig | MhimTransmilConfig | MhimDsmilConfig

MethodConfig = Annotated[
    AbmilConfig
    | AcmilConfig
    | AcmilMhaConfig
    | AnyMhimConfig
    | TransmilConfig
    | DsmilConfig
    | MeanConfig
    | MaxConfig
    | ClamConfig
    | InsConfig,
    Field(discriminator="name"),
]


_SECTIONS: dict[str, type[Section]] = {
    section.model_fields["name"].default: section for section in get_args(get_args(MethodConfig)[0])
}


def resolved(config: MethodConfig) -> dict[str, Any]:
    """All values, as JSON; not which preset they came from, which makes no model another one."""
    return config.model_dump(mode="json", exclude={"preset"})


def method_lines(name: str | None = None) -> list[str]:
    """What `histomil methods` prints: all methods, or the keys of one with their defaults.

    Raises ConfigError for a name that is none.
    """
    if name is None:
        about = [(n, (s.__doc__ or "").strip().splitlines()[0]) for n, s in _SECTIONS.items()]
        return [f"{n:14} {text}" for n, text in about]
    if name not in _SECTIONS:
        raise ConfigError(f"method {name!r} is not known; known are {', '.join(_SECTIONS)}")
    fields = _SECTIONS[name].model_fields
    lines = [
        f"{key:20} {f.default!s:20} {f.description or ''}".rstrip() for key, f in fields.items()
    ]
    presets = [f"preset {key}: {_written(values)}" for key, values in PRESETS.get(name, {}).items()]
    return [*lines, *presets]


def _written(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
