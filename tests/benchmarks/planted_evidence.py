"""Which methods find planted evidence, and on which tiles they say it lies.

    python tests/benchmarks/planted_evidence.py runs/planted [--methods abmil ...] [--seeds 5]

Every (scenario, method, seed) is trained on its own slides for all epochs; the epoch is chosen on
validation slides, and test slides are scored; a finished one is kept, so a killed run goes on. Ends
with tables of means over seeds and their 95 % intervals (Student's t), of paired differences to
ABMIL, and of how many seeds found the evidence at all.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from methods import METHODS, trained
from planted import SCENARIOS, Planted, plant
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from mil.config import TrainConfig
from mil.models.base import MilMethod
from mil.models.config import MethodConfig
from mil.tasks.build import fit_task
from mil.tasks.config import ClassificationConfig
from mil.training.train import Part, answer
from preprocessing.artefacts import whole_file

TRAIN, VALIDATION, TEST = 100, 50, 100
TOP = 10
FOUND = 0.7  # slide AUROC: seeds end well above it, or near 0.5
TITLES = {
    "slide_auroc": "slide AUROC",
    "evidence_auroc": "tile AUROC, evidence",
    "evidence_auprc": "tile AUPRC, evidence",
    "attention_auroc": "tile AUROC, attention",
    "top10_attention": "attention on ten tiles",
}


def run(scenario: str, config: MethodConfig, seed: int, train: TrainConfig) -> dict[str, float]:
    cohorts = {
        part: plant(scenario, slides, seed=seed, part=part)
        for part, slides in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
    }
    target = ClassificationConfig(label="label", positive="positive")
    task = fit_task(target, cohorts["train"].table)
    parts = {
        name: Part(cohort.table, task.encode(cohort.table), cohort.features)
        for name, cohort in cohorts.items()
    }
    fitted_on = (parts["train"], parts["validation"])
    method = trained(config, task, fitted_on, train.model_copy(update={"seed": seed}))
    positive = (cohorts["test"].table["label"] == "positive").to_numpy()
    logits = task.evidence(answer(method, parts["test"])).numpy()
    return {
        "slide_auroc": float(roc_auc_score(positive, logits)),
        **tile_measures(method, task.evidence, cohorts["test"], positive),
    }


@torch.inference_mode()
def tile_measures(method: MilMethod, evidence_of, cohort: Planted, positive) -> dict[str, float]:
    """Means over the positive slides of the ranking of their tiles."""
    method.eval()
    rows = []
    for slide in cohort.table.index[positive]:
        bag, truth = cohort.features.bag((slide,)), cohort.truth[slide]
        evidence = evidence_of(method.tile_logits(bag)).numpy()
        attention = method(bag).attention.numpy()
        rows.append(
            {
                "evidence_auroc": roc_auc_score(truth, evidence),
                "evidence_auprc": average_precision_score(truth, evidence),
                "attention_auroc": roc_auc_score(truth, attention),
                "top10_attention": np.sort(attention)[-TOP:].sum(),
            }
        )
    return {name: float(value) for name, value in pd.DataFrame(rows).mean().items()}


def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table a measure: a row a method, a column a scenario; means ± 95 % intervals."""
    found = {title: _by_scenario(results, measure) for measure, title in TITLES.items()}
    base = results[results["method"] == "abmil"].set_index(["scenario", "seed"])["slide_auroc"]
    others = results[results["method"] != "abmil"].set_index(["scenario", "seed"])
    others["slide_auroc"] -= base.reindex(others.index)
    others = others.reset_index().dropna(subset="slide_auroc")
    gain = _by_scenario(others, "slide_auroc", summary=partial(_mean, sign="+"))
    learnt = results.assign(found=results["slide_auroc"] > FOUND)
    seeds = _by_scenario(learnt, "found", summary=lambda v: f"{v.sum()} of {len(v)}")
    return {
        **found,
        "slide AUROC minus ABMIL's of the same seed": gain,
        f"seeds with a slide AUROC above {FOUND}": seeds,
    }


def _mean(values: pd.Series, sign: str = "") -> str:
    """With Student's interval over the seeds."""
    mean = values.mean()
    if len(values) < 2:
        return f"{mean:{sign}.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{mean:{sign}.3f} ±{half:.3f}"


def _by_scenario(
    results: pd.DataFrame, measure: str, summary: Callable[[pd.Series], str] = _mean
) -> pd.DataFrame:
    cells = results.groupby(["method", "scenario"])[measure].agg(summary)
    return (
        cells.unstack("scenario").reindex(index=[*METHODS], columns=[*SCENARIOS]).dropna(how="all")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    train = TrainConfig(
        epochs=options.epochs,
        min_epochs=options.epochs,
        learning_rate=2e-3,
        bags_per_step=4,
        device="cpu",
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for scenario in options.scenarios:
            for name in options.methods:
                path = options.folder / f"{scenario}-{name}-{seed}.json"
                if not path.exists():
                    found = run(scenario, METHODS[name], seed, train)
                    record = {"scenario": scenario, "method": name, "seed": seed, **found}
                    with whole_file(path) as partial:
                        partial.write_text(json.dumps(record))
                    print(f"{scenario} {name} {seed}: slide AUROC {found['slide_auroc']:.3f}")
    records = [json.loads(path.read_text()) for path in sorted(options.folder.glob("*.json"))]
    results = pd.DataFrame(records)
    results.to_csv(options.folder / "results.csv", index=False)
    text = "\n\n".join(
        f"**{title}**\n\n{table.fillna('').to_markdown()}"
        for title, table in tables(results).items()
    )
    with whole_file(options.folder / "tables.md") as partial:
        partial.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
