"""The `mil.train` section of a study's YAML: how models are fitted, and with which memory."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from preprocessing.config import Section

Residence = Literal["auto", "memory", "stream"]


class TrainConfig(Section):
    epochs: int = Field(default=50, ge=1)
    optimizer: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="of the learning rate; cosine: falls to 0 over the epochs"
    )
    warmup_epochs: float = Field(
        default=0, ge=0, description="in which the learning rate rises to its full value"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="longest gradient of a step; None: of any length"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of training's forward pass; weights stay float32"
    )
    compile: bool = Field(
        default=False, description="torch.compile: for long runs on a GPU; slower on most CPUs"
    )
    bags_per_step: Annotated[int, Field(ge=1)] | Literal["epoch"] = Field(
        default=1,
        description="epoch: one step an epoch over all training bags, in the memory of one pass",
    )
    tiles_per_pass: int = Field(
        default=4096, ge=1, description="bags of a step are read together up to so many tiles"
    )
    sampling: Literal["shuffle", "balanced"] = Field(
        default="shuffle",
        description="balanced: an epoch reads every class equally often, bags with replacement",
    )
    max_tiles: int | None = Field(
        default=None, ge=1, description="training sees so many of a bag's tiles, anew each epoch"
    )
    feature_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of the features that a bag of a step lacks"
    )
    patience: int = Field(
        default=15, ge=1, description="epochs without a better validation loss before stopping"
    )
    min_epochs: int = Field(default=10, ge=1, description="no early stop before this epoch")
    seed: int = 0
    seeds: int = Field(default=1, ge=1, description="models a fold, from seed, seed + 1, ...")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    features: Residence = Field(
        default="auto",
        description="in memory, or streamed from disk; auto: in memory if they take at most 60 % "
        "of what is free",
    )
    tensorboard: bool = Field(default=False, description="events in <member>/tensorboard")

    def settings(self) -> dict[str, object]:
        """What makes a model another one: not its seed, nor where its features and results lie."""
        free = {"seed", "seeds", "device", "features", "tensorboard"}
        return self.model_dump(mode="json", exclude=free)

    @model_validator(mode="after")
    def _training_outlasts_the_warmup(self) -> "TrainConfig":
        if self.warmup_epochs >= self.epochs:
            msg = f"warmup_epochs: {self.warmup_epochs:g} must be less than epochs, {self.epochs}"
            raise ValueError(msg)
        return self
