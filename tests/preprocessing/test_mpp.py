import logging
from dataclasses import replace
from pathlib import Path

import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import MppError
from preprocessing.manifest import SlideRow
from preprocessing.slides.mpp import find_mpp, judge_mpp

ROW = SlideRow("s1", "patient", Path("s1.svs"))
FORCED = replace(ROW, extra={"mpp_force": "1"})
SET = "set column 'mpp' in the manifest"


def vendor(x: object, y: object = None) -> dict[str, str]:
    stated = {"openslide.vendor": "hamamatsu", "openslide.mpp-x": str(x)}
    return stated | ({} if y == "absent" else {"openslide.mpp-y": str(y or x)})


def tags(x_um: float, y_um: float | None = None, unit: str = "centimeter") -> dict[str, str]:
    um = {"centimeter": 10_000, "inch": 25_400, "none": 1}[unit]
    return {
        "tiff.ResolutionUnit": unit,
        "tiff.XResolution": repr(um / x_um),
        "tiff.YResolution": repr(um / (y_um or x_um)),
    }


def lens(power: object) -> dict[str, str]:
    return {"openslide.objective-power": str(power)}


PRINT = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "72", "tiff.YResolution": "72"}
ONE_TAG = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800"}
GENERIC = {"openslide.vendor": "generic-tiff"}
VENDOR, TAGS, MANIFEST = "openslide.mpp-x", "tiff.XResolution", "manifest"


@pytest.mark.parametrize(
    ("properties", "mpp", "found", "source"),
    [
        # one source
        (vendor(0.25), None, (0.25, 0.25), VENDOR),
        (vendor(0.25, 0.26), None, (0.25, 0.26), VENDOR),
        (tags(0.5), None, (0.5, 0.5), TAGS),
        (tags(0.5, unit="inch"), None, (0.5, 0.5), TAGS),
        (tags(0.5, 0.4), None, (0.5, 0.4), TAGS),
        ({}, 0.5, (0.5, 0.5), MANIFEST),
        ({}, (0.5, 0.4), (0.5, 0.4), MANIFEST),
        # vendor and tags
        (vendor(0.25) | tags(0.27), None, (0.25, 0.25), VENDOR),
        (vendor(0.25) | PRINT, None, (0.25, 0.25), VENDOR),
        (vendor(0.25) | tags(0.5, unit="none"), None, (0.25, 0.25), VENDOR),
        (vendor(0) | tags(0.5), None, (0.5, 0.5), TAGS),
        (vendor("nan") | tags(0.5), None, (0.5, 0.5), TAGS),
        (vendor("?") | tags(0.5), None, (0.5, 0.5), TAGS),
        # one axis of one source
        (vendor(0.5, "absent") | tags(0.5), None, (0.5, 0.5), TAGS),
        (vendor(0.5) | ONE_TAG, None, (0.5, 0.5), VENDOR),
        # a generic TIFF: openslide's number is made from the tags
        (GENERIC | tags(0.5) | {"openslide.mpp-x": "0.5"}, None, (0.5, 0.5), TAGS),
        # the manifest over one source, over a broken one, between two that contradict
        (vendor(0.25), 0.26, (0.26, 0.26), MANIFEST),
        (tags(0.5), (0.5, 0.52), (0.5, 0.52), MANIFEST),
        (vendor(250), 0.25, (0.25, 0.25), MANIFEST),
        (PRINT, 0.25, (0.25, 0.25), MANIFEST),
        (vendor(250) | tags(0.25), 0.25, (0.25, 0.25), MANIFEST),
        (vendor(0.25) | tags(0.5), 0.25, (0.25, 0.25), MANIFEST),
        (vendor(0.25) | tags(0.5), 0.5, (0.5, 0.5), MANIFEST),
        (vendor(0.25, "absent"), 0.25, (0.25, 0.25), MANIFEST),
        # the objective agrees, or says nothing
        (vendor(0.25) | lens(40), None, (0.25, 0.25), VENDOR),
        (vendor(0.25) | lens("nan"), None, (0.25, 0.25), VENDOR),
        (lens(20), 0.5, (0.5, 0.5), MANIFEST),
    ],
)
def test_what_is_taken(properties, mpp, found, source):
    taken, notes = judge_mpp(replace(ROW, mpp=mpp), properties)
    assert (taken.x, taken.y) == pytest.approx(found)
    assert taken.source == source
    square = found[0] == pytest.approx(found[1])
    assert [note.partition(":")[0] for note in notes] == (
        [] if square else ["pixels are not square"]
    )


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({}, r"s1\.svs states no micrometres per pixel; "),
        (vendor(0), "states no micrometres per pixel; "),
        (vendor("nan"), "states no micrometres per pixel; "),
        (vendor("inf"), "states no micrometres per pixel; "),
        (vendor(-0.25), "states no micrometres per pixel; "),
        (lens(40), "states no micrometres per pixel; "),
        (vendor(0.25, "absent"), r"only openslide\.mpp-x = 0\.25 um/px along x alone"),
        ({"openslide.mpp-y": "0.25"}, r"only openslide\.mpp-y = 0\.25 um/px along y alone"),
        (ONE_TAG, r"only tiff\.XResolution = 0\.5 um/px along x alone"),
        (tags(0.5, unit="none"), r"only tiff\.XResolution = 2 pixels per unit 'none'"),
        ({"tiff.XResolution": "72", "tiff.YResolution": "72"}, "= 72 pixels per unit 'none'"),
        (vendor(0.01), "0.01 x 0.01 um/px is outside the plausible 0.05 to 50 um/px; "),
        (vendor(0.25, 250), "0.25 x 250 um/px is outside"),
        (PRINT, r"tiff\.XResolution = 352\.778 x 352\.778 um/px is outside"),
        (
            vendor(250) | PRINT,
            "mpp-x = 250 x 250 um/px is outside the plausible 0.05 to 50 um/px; ",
        ),
        (vendor(250) | tags(0.25), r"outside.*, while it says tiff\.XResolution = 0\.25 x 0\.25"),
        (vendor(0.001, "absent") | tags(0.25), "mpp-x = 0.001 um/px along x alone is outside"),
        (vendor(0.25, "absent") | PRINT, r"352\.778 um/px is outside"),
        (vendor(0.25) | tags(0.5), "0.25 x 0.25 um/px contradicts tiff.XResolution = 0.5 x 0.5"),
        (vendor(0.25) | tags(0.25, 0.3), "contradicts tiff.XResolution = 0.25 x 0.3"),
        (vendor(0.25) | ONE_TAG, "contradicts tiff.XResolution = 0.5 um/px along x alone"),
        (vendor(0.25, "absent") | tags(0.5), "0.5 x 0.5 um/px contradicts openslide.mpp-x = 0.25"),
    ],
)
def test_what_is_refused_without_the_manifest(properties, message):
    with pytest.raises(MppError, match=f"slide 's1': .*{message}") as caught:
        find_mpp(ROW, properties)
    assert SET in str(caught.value)
    with pytest.raises(MppError, match=SET):
        find_mpp(FORCED, properties)  # there is nothing to force


