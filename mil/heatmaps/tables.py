"""Scores and scales as files: a CSV of tiles per slide, a JSON of the cohort's scale."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil.heatmaps.scores import CohortScale, TileScores
from preprocessing.artefacts import whole_file
from preprocessing.errors import StoreError

_PREDICTION = "prediction."
_TEXT = ("slide_id", "model", "evidence_name")
_PAIRS = {
    "tile_px0": ("width_px0", "height_px0"),
    "stride_px0": ("stride_x_px0", "stride_y_px0"),
    "mpp": ("mpp_x", "mpp_y"),
}
_BAG_TILES = "bag_tiles"
_PER_TILE = ("x_px0", "y_px0", "tissue_fraction", "attention", "log2_attention", "evidence")


def write_tile_table(scores: TileScores, path: Path) -> None:
    """One row per tile; what belongs to the slide is repeated in every row, after the scores."""
    columns: dict[str, Any] = {
        "slide_id": scores.slide_id,
        "x_px0": scores.coords_px0[:, 0],
        "y_px0": scores.coords_px0[:, 1],
        "width_px0": scores.tile_px0[0],
        "height_px0": scores.tile_px0[1],
        "tissue_fraction": scores.tissue_fraction,
        "attention": scores.attention,
        "log2_attention": scores.log2_attention.round(4),
        "evidence": scores.evidence,
        "stride_x_px0": scores.stride_px0[0],
        "stride_y_px0": scores.stride_px0[1],
        "mpp_x": scores.mpp[0],
        "mpp_y": scores.mpp[1],
        _BAG_TILES: scores.bag_tiles or len(scores.attention),
        "model": scores.model,
        "evidence_name": scores.evidence_name,
    }
    columns |= {f"{_PREDICTION}{name}": value for name, value in scores.prediction.items()}
    with whole_file(path) as partial:
        pd.DataFrame(columns).to_csv(partial, index=False, lineterminator="\n")


def read_tile_table(path: Path) -> TileScores:
    """The scores that `write_tile_table` wrote, to the last bit."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise StoreError(f"{path}: expected a tile table, got {error}; write it again") from error
    expected = {
        *_TEXT,
        *_PER_TILE,
        _BAG_TILES,
        *(name for pair in _PAIRS.values() for name in pair),
    }
    if missing := sorted(expected - set(table.columns)):
        raise StoreError(f"{path}: not a tile table, columns {missing} are missing; write it again")
    if table["slide_id"].nunique() != 1:
        raise StoreError(
            f"{path}: expected the tiles of one slide, got {len(table)} rows of "
            f"{table['slide_id'].nunique()} slides"
        )
    try:
        numbers = table.drop(columns=list(_TEXT)).astype(np.float64)
    except ValueError as error:
        raise StoreError(f"{path}: expected numbers, {error}; write the table again") from error
    return _scores_of(numbers, table[list(_TEXT)].iloc[0].to_dict())


def _scores_of(numbers: pd.DataFrame, text: dict[Any, Any]) -> TileScores:
    first = numbers.iloc[0]
    of_bag = int(first[_BAG_TILES])
    pairs = {name: (float(first[x]), float(first[y])) for name, (x, y) in _PAIRS.items()}
    return TileScores(
        slide_id=text["slide_id"],
        model=text["model"],
        evidence_name=text["evidence_name"],
        tile_px0=pairs["tile_px0"],
        stride_px0=pairs["stride_px0"],
        mpp=pairs["mpp"],
        coords_px0=numbers[["x_px0", "y_px0"]].to_numpy(np.int32),
        tissue_fraction=numbers["tissue_fraction"].to_numpy(np.float32),
        attention=numbers["attention"].to_numpy(np.float32),
        evidence=numbers["evidence"].to_numpy(np.float32),
        prediction={
            name.removeprefix(_PREDICTION): float(first[name])
            for name in numbers.columns
            if name.startswith(_PREDICTION)
        },
        bag_tiles=of_bag if of_bag != len(numbers) else None,
    )


def write_scale(scale: CohortScale, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(asdict(scale), indent=2) + "\n", encoding="utf-8")


def read_scale(path: Path) -> CohortScale:
    """The scale that `write_scale` wrote."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}: expected the JSON of a cohort scale, got {error}") from error
    expected = {field.name for field in fields(CohortScale)}
    if not isinstance(values, dict) or set(values) != expected:
        raise StoreError(
            f"{path}: expected a cohort scale with {sorted(expected)}, got {values!r:.200}"
        )
    return CohortScale(**values)
