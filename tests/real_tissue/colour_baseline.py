"""What colour alone achieves on the folds of a finished study, beside its models.

    python tests/real_tissue/colour_baseline.py --config <out>/study.yaml

Logistic regressions on colour read from the stored thumbnails, nothing else:

- slide: mean and standard deviation of red, green and blue over a slide's tissue tiles;
- tile: the same six numbers of every tile, each tile taking its slide's label; a slide's score is
  the mean of its highest tenth of tiles. Against the outlines it has a tile AUROC too;
- outlined: as slide, over the tiles inside the true outline alone, for tasks whose slides all have
  one. It is told where to look, which no model is: as much as colour can know.

All train on the training patients of each fold and are asked about its test patients, as the
models are (they have no use for the validation patients).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.append(str(Path(__file__).parents[2]))  # a clone that is not installed runs it too

from mil.config import StudyConfig, TruthConfig, load_study
from mil.data import splits_path, task_cohort
from mil.evaluation.evaluate import evaluation_dir
from mil.evaluation.statistics import bootstrap_intervals, metrics_for, whole
from mil.folds.splits import Fold, load_splits
from mil.paint import heatmap_dir
from mil.tasks.config import SurvivalConfig
from preprocessing.outlines import read_outlines, share_inside
from preprocessing.stores.store import open_store, store_path

_TOP_SHARE = 0.1

Colours = dict[str, NDArray[np.float64]]
"""Values of every usable tile, keyed by slide_id."""


def tile_colours(
    thumbnail: NDArray[np.uint8],
    coords_px0: NDArray[np.int32],
    *,
    tile_px0: tuple[float, float],
    px0_per_px: tuple[float, float],
) -> NDArray[np.float64]:
    """(N, 6): mean, then standard deviation, of red, green and blue in each tile's window."""
    first = np.rint(coords_px0 / np.array(px0_per_px)).astype(int)
    last = np.maximum(
        np.rint((coords_px0 + np.array(tile_px0)) / px0_per_px).astype(int), first + 1
    )
    rows = []
    for (left, top), (right, bottom) in zip(first, last, strict=True):
        window = thumbnail[top:bottom, left:right].reshape(-1, 3).astype(np.float64)
        rows.append(np.concatenate([window.mean(axis=0), window.std(axis=0)]))
    return np.array(rows)


def read_colours(study: StudyConfig, slide_ids: list[str]) -> Colours:
    """slide_id -> (N, 6), rows as the usable tiles of the slide's store."""
    colours = {}
    for slide_id in slide_ids:
        store = open_store(store_path(study.features_dir, slide_id))
        origin = store.provenance
        colours[slide_id] = tile_colours(
            store.thumbnail,
            store.coords_px0[store.usable],
            tile_px0=(origin.tile_px0_x, origin.tile_px0_y),
            px0_per_px=(origin.thumbnail_px0_per_px_x, origin.thumbnail_px0_per_px_y),
        )
    return colours


