"""Heatmaps of a cohort: every slide painted by models that never saw its patient, on one scale."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm

from mil.bags import TileOrigin
from mil.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_ensemble,
    refuse_other_origin,
    unseen_members,
)
from mil.config import StudyConfig, TruthConfig
from mil.data import rows_with_features, slide_store, task_cohort
from mil.ensemble import applied_dir
from mil.ensemble_files import CHECKPOINT
from mil.experiment import member_runs
from mil.heatmaps.export import write_qupath_geojson
from mil.heatmaps.render import Backdrop, render_heatmap
from mil.heatmaps.scores import (
    CohortScale,
    TileLayout,
    TileScores,
    average_scores,
    finite_features,
    score_slide,
)
from mil.heatmaps.tables import write_scale, write_tile_table
from mil.predictions import write_csv
from preprocessing.errors import CheckpointError, CohortError, ConfigError
from preprocessing.manifest import SlideRow
from preprocessing.outlines import Outline, read_outlines, share_inside

Members = dict[Path, Checkpoint]
MembersFor = Callable[[SlideRow], tuple[Members, str]]
"""The models that paint a slide together, and a note on their role for the page."""


def heatmap_dir(study: StudyConfig, task: str, method: str) -> Path:
    return study.output / "heatmaps" / task / method


def applied_maps_dir(study: StudyConfig, name: str) -> Path:
    return applied_dir(study, name) / "heatmaps"


def paint_method(study: StudyConfig, task: str, method: str) -> None:
    """Paints each labelled slide that a fold held out, by the models (one a seed) of that fold.

    Where several repeats held a patient out, the first of them paints.
    """
    splits, runs = member_runs(study, task, method)
    folds = [
        {
            path: _member_of_run(path, runs[k, seed])
            for seed in study.seeds(method)
            for path in [study.member_dir(task, method, k, seed) / CHECKPOINT]
        }
        for k in range(len(splits.folds))
    ]
    labelled = task_cohort(study, task).slides.index

    def members_for(row: SlideRow) -> tuple[Members, str]:
        fold = splits.fold_testing(row.patient_id)
        assert fold is not None
        return folds[fold], "patient held out from this model"

    rows = [
        row
        for row in rows_with_features(study)
        if row.slide_id in labelled and splits.fold_testing(row.patient_id) is not None
    ]
    scale = CohortScale.joint([member.scale for fold in folds for member in fold.values()])
    folder = heatmap_dir(study, task, method)
    _paint(study, rows, folder, (scale, members_for), truth=study.mil.tasks[task].truth)


def _member_of_run(path: Path, run_id: str) -> Checkpoint:
    """A model of the study as it stands: an older one may have been trained on those it paints."""
    if not path.is_file():
        raise CohortError(f"no model {path}: train that fold first")
    member = load_checkpoint(path)
    if member.notes.get("run") != run_id:
        raise CheckpointError(
            f"{path} was trained under other settings, labels or splits than now; train that fold "
            "anew"
        )
    return member


def paint_with(study: StudyConfig, name: str) -> None:
    """Paints every slide with the models that `mil.apply` names, but for those that were trained
    on its patient; where all of them were, all paint, and the map says so.
    """
    members = load_ensemble(study.mil.apply[name])
    scale = CohortScale.joint([member.scale for member in members.values()])
    rows = rows_with_features(study)
    images: dict[str, list[str]] = {row.patient_id: [] for row in rows}
    for row in rows:
        store = slide_store(study, row.slide_id)
        images[row.patient_id].append(store.provenance.slide_fingerprint)

    def members_for(row: SlideRow) -> tuple[Members, str]:
        chosen, seen = unseen_members(members, row.patient_id, images[row.patient_id])
        return chosen, f"model {name}" + (", trained on this patient" if seen else "")

    _paint(study, rows, applied_maps_dir(study, name), (scale, members_for))


def _paint(
    study: StudyConfig,
    rows: list[SlideRow],
    folder: Path,
    models: tuple[CohortScale, MembersFor],
    *,
    truth: TruthConfig | None = None,
) -> None:
    """`models`: the scale that all maps share, and which models paint a slide."""
    if not rows:
        raise CohortError(f"no slide of {study.preprocessing.manifest} has features to paint")
    if truth is not None and not truth.folder.is_dir():
        raise ConfigError(f"truth.folder: no folder {truth.folder}; correct it or leave it out")
    _remove_strangers(folder, {row.slide_id for row in rows})
    scale, members_for = models
    write_scale(scale, folder / "scale.json")
    predictions, tiles = [], []
    for row in tqdm(rows, unit="map", mininterval=2):
        members, note = members_for(row)
        store = slide_store(study, row.slide_id)
        of_patient = [other.slide_id for other in rows if other.patient_id == row.patient_id]
        scores = average_scores(
            [_score(study, m, path, row.slide_id, of_patient) for path, m in members.items()]
        )
        outlines = _outlines(truth, row.slide_id)
        rings = [ring for outline in outlines or [] for ring in outline]
        write_tile_table(scores, folder / f"{row.slide_id}.csv")
        # QuPath counts from the corner of the scanned bounds where the file names them.
        bounds = store.provenance.bounds_px0
        write_qupath_geojson(
            scores,
            folder / f"{row.slide_id}.geojson",
            origin_px0=bounds[:2] if bounds else (0, 0),
        )
        backdrop = Backdrop.of_store(store, lesions=rings)
        render_heatmap(scores, scale, backdrop, folder / f"{row.slide_id}.png", note=note)
        predictions.append({"slide_id": row.slide_id, "model": scores.model, **scores.prediction})
        if truth is not None and outlines is not None:
            tiles.append(TruthTiles.of(scores, outlines, truth.min_overlap))
    if truth is not None:
        write_csv(tile_metrics(tiles), folder / "tile_metrics.csv")
    write_csv(pd.DataFrame(predictions), folder / "predictions.csv")


def _remove_strangers(folder: Path, slide_ids: set[str]) -> None:
    """Maps of slides that are no longer in the study, and what a killed run left half written."""
    for path in [*folder.glob("*.png"), *folder.glob("*.geojson"), *folder.glob("*.csv")]:
        if path.stem not in slide_ids:
            path.unlink()


def _score(
    study: StudyConfig, model: Checkpoint, path: Path, slide_id: str, of_patient: list[str]
) -> TileScores:
    """`of_patient`: the slides of the same patient, itself among them, in the order of a bag."""
    encoder = study.preprocessing.encoder.name

    def features(of: str) -> Tensor:
        store = slide_store(study, of)
        refuse_other_origin(model, TileOrigin.of(store, encoder), path)
        return finite_features(torch.from_numpy(store.features(encoder)[store.usable]), of)

    place = of_patient.index(slide_id)
    others = (of_patient[:place], of_patient[place + 1 :])
    before, after = others if model.section.bag == "patient" else ([], [])
    return score_slide(
        model.method,
        model.task,
        features(slide_id),
        layout=TileLayout.of_store(slide_store(study, slide_id)),
        label=model.label,
        before=list(map(features, before)),
        after=list(map(features, after)),
    )


def _outlines(truth: TruthConfig | None, slide_id: str) -> list[Outline] | None:
    """The slide's true outlines, None where nobody has drawn any."""
    if truth is None or not (path := truth.folder / f"{slide_id}.geojson").is_file():
        return None
    return read_outlines(path)


