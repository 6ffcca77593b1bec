"""Composes a cohort of slides from real lung tiles, with known tumour regions.

    python tests/real_tissue/compose_cohort.py --patches <folder with index.csv> --out <folder>

Below `out`: slides/<id>.svs, slides.csv, labels.csv (tumour; subtype, empty where there is none),
truth/<id>.geojson (level-0 px), places.csv (which source tile stands where) and study.yaml.

Tiles of one source group come from one original image, and LC25000 augmented each image into
several. So every group is dealt to one slide of one patient, whatever its size. With the default
18 patients of each subtype (48 patients, 59 slides) a slide has 3 groups of normal tissue, 12
tiles, each standing at most 8 times and never twice in one orientation, and 9 groups of tumour,
whose tiles stand once. Every fourth patient has two slides; of the second slides of cancer
patients every other one is free of tumour. The set's own train/val/test column is not used:
folds are made by patient.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[2]))  # a clone that is not installed composes too

from tile_mosaic import (
    Layout,
    PlacedTile,
    SourceTile,
    draw_layout,
    paint_mosaic,
    write_aperio,
)

from preprocessing.artefacts import whole_file
from preprocessing.outlines import write_outlines

SUBTYPES = {"adenocarcinoma": "lung_aca", "squamous": "lung_scc"}
NORMAL = "lung_n"
_ORIENTATIONS = 8
_LEAST_GROUPS = 3  # a slide's normal tissue, and its tumour
_TEMPLATE = Path(__file__).parent / "study.yaml"
_TEMPLATE_FOLDER = "runs/real_tissue"


@dataclass(frozen=True)
class SlidePlan:
    """`subtype` is empty for a slide without tumour; the groups belong to this slide alone."""

    index: int
    patient_id: str
    slide_id: str
    subtype: str
    normal: tuple[SourceTile, ...]
    tumour: tuple[SourceTile, ...]

    @property
    def label(self) -> str:
        return "tumour" if self.subtype else "normal"


def read_index(patches: Path) -> list[SourceTile]:
    """The rows of index.csv; their paths begin with the folder's own name."""
    table = pd.read_csv(patches / "index.csv", dtype=str)
    columns = ["path", "label", "source_group"]
    return [SourceTile(*row) for row in table[columns].itertuples(index=False)]


def plan_cohort(tiles: list[SourceTile], *, patients: int, seed: int) -> list[SlidePlan]:
    """`patients` of each subtype and 2/3 as many without cancer; deals the groups to slides."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    slides = list(_slides(patients))
    kinds = [subtype for *_, subtype in slides]
    normal = _deal(rng, tiles, NORMAL, slides=len(slides))
    tumour = {
        subtype: iter(_deal(rng, tiles, label, slides=kinds.count(subtype)))
        for subtype, label in SUBTYPES.items()
    }
    return [
        SlidePlan(index, *slide, normal[index], next(tumour[slide[2]]) if slide[2] else ())
        for index, slide in enumerate(slides)
    ]


def _slides(patients: int) -> Iterator[tuple[str, str, str]]:
    """(patient_id, slide_id, subtype) of every slide; patient numbers tell no diagnosis apart."""
    wanted = {"": -(-patients * 2 // 3), **dict.fromkeys(SUBTYPES, patients)}
    turns = [(turn, kind) for turn in range(patients) for kind, n in wanted.items() if turn < n]
    for number, (turn, kind) in enumerate(turns):
        patient_id = f"P{number:03d}"
        yield patient_id, f"{patient_id}-1", kind
        if turn % 4 == 3:
            yield patient_id, f"{patient_id}-2", kind if turn % 8 == 7 else ""


def _deal(
    rng: np.random.Generator, tiles: list[SourceTile], label: str, *, slides: int
) -> list[tuple[SourceTile, ...]]:
    """Equally many whole source groups for each slide; what does not divide stays unused.

    A hand begins with one tile of each of its groups, so that few tiles show many images.
    """
    groups: dict[str, list[SourceTile]] = {}
    for tile in tiles:
        if tile.label == label:
            groups.setdefault(tile.source_group, []).append(tile)
    each = len(groups) // slides
    if each < _LEAST_GROUPS:
        raise ValueError(
            f"{len(groups)} source groups of {label} for {slides} slides: every slide needs "
            f"{_LEAST_GROUPS}; compose fewer patients"
        )
    names = rng.permutation(sorted(groups)).reshape(-1)
    hands = (names[i * each : (i + 1) * each] for i in range(slides))
    return [
        tuple(tile for row in zip_longest(*(groups[name] for name in hand)) for tile in row if tile)
        for hand in hands
    ]


def place_tiles(rng: np.random.Generator, plan: SlidePlan, layout: Layout) -> list[PlacedTile]:
    """Normal tiles round by round, each round in new orientations; tumour tiles once each."""
    tumour = layout.tumour
    normal_spots = rng.permutation(np.argwhere(layout.tissue & ~tumour))
    rounds = -(-len(normal_spots) // len(plan.normal))
    if rounds > _ORIENTATIONS or tumour.sum() > len(plan.tumour):
        raise ValueError(
            f"slide {plan.slide_id}: {len(plan.normal)} normal and {len(plan.tumour)} tumour tiles "
            f"for {len(normal_spots)} and {tumour.sum()} places; compose fewer patients or places"
        )
    turns = np.array([rng.permutation(_ORIENTATIONS) for _ in plan.normal])
    drawn = [
        (plan.normal[i], int(turns[i, k]))
        for k in range(rounds)
        for i in rng.permutation(len(plan.normal))
    ]
    tumour_spots = rng.permutation(np.argwhere(tumour))
    drawn_tumour = [
        (tile, int(rng.integers(_ORIENTATIONS))) for tile in plan.tumour[: len(tumour_spots)]
    ]
    spots = [*zip(normal_spots, drawn, strict=False), *zip(tumour_spots, drawn_tumour, strict=True)]
    return [
        PlacedTile(*layout.corner_px0(int(row), int(column)), tile, orientation)
        for (row, column), (tile, orientation) in spots
    ]


def compose_slide(
    plan: SlidePlan, *, patches: Path, out: Path, seed: int, places: tuple[int, int]
) -> list[PlacedTile]:
    """Writes the slide and its outline; the generator is the slide's own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1, plan.index)))
    share = rng.uniform(0.05, 0.30) if plan.subtype else 0.0
    side = int(rng.integers(*places, endpoint=True))
    layout = draw_layout(rng, places=side, tumour_share=share)
    placed = place_tiles(rng, plan, layout)
    rgb = paint_mosaic(rng, layout, placed, patches.parent)
    outlines = [[ring] for ring in layout.rings_px0()]
    write_outlines(outlines, out / "truth" / f"{plan.slide_id}.geojson", name="Tumor")
    write_aperio(out / "slides" / f"{plan.slide_id}.svs", rgb)
    return placed


