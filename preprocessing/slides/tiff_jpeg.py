"""JPEG streams of TIFF tiles: tables spliced in, and the headers that decide how they decode.

A tile's stream may lack its quantisation and Huffman tables (they stand once, in the tag
JPEGTables) and may not say whether it holds YCbCr or RGB (the tag PhotometricInterpretation does).
A decoder that sees the stream alone must be told both: the tables and an Adobe marker go in front.
"""

START, END = b"\xff\xd8", b"\xff\xd9"
_ADOBE = 0xEE
_JFIF = 0xE0
_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TABLES = (0xDB, 0xC4, 0xDD)  # quantisation, Huffman, restart interval
_REMARKS = (*range(0xE1, 0xF0), 0xFE)  # application data and comments
_ADOBE_SEGMENT = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # then the transform
_TRANSFORM_AT = len(_ADOBE_SEGMENT)


def stream_head(tables: bytes | None, *, rgb: bool) -> bytes | None:
    """What a tile's stream is to begin with in place of its start marker.

    None where `tables`, the tag JPEGTables, holds anything but tables.
    """
    adobe = _ADOBE_SEGMENT + _transform(rgb=rgb)
    if tables is None:
        return START + adobe
    if not (tables.startswith(START) and tables.endswith(END) and _only_tables(tables)):
        return None
    return START + adobe + tables[2:-2]


def _transform(*, rgb: bool) -> bytes:
    """Adobe's code: 0 leaves the components alone, 1 is YCbCr."""
    return b"\x00" if rgb else b"\x01"


def _only_tables(tables: bytes) -> bool:
    at, end = 2, len(tables) - 2
    while at + 4 <= end and tables[at] == 0xFF and tables[at + 1] in _TABLES:
        at += 2 + int.from_bytes(tables[at + 2 : at + 4])
    return at == end


def frame_header(stream: bytes, *, start: int, rgb: bool) -> bytes | None:
    """The frame header of a tile's own stream: coding, size, components and their sampling.

    Its first marker after the start marker is at `start`. None where the stream is no JPEG, or
    where a marker of its own would turn its colours into others than the photometric tag names:
    libjpeg trusts JFIF first, then the last Adobe marker.
    """
    frame = None
    at, last = start, len(stream) - 4
    while at <= last and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == _SCAN:
            return frame
        stop = at + 2 + (stream[at + 2] << 8 | stream[at + 3])
        if marker in _FRAMES:
            frame = stream[at + 1 : stop]
        elif marker == _JFIF:
            if rgb:
                return None
        elif marker == _ADOBE:
            if stream[at + _TRANSFORM_AT : at + _TRANSFORM_AT + 1] != _transform(rgb=rgb):
                return None
        elif marker not in _TABLES and marker not in _REMARKS:
            return None
        at = stop
    return None


def frame_size(frame: bytes) -> tuple[int, int]:
    """(width, height) of a frame header."""
    return int.from_bytes(frame[6:8]), int.from_bytes(frame[4:6])
