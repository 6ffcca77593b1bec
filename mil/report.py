"""One HTML page over a study's results; pictures are linked, so keep it in its folder."""

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from mil.config import StudyConfig
from mil.data import cohort_path
from mil.ensemble import applied_dir
from mil.evaluation.compare import comparison_path
from mil.evaluation.held_out import evaluation_dir
from mil.figures.common import interval_text, number_text, p_number, range_text, signed_text
from mil.glossary import GROUPS, entry, explained
from mil.heatmaps.tables import read_scale
from mil.paint import applied_maps_dir, heatmap_dir
from mil.seals import looks
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError
from preprocessing.process_list import read_process_list

Values = dict[str, Any]
LEVELS = ("patient", "slide")
PIXELS_PER_CSS_PX = 2.2  # of a figure: three of the narrow ones fill the page
# Stem of a figure's file -> caption, in the order of the page.
CAPTIONS = {
    "roc": "Discrimination: ROC",
    "precision_recall": "Discrimination: precision and recall",
    "confusion": "Calls at the operating point",
    "calibration": "Calibration of the probabilities",
    "predicted_observed": "Observed against predicted values",
    "kaplan_meier": "Survival of the risk groups",
    "time_dependent_auc": "Discrimination over time",
    "survival_calibration": "Calibration of the predicted survival",
}


