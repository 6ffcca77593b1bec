"""The page over tables of made-up patients: what it says, and what it leaves out."""

import html
import json
import re
import shutil

import pandas as pd
import pytest
from result_fakes import class_rows, metric_rows, study_of, write_tables

from mil.data import cohort_path
from mil.evaluation.compare import comparison_path
from mil.evaluation.held_out import evaluation_dir
from mil.figures.curves import roc_figure
from mil.glossary import entry, explained
from mil.heatmaps.scores import CohortScale
from mil.heatmaps.tables import write_scale
from mil.predictions import write_csv
from mil.report import write_report
from mil.seals import ledger_path
from preprocessing.errors import CohortError


@pytest.fixture
def study(tmp_path):
    made = study_of(tmp_path)
    write_tables(made)
    return made


def section(page: str, task: str) -> str:
    return page.split(f'<section id="{task}">')[1].split("</section>")[0]


def text_of(page: str) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


def test_every_number_of_the_tables_is_on_the_page(study):
    page = write_report(study).read_text()
    for task in study.mil.tasks:
        mine = section(page, task)
        for answerer in study.answerers(task):
            table = pd.read_csv(evaluation_dir(study, task, answerer) / "metrics.csv")
            for row in table[table["fold"] == "all"].itertuples():
                assert f"{row.value:.3f}<small>{row.low:.3f}–{row.high:.3f}</small>" in mine
            for row in table[table["fold"] != "all"].itertuples():
                assert f"<td>{row.value:.3f}</td>" in mine


def test_methods_stand_before_baselines_and_patients_before_slides(study):
    page = write_report(study).read_text()
    survival = section(page, "overall_survival")
    assert re.findall(r"<th[^>]*>(\w+)<small>baseline", survival) == ["mean_features", "clinical"]
    assert '<th class="first">mean_features' in survival
    assert "By slide" not in survival
    tumour = section(page, "tumour")
    assert tumour.index("By patient") < tumour.index("By slide")
    assert "AUC at horizon 1 ↑ at 12 (months)" in text_of(survival)


def test_comparisons_hazard_ratios_cohort_and_looks(study):
    page = write_report(study).read_text()
    tumour, survival = (text_of(section(page, t)) for t in ("tumour", "overall_survival"))
    assert "abmil against acmil +0.031 −0.012 to +0.074 < 0.001 0.0012" in tumour
    assert "<b>0.0012</b>" in page
    assert "<td>0.12</td>" in page
    assert "2 slides without a label: p900-0, p901-0" in tumour
    assert "150 slides of 120 patients" in tumour
    assert "abmil 1, acmil 2, mean_features 1. Whoever chooses" in tumour
    assert "aim: 90 % coverage" in tumour
    assert "risk, per SD alone 2.07 (1.61–2.68) < 0.001 0.41 118 77" in survival
    assert "Adjusted for age, stage. 2 patient(s) left out." in survival
    assert "Hazard ratios" not in tumour


def test_what_is_absent_is_left_out(tmp_path):
    study = study_of(tmp_path, methods=("abmil",), covariates=())
    write_tables(study)
    for task in study.mil.tasks:
        comparison_path(study, task).unlink()
        cohort_path(study, task).unlink()
        for answerer in study.answerers(task):
            (evaluation_dir(study, task, answerer) / "hazard_ratios.csv").unlink(missing_ok=True)
    ledger_path(study).unlink()
    page = write_report(study).read_text()
    for absent in ("Paired comparisons", "Hazard ratios", "different settings", "Figures"):
        assert absent not in page
    for absent in ("Heatmaps", "Not in the cohort", "Slides seen by given models"):
        assert absent not in page
    assert "AUROC" in page


def test_one_answerer_has_nobody_to_be_compared_with(study):
    empty = pd.read_csv(comparison_path(study, "tumour")).iloc[:0]
    write_csv(empty, comparison_path(study, "tumour"))
    page = write_report(study).read_text()
    assert "Paired comparisons" not in section(page, "tumour")
    assert "Paired comparisons" in section(page, "grade")