def compose_cohort(
    patches: Path,
    out: Path,
    *,
    seed: int = 0,
    patients: int = 18,
    places: tuple[int, int] = (11, 12),
) -> Path:
    """Composes everything and returns the path of slides.csv, which is written last."""
    plans = plan_cohort(read_index(patches), patients=patients, seed=seed)
    stands = []
    for plan in plans:
        placed = compose_slide(plan, patches=patches, out=out, seed=seed, places=places)
        stands += [
            (plan.slide_id, p.x_px0, p.y_px0, p.orientation, p.tile.label, p.tile.source_group,
             p.tile.path)
            for p in placed
        ]  # fmt: skip
    _write_csv(
        out / "places.csv",
        stands,
        ["slide_id", "x_px0", "y_px0", "orientation", "label", "source_group", "path"],
    )
    _write_csv(
        out / "labels.csv",
        ((p.slide_id, p.patient_id, p.label, p.subtype) for p in plans),
        ["slide_id", "patient_id", "tumour", "subtype"],
    )
    with whole_file(out / "study.yaml") as partial:
        partial.write_text(_TEMPLATE.read_text().replace(_TEMPLATE_FOLDER, str(out.resolve())))
    manifest = out / "slides.csv"
    _write_csv(
        manifest,
        ((p.slide_id, p.patient_id, f"slides/{p.slide_id}.svs") for p in plans),
        ["slide_id", "patient_id", "path"],
    )
    return manifest


def _write_csv(path: Path, rows: Iterable[tuple], columns: list[str]) -> None:
    with whole_file(path) as partial:
        pd.DataFrame(list(rows), columns=columns).to_csv(partial, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compose slides from real lung tiles.")
    reference = Path(os.environ.get("HISTOMIL_SHARED", "../shared"))
    parser.add_argument("--patches", type=Path, default=reference / "patches/lc25000_lung_224")
    parser.add_argument("--out", type=Path, default=Path(_TEMPLATE_FOLDER))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patients", type=int, default=18, help="of each subtype")
    parsed = parser.parse_args()
    if not (parsed.patches / "index.csv").is_file():
        parser.error(f"--patches {parsed.patches}: expected a folder that holds index.csv")
    manifest = compose_cohort(
        parsed.patches, parsed.out, seed=parsed.seed, patients=parsed.patients
    )
    print(f"{len(pd.read_csv(manifest))} slides in {manifest}; study: {parsed.out}/study.yaml")


if __name__ == "__main__":
    main()
