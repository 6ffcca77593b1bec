"""Micrometres per level-0 pixel of a slide, and who says so; never a default.

The vendor's value comes first, the TIFF resolution tags next, and the manifest overrides both
where it does not contradict them. A resolution nobody states, or stated twice and differently,
is an error: every number downstream (tile size, areas, scale bars) hangs on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from preprocessing.errors import MppError
from preprocessing.manifest import SlideRow

# Scanners go down to about 0.1 um; 50 um is coarser than any overview. Print resolutions that
# image tools leave in TIFF tags (72 dpi = 353 um, 300 dpi = 85 um) fall outside.
PLAUSIBLE_UM = (0.05, 50.0)
# Vendors' nominal and calibrated values differ by some per cent, never by this share.
_DISAGREEMENT = 0.10
_UM_PER_UNIT = {"centimeter": 10_000.0, "inch": 25_400.0}


@dataclass(frozen=True)
class Mpp:
    """Micrometres per level-0 pixel along x and y, and where the numbers were found."""

    x: float
    y: float
    source: str

    @property
    def plausible(self) -> bool:
        low, high = PLAUSIBLE_UM
        return low <= self.x <= high and low <= self.y <= high

    def contradicts(self, other: "Mpp") -> bool:
        return any(
            max(one, two) / min(one, two) > 1 + _DISAGREEMENT
            for one, two in ((self.x, other.x), (self.y, other.y))
        )

    def __str__(self) -> str:
        return f"{self.source} = {self.x:g} x {self.y:g} um/px"


def find_mpp(row: SlideRow, properties: Mapping[str, str]) -> Mpp:
    """The slide's resolution from openslide's properties and the manifest's row.

    Raises `MppError` where none is stated, none is plausible, or two contradict each other. The
    manifest's column `mpp_force` = 1 makes its `mpp` win over a contradicting file.
    """
    in_file = _stated_by_file(properties)
    if row.mpp is not None:
        return _overridden(row, row.mpp, in_file)
    if not in_file:
        raise MppError(
            row.slide_id,
            f"{row.path} states no micrometres per pixel; set column 'mpp' in the manifest",
        )
    first = in_file[0]
    if not first.plausible:
        raise MppError(
            row.slide_id,
            f"{first} is outside the plausible {_range()}; set column 'mpp' in the manifest",
        )
    for other in in_file[1:]:
        if other.plausible and first.contradicts(other):
            raise MppError(
                row.slide_id,
                f"{first} contradicts {other}; set the right one as 'mpp' in the manifest",
            )
    return first


def _overridden(row: SlideRow, mpp: float, in_file: list[Mpp]) -> Mpp:
    given = Mpp(mpp, mpp, "manifest")
    if not given.plausible:
        raise MppError(row.slide_id, f"{given} is outside the plausible {_range()}; correct it")
    stated = next((value for value in in_file if value.plausible), None)
    if stated is not None and given.contradicts(stated) and not _forced(row):
        raise MppError(
            row.slide_id,
            f"{given} contradicts the file's {stated}; correct or drop the manifest's value, or "
            "set column 'mpp_force' to 1 if the file is wrong",
        )
    return given


def _forced(row: SlideRow) -> bool:
    text = row.extra.get("mpp_force", "")
    if text not in ("", "0", "1"):
        raise MppError(
            row.slide_id, f"the manifest's mpp_force must be 1, 0 or empty, got {text!r}"
        )
    return text == "1"


def _stated_by_file(properties: Mapping[str, str]) -> list[Mpp]:
    """What the file says, the most trusted first.

    For a generic TIFF openslide computes `openslide.mpp-x` from the resolution tags itself.
    """
    x, y = _number(properties, "openslide.mpp-x"), _number(properties, "openslide.mpp-y")
    um = _UM_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    per_x, per_y = _number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution")
    tags = [Mpp(um / per_x, um / per_y, "tiff.XResolution")] if um and per_x and per_y else []
    if tags and properties.get("openslide.vendor") == "generic-tiff":
        return tags
    return ([Mpp(x, y, "openslide.mpp-x")] if x and y else []) + tags


def _number(properties: Mapping[str, str], key: str) -> float | None:
    """A positive number, or None where the property is absent or says nothing."""
    try:
        value = float(properties.get(key, "0"))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _range() -> str:
    return f"{PLAUSIBLE_UM[0]:g} to {PLAUSIBLE_UM[1]:g} um/px"
