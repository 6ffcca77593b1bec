"""Stored JPEG streams of a TIFF, completed so that a decoder understands them alone."""

import os
from pathlib import Path

from preprocessing.slides.tiff_jpeg import START


class StoredFile:
    """A slide's file; may be read by several threads at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._bytes = os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()

    def stream(self, offset: int, length: int, head: bytes) -> bytes | None:
        """`head` in place of the start marker of what is stored there.

        None where no JPEG starts there, or the file ends before it does.
        """
        if not 0 <= offset <= offset + length <= self._bytes:
            return None
        stored = os.pread(self._file.fileno(), length, offset)
        if len(stored) < length or stored[: len(START)] != START:
            return None
        return b"".join((head, memoryview(stored)[len(START) :]))