def test_undefined_values_and_notes_of_one_answerer(study):
    path = evaluation_dir(study, "tumour", "acmil") / "metrics.csv"
    table = pd.read_csv(path, dtype={"fold": str})
    undefined = (table["metric"] == "auroc") & (table["fold"] == "all")
    table.loc[undefined, ["value", "low", "high"]] = float("nan")
    table["note"] = table["note"].astype(object)
    table.loc[undefined, "note"] = "one class <only>"
    table.loc[len(table)] = {
        "level": "patient",
        "metric": "new_one",
        "fold": "all",
        "value": 0.1234,
        "n": 120,
        "patients": 120,
    }
    write_csv(table, path)
    mine = section(write_report(study).read_text(), "tumour")
    assert "undefined<small></small>" in mine
    assert "acmil: one class &lt;only&gt;" in mine
    assert "new one" in mine
    assert "0.123<small></small>" in mine


def test_figures_are_linked_at_one_scale(study):
    folder = evaluation_dir(study, "tumour", "abmil")
    target = study.mil.tasks["tumour"].target
    roc_figure(class_rows(), target, folder / "roc.png", title="tumour, abmil")
    shutil.copy(folder / "roc.png", evaluation_dir(study, "tumour", "mean_features") / "roc.png")
    page = write_report(study).read_text()
    links = re.findall(r'<img loading="lazy" src="([^"]+)" width="(\d+)"', page)
    assert links == [
        ("evaluation/tumour/abmil/roc.png", "400"),
        ("evaluation/tumour/mean_features/roc.png", "400"),
    ]
    assert (study.output / links[0][0]).is_file()
    assert "Baseline mean_features" in page


def test_missing_metrics_say_what_to_run(study):
    (evaluation_dir(study, "grade", "clinical").parent / "acmil" / "metrics.csv").unlink()
    with pytest.raises(CohortError, match=r"no metrics at .*grade/acmil.*: run evaluate first"):
        write_report(study)


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ({"repeats": 3}, "4-fold cross-validation of patients, repeated 3 times"),
        ({"scheme": "monte_carlo"}, "4 random test parts of 20% of the patients"),
        ({"group": "site"}, "no site in two parts of a fold"),
    ],
)
def test_how_patients_were_held_out(tmp_path, split, text):
    study = study_of(tmp_path, **split)
    write_tables(study)
    assert text in write_report(study).read_text()


def test_glossary_knows_horizons_and_explains_each_metric_once():
    assert entry("td_auc_2").name == "AUC at horizon 2"
    assert entry("brier_3").better == "low"
    assert entry("brier").name == "Brier score"
    assert entry("brand_new").name == "brand new"
    found = [e.name for e in explained(["td_auc_1", "td_auc_2", "c_index", "brand_new"])]
    assert found == ["Harrell's C", "AUC at horizon"]


def test_heatmaps_that_are_painted_are_shown(study):
    folder = study.output / "heatmaps" / "tumour" / "abmil"
    write_csv(pd.DataFrame({"slide_id": ["p001-0", "p000-0"]}), folder / "predictions.csv")
    write_scale(CohortScale(1.5, "logit of tumour", 2, 200), folder / "scale.json")
    page = write_report(study).read_text()
    assert page.count('class="maps"') == 1
    assert "2 heatmaps: abmil (one colour scale for all: ±1.50, logit of tumour)" in page
    assert page.index("abmil/p000-0.png") < page.index("abmil/p001-0.png")


def test_answers_of_given_models_are_shown_with_metrics_only_where_there_are_labels(tmp_path):
    given = study_of(tmp_path, apply={"labelled": "a.safetensors", "blind": "b"})
    write_tables(given)
    for name in given.mil.apply:
        folder = tmp_path / "applied" / name
        folder.mkdir(parents=True)
        rows = {"level": ["slide"] * 5 + ["patient"] * 4, "seen": [False] * 8 + [True]}
        pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
        (folder / "fitted.json").write_text(json.dumps({"models": ["one", "two"]}))
    metrics = metric_rows(("auroc",), ("patient",), seed=0)
    metrics.to_csv(tmp_path / "applied/labelled/metrics.csv", index=False)
    page = write_report(given).read_text()
    part = text_of(page[page.index("Trained models on this archive") :])
    assert part.count("2 model(s) answered together for 5 slides and 4 patients") == 2
    assert "1 patients belonged to the training or validation part of all models" in part
    assert part.count("No labels, no metrics") == 1
    value = metrics.loc[metrics["fold"] == "all", "value"].iloc[0]
    assert f"{value:.3f}" in part
