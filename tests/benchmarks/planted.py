"""Synthetic bags in which it is known which tiles carry the label.

Every slide is a mixture of eight kinds of tissue in its own shares, moved as a whole by its own
stain. A concept is a step along a direction of its own; a tile that shows it is evidence.

    one_1pct      1 % of the tiles of a positive slide show A
    one_0.1pct    0.1 % of them (one of about a thousand), more clearly
    two           A and B, 1 % each, on positive slides; negative ones show A, or B, or neither
    confounder    1 % show A; besides, 3 % of the tiles of nine in ten positive and of one in ten
                  negative training slides show a loud artefact, in the test half of either
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mil.bags import CohortFeatures, TileOrigin

DIM = 16
KINDS = 8
ORIGIN = TileOrigin("planted", "0", "none", 0.5, 224)
A, B, ARTEFACT = range(3)
CLEAR, LOUD = 5.0, 8.0  # steps, in standard deviations of the noise
SCENARIOS = ("one_1pct", "one_0.1pct", "two", "confounder")
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Planted:
    """`truth`: by slide id, the tiles (tiles,) bool that are evidence for the label."""

    table: pd.DataFrame
    features: CohortFeatures
    truth: dict[str, NDArray[np.bool_]]


def plant(scenario: str, slides: int, *, seed: int, part: str) -> Planted:
    """Half of the slides are positive. The world (tissue, concepts) is the same for every seed."""
    world = np.random.default_rng(2024)
    kinds = world.normal(0, 1, (KINDS, DIM))
    concepts, _ = np.linalg.qr(world.normal(0, 1, (DIM, 3)))
    rng = np.random.default_rng([seed, ("train", "validation", "test").index(part)])
    tiles, truth = {}, {}
    for i in range(slides):
        count = int(rng.integers(700, 1300))
        tissue = rng.choice(KINDS, size=count, p=rng.dirichlet(np.ones(KINDS)))
        bag = kinds[tissue] + rng.normal(0, 1, (count, DIM)) + rng.normal(0, 0.3, DIM)
        evidence = np.zeros(count, dtype=bool)
        for concept, share, step in _shows(scenario, i % 2 == 1, part, rng):
            places = rng.choice(count, size=max(1, round(share * count)), replace=False)
            bag[places] += step * concepts[:, concept]
            evidence[places] |= concept != ARTEFACT
        tiles[f"s{i}"] = torch.from_numpy(bag).half()
        truth[f"s{i}"] = evidence
    table = pd.DataFrame(
        {
            "patient_id": list(tiles),
            "slide_ids": [(slide,) for slide in tiles],
            "label": [LABELS[i % 2] for i in range(slides)],
        },
        index=list(tiles),
    )
    return Planted(table, CohortFeatures(tiles, {s: s for s in tiles}, ORIGIN), truth)


def _shows(
    scenario: str, positive: bool, part: str, rng: np.random.Generator
) -> list[tuple[int, float, float]]:
    """(concept, share of tiles, step) of a slide."""
    if scenario == "two":
        one = [[], [(A, 0.01, CLEAR)], [(B, 0.01, CLEAR)]][rng.integers(3)]
        return [(A, 0.01, CLEAR), (B, 0.01, CLEAR)] if positive else one
    if scenario == "confounder":
        chance = 0.5 if part == "test" else (0.9 if positive else 0.1)
        artefact = [(ARTEFACT, 0.03, LOUD)] if rng.random() < chance else []
        return [*([(A, 0.01, CLEAR)] if positive else []), *artefact]
    share, step = {"one_1pct": (0.01, CLEAR), "one_0.1pct": (0.001, LOUD)}[scenario]
    return [(A, share, step)] if positive else []