@dataclass(frozen=True)
class TruthTiles:
    """Tiles of one slide that are clearly inside an outline or clearly outside, with their scores.

    A tile is positive from `min_overlap` of its area on; tiles with less, but some, are left out.
    """

    slide_id: str
    positive: NDArray[np.bool_]
    evidence: NDArray[np.floating]
    attention: NDArray[np.floating]

    @classmethod
    def of(cls, scores: TileScores, outlines: list[Outline], min_overlap: float) -> "TruthTiles":
        share = share_inside(outlines, scores.coords_px0, scores.tile_px0)
        positive = share >= min_overlap
        clear = positive | (share == 0)
        return cls(
            scores.slide_id,
            positive[clear],
            scores.evidence[clear],
            scores.relative_attention[clear],
        )

    @classmethod
    def pooled(cls, slides: "list[TruthTiles]") -> "TruthTiles":
        names = ("positive", "evidence", "attention")
        return cls("(all tiles)", *(np.concatenate([getattr(s, n) for s in slides]) for n in names))

    def auroc(self, values: NDArray[np.floating]) -> float:
        both = 0 < self.positive.sum() < len(self.positive)
        return float(roc_auc_score(self.positive, values)) if both else float("nan")


def tile_metrics(slides: list[TruthTiles]) -> pd.DataFrame:
    """AUROC of evidence and attention for single tiles: per slide, and pooled over all tiles."""
    rows = [
        {
            "slide_id": s.slide_id,
            "tiles": len(s.positive),
            "positive_tiles": int(s.positive.sum()),
            "auroc_evidence": s.auroc(s.evidence),
            "auroc_attention": s.auroc(s.attention),
        }
        for s in [*slides, *([TruthTiles.pooled(slides)] if slides else [])]
    ]
    columns = ["slide_id", "tiles", "positive_tiles", "auroc_evidence", "auroc_attention"]
    return pd.DataFrame(rows, columns=columns)
