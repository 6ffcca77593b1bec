"""Forms of slide and patient ids: what is left without folders and endings, and near misses."""

import re
from collections.abc import Callable, Iterable

_ENDING = re.compile(
    r"\.(svs|ndpi|mrxs|tiff?|h5|pt|zarr|scn|bif|vsi|dcm|czi|isyntax)$", re.IGNORECASE
)
_TCGA = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?![A-Z0-9])")


def bare_id(text: str) -> str:
    """The id without folders and file endings; other dots stay, ids of TCGA have them."""
    name = re.split(r"[/\\]", text.strip())[-1]
    while shorter := _ENDING.sub("", name):
        if shorter == name:
            break
        name = shorter
    return name


def tissue_source_site(identifier: str) -> str | None:
    """The hospital of a TCGA barcode (its second token); None of any other id."""
    found = _TCGA.match(identifier)
    return found.group(1) if found else None


def _without_tcga_suffix(text: str) -> str:
    """A TCGA slide without its UUID; other ids as they are."""
    return text.split(".", 1)[0] if _TCGA.match(text.upper()) else text


def _tcga_patient(text: str) -> str:
    return text[:12] if _TCGA.match(text.upper()) else text


_FORMS: tuple[tuple[str, Callable[[str], str], str], ...] = (
    ("folder or file ending", bare_id, ""),  # the remedy depends on the side that carries it
    (
        "upper or lower case",
        lambda text: bare_id(text).casefold(),
        "write them alike in the manifest and in the table",
    ),
    (
        "leading zeros",
        lambda text: bare_id(text).lstrip("0"),
        "spreadsheets drop them: write the ids alike, in a column of text",
    ),
    (
        "the UUID behind the barcode of TCGA",
        lambda text: _without_tcga_suffix(bare_id(text)).casefold(),
        "give both the same form, or label by patient (a table with patient_id and no slide_id)",
    ),
    (
        "what follows the patient in the barcode of TCGA",
        lambda text: _tcga_patient(bare_id(text)).casefold(),
        "write the patient (12 characters, TCGA-XX-XXXX), and name that column patient_id",
    ),
)


_IN_TABLE = "set labels.bare_ids: true, which strips them from the table's slide ids"
_IN_MANIFEST = "write slide_id in the manifest without them, its column path names the file"


def near_misses(labels: Iterable[str], slides: Iterable[str]) -> str:
    """How ids of a label table nearly are those of the manifest, and what to do; or no text."""
    labels, slides = list(labels), list(slides)
    for what, form, advice in _FORMS:
        known = {form(label): label for label in labels}
        pairs = [(known[form(slide)], slide) for slide in slides if form(slide) in known]
        if pairs:
            label, slide = pairs[0]
            sides = ((label, _IN_TABLE), (slide, _IN_MANIFEST))
            advice = advice or "; ".join(told for text, told in sides if text != bare_id(text))
            return (
                f"; {len(pairs)} would match but for {what} ({label!r} in the table, {slide!r} in "
                f"the manifest): {advice}"
            )
    return ""