@pytest.mark.parametrize("properties", [vendor(0.25) | tags(0.5), vendor(250), {}, lens(40)])
def test_doing_what_the_refusal_says_helps(properties):
    with pytest.raises(MppError, match=SET):
        find_mpp(ROW, properties)
    assert find_mpp(replace(ROW, mpp=0.25), properties).x == 0.25


@pytest.mark.parametrize(
    ("properties", "mpp", "message"),
    [
        (vendor(0.25), 0.5, r"manifest = 0\.5 x 0\.5 um/px contradicts the file's openslide.mpp-x"),
        (tags(0.25), 0.5, r"contradicts the file's tiff\.XResolution = 0\.25"),
        (vendor(0.25), (0.25, 0.5), r"manifest = 0\.25 x 0\.5 um/px contradicts"),
        (vendor(0.25) | tags(0.5), 1.0, r"mpp-x = 0\.25 .* and tiff\.XResolution = 0\.5"),
        (vendor(250) | tags(0.5), 1.0, r"contradicts the file's tiff\.XResolution = 0\.5"),
        (vendor(0.25, "absent"), 0.5, r"contradicts the file's openslide\.mpp-x = 0\.25"),
        (lens(20), 5.0, r"objective, 20x, usually gives 0\.5 um/px: 10\.0 times off"),
    ],
)
def test_manifest_against_the_file_needs_force(properties, mpp, message):
    with pytest.raises(MppError, match=message) as caught:
        find_mpp(replace(ROW, mpp=mpp), properties)
    assert "set column 'mpp_force' to 1" in str(caught.value)
    with pytest.raises(MppError, match="mpp_force"):
        find_mpp(replace(ROW, mpp=mpp, extra={"mpp_force": "0"}), properties)
    forced, notes = judge_mpp(replace(FORCED, mpp=mpp), properties)
    assert (forced.x, forced.y) == (mpp if isinstance(mpp, tuple) else (mpp, mpp))
    assert notes


def test_a_manifest_that_cannot_be_meant():
    for mpp in (100.0, 0.01, (0.5, 100.0)):
        with pytest.raises(MppError, match=r"manifest = .* is outside the plausible.*correct it"):
            find_mpp(replace(FORCED, mpp=mpp), vendor(0.25))
    with pytest.raises(MppError, match="mpp_force must be 1, 0 or empty, got 'yes'"):
        find_mpp(replace(ROW, mpp=0.5, extra={"mpp_force": "yes"}), vendor(0.25))


