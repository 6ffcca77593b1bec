"""What a slide file looks like from outside: why openslide refuses it, and whether all is there."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tifffile import TiffFile, TiffPage

from preprocessing.slides.tiff_index import DAMAGED

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHER_FORMATS = {
    b"\xff\xd8\xff": "a plain JPEG picture, whatever its name says",
    b"\x89PNG": "a plain PNG picture, whatever its name says",
    b"BM": "a plain BMP picture, whatever its name says",
    b"%PDF": "a PDF document, whatever its name says",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"<": "an HTML or XML text, as a failed download leaves it",
}
_USUAL_BITS, _USUAL_CHANNELS = 8, 3
_UNKNOWN_FORMAT = "Unsupported or missing image file"  # in openslide's words
_DAMAGED = (*DAMAGED, OSError)


def why_refused(path: Path, error: str) -> str:
    """For people: why openslide does not open `path`; `error` is its own answer."""
    if path.is_dir():
        return "a folder, not a file"
    if not path.exists():
        return "no such file" + (": a link that leads nowhere" if path.is_symlink() else "")
    if not os.access(path, os.R_OK):
        return "no permission to read it"
    if path.stat().st_size == 0:
        return "empty: 0 bytes; copy it again"
    if path.suffix.lower() == ".mrxs" and not (path.with_suffix("") / "Slidedat.ini").is_file():
        return f"the folder {path.stem!r} with Slidedat.ini is missing beside it"
    said = f"openslide: {error.replace(f'Reading {path}: ', '')}"
    if error == _UNKNOWN_FORMAT:
        said = "no slide format that openslide knows"
    if path.suffix.lower() == ".dcm":
        said += "; is this DICOM file a whole-slide image?"
    with path.open("rb") as file:
        head = file.read(4)
    if head in _TIFF:
        if path.suffix.lower() != ".ndpi" and _directories_cut_off(path):  # NDPI's are 64 bit
            return "cut short: part of its index lies beyond its end; copy it again"
        return cut_short(path) or _why_no_slide(path, said)
    kinds = (kind for magic, kind in _OTHER_FORMATS.items() if head.startswith(magic))
    return next(kinds, said)


def _directories_cut_off(path: Path) -> bool:
    """Whether the chain of a TIFF's directories leaves the file; tifffile passes that over."""
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head.startswith(b"II") else ">"
        big = head[2:4] in (b"+\0", b"\0+")
        count, pointer, entry_bytes = ("Q", "Q", 20) if big else ("H", "I", 12)
        count, pointer = struct.Struct(order + count), struct.Struct(order + pointer)
        try:
            (offset,) = pointer.unpack_from(head, 8 if big else 4)
            seen: set[int] = set()
            while offset and offset not in seen:
                seen.add(offset)
                file.seek(offset)
                (entries,) = count.unpack(file.read(count.size))
                file.seek(entries * entry_bytes, os.SEEK_CUR)
                (offset,) = pointer.unpack(file.read(pointer.size))
        except (struct.error, OSError, OverflowError):
            return True
    return False


def _why_no_slide(path: Path, said: str) -> str:
    """Of a TIFF that is whole."""
    try:
        with TiffFile(path) as tiff:
            page = tiff.pages.first
            if not page.is_tiled:
                size = f"{page.imagewidth} x {page.imagelength} px"
                return f"a TIFF of {size} in strips; convert it into a tiled pyramid"
            compression = getattr(page.compression, "name", page.compression)
            return f"{said} (a tiled TIFF, compression {compression})"
    except _DAMAGED:
        return "a TIFF whose index is damaged; copy it again"


def cut_short(path: Path) -> str:
    """Says how much of a TIFF's stored data lies beyond the end of the file; "" where none does."""
    length = path.stat().st_size
    stored = beyond = 0
    try:
        with TiffFile(path) as tiff:
            for page in _pages(tiff):
                spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))
                stored += len(spans)
                beyond += sum(offset + count > length for offset, count in spans if count)
    except _DAMAGED:  # openslide's own answer is all there is
        return ""
    if not beyond:
        return ""
    return f"cut short: {beyond} of {stored} stored parts lie beyond its end; copy it again"


def pixel_notes(path: Path) -> list[str]:
    """What is unusual in how a TIFF stores its pixels."""
    notes = []
    try:
        with TiffFile(path) as tiff:
            page = next(_pages(tiff))
            if page.bitspersample > _USUAL_BITS:
                notes.append(f"{page.bitspersample} bits a channel, read as {_USUAL_BITS}")
            if page.samplesperpixel < _USUAL_CHANNELS:
                notes.append("one channel: grey, not in colour")
            if page.extrasamples:
                notes.append("has an alpha channel: transparent pixels are read as white glass")
    except (*_DAMAGED, StopIteration):
        return []
    return notes


def is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in _TIFF


def _pages(tiff: TiffFile) -> Iterator[TiffPage]:
    return (page for page in tiff.pages if isinstance(page, TiffPage))
