import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.config import SplitConfig
from mil.folds.split_files import SuppliedFold, read_split_files, to_patients
from mil.folds.splits import make_splits
from preprocessing.errors import CohortError


def bags_of(slides: dict[str, str]) -> pd.DataFrame:
    """Slide bags, as Cohort.bags makes them, of slide -> patient."""
    ids = list(slides)
    return pd.DataFrame(
        {"patient_id": list(slides.values()), "slide_ids": [(i,) for i in ids]}, index=ids
    )


def sizes(fold: SuppliedFold) -> tuple[int, int, int]:
    return len(fold.train), len(fold.validation), len(fold.test)


def test_both_forms_of_clam_say_the_same(shared):
    ragged, boolean = (
        read_split_files([shared / "tables/clam" / name])[0]
        for name in ("splits_0.csv", "splits_0_bool.csv")
    )
    assert sizes(ragged) == (300, 51, 48)
    assert ragged.parts == boolean.parts
    assert {"slide_110", "slide_444"} <= ragged.train
    assert "slide_403" in ragged.validation
    assert "slide_13" in ragged.test


def test_clams_folds_keep_their_cases_whole(shared):
    """The published table has 450 cases of 500 slides, the fold names 399 slides of 361 of them."""
    table = pd.read_csv(shared / "tables/clam/tumor_vs_normal_dummy_clean.csv")
    (fold,) = read_split_files([shared / "tables/clam/splits_0.csv"])
    bags = bags_of(dict(zip(table["slide_id"], table["case_id"], strict=True)))
    (translated,), report = to_patients([fold], bags)
    case = table.set_index("slide_id")["case_id"]
    assert translated.train == set(case[sorted(fold.train)])
    assert sum(sizes(translated)) == 361
    assert [len(ids) for ids in report.values()] == [450 - 361]


def test_clams_descriptor_is_no_split(shared):
    with pytest.raises(CohortError, match=r"rows for normal_tissue, tumor_tissue, which looks li"):
        read_split_files([shared / "tables/clam/splits_0_descriptor.csv"])


def survpath(shared: Path) -> list[Path]:
    return sorted((shared / "tables/survpath").glob("tcga_blca_splits_*.csv"))


def test_survpath_validates_on_its_test_part_and_is_refused_unless_told(shared):
    with pytest.raises(CohortError, match=r"splits_0.csv has the parts train and val but no test"):
        read_split_files(survpath(shared))
    folds = read_split_files(survpath(shared), "val")
    assert [sizes(fold) for fold in folds] == [
        (289, 0, 70), (287, 0, 72), (284, 0, 75), (288, 0, 71), (288, 0, 71),
    ]  # fmt: skip
    assert len(frozenset().union(*(fold.test for fold in folds))) == 359


def test_survpath_folds_of_bladder_cancer(shared):
    """Held out are the published patients; validation is whole sites of the training part."""
    table = pd.read_csv(shared / "tables/survpath/tcga_blca_metadata.csv")
    slides = table["slide_id"].str.removesuffix(".svs")
    bags = bags_of(dict(zip(slides, table["case_id"], strict=True)))
    site = table.groupby("case_id")["site"].first()  # published folds keep sites whole
    event = pd.Series((1 - table["censorship"]).map(str).to_list(), index=bags.index)
    config = SplitConfig(
        scheme="supplied", folds=5, files=tuple(survpath(shared)), test_part="val", group="site"
    )
    folds = read_split_files(config.files, config.test_part)
    splits, notes = make_splits(bags, [event], config, groups=site, supplied=folds)
    assert notes == {}
    for made, published in zip(splits.folds, folds, strict=True):
        assert made.repeat == 0
        assert set(made.test) == published.test
        assert set(made.train) | set(made.validation) == published.train
        assert len(made.validation) == pytest.approx(0.2 * len(published.train), rel=0.25)
        assert site[list(made.train)].isin(site[list(made.validation)]).sum() == 0


