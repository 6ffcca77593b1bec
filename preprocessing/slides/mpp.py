"""Micrometres per level-0 pixel of a slide, and who says so; never a default.

    vendor       TIFF tags               manifest                  taken
    plausible    absent or implausible   absent                    vendor (72 dpi is for printing)
    plausible    within 10 %             absent                    vendor
    plausible    further off             absent                    error
    absent       plausible               absent                    tags
    implausible  any                     absent                    error
    absent       absent or implausible   absent                    error
    any          any                     within 10 % of either     manifest
    none of the two plausible            plausible                 manifest
    any          any                     further off from both     error, unless mpp_force is 1
    any          any                     implausible               error

The objective's power is a cross-check: it says what lens was used, not what a pixel covers. Two
statements that differ are an error, because every number downstream (tile size, areas, scale
bars) hangs on this one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from preprocessing.errors import MppError
from preprocessing.manifest import SlideRow
from preprocessing.slides.properties import objective_power

_log = logging.getLogger(__name__)

# Scanners go down to about 0.1 um; 50 um is coarser than any overview. Print resolutions that
# image tools leave in TIFF tags (72 dpi = 353 um, 300 dpi = 85 um) fall outside.
PLAUSIBLE_UM = (0.05, 50.0)
# Vendors' nominal and calibrated values differ by some per cent, never by this share.
_DISAGREEMENT = 1.10
# Camera pixels are about 10 um wide; binning and adapters change what lies under one.
_UM_AT_POWER_1 = 10.0
# A scanner with 20x and an adapter gives 0.23 um/px, 2.2 times off, and is right.
_OBJECTIVE_NOTED, _OBJECTIVE_REFUSED = 1.5, 2.5
_NOT_SQUARE = 1.01  # calibrated axes differ in the fourth digit
_UM_PER_UNIT = {"centimeter": 10_000.0, "inch": 25_400.0}
_SET = "set column 'mpp' in the manifest (or 'mpp_x' and 'mpp_y')"


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel along x and y, and where the numbers were found."""

    x: float
    y: float
    source: str

    def __str__(self) -> str:
        return f"{self.source} = {self.x:g} x {self.y:g} um/px"


@dataclass(frozen=True)
class _Stated:
    """What one source says; with one axis alone it cannot be taken, but can contradict."""

    x: float | None
    y: float | None
    source: str

    @property
    def whole(self) -> Mpp | None:
        return Mpp(self.x, self.y, self.source) if self.x and self.y else None

    @property
    def plausible(self) -> bool:
        return _is_plausible(self.x, self.y)

    def contradicts(self, other: Mpp) -> bool:
        pairs = ((self.x, other.x), (self.y, other.y))
        return any(max(one, two) / min(one, two) > _DISAGREEMENT for one, two in pairs if one)

    def __str__(self) -> str:
        if whole := self.whole:
            return str(whole)
        return f"{self.source} = {self.x or self.y:g} um/px along {'x' if self.x else 'y'} alone"


def find_mpp(row: SlideRow, properties: Mapping[str, str]) -> Mpp:
    """The slide's resolution from openslide's properties and the manifest's row.

    Raises `MppError` where none is stated, none is plausible, or two contradict each other. The
    manifest's column `mpp_force` = 1 makes its value win over a contradicting file. What is odd
    but usable is logged as a warning.
    """
    mpp, notes = judge_mpp(row, properties)
    for note in notes:
        _log.warning("slide %r: %s", row.slide_id, note)
    return mpp


def judge_mpp(row: SlideRow, properties: Mapping[str, str]) -> tuple[Mpp, list[str]]:
    """As `find_mpp`, but the warnings are returned instead of logged."""
    stated = _stated_by_file(properties)
    if row.mpp is None:
        mpp, notes = _taken(row, stated, properties), []
    else:
        mpp, notes = _overridden(row, row.mpp, [each for each in stated if each.plausible])
    if max(mpp.x, mpp.y) > _NOT_SQUARE * min(mpp.x, mpp.y):
        notes.append(f"pixels are not square: {mpp}")
    # A person and the file who say the same outvote the objective.
    confirmed = row.mpp is not None and (
        _forced(row) or any(each.plausible and not each.contradicts(mpp) for each in stated)
    )
    return mpp, notes + _check_objective(row, mpp, properties, confirmed=confirmed)


