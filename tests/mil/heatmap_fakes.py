"""Hand-made scores, a model and a task whose answers can be worked out on paper."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mil.heatmaps.scores import TileLayout, TileScores
from mil.models.base import BagOutput, MilMethod, Step, TrainingOutput
from mil.tasks.base import Answers, Task
from preprocessing.config import GridConfig, TissueConfig
from preprocessing.stores.store import EncoderRecord, Provenance, SlideFeatures


def make_layout(
    cells: list[tuple[int, int]] | np.ndarray,
    *,
    slide_id: str = "s1",
    tile_px0: tuple[float, float] = (100.0, 100.0),
    stride_px0: tuple[float, float] | None = None,
    origin_px0: tuple[float, float] = (0.0, 0.0),
    mpp: tuple[float, float] = (0.5, 0.5),
) -> TileLayout:
    """Tiles at the given (column, row) places of a lattice."""
    stride = stride_px0 or tile_px0
    corners = np.asarray(origin_px0) + np.asarray(cells, dtype=float).reshape(-1, 2) * stride
    return TileLayout(
        slide_id=slide_id,
        coords_px0=np.rint(corners).astype(np.int32),
        tissue_fraction=np.ones(len(corners), dtype=np.float32),
        tile_px0=tile_px0,
        stride_px0=stride,
        mpp=mpp,
    )


def make_scores(
    cells: list[tuple[int, int]] | np.ndarray,
    *,
    evidence: Any = None,
    attention: Any = None,
    prediction: dict[str, float] | None = None,
    model: str = "abmil, fold 0",
    evidence_name: str = "logit of tumour against the rest",
    bag_tiles: int | None = None,
    **layout: Any,
) -> TileScores:
    place = make_layout(cells, **layout)
    tiles = len(place.coords_px0)
    evidence = np.zeros(tiles) if evidence is None else evidence
    attention = np.full(tiles, 1 / tiles) if attention is None else attention
    return TileScores(
        slide_id=place.slide_id,
        coords_px0=place.coords_px0,
        tissue_fraction=place.tissue_fraction,
        tile_px0=place.tile_px0,
        stride_px0=place.stride_px0,
        mpp=place.mpp,
        attention=np.asarray(attention, dtype=np.float32),
        evidence=np.asarray(evidence, dtype=np.float32),
        prediction=prediction or {"prob_normal": 0.25, "prob_tumour": 0.75},
        model=model,
        evidence_name=evidence_name,
        bag_tiles=bag_tiles,
    )


def stored_slide(read_error: list[bool]) -> SlideFeatures:
    """A slide of three tiles in a row, of which some could not be read; x and y differ in scale."""
    encoder = EncoderRecord(
        dim=2, weight_digest="0", transform="none", precision="float32", licence="none"
    )
    provenance = Provenance(
        slide_id="s1",
        patient_id="p1",
        slide_fingerprint="0",
        vendor="none",
        level0_width=300,
        level0_height=220,
        bounds_px0=None,
        mpp_x=0.5,
        mpp_y=0.25,
        mpp_source="manifest",
        tile_px=32,
        tile_px0_x=90,
        tile_px0_y=91,
        stride_px0_x=100,
        stride_px0_y=101,
        requested_mpp=0.5,
        effective_mpp_x=0.5,
        effective_mpp_y=0.5,
        read_level=0,
        tissue=TissueConfig(),
        grid=GridConfig(mpp=0.5),
        thumbnail_px0_per_px_x=10,
        thumbnail_px0_per_px_y=11,
        mask_px0_per_px_x=20,
        mask_px0_per_px_y=22,
        versions={},
        created="2000-01-01T00:00:00Z",
        encoders={"fake": encoder},
    )
    features = np.ones((3, 2), dtype=np.float16)
    features[read_error] = np.nan
    return SlideFeatures(
        provenance=provenance,
        coords_px0=np.array([[0, 0], [100, 0], [200, 0]], dtype=np.int32),
        tissue_fraction=np.array([0.5, 0.6, 0.7], dtype=np.float32),
        read_error=np.array(read_error),
        quality=np.zeros((3, 3), dtype=np.float32),
        features={"fake": features},
        thumbnail=np.zeros((20, 30, 3), dtype=np.uint8),
        tissue_mask=np.ones((10, 15), dtype=bool),
    )


class FirstFeatureModel(MilMethod):
    """Attention is the softmax of feature 0, a logit is ±feature 1; in training it answers NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def forward(self, bag: Tensor) -> BagOutput:
        scores = bag[:, :1].T
        attention = scores.softmax(dim=1)[0]
        logits = (attention[:, None] * self.tile_logits(bag)).sum(dim=0)
        return BagOutput(logits, scores, attention)

    def training_output(self, bag: Tensor, step: Step) -> TrainingOutput:
        raise AssertionError(f"a heatmap trains nothing, got {bag.shape} at {step}")

    def tile_logits(self, bag: Tensor) -> Tensor:
        logits = bag[:, 1:2] * self.sign
        return logits * torch.nan if self.training else logits


class MarginTask(Task):
    """Two classes; evidence is the difference of their logits."""

    outputs = 2
    evidence_name = "margin"

    def encode(self, targets: pd.DataFrame) -> Tensor:
        return torch.as_tensor(targets["label"].to_numpy())

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, encoded)

    def completed(self, training: Answers, validation: Answers) -> "MarginTask":
        return self

    def predict(self, logits: Tensor) -> pd.DataFrame:
        return pd.DataFrame(logits.softmax(dim=1).numpy(), columns=["prob_no", "prob_yes"])

    def evidence(self, logits: Tensor) -> Tensor:
        return logits[:, 1] - logits[:, 0]

    def state(self) -> dict[str, Any]:
        return {}
