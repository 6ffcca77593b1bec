"""One HTML page over a study's results; pictures are linked, so keep it in its folder."""

import os
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd

from mil.config import StudyConfig
from mil.evaluate import evaluation_dir
from mil.heatmaps.tables import read_scale
from mil.paint import applied_dir, heatmap_dir
from preprocessing.artefacts import whole_file
from preprocessing.process_list import read_process_list

METRIC_NAMES = {
    "auroc": "AUROC (folds pooled)",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "c_index": "Harrell's C (mean of folds)",
}


def write_report(study: StudyConfig) -> Path:
    """Writes `<output>/report.html` from the tables and figures that the other stages left."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        files("mil").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    statuses = read_process_list(study.features_dir)
    page = template.render(
        name=study.output.name,
        slides=len(statuses),
        tiles=sum(s.tiles for s in statuses),
        encoder=study.preprocessing.encoder.name,
        grid=study.preprocessing.grid,
        failed=[s for s in statuses if s.status == "failed"],
        folds=study.mil.split.folds,
        bootstrap=study.mil.bootstrap,
        tasks=[_task(study, task) for task in study.mil.tasks],
        applied=[_maps(study, name, applied_dir(study, name)) for name in study.mil.apply],
    )
    path = study.output / "report.html"
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _task(study: StudyConfig, task: str) -> dict[str, object]:
    tables = {}
    for method in study.mil.methods:
        metrics = pd.read_csv(evaluation_dir(study, task, method) / "metrics.csv")
        tables[method] = metrics[metrics["fold"] == "all"]
    columns = [(row.level, row.metric) for row in next(iter(tables.values())).itertuples()]
    figures = {m: evaluation_dir(study, task, m) / "figure.png" for m in study.mil.methods}
    return {
        "name": task,
        "headers": [f"{METRIC_NAMES[metric]}, {level}s" for level, metric in columns],
        "rows": [
            (method, [_interval(row) for row in t.itertuples()]) for method, t in tables.items()
        ],
        "figures": {m: _link(study, path) for m, path in figures.items()},
        "maps": [_maps(study, m, heatmap_dir(study, task, m)) for m in study.mil.methods],
    }


def _interval(row: object) -> str:
    value, low, high = (getattr(row, name) for name in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def _maps(study: StudyConfig, name: str, folder: Path) -> dict[str, object]:
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