def test_acmil_repeats_the_official_test_part(shared):
    paths = sorted((shared / "tables/acmil").glob("camelyon_split_*.json"))
    folds = read_split_files(paths)
    assert [sizes(fold) for fold in folds] == [(242, 27, 129)] * 5
    table = pd.read_csv(shared / "tables/acmil/camelyon16.csv")
    label = pd.Series(table["label"].to_list(), index=table["slide_id"])
    bags = bags_of({slide: slide for slide in table["slide_id"]})
    config = SplitConfig(scheme="supplied", folds=5, files=tuple(paths))
    splits, notes = make_splits(bags, [label], config, supplied=folds)
    assert [fold.repeat for fold in splits.folds] == [0, 1, 2, 3, 4]
    assert splits.folds_testing("test_001") == (0, 1, 2, 3, 4)
    left_out = {reason: ids for reason, ids in notes.items() if "in no part" in reason}
    assert [len(ids) for ids in left_out.values()] == [1] * 5  # 399 slides, 398 of them used


def test_acmils_made_up_cases_would_leak(shared):
    table = pd.read_csv(shared / "tables/acmil/camelyon16.csv")
    folds = read_split_files([shared / "tables/acmil/camelyon_split_1.json"])
    bags = bags_of(dict(zip(table["slide_id"], table["case_id"], strict=True)))
    with pytest.raises(
        CohortError, match=r"camelyon_split_1.json: patient\(s\) patient_\d+.* stan"
    ):
        to_patients(folds, bags)


def test_stamp_and_soma(tmp_path):
    stamp, soma = tmp_path / "splits.json", tmp_path / "splits.csv"
    stamp.write_text(
        json.dumps(
            [
                {"train_patients": ["a", "b"], "test_patients": ["c"]},
                {"train_patients": ["b", "c"], "test_patients": ["a"]},
            ]
        )
    )
    first, second = read_split_files([stamp])
    assert (first.train, first.validation, first.test) == ({"a", "b"}, frozenset(), {"c"})
    assert second.test == {"a"}
    assert second.source.endswith("splits.json, entry 1")
    soma.write_text(
        "sample_id,split,fold\na,train,0\nb,tune,0\nc,test,0\nd,test_external,0\n"
        "b,train,1\na,tune,1\nc,test,1\n"
    )
    first, second = read_split_files([soma])
    assert first.parts == {"train": {"a"}, "validation": {"b"}, "test": {"c", "d"}}
    assert second.parts == {"train": {"b"}, "validation": {"a"}, "test": {"c"}}
    assert second.source.endswith("splits.csv, fold 1")


ids = st.sets(st.from_regex(r"[A-Z]{2}-[0-9]{1,3}\.[A-F0-9]{2}", fullmatch=True), min_size=3)
FORMS = ("clam", "bool", "acmil", "stamp", "soma")


@settings(max_examples=40)
@given(ids, st.data(), st.sampled_from(FORMS), st.sampled_from(["", ".svs", ".TIFF"]))
def test_every_form_gives_back_the_ids_that_were_written(tmp_path_factory, ids, data, form, ending):
    order = data.draw(st.permutations(sorted(ids)))
    cuts = sorted(data.draw(st.tuples(*[st.integers(1, len(order) - 1)] * 2)))
    parts = {"train": order[: cuts[0]], "val": order[cuts[0] : cuts[1]], "test": order[cuts[1] :]}
    if form == "stamp":
        parts = {"train": parts["train"] + parts["val"], "test": parts["test"]}
    path = tmp_path_factory.mktemp("splits") / ("s.json" if form in {"acmil", "stamp"} else "s.csv")
    written = {name: [f"folder/{i}{ending}" for i in part] for name, part in parts.items()}
    write(path, written, form)
    (fold,) = read_split_files([path])
    assert fold.parts == {
        "train": set(parts["train"]),
        "validation": set(parts.get("val", [])),
        "test": set(parts["test"]),
    }


