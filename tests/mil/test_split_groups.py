"""Sites and other groups of patients, of which none may be divided between parts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.config import SplitConfig
from mil.experiment import strata
from mil.folds.splits import Fold, Splits, make_splits, refuse_shared_groups
from mil.tasks.config import SurvivalConfig
from preprocessing.errors import CohortError

SURVIVAL = SurvivalConfig(time="t", event="e")


def bag_table(rows: list[tuple[str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["patient_id", "label"])
    table["slide_ids"] = [(f"slide{i}",) for i in range(len(table))]
    return table


def assert_parts(fold: Fold, everyone: set[str]) -> None:
    parts = [set(fold.train), set(fold.validation), set(fold.test)]
    assert sum(map(len, parts)) == len(everyone)
    assert set.union(*parts) == everyone


@st.composite
def sited_cohorts(draw):
    """Bags as above, and patient -> one of 6-12 sites; both classes are at each site."""
    sizes = draw(st.lists(st.integers(2, 12), min_size=6, max_size=12))
    patients = [(f"p{s}-{i}", f"site{s}", i) for s, size in enumerate(sizes) for i in range(size)]
    bags = [(patient, "ab"[i % 2]) for patient, _, i in patients for _ in range(1 + i % 2)]
    groups = pd.Series({patient: site for patient, site, _ in patients}, name="site")
    return bag_table(bags), groups


@settings(max_examples=30)
@given(
    sited_cohorts(),
    st.sampled_from(["kfold", "monte_carlo"]),
    st.integers(3, 4),
    st.integers(0, 100),
)
def test_no_site_is_divided(cohort, scheme, folds, seed):
    bags, site = cohort
    config = SplitConfig(scheme=scheme, folds=folds, seed=seed, group="site")
    splits, _ = make_splits(bags, [bags["label"]], config, groups=site)
    for fold in splits.folds:
        assert_parts(fold, set(site.index))
        sites = [set(site[list(part)]) for part in fold.parts().values()]
        assert sum(map(len, sites)) == site.nunique()
        for part in fold.parts().values():
            assert set(bags.loc[bags["patient_id"].isin(part), "label"]) == {"a", "b"}


def test_five_centres_leave_one_out_each():
    patients = [(f"p{c}-{i}", "ab"[i % 2], f"centre{c}") for c in range(5) for i in range(20)]
    bags = bag_table([row[:2] for row in patients])
    centre = pd.Series({p: c for p, _, c in patients})
    for seed in range(10):
        config = SplitConfig(folds=5, group="centre", seed=seed)
        splits, _ = make_splits(bags, [bags["label"]], config, groups=centre)
        assert {tuple(set(centre[list(f.test)])) for f in splits.folds} == {
            (f"centre{c}",) for c in range(5)
        }
        assert all(centre[list(f.validation)].nunique() == 1 for f in splits.folds)


def test_published_sites_of_bladder_cancer_stay_whole(shared):
    """TCGA-BLCA: 359 patients of 30-odd tissue source sites of 1 to 58 patients."""
    table = pd.read_csv(shared / "tables/survpath/tcga_blca_metadata.csv").drop_duplicates(
        "case_id"
    )
    bags = pd.DataFrame(
        {
            "patient_id": table["case_id"],
            "t": table["survival_months"] + 0.1,
            "e": 1 - table["censorship"],
        }
    )
    site = table.set_index("case_id")["site"]
    candidates = strata(SURVIVAL, bags)
    config = SplitConfig(folds=5, repeats=2, group="site")
    splits, _ = make_splits(bags, candidates, config, groups=site)
    refuse_shared_groups(splits, site)
    event = bags.set_index("patient_id")["e"]
    rates = [event[list(fold.test)].mean() for fold in splits.folds]
    assert np.ptp(rates) < 0.15
    assert {len(fold.test) > 40 for fold in splits.folds} == {True}


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=3), st.integers(0, 9))
def test_three_sites_are_enough_whatever_their_sizes(sizes, seed):
    """One for each part, though none of them is near the share that was asked for."""
    rows = [(f"{s}-{i}", "a") for s, size in enumerate(sizes) for i in range(size)]
    bags = bag_table(rows)
    site = pd.Series({patient: patient[0] for patient in bags["patient_id"]})
    for scheme in ("kfold", "monte_carlo"):
        config = SplitConfig(scheme=scheme, folds=3, group="site", seed=seed)
        splits, _ = make_splits(bags, [bags["label"]], config, groups=site)
        assert all(site[list(p)].nunique() == 1 for f in splits.folds for p in f.parts().values())


def test_too_few_sites_are_named():
    bags = bag_table([(f"p{i}", "ab"[i % 2]) for i in range(40)])
    site = pd.Series({f"p{i}": "north" if i < 35 else "south" for i in range(40)})
    with pytest.raises(CohortError, match=r"4 sites in every stratum, but 'a' has 2 \(north, sou"):
        make_splits(bags, [bags["label"]], SplitConfig(folds=2, group="site"), groups=site)


def test_sites_that_cannot_be_dealt_are_named():
    """Five small sites balance the large one best, which then is alone to train on."""
    rows = [(f"{site}{i}", "ab"[i % 2]) for site in "ABCDE" for i in range(2)]
    rows += [(f"N{i}", "ab"[i % 2]) for i in range(9)]
    bags = bag_table(rows)
    site = pd.Series({patient: patient[0] for patient in bags["patient_id"]})
    with pytest.raises(CohortError, match=r"2 folds: no way .*dividing a site.*'N' \(9 patients\)"):
        make_splits(bags, [bags["label"]], SplitConfig(folds=2, group="site"), groups=site)


def test_a_patient_without_a_site_is_named():
    bags = bag_table([(f"p{i}", "ab"[i % 2]) for i in range(40)])
    site = pd.Series({f"p{i}": str(i % 6) for i in range(39)})
    with pytest.raises(CohortError, match=r"no value of the group for patient\(s\) p39: fill"):
        make_splits(bags, [bags["label"]], SplitConfig(folds=2, group="site"), groups=site)


def test_a_site_in_two_parts_is_refused():
    splits = Splits((Fold(("a", "d"), ("b",), ("c",)),))
    refuse_shared_groups(splits, pd.Series({"a": "N", "d": "N", "b": "S", "c": "E"}, name="site"))
    torn = pd.Series({"a": "N", "d": "S", "b": "W", "c": "S"}, name="site")
    with pytest.raises(
        CohortError, match=r"fold 0: patients of site\(s\) S stand in both train an"
    ):
        refuse_shared_groups(splits, torn)
