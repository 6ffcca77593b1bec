"""Classical MIL sets by the field's protocol: 10-fold cross-validation, accuracy, several repeats.

    python tests/benchmarks/classical_mil.py runs/classical [--sets musk1 ...] [--repeats 5]

The sets (one row an instance: label, bag, features) are looked for in HISTOMIL_SHARED/mil. Features
are standardised by the training instances of the fold. As in the publications, no validation part
is held out: training runs for a fixed number of epochs, and nothing is chosen by the test fold.
Ends with mean accuracy ± standard deviation over the repeats beside Ilse et al. (2018), who print
the mean ± standard error of five repeats.
"""

import argparse
import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from methods import METHODS, trained
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from mil.bags import CohortFeatures, TileOrigin
from mil.config import TrainConfig
from mil.models.config import MethodConfig
from mil.tasks.build import fit_task
from mil.tasks.config import ClassificationConfig
from mil.training.train import Part, answer
from preprocessing.artefacts import whole_file

FILES = {
    "musk1": "musk1.csv",
    "musk2": "musk2.csv.gz",
    "elephant": "elephant.csv",
    "ucsb": "ucsb_breast_cancer.csv.gz",
}
BAGS = {"musk1": 92, "musk2": 102, "elephant": 200, "ucsb": 58}
PUBLISHED = {  # Ilse et al. 2018, table 1: attention, gated attention
    "musk1": ("0.892 ±0.040", "0.900 ±0.050"),
    "musk2": ("0.858 ±0.048", "0.863 ±0.042"),
    "elephant": ("0.868 ±0.022", "0.857 ±0.027"),
}
FOLDS = 10
ORIGIN = TileOrigin("classical", "0", "none", 1.0, 1)


def read_bags(name: str) -> tuple[list[NDArray[np.float64]], NDArray[np.int_]]:
    """The instances of every bag, and the bags' labels."""
    folder = Path(os.environ.get("HISTOMIL_SHARED", "../shared")) / "mil"
    rows = pd.read_csv(folder / FILES[name], header=None)
    groups = list(rows.groupby(1, sort=True))
    bags = [group.iloc[:, 2:].to_numpy(float) for _, group in groups]
    labels = np.array([int(group[0].max()) for _, group in groups])
    if len(bags) != BAGS[name]:
        raise SystemExit(f"{name}: expected {BAGS[name]} bags, got {len(bags)}")
    return bags, labels


def accuracy(name: str, config: MethodConfig, repeat: int, train: TrainConfig) -> float:
    bags, labels = read_bags(name)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
    right = np.zeros(len(bags), dtype=bool)
    for fitted, held_out in folds.split(labels, labels):
        right[held_out] = _right(bags, labels, (fitted, held_out), config, train, repeat)
    return float(right.mean())


def _right(bags, labels, fold, config, train, seed) -> NDArray[np.bool_]:
    """Which bags of the held-out part are called rightly."""
    fitted, held_out = fold
    instances = np.concatenate([bags[i] for i in fitted])
    mean, spread = instances.mean(axis=0), instances.std(axis=0)
    spread[spread == 0] = 1
    tiles = {
        f"b{i}": torch.from_numpy(((bag - mean) / spread).clip(-10, 10)).half()
        for i, bag in enumerate(bags)
    }
    features = CohortFeatures(tiles, {b: b for b in tiles}, ORIGIN)
    table = pd.DataFrame(
        {
            "patient_id": list(tiles),
            "slide_ids": [(b,) for b in tiles],
            "label": np.where(labels == 1, "positive", "negative"),
        },
        index=list(tiles),
    )
    task = fit_task(ClassificationConfig(label="label"), table.iloc[fitted])
    parts = [Part(t, task.encode(t), features) for t in (table.iloc[fitted], table.iloc[held_out])]
    # stopped on what it was trained on: after all epochs
    method = trained(config, task, (parts[0], parts[0]), train.model_copy(update={"seed": seed}))
    return answer(method, parts[1]).argmax(dim=1).numpy() == labels[held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    train = TrainConfig(
        epochs=options.epochs,
        min_epochs=options.epochs,
        learning_rate=5e-4,
        weight_decay=5e-3,
        device="cpu",
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = product(range(options.repeats), options.sets, options.methods)
    for repeat, name, method in runs:
        path = options.folder / f"{name}-{method}-{repeat}.json"
        if path.exists():
            continue
        found = accuracy(name, METHODS[method], repeat, train)
        record = {"set": name, "method": method, "repeat": repeat, "accuracy": found}
        with whole_file(path) as partial:
            partial.write_text(json.dumps(record))
        print(f"{name} {method} {repeat}: {found:.3f}", flush=True)
    results = pd.DataFrame(
        [json.loads(path.read_text()) for path in sorted(options.folder.glob("*.json"))]
    )
    grouped = results.groupby(["method", "set"])["accuracy"].agg(["mean", "std"])
    cells = grouped.apply(lambda row: f"{row['mean']:.3f} ±{row['std']:.3f}", axis=1)
    table = cells.unstack("set").reindex([m for m in METHODS if m in set(results["method"])])
    for row, index in (("published attention", 0), ("published gated attention", 1)):
        table.loc[row] = pd.Series({name: pair[index] for name, pair in PUBLISHED.items()})
    table.to_csv(options.folder / "table.csv")
    print(table.fillna("").to_markdown())


if __name__ == "__main__":
    main()