@pytest.mark.parametrize(
    ("mpp", "power", "outcome"),
    [
        (0.25, 40, "fine"),
        (0.499, 20, "fine"),
        (0.228, 40, "fine"),
        (0.36, 40, "fine"),
        (0.4, 40, "noted"),
        (0.23, 20, "noted"),  # a real scanner's 20x with a 1.6x adapter
        (0.62, 40, "noted"),
        (0.64, 40, "refused"),
        (0.19, 20, "refused"),
        (1.5, 40, "refused"),
    ],
)
def test_objective_is_a_cross_check(mpp, power, outcome, caplog):
    properties = vendor(mpp) | lens(power)
    said = f"openslide.mpp-x = {mpp} x {mpp} um/px, but the stated objective, {power}x, usually"
    if outcome == "refused":
        with pytest.raises(MppError, match="times off") as caught:
            find_mpp(ROW, properties)
        assert said in str(caught.value)
        assert SET in str(caught.value)
        # A person who confirms what the file says need not force it.
        confirmed, (note,) = judge_mpp(replace(ROW, mpp=mpp), properties)
        assert (confirmed.x, confirmed.source) == (mpp, "manifest")
        assert f"{power}x" in note
        return
    with caplog.at_level(logging.WARNING):
        assert find_mpp(ROW, properties).x == mpp
    assert [said in message for message in caplog.messages] == (
        [True] if outcome == "noted" else []
    )


def test_the_worse_axis_counts_against_the_objective():
    with pytest.raises(MppError, match=r"0\.25 x 2\.5 um/px, but .*: 10\.0 times off"):
        find_mpp(ROW, vendor(0.25, 2.5) | lens(40))


UM = st.floats(0.051, 49)


@given(UM, st.floats(0.5, 2))
def test_two_values_may_differ_by_a_tenth(um, ratio):
    other = um * ratio
    if not 0.05 < other < 50:
        return
    pairs = [
        (ROW, vendor(um) | tags(other)),
        (replace(ROW, mpp=other), vendor(um)),
        (replace(ROW, mpp=other), tags(um)),
    ]
    for row, properties in pairs:
        if max(ratio, 1 / ratio) > 1.1001:
            with pytest.raises(MppError, match="contradicts"):
                find_mpp(row, properties)
        elif max(ratio, 1 / ratio) < 1.0999:
            assert find_mpp(row, properties).x == pytest.approx(um if row.mpp is None else other)


STATEMENT = st.sampled_from(["", "0.25", "0.26", "0.5", "250", "0.001", "nan", "-1", "text"])


@given(
    x=STATEMENT,
    y=STATEMENT,
    per_x=STATEMENT.map(lambda text: "40000" if text == "0.25" else text),
    unit=st.sampled_from(["centimeter", "inch", "none", "parsec"]),
    power=st.sampled_from(["", "20", "40", "text"]),
    mpp=st.sampled_from([None, 0.25, 0.5, (0.25, 0.26), 100.0]),
)
def test_whatever_is_stated_the_answer_was_stated_by_someone(x, y, per_x, unit, power, mpp):
    """No default: either a plausible value of one of the sources, or an `MppError`."""
    properties = {
        "openslide.mpp-x": x,
        "openslide.mpp-y": y,
        "tiff.XResolution": per_x,
        "tiff.YResolution": per_x,
        "tiff.ResolutionUnit": unit,
        "openslide.objective-power": power,
    }
    try:
        found, _ = judge_mpp(replace(ROW, mpp=mpp), properties)
    except MppError:
        return
    if found.source == "tiff.XResolution":
        said = ({"centimeter": 10_000, "inch": 25_400}[unit] / float(per_x),) * 2
    elif found.source == "openslide.mpp-x":
        said = (float(x), float(y))
    else:
        said = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    assert (found.x, found.y) == said
    assert all(0.05 <= value <= 50 for value in (found.x, found.y))


@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("CMU-1-Small-Region.svs", (0.499, 0.499)),
        ("fluor-DAPI-387.ndpi", (0.22817, 0.22817)),
        ("camelyon-lowres.dcm", (28.969, 28.968)),
        ("TCGA-CR-7395-01A-01-TS1.svs", None),
        ("broken/boxes.tiff", None),
    ],
)
def test_real_files(shared, name, mpp):
    with openslide.OpenSlide(shared / "slides" / name) as handle:
        properties = dict(handle.properties)
    if mpp is None:
        with pytest.raises(MppError, match=SET):
            find_mpp(ROW, properties)
        return
    found, notes = judge_mpp(ROW, properties)
    assert (found.x, found.y) == pytest.approx(mpp, rel=1e-4)
    assert not notes
