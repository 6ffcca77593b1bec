"""Heatmaps of a cohort: every slide painted by a model that never saw its patient, on one scale."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from mil.bags import TileOrigin
from mil.checkpoint import Checkpoint, load_checkpoint, refuse_other_origin
from mil.config import StudyConfig
from mil.experiment import rows_with_features, splits_path
from mil.heatmaps.export import write_qupath_geojson
from mil.heatmaps.render import Backdrop, render_heatmap
from mil.heatmaps.scores import CohortScale, TileLayout, TileScores, score_slide
from mil.heatmaps.tables import write_scale, write_tile_table
from mil.splits import load_splits
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError
from preprocessing.manifest import SlideRow
from preprocessing.outlines import Outline, read_outlines, share_inside
from preprocessing.store import FeatureStore, open_store, store_path

ModelFor = Callable[[SlideRow], tuple[Path, str]]
"""The checkpoint that paints a slide, and a note on its role for the page."""


def paint_method(study: StudyConfig, task: str, method: str) -> None:
    """Paints each slide by the fold that held its patient out; strangers to the folds by fold 0."""
    splits = load_splits(splits_path(study, task))

    def model_for(row: SlideRow) -> tuple[Path, str]:
        fold = splits.fold_testing(row.patient_id)
        note = "patient held out from this model" if fold is not None else "patient in no fold"
        return study.fold_dir(task, method, fold or 0) / "checkpoint.safetensors", note

    _paint(study, study.output / "heatmaps" / task / method, model_for)


def paint_with(study: StudyConfig, name: str) -> None:
    """Paints every slide with the checkpoint that `mil.apply` names."""
    path = study.mil.apply[name]
    _paint(study, study.output / "heatmaps" / "apply" / name, lambda _: (path, f"model {name}"))


def _paint(study: StudyConfig, folder: Path, model_for: ModelFor) -> None:
    rows = rows_with_features(study)
    if not rows:
        raise CohortError(f"no slide of {study.preprocessing.manifest} has features to paint")
    model = cache(load_checkpoint)
    painted = [(row, *_score(study, row, model_for, model)) for row in tqdm(rows, unit="slide")]
    scale = CohortScale.fit(scores for _, scores, _ in painted)
    write_scale(scale, folder / "scale.json")
    for row, scores, note in tqdm(painted, unit="map"):
        store = open_store(store_path(study.features_dir, row.slide_id))
        rings = [ring for outline in _outlines(study, row.slide_id) or [] for ring in outline]
        backdrop = Backdrop.of_store(store, lesions=rings)
        write_tile_table(scores, folder / f"{row.slide_id}.csv")
        # QuPath counts from the corner of the scanned bounds where the file names them.
        bounds = store.provenance.bounds_px0
        write_qupath_geojson(
            scores,
            folder / f"{row.slide_id}.geojson",
            origin_px0=bounds[:2] if bounds else (0, 0),
        )
        render_heatmap(scores, scale, backdrop, folder / f"{row.slide_id}.png", note=note)
    predictions = pd.DataFrame(
        [{"slide_id": r.slide_id, "model": s.model, **s.prediction} for r, s, _ in painted]
    )
    with whole_file(folder / "predictions.csv") as partial:
        predictions.to_csv(partial, index=False)
    if study.mil.heatmaps.truth is not None:
        table = tile_metrics(study, [scores for _, scores, _ in painted])
        with whole_file(folder / "tile_metrics.csv") as partial:
            table.to_csv(partial, index=False)


def _score(
    study: StudyConfig, row: SlideRow, model_for: ModelFor, model: Callable[[Path], Checkpoint]
) -> tuple[TileScores, str]:
    path, note = model_for(row)
    checkpoint = model(path)
    store = open_store(store_path(study.features_dir, row.slide_id))
    encoder = study.preprocessing.encoder.name
    refuse_other_origin(checkpoint, TileOrigin.of(store, encoder), path)
    scores = score_slide(
        checkpoint.method,
        checkpoint.task,
        _usable_features(store, encoder),
        layout=TileLayout.of_store(store),
        label=checkpoint.label,
    )
    return scores, note


def _usable_features(store: FeatureStore, encoder: str) -> torch.Tensor:
    return torch.from_numpy(store.features(encoder)[store.usable])


def _outlines(study: StudyConfig, slide_id: str) -> list[Outline] | None:
    """The slide's true outlines, None where nobody has drawn any."""
    if study.mil.heatmaps.truth is None:
        return None
    path = study.mil.heatmaps.truth / f"{slide_id}.geojson"
    return read_outlines(path) if path.is_file() else None


def tile_metrics(study: StudyConfig, painted: list[TileScores]) -> pd.DataFrame:
    """AUROC of attention and evidence for tiles inside the outlines: per slide, and over all tiles.

    A tile is positive from `min_overlap` of its area on; tiles with less, but some, are left out.
    Slides without positive tiles enter the pooled row alone, which spans the whole cohort.
    """
    truths, kept = [], []
    for scores in painted:
        outlines = _outlines(study, scores.slide_id)
        if outlines is not None:
            truths.append(share_inside(outlines, scores.coords_px0, scores.tile_px0))
            kept.append(scores)
    rows = [
        _tile_row(s.slide_id, share, s.attention, s.evidence, study)
        for s, share in zip(kept, truths, strict=True)
    ]
    if kept:
        attention = np.concatenate([s.relative_attention for s in kept])
        evidence = np.concatenate([s.evidence for s in kept])
        rows.append(_tile_row("(all tiles)", np.concatenate(truths), attention, evidence, study))
    return pd.DataFrame(rows)


def _tile_row(
    slide_id: str,
    share: np.ndarray,
    attention: np.ndarray,
    evidence: np.ndarray,
    study: StudyConfig,
) -> dict[str, object]:
    positive = share >= study.mil.heatmaps.min_overlap
    clear = positive | (share == 0)
    both = positive.any() and (clear & ~positive).any()

    def area(values: np.ndarray) -> float:
        return float(roc_auc_score(positive[clear], values[clear])) if both else float("nan")

    return {
        "slide_id": slide_id,
        "tiles": int(clear.sum()),
        "positive_tiles": int(positive.sum()),
        "auroc_evidence": area(evidence),
        "auroc_attention": area(attention),
    }
