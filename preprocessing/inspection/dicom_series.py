"""Which series a DICOM file belongs to, from its header alone.

A slide in DICOM is a folder of files, one or more a level, that share a Series Instance UID.
openslide opens all of them from any one, and reads the headers of the whole folder to do so: to
ask it about each file of a large folder would take the square of that.
"""

import struct
from pathlib import Path

_PREAMBLE, _MAGIC = 128, b"DICM"
_HEADER_BYTES = 1 << 18  # the UID stands before pixels, profiles and frame positions
_SERIES_INSTANCE_UID = (0x0020, 0x000E)
_ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}

_Tag = tuple[int, int]


def series_uid(path: Path) -> str | None:
    """None where the file is no DICOM in explicit little-endian form, or names no series."""
    with path.open("rb") as file:
        data = file.read(_HEADER_BYTES)
    if data[_PREAMBLE : _PREAMBLE + 4] != _MAGIC:
        return None
    try:
        return _find_uid(data, _PREAMBLE + 4)
    except (struct.error, RecursionError):  # longer than what was read, or nested without end
        return None


def _find_uid(data: bytes, at: int) -> str | None:
    while True:
        tag, length, start = _element(data, at)
        if tag > _SERIES_INSTANCE_UID:  # elements stand in the order of their tags
            return None
        if tag == _SERIES_INSTANCE_UID:
            value = data[start : start + length]
            whole = len(value) == length
            return value.decode("ascii", "replace").rstrip("\0 ") or None if whole else None
        at = _end_of_sequence(data, start) if length == _UNDEFINED else start + length


def _element(data: bytes, at: int) -> tuple[_Tag, int, int]:
    """Tag, length of the value, and where the value starts."""
    group, number = struct.unpack_from("<HH", data, at)
    if group == _ITEM_END[0]:  # items and their ends have no value representation
        (length,) = struct.unpack_from("<I", data, at + 4)
        return (group, number), length, at + 8
    if data[at + 4 : at + 6] in _LONG:
        (length,) = struct.unpack_from("<I", data, at + 8)
        return (group, number), length, at + 12
    (length,) = struct.unpack_from("<H", data, at + 6)
    return (group, number), length, at + 8


def _end_of_sequence(data: bytes, at: int) -> int:
    while True:
        tag, length, at = _element(data, at)
        if tag == _SEQUENCE_END:
            return at
        at = _end_of_item(data, at) if length == _UNDEFINED else at + length


def _end_of_item(data: bytes, at: int) -> int:
    while True:
        tag, length, at = _element(data, at)
        if tag == _ITEM_END:
            return at
        at = _end_of_sequence(data, at) if length == _UNDEFINED else at + length