def write(path: Path, parts: dict[str, list[str]], form: str) -> None:
    if form == "acmil":
        path.write_text(json.dumps({f"{name}_names": ids for name, ids in parts.items()}))
    elif form == "stamp":
        path.write_text(json.dumps([{f"{name}_patients": ids for name, ids in parts.items()}]))
    elif form == "clam":
        pd.DataFrame({name: pd.Series(ids) for name, ids in parts.items()}).to_csv(path)
    elif form == "bool":
        everyone = [i for ids in parts.values() for i in ids]
        table = {name: [i in ids for i in everyone] for name, ids in parts.items()}
        pd.DataFrame(table, index=everyone).to_csv(path)
    else:
        rows = [(i, {"val": "tune"}.get(name, name)) for name, ids in parts.items() for i in ids]
        pd.DataFrame(rows, columns=["sample_id", "split"]).to_csv(path, index=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", "train,val,test\na,b,c\nc,,\n", r"s.csv: id\(s\) c stand in both train and test"),
        ("s.csv", "train,val,test\na.svs,b,/d/a.h5\n", r"id\(s\) a stand in both train and test"),
        ("s.csv", "train,test\na,\n", r"expected ids for test, got none; it has train: correct"),
        ("s.csv", "test\na\n", r"expected CLAM's .* got the columns \['test'\]"),
        ("s.csv", "sample_id,split\na,train\nb,dev\n", r"train, tune or test..., got dev for b"),
        ("s.csv", "", r"expected CSV or JSON in UTF-8"),
        ("s.json", "{", r"expected CSV or JSON in UTF-8"),
        ("s.json", '{"folds": [1]}', r"got keys \['folds'\]"),
        ("s.json", '[["a"], ["b"]]', r"entry 0: expected CLAM's .* got \"\['a'\]\""),
    ],
)
def test_other_contents_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(CohortError, match=message):
        read_split_files([path])


def test_absent_files_and_a_part_that_is_not_there(tmp_path):
    with pytest.raises(CohortError, match=r"cannot read the split file .*: No such file"):
        read_split_files([tmp_path / "none.csv"])
    path = tmp_path / "splits.json"
    path.write_text(json.dumps([{"train_patients": ["a"], "test_patients": ["c"]}]))
    with pytest.raises(CohortError, match=r"ids for val, got none; it has train, test: correct"):
        read_split_files([path], "val")


def test_held_out_val_leaves_the_test_part_out(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("train,val,test\na,b,c\n")
    (fold,) = read_split_files([path], "val")
    assert fold.parts == {"train": {"a"}, "validation": frozenset(), "test": {"b"}}


SLIDES = {"s1.svs": "P1", "s2": "P1", "s3": "P2", "s4": "P3", "s5": "P4"}


def fold_of(train: str, validation: str, test: str) -> SuppliedFold:
    parts = (frozenset(part.split()) for part in (train, validation, test))
    return SuppliedFold(*parts, source="f.csv")


def test_slides_and_patients_become_patients_and_the_rest_is_reported():
    (fold,), report = to_patients([fold_of("s1 s2 gone", "P2", "s4")], bags_of(SLIDES))
    assert fold.parts == {"train": {"P1"}, "validation": {"P2"}, "test": {"P3"}}
    assert report == {
        "fold 0: ids of f.csv that the cohort lacks": ["gone"],
        "fold 0: patients in no part of f.csv": ["P4"],
    }


@pytest.mark.parametrize(
    ("fold", "slides", "message"),
    [
        (fold_of("s1", "s3", "s2"), SLIDES, r"f.csv: patient\(s\) P1 stand in both train and test"),
        (fold_of("P1", "s3", "s2"), SLIDES, r"P1 stand in both train and test"),
        (fold_of("s1", "s2", "s4"), SLIDES, r"P1 stand in both train and validation"),
        (
            fold_of("s1", "", "x y"),
            SLIDES,
            r"none of the 2 ids for test is a slide .* file has x, y; .* patients P1, P2, P3, P4 a",
        ),
        (fold_of("P1", "", "P2"), {"P1": "P2", "b": "P1"}, r"id\(s\) P1 stand for more than one"),
        (fold_of("a", "", "P2"), {"a.svs": "P1", "a.h5": "P2"}, r"id\(s\) a stand for more than"),
    ],
)
def test_folds_that_leak_or_cannot_be_read_are_refused(fold, slides, message):
    with pytest.raises(CohortError, match=message):
        to_patients([fold], bags_of(slides))
