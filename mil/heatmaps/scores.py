"""What a trained model says about every tile of a slide, and the scale that a cohort shares.

Attention has neither sign nor class; evidence is the task's reading of the model's answer to a bag
that holds this tile alone. Both are kept, side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.models.base import BagOutput, MilMethod
from mil.tasks.base import Task
from preprocessing.errors import CheckpointError, MppError, StoreError
from preprocessing.stores.store import FeatureStore

ATTENTION_LIMIT = 6.0
"""Attention is shown between 1/64 and 64 times its uniform value, in every slide."""

LEFT_TO_TABLES = ("uncalibrated_", "survival_")
"""Answers that the prediction tables hold and a caption does not."""

EVIDENCE_QUANTILE = 0.99
MIN_EVIDENCE_LIMIT = 1e-3  # a cohort of equal, even zero, evidence still has a scale


@dataclass(frozen=True, eq=False)
class TileLayout:
    """Where N >= 1 tiles of a slide lie.

    `coords_px0` (N, 2) int32 are top-left corners, rounded from a lattice of `stride_px0`; pairs
    are (x, y) or (width, height). `mpp` is that of level 0. `one_lattice` is False where another
    tool may have given every piece of tissue a lattice of its own.
    """

    slide_id: str
    coords_px0: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]
    tile_px0: tuple[float, float]
    stride_px0: tuple[float, float]
    mpp: tuple[float, float]
    one_lattice: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        tiles = len(self.coords_px0)
        if tiles == 0 or self.coords_px0.shape != (tiles, 2):
            raise StoreError(
                f"slide {self.slide_id!r}: expected coordinates (N, 2) of one usable tile or "
                f"more, got shape {self.coords_px0.shape}; look at its tissue mask, read errors "
                "and limits of quality"
            )
        if self.tissue_fraction.shape != (tiles,):
            raise StoreError(
                f"slide {self.slide_id!r}: {tiles} tiles, but tissue fractions of shape "
                f"{self.tissue_fraction.shape}"
            )
        for name in ("tile_px0", "stride_px0"):
            pair = getattr(self, name)
            if not all(np.isfinite(pair)) or min(pair) <= 0:
                raise StoreError(f"slide {self.slide_id!r}: {name} must be positive, got {pair}")
        if not all(np.isfinite(self.mpp)) or min(self.mpp) <= 0:
            raise MppError(
                self.slide_id,
                f"a heatmap needs the micrometres per level-0 pixel, got {self.mpp}; set `mpp` in "
                "the manifest and extract the features again",
            )

    @classmethod
    def of_store(cls, store: FeatureStore) -> TileLayout:
        """The usable tiles of `store`: those that could not be read, or are beyond the limits of
        quality, have no place on a map.
        """
        origin = store.provenance
        return TileLayout(
            slide_id=origin.slide_id,
            coords_px0=store.coords_px0[store.usable],
            tissue_fraction=store.tissue_fraction[store.usable],
            tile_px0=(origin.tile_px0_x, origin.tile_px0_y),
            stride_px0=(origin.stride_px0_x, origin.stride_px0_y),
            mpp=(origin.mpp_x, origin.mpp_y),
            one_lattice=not origin.imported_from,
        )


@dataclass(frozen=True, eq=False)
class TileScores(TileLayout):
    """A model's view of a slide: `attention` (N,) sums to 1, `evidence` (N,) is signed, 0 neutral.

    `prediction` is the answer to the whole slide, `model` names the checkpoint and its fold, and
    `evidence_name` says what evidence measures. Where the model answered for all slides of a
    patient as one bag, `bag_tiles` counts their tiles: attention then sums to 1 over all of these,
    here to this slide's share, and the prediction is the patient's.
    """

    attention: NDArray[np.float32]
    evidence: NDArray[np.float32]
    prediction: dict[str, float]
    model: str
    evidence_name: str
    bag_tiles: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        tiles = len(self.coords_px0)
        for name in ("attention", "evidence"):
            values = getattr(self, name)
            if values.shape != (tiles,) or not np.isfinite(values).all():
                bad = int((~np.isfinite(values)).sum())
                raise CheckpointError(
                    f"slide {self.slide_id!r}, model {self.model!r}: expected {tiles} finite "
                    f"values of {name}, got shape {values.shape} with {bad} not finite; the "
                    "checkpoint is damaged or was trained on other features"
                )
        if self.bag_tiles is not None and self.bag_tiles < tiles:
            raise CheckpointError(
                f"slide {self.slide_id!r}: its {tiles} tiles cannot be part of a bag of "
                f"{self.bag_tiles}"
            )
        total = float(self.attention.sum(dtype=np.float64))
        least = 0 if self.bag_tiles is not None and self.bag_tiles > tiles else 1
        if self.attention.min() < 0 or not least - 1e-3 <= total <= 1 + 1e-3:
            raise CheckpointError(
                f"slide {self.slide_id!r}, model {self.model!r}: attention must not be negative "
                f"and sum to 1 over its bag, got minimum {self.attention.min():.3g} and sum "
                f"{total:.6g}"
            )

    @property
    def relative_attention(self) -> NDArray[np.float64]:
        """(N,) attention times the number of tiles of the bag: 1 is uniform."""
        return self.attention.astype(np.float64) * (self.bag_tiles or len(self.attention))

    @property
    def log2_attention(self) -> NDArray[np.float64]:
        """(N,) log2 of the relative attention within ±`ATTENTION_LIMIT`: 0 is uniform."""
        return log2_relative_attention(self.relative_attention)


def log2_relative_attention(relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2 of attention relative to uniform, within ±`ATTENTION_LIMIT`; NaN stays NaN."""
    bounded = np.clip(relative, 2.0**-ATTENTION_LIMIT, 2.0**ATTENTION_LIMIT)
    return np.log2(bounded)