def _taken(row: SlideRow, stated: list[_Stated], properties: Mapping[str, str]) -> Mpp:
    mpp = next((each.whole for each in stated if each.whole), None)
    if mpp is None:
        found = [*map(str, stated), *_without_unit(properties)]
        only = f" (only {' and '.join(found)})" if found else ""
        raise MppError(row.slide_id, f"{row.path} states no micrometres per pixel{only}; {_SET}")
    # Tags are often leftovers of image tools, but a vendor's absurd value casts doubt on all.
    first, *others = stated
    if not first.plausible or not _is_plausible(mpp.x, mpp.y):
        wrong = first if not first.plausible else mpp
        beside = "".join(f", while it says {each}" for each in others if each.plausible)
        raise MppError(row.slide_id, f"{wrong} is outside the plausible {_range()}{beside}; {_SET}")
    for other in stated:
        if other.plausible and other.contradicts(mpp):
            raise MppError(row.slide_id, f"{mpp} contradicts {other}; {_SET} to the right one")
    return mpp


def _overridden(
    row: SlideRow, mpp: float | tuple[float, float], plausible: list[_Stated]
) -> tuple[Mpp, list[str]]:
    """Where the file contradicts itself, the manifest decides by agreeing with either."""
    given = Mpp(*(mpp if isinstance(mpp, tuple) else (mpp, mpp)), "manifest")
    if not _is_plausible(given.x, given.y):
        raise MppError(row.slide_id, f"{given} is outside the plausible {_range()}; correct it")
    if not plausible or any(not each.contradicts(given) for each in plausible):
        return given, []
    contradiction = f"{given} contradicts the file's {' and '.join(map(str, plausible))}"
    if not _forced(row):
        raise MppError(
            row.slide_id,
            f"{contradiction}; correct or drop the manifest's value, or set column 'mpp_force' "
            "to 1 if the file is wrong",
        )
    return given, [f"{contradiction} and is used, because mpp_force is 1"]


def _check_objective(
    row: SlideRow, mpp: Mpp, properties: Mapping[str, str], *, confirmed: bool
) -> list[str]:
    power = objective_power(properties)
    if power is None:
        return []
    nominal = _UM_AT_POWER_1 / power
    ratio = max(max(um / nominal, nominal / um) for um in (mpp.x, mpp.y))
    if ratio <= _OBJECTIVE_NOTED:
        return []
    note = f"{mpp}, but the stated objective, {power:g}x, usually gives {nominal:g} um/px"
    if ratio > _OBJECTIVE_REFUSED and not confirmed:
        how = f"{_SET} to the right value"
        if row.mpp is not None:
            how = "correct it, or set column 'mpp_force' to 1 if it is right"
        raise MppError(row.slide_id, f"{note}: {ratio:.1f} times off; {how}")
    return [note]


def _forced(row: SlideRow) -> bool:
    text = row.extra.get("mpp_force", "")
    if text not in ("", "0", "1"):
        raise MppError(
            row.slide_id, f"the manifest's mpp_force must be 1, 0 or empty, got {text!r}"
        )
    return text == "1"


def _stated_by_file(properties: Mapping[str, str]) -> list[_Stated]:
    """The most trusted first; a source that says nothing is left out.

    For a generic TIFF openslide computes `openslide.mpp-x` from the resolution tags itself.
    """
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    vendor = _Stated(x, y, "openslide.mpp-x" if x or not y else "openslide.mpp-y")
    um = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    per_x, per_y = _number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution")
    tags = _Stated(
        um / per_x if um and per_x else None,
        um / per_y if um and per_y else None,
        "tiff.XResolution" if per_x or not per_y else "tiff.YResolution",
    )
    if tags.whole and properties.get("openslide.vendor") == "generic-tiff":
        return [tags]
    return [each for each in (vendor, tags) if each.x or each.y]


def _without_unit(properties: Mapping[str, str]) -> list[str]:
    key, unit = "tiff.XResolution", properties.get("tiff.ResolutionUnit", "none")
    value = _number(properties, key)
    if value in (None, 1.0) or unit in _UM_PER_UNIT:  # 1 is how writers leave it out
        return []
    return [f"{key} = {value:g} pixels per unit {unit!r}"]


def _number(properties: Mapping[str, str], key: str) -> float | None:
    """A positive number, or None where the property is absent or says nothing."""
    try:
        value = float(properties.get(key, "0"))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _is_plausible(*um: float | None) -> bool:
    """Of what is stated; None says nothing."""
    return all(PLAUSIBLE_UM[0] <= value <= PLAUSIBLE_UM[1] for value in um if value is not None)


def _range() -> str:
    return f"{PLAUSIBLE_UM[0]:g} to {PLAUSIBLE_UM[1]:g} um/px"