def write_report(study: StudyConfig) -> Path:
    """Writes `<output>/report.html` from the tables and figures that the other stages left.

    Needs metrics.csv of every answerer; any other file that is absent leaves its section out.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files("mil").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    statuses = read_process_list(study.features_dir)
    tasks = [_task(study, task) for task in study.mil.tasks]
    page = template.render(
        name=study.output.name,
        slides=len(statuses),
        tiles=sum(s.tiles for s in statuses),
        encoder=study.preprocessing.encoder.name,
        grid=study.preprocessing.grid,
        failed=[s for s in statuses if s.status == "failed"],
        mil=study.mil,
        splits=_splits_text(study),
        tasks=tasks,
        glossary=explained(name for task in tasks for name in task["metrics"]),
        applied=[_applied(study, name) for name in study.mil.apply],
    )
    path = study.output / "report.html"
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _splits_text(study: StudyConfig) -> str:
    """How patients were held out."""
    split = study.mil.split
    text = {
        "kfold": f"{split.folds}-fold cross-validation of patients",
        "monte_carlo": f"{split.folds} random test parts of {split.test_share:.0%} of the patients",
        "supplied": f"{split.number_of_folds} supplied folds",
    }[split.scheme]
    if split.repeats > 1:
        text += f", repeated {split.repeats} times"
    if split.group is not None:
        text += f", no {split.group} in two parts of a fold"
    return text


def _task(study: StudyConfig, task: str) -> Values:
    section = study.mil.tasks[task]
    answerers = study.answerers(task)
    folders = {a: evaluation_dir(study, task, a) for a in answerers}
    metrics = {a: _metrics(folder / "metrics.csv") for a, folder in folders.items()}
    facts = cohort_path(study, task)
    hazards = [(a, rows) for a in answerers if (rows := _hazards(folders[a] / "hazard_ratios.csv"))]
    return {
        "name": task,
        "section": section,
        "cohort": json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else None,
        "looks": looks(study, task),
        "answerers": answerers,
        "methods": len(study.mil.methods),
        "metrics": {name for table in metrics.values() for name in table["metric"]},
        "levels": _levels(metrics),
        "comparisons": _comparisons(comparison_path(study, task)),
        "hazards": hazards,
        "hazard_notes": {row["note"] for _, rows in hazards for row in rows} - {""},
        "figures": {a: _figures(study, folder) for a, folder in folders.items()},
        "maps": _galleries(study, {m: heatmap_dir(study, task, m) for m in study.mil.methods}),
    }


def _applied(study: StudyConfig, name: str) -> Values:
    """What trained models said of this archive, laid out as a task with one answerer."""
    folder = applied_dir(study, name)
    predictions = pd.read_csv(folder / "predictions.csv", usecols=["level", "seen"])
    about = json.loads((folder / "fitted.json").read_text(encoding="utf-8"))
    measured = (folder / "metrics.csv").is_file()
    return {
        "name": name,
        "link": _link(study, folder / "predictions.csv"),
        "models": len(about["models"]),
        "counts": predictions["level"].value_counts().to_dict(),
        "seen": predictions.loc[predictions["seen"], "level"].value_counts().to_dict(),
        "answerers": [name],
        "methods": 1,
        "levels": _levels({name: _metrics(folder / "metrics.csv")}) if measured else [],
        "figures": {name: _figures(study, folder)} if measured else {name: []},
        "maps": _galleries(study, {name: applied_maps_dir(study, name)}),
    }


def _levels(metrics: Mapping[str, pd.DataFrame]) -> list[Values]:
    there = [
        level for level in LEVELS if any((t["level"] == level).any() for t in metrics.values())
    ]
    return [_level(metrics, level) for level in there]


def _metrics(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise CohortError(f"no metrics at {path}: run evaluate first")
    table = pd.read_csv(path, dtype={"fold": str, "note": str}, keep_default_na=True)
    return table.assign(note=table["note"].fillna(""))


def _level(metrics: Mapping[str, pd.DataFrame], level: str) -> Values:
    """One table of answerers by metrics, over all folds, and the folds one by one."""
    mine = {a: table[table["level"] == level] for a, table in metrics.items()}
    overall = {
        a: t[t["fold"] == "all"].set_index("metric").to_dict("index") for a, t in mine.items()
    }
    names = list(dict.fromkeys(str(name) for t in overall.values() for name in t))
    names.sort(key=lambda name: GROUPS.index(entry(name).group))
    # nobody may be known of a label: that is no size of a cohort
    patients = sorted({int(row["patients"]) for t in overall.values() for row in t.values()} - {0})
    return {
        "name": level,
        "patients": " to ".join(map(str, dict.fromkeys((patients[0], patients[-1])))),
        "rows": max(int(row["n"]) for t in overall.values() for row in t.values()),
        "groups": [
            (group, [_metric_row(name, overall) for name in grouped])
            for group, grouped in groupby(names, key=lambda name: entry(name).group)
        ],
        "metrics": [entry(name) for name in names],
        "folds": [_fold_rows(a, t, names) for a, t in mine.items()],
    }


def _metric_row(name: str, overall: Mapping[str, Mapping[Any, Any]]) -> Values:
    """A metric, its values by answerer, and its notes; one not shared by all names its owners."""
    cells, notes = [], {}
    for answerer, table in overall.items():
        if name not in table:
            cells.append(("–", ""))
            continue
        row = table[name]
        known = pd.notna(row["low"]) and pd.notna(row["high"])
        interval = range_text(row["low"], row["high"]) if known else ""
        cells.append((number_text(row["value"]), interval))
        if row["note"]:
            notes.setdefault(row["note"], []).append(answerer)
    texts = [
        note if len(whose) == len(overall) else f"{', '.join(whose)}: {note}"
        for note, whose in notes.items()
    ]
    return {"entry": entry(name), "cells": cells, "notes": texts}


def _fold_rows(answerer: str, table: pd.DataFrame, names: list[str]) -> Values:
    single = table[table["fold"] != "all"]
    values = single.pivot_table(index="fold", columns="metric", values="value", dropna=False)
    values = values.reindex(columns=names).sort_index(key=lambda folds: folds.astype(int))
    sizes = single.groupby("fold")["n"].max()
    rows = [
        (fold, int(sizes[fold]), [number_text(v) for v in row])
        for fold, *row in values.itertuples()
    ]
    return {"answerer": answerer, "rows": rows}


def _comparisons(path: Path) -> list[tuple[object, list[Values]]]:
    """Paired comparisons by metric; none where a single answerer has nobody to compare with."""
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"answerer_a": str, "answerer_b": str})
    rows: list[Values] = [
        {
            "pair": (row["answerer_a"], row["answerer_b"]),
            "entry": entry(str(row["metric"])),
            "difference": signed_text(row["difference"]),
            "interval": f"{signed_text(row['low'])} to {signed_text(row['high'])}",
            "p": p_number(float(row["p"])),
            "p_holm": p_number(float(row["p_holm"])),
            "below_5_percent": bool(row["p_holm"] < 0.05),
            "test": row["test"],
        }
        for row in table.to_dict("records")
    ]
    return [(known, list(same)) for known, same in groupby(rows, key=lambda row: row["entry"])]


def _hazards(path: Path) -> list[Values]:
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"note": str})
    return [
        {
            **{str(name): value for name, value in row.items()},
            "ratio": interval_text(row["hr"], row["low"], row["high"]) if row["hr"] > 0 else "–",
            "p": p_number(float(row["p"])),
            "ph_p": p_number(float(row["ph_p"])),
            "note": "" if pd.isna(row["note"]) else row["note"],
        }
        for row in table.to_dict("records")
    ]


def _figures(study: StudyConfig, folder: Path) -> list[Values]:
    """The figures that are there, with the size (CSS px) at which all their text is alike."""
    found = []
    for stem, caption in CAPTIONS.items():
        path = folder / f"{stem}.png"
        if not path.is_file():
            continue
        with Image.open(path) as image:
            width, height = (round(pixels / PIXELS_PER_CSS_PX) for pixels in image.size)
        link = _link(study, path)
        found.append({"caption": caption, "link": link, "width": width, "height": height})
    return found


def _galleries(study: StudyConfig, folders: Mapping[str, Path]) -> list[Values]:
    """Heatmaps by name, of those that have been painted."""
    painted = {name: at for name, at in folders.items() if (at / "predictions.csv").is_file()}
    return [_maps(study, name, folder) for name, folder in painted.items()]


def _maps(study: StudyConfig, name: str, folder: Path) -> Values:
    tile_table = folder / "tile_metrics.csv"
    pooled = None
    table = pd.read_csv(tile_table) if tile_table.is_file() else pd.DataFrame()
    if len(table):
        per_slide = table[table["slide_id"] != "(all tiles)"]
        pooled = {
            "all": table[table["slide_id"] == "(all tiles)"].iloc[0].to_dict(),
            "median": per_slide[["auroc_evidence", "auroc_attention"]].median().to_dict(),
            "slides": int(per_slide["auroc_evidence"].notna().sum()),
        }
    painted = pd.read_csv(folder / "predictions.csv", dtype=str)["slide_id"]
    return {
        "name": name,
        "scale": read_scale(folder / "scale.json"),
        "images": [(s, _link(study, folder / f"{s}.png")) for s in sorted(painted)],
        "tile_metrics": pooled,
    }


def _link(study: StudyConfig, path: Path) -> str:
    return Path(os.path.relpath(path, study.output)).as_posix()