def score_slide(
    model: MilMethod,
    task: Task,
    features: Tensor,
    *,
    layout: TileLayout,
    label: str,
    before: Sequence[Tensor] = (),
    after: Sequence[Tensor] = (),
) -> TileScores:
    """Scores the usable tiles of a slide: row i of `features` (N, D) is tile i of `layout`.

    Tiles that cannot be used are in neither. `label` names the checkpoint and its fold; `before`
    and `after` are features of the other slides of the bag, in its order, where it is a patient's.
    The model answers in evaluation mode and is left in the mode in which it came.
    """
    tiles = len(layout.coords_px0)
    if len(features) != tiles:
        raise StoreError(
            f"slide {layout.slide_id!r}: features of {len(features)} tiles for coordinates of "
            f"{tiles}; pass those of the usable tiles alone"
        )
    slides = [*before, finite_features(features, layout.slide_id), *after]
    start = sum(map(len, before))
    mine = slice(start, start + tiles)
    output, tile_logits = _answers(model, torch.cat(slides), mine)
    attention = output.attention.double().cpu()
    total = float(attention.sum())
    if not abs(total - 1) <= 1e-2:  # a NaN fails too
        raise CheckpointError(
            f"slide {layout.slide_id!r}, model {label!r}: attention sums to {total:.4g}, not to 1"
        )
    prediction = task.predict(output.logits.float().cpu()[None]).iloc[0]
    return TileScores(
        **{field.name: getattr(layout, field.name) for field in fields(TileLayout)},
        attention=(attention[mine] / total).numpy().astype(np.float32),
        evidence=task.evidence(tile_logits.float().cpu()).numpy().astype(np.float32),
        prediction={
            str(name): float(value)
            for name, value in prediction.items()
            if not str(name).startswith(LEFT_TO_TABLES)
        },
        model=label,
        evidence_name=task.evidence_name,
        bag_tiles=sum(map(len, slides)) if len(slides) > 1 else None,
    )


def average_scores(members: Sequence[TileScores]) -> TileScores:
    """One view of a slide by several models: the means of attention, evidence and prediction."""
    first = members[0]
    if len(members) == 1:
        return first
    return replace(
        first,
        attention=np.mean([m.attention for m in members], axis=0, dtype=np.float64).astype("f4"),
        evidence=np.mean([m.evidence for m in members], axis=0, dtype=np.float64).astype("f4"),
        prediction={
            name: float(np.mean([m.prediction[name] for m in members])) for name in first.prediction
        },
        model=f"mean of {len(members)} models: {first.model}, ...",
    )


def _answers(model: MilMethod, bag: Tensor, mine: slice) -> tuple[BagOutput, Tensor]:
    """The answer to the bag, and to each of the tiles `mine` alone."""
    parameter = next(model.parameters(), None)
    if parameter is not None:
        bag = bag.to(device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(bag), model.tile_logits(bag[mine])
    finally:
        model.train(was_training)


def finite_features(features: Tensor, slide_id: str) -> Tensor:
    """As float32; refuses what is not finite."""
    bad = int((~torch.isfinite(features).all(dim=1)).sum())
    if bad:
        raise StoreError(
            f"slide {slide_id!r}: {bad} of {len(features)} tiles have features that are not finite "
            "though they count as usable; extract the features again"
        )
    return features.float()


@dataclass(frozen=True)
class CohortScale:
    """The colour scale that every slide of a cohort shares, so that equal evidence looks equal.

    `evidence_limit` is the 99th percentile of |evidence| over all tiles of the cohort; the scale
    runs from minus to plus it.
    """

    evidence_limit: float
    evidence_name: str
    slides: int
    tiles: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.evidence_limit) and self.evidence_limit > 0):
            raise ValueError(f"evidence_limit must be positive, got {self.evidence_limit}")

    @classmethod
    def fit(cls, evidence: Iterable[NDArray[np.floating]], name: str) -> CohortScale:
        """The scale of tiles' evidence, one array a slide, that was all measured as `name` says."""
        magnitudes = [np.abs(values) for values in evidence]
        if not magnitudes:
            raise ValueError(f"a scale of {name!r} needs at least one slide, got none")
        pooled = np.concatenate(magnitudes)
        return cls(
            evidence_limit=max(float(np.quantile(pooled, EVIDENCE_QUANTILE)), MIN_EVIDENCE_LIMIT),
            evidence_name=name,
            slides=len(magnitudes),
            tiles=len(pooled),
        )

    @classmethod
    def joint(cls, scales: Sequence[CohortScale]) -> CohortScale:
        """One scale for maps of several models: wide enough for each of them."""
        names = {scale.evidence_name for scale in scales}
        if len(names) != 1:
            raise ValueError(f"a scale needs models with one kind of evidence, got {sorted(names)}")
        return cls(
            evidence_limit=max(scale.evidence_limit for scale in scales),
            evidence_name=names.pop(),
            slides=sum(scale.slides for scale in scales),
            tiles=sum(scale.tiles for scale in scales),
        )