def slide_features(tiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 6) -> (6,): mean and standard deviation over all pixels of the (equally large) tiles."""
    means, deviations = tiles[:, :3], tiles[:, 3:]
    variance = (deviations**2).mean(axis=0) + means.var(axis=0)
    return np.concatenate([means.mean(axis=0), np.sqrt(variance)])


def _regression() -> Pipeline:
    return make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )


def answer_fold(
    slides: pd.DataFrame, fold: Fold, colours: Colours, positive: pd.Series
) -> tuple[pd.Series, Colours]:
    """The tile regression's scores of the fold's test slides, and of their tiles."""
    train = slides.index[slides["patient_id"].isin(fold.train)]
    test = slides.index[slides["patient_id"].isin(fold.test)]
    model = _regression().fit(
        np.concatenate([colours[s] for s in train]),
        np.concatenate([np.full(len(colours[s]), positive[s]) for s in train]),
    )
    tiles = {s: model.decision_function(colours[s]) for s in test}
    return pd.Series({s: _top_mean(scores) for s, scores in tiles.items()}), tiles


def answer_fold_by_slide(
    slides: pd.DataFrame, fold: Fold, colours: Colours, positive: pd.Series
) -> pd.Series:
    train = slides.index[slides["patient_id"].isin(fold.train)]
    test = slides.index[slides["patient_id"].isin(fold.test)]
    model = _regression().fit([slide_features(colours[s]) for s in train], positive[train])
    return pd.Series(model.predict_proba([slide_features(colours[s]) for s in test])[:, 1], test)


def _top_mean(scores: NDArray[np.float64]) -> float:
    """Mean probability of the highest tenth of tiles, of one at least."""
    kept = max(1, round(_TOP_SHARE * len(scores)))
    return float(expit(np.sort(scores)[-kept:]).mean())


def colour_rows(study: StudyConfig, task: str) -> list[dict[str, object]]:
    """Slide AUROC of the regressions with patient-bootstrap intervals; tile AUROC of the second."""
    target = study.mil.tasks[task].target
    if isinstance(target, SurvivalConfig) or target.positive is None:
        raise SystemExit(f"task {task!r}: only a classification with a positive class has one")
    slides = task_cohort(study, task).slides
    positive = slides[target.label] == target.positive
    colours = read_colours(study, slides.index.tolist())
    folds = load_splits(splits_path(study, task)).folds
    fold_of = slides["patient_id"].map({p: k for k, fold in enumerate(folds) for p in fold.test})
    (negative,) = set(slides[target.label]) - {target.positive}

    def row(name: str, answers: pd.Series) -> dict[str, object]:
        both = {f"prob_{negative}": 1 - answers, f"prob_{target.positive}": answers}
        table = slides.assign(fold=fold_of, **both).reset_index()
        metric = {"auroc": metrics_for(table, target)["auroc"]}
        low, high = bootstrap_intervals(table, metric, resamples=study.mil.bootstrap)["auroc"]
        auroc = metric["auroc"](whole(table))
        approach = f"colour, {name}"
        return {"task": task, "approach": approach, "slide_auroc": auroc, "low": low, "high": high}

    def by_slide(name: str, seen: Colours) -> dict[str, object]:
        parts = [answer_fold_by_slide(slides, fold, seen, positive) for fold in folds]
        return row(name, pd.concat(parts))

    by_tile = [answer_fold(slides, fold, colours, positive) for fold in folds]
    tile_row = row("tile", pd.concat([answers for answers, _ in by_tile]))
    truth = study.mil.tasks[task].truth
    if truth is not None:
        scores = {s: values for _, tiles in by_tile for s, values in tiles.items()}
        pooled, median = tile_auroc(study, truth, scores)
        tile_row |= {"tile_pooled": pooled, "tile_median": median}
    rows = [by_slide("slide", colours), tile_row]
    known = next(section.truth for section in study.mil.tasks.values() if section.truth)
    outlined = {
        s: tiles[_share_inside(study, known, s) >= known.min_overlap]
        for s, tiles in colours.items()
    }
    if all(len(tiles) for tiles in outlined.values()):
        rows.append(by_slide("outlined", outlined))
    return rows


def tile_auroc(study: StudyConfig, truth: TruthConfig, scores: Colours) -> tuple[float, float]:
    """Over all tiles, and the median over slides with an outline; counted as the heatmaps do."""
    truths, kept, each = [], [], []
    for slide_id, values in scores.items():
        share = _share_inside(study, truth, slide_id)
        clear = (share >= truth.min_overlap) | (share == 0)
        truths.append(share[clear] > 0)
        kept.append(values[clear])
        if truths[-1].any():
            each.append(roc_auc_score(truths[-1], kept[-1]))
    pooled = roc_auc_score(np.concatenate(truths), np.concatenate(kept))
    return float(pooled), float(np.median(each))


def _share_inside(study: StudyConfig, truth: TruthConfig, slide_id: str) -> NDArray[np.float64]:
    store = open_store(store_path(study.features_dir, slide_id))
    tile_px0 = (store.provenance.tile_px0_x, store.provenance.tile_px0_y)
    outlines = read_outlines(truth.folder / f"{slide_id}.geojson")
    return share_inside(outlines, store.coords_px0[store.usable], tile_px0)


def model_row(study: StudyConfig, task: str, method: str) -> dict[str, object]:
    """What `evaluate` and `heatmap` wrote; tile AUROC of evidence and attention."""
    metrics = pd.read_csv(evaluation_dir(study, task, method) / "metrics.csv", dtype={"fold": str})
    chosen = metrics.query("level == 'slide' and metric == 'auroc' and fold == 'all'").iloc[0]
    row = {"task": task, "approach": method, "slide_auroc": chosen["value"]}
    row |= {"low": chosen["low"], "high": chosen["high"]}
    if study.mil.tasks[task].truth is None:
        return row
    tiles = pd.read_csv(heatmap_dir(study, task, method) / "tile_metrics.csv")
    pooled = tiles["slide_id"] == "(all tiles)"
    return row | {
        "tile_pooled": tiles.loc[pooled, "auroc_evidence"].item(),
        "tile_median": tiles.loc[~pooled, "auroc_evidence"].median(),
        "attention_pooled": tiles.loc[pooled, "auroc_attention"].item(),
        "attention_median": tiles.loc[~pooled, "auroc_attention"].median(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Colour alone on the folds of a finished study.")
    parser.add_argument("--config", type=Path, required=True, help="the study's YAML")
    study = load_study(parser.parse_args().config)
    rows = []
    for task in study.mil.tasks:
        rows += [model_row(study, task, method) for method in study.mil.methods]
        rows += colour_rows(study, task)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f", na_rep="-"))


if __name__ == "__main__":
    main()
