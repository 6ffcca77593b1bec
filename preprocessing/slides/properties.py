"""What a slide file says about itself that may be kept: optics and geometry, nothing of people.

Vendors put barcodes, labels, file names, operators, dates and instrument numbers among a slide's
properties. So each key that is kept is named here, together with the form its value must have;
everything else is dropped, also what a future scanner may add.
"""

import re
from collections.abc import Mapping
from math import isfinite

_NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
_HEX = r"[0-9A-Fa-f]{6,64}"
_MODEL = r"[A-Za-z0-9][A-Za-z0-9 ._/();-]{0,39}"
_CODE = r"[A-Z][A-Z0-9_]{1,31}"  # a defined term of DICOM
_UID_OF_THE_STANDARD = r"1\.2\.840\.10008(\.[0-9]{1,6}){1,8}"  # never an instance's

_KEPT = (
    (r"openslide\.(mpp-[xy]|objective-power|level-count|icc-size)", _NUMBER),
    (r"openslide\.bounds-(x|y|width|height)", _NUMBER),
    (r"openslide\.level\[\d+\]\.(downsample|width|height|tile-width|tile-height)", _NUMBER),
    (r"openslide\.region\[\d+\]\.(x|y|width|height)", _NUMBER),
    (r"openslide\.(quickhash-1|background-color)", _HEX),
    (r"openslide\.vendor", r"[a-z-]{1,24}"),
    (r"tiff\.[XY]Resolution", _NUMBER),
    (r"tiff\.ResolutionUnit", r"none|inch|centimeter"),
    (r"aperio\.(AppMag|MPP|OriginalWidth|OriginalHeight)", _NUMBER),
    (r"hamamatsu\.(SourceLens|Objective\.Lens\.Magnificant)", _NUMBER),
    (r"hamamatsu\.Product", _MODEL),
    (r"leica\.(objective|aperture)", _NUMBER),
    (r"leica\.illumination-source", r"brightfield|fluorescence"),
    (r"leica\.device-model", _MODEL),
    (r"mirax\.GENERAL\.(OBJECTIVE_MAGNIFICATION|ADAPTER_SIZE)", _NUMBER),
    (r"mirax\.LAYER_0_LEVEL_\d+_SECTION\.MICROMETER_PER_PIXEL_[XY]", _NUMBER),
    (r"mirax\.LAYER_0_LEVEL_\d+_SECTION\.IMAGE_FORMAT", r"JPEG|PNG|BMP24|JPEG2000|JPEGXR"),
    (r"philips\.DICOM_PIXEL_SPACING", rf'"{_NUMBER}" "{_NUMBER}"'),
    (r"philips\.DICOM_LOSSY_IMAGE_COMPRESSION_RATIO", rf'"?{_NUMBER}"?'),
    (r"sakura\.NominalLensMagnification", _NUMBER),
    (r"trestle\.Objective Power", _NUMBER),
    (r"ventana\.(Magnification|ScanRes)", _NUMBER),
    (r"ventana\.ScannerModel", _MODEL),
    (r"dicom\.(BitsAllocated|BitsStored|SamplesPerPixel)", _NUMBER),
    (r"dicom\.OpticalPathSequence\[\d+\]\.ObjectiveLensPower", _NUMBER),
    (
        r"dicom\.SharedFunctionalGroupsSequence\[0\]\.PixelMeasuresSequence\[0\]"
        r"\.PixelSpacing\[[01]\]",
        _NUMBER,
    ),
    (r"dicom\.LossyImageCompression(Ratio)?", _NUMBER),
    (r"dicom\.(PhotometricInterpretation|LossyImageCompressionMethod)", _CODE),
    (r"dicom\.TransferSyntaxUID", _UID_OF_THE_STANDARD),
    (r"dicom\.ManufacturerModelName", _MODEL),
)
_RULES = tuple((re.compile(key, re.ASCII), re.compile(value)) for key, value in _KEPT)
# Scanners fill these in; in a converted file they hold whatever somebody typed.
_SCANNERS_TAGS = ("tiff.Make", "tiff.Model")


def stated_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """All of openslide's own. It lists names that are no UTF-8, but has no value for them."""
    return {key: value for key in properties if (value := properties.get(key)) is not None}


def kept_properties(properties: Mapping[str, str]) -> dict[str, str]:
    """Those of openslide's properties that say nothing about a person, sorted by key."""
    kept = {key: value for key, value in properties.items() if _may_stay(key, value)}
    if properties.get("openslide.vendor", "generic-tiff") != "generic-tiff":
        tags = {key: properties.get(key, "") for key in _SCANNERS_TAGS}
        kept |= {key: value for key, value in tags.items() if re.fullmatch(_MODEL, value)}
    return dict(sorted(kept.items()))


def objective_power(properties: Mapping[str, str]) -> float | None:
    """The stated magnification of the objective; None where absent or no positive number.

    It is a label, not a measurement: cameras and adapters change what a pixel covers.
    """
    try:
        power = float(properties.get("openslide.objective-power", ""))
    except ValueError:
        return None
    return power if isfinite(power) and power > 0 else None


def _may_stay(key: str, value: str) -> bool:
    return any(name.fullmatch(key) and form.fullmatch(value) for name, form in _RULES)


def bounds_px0(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """(x, y, width, height) of the scanned area, in level-0 pixels, where the vendor states it."""
    keys = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    if any(key not in properties for key in keys):
        return None
    x, y, width, height = (int(properties[key]) for key in keys)
    return x, y, width, height
