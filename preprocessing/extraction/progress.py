"""How far a shard is: a bar on a terminal, a line every half minute in a log."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from tqdm import tqdm

from preprocessing.manifest import SlideRow

_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 30.0
_FORMAT = "{desc} {percentage:.0f} % {elapsed}<{remaining}{postfix}"


class Progress:
    """Slides done of all, tiles a second, and the time that is left.

    That time follows from the bytes of the slides' files (not those of companion folders) that
    were encoded so far and are still to be; what needs no encoding is left out of both.
    """

    def __init__(
        self,
        rows: Sequence[SlideRow],
        *,
        stream: TextIO | None = None,
        every_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        out: TextIO = sys.stderr if stream is None else stream
        terminal = out.isatty()
        seconds = (_TERMINAL_SECONDS if terminal else _LOG_SECONDS) if every_s is None else every_s
        self._bytes = {row.slide_id: _bytes_of(row) for row in rows}
        self._slides, self._done = len(rows), 0
        self._clock = clock
        self._tiles = self._seen = self._counted = 0
        self._began = clock()
        self._bar: tqdm[NoReturn] = tqdm(
            total=sum(self._bytes.values()),
            file=out if terminal else _Lines(out),
            bar_format=_FORMAT,
            mininterval=seconds,
            maxinterval=seconds,
            miniters=0,  # time alone decides when a line is due
            smoothing=0,
            desc=f"0/{self._slides} slides",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, slide_id: str, tiles: int) -> None:
        """The slide whose tiles come next."""
        self._slide_id, self._tiles, self._seen = slide_id, tiles, 0
        self._began = self._clock()

    def advance(self, tiles: int) -> None:
        """Of the slide that was started."""
        self._seen += tiles
        speed = self._seen / max(self._clock() - self._began, 1e-6)
        self._bar.set_postfix_str(f"{speed:,.0f} tiles/s", refresh=False)
        self._describe(f"{self._slide_id}: {self._seen:,} of {self._tiles:,} tiles")
        counted = self._bytes[self._slide_id] * self._seen // self._tiles
        step, self._counted = counted - self._counted, counted
        self._bar.update(step)

    def done(self, slide_id: str) -> None:
        """However it ended."""
        self._done += 1
        self._bar.total -= self._bytes[slide_id] - self._counted
        self._counted = 0
        self._describe(slide_id)
        self._bar.update(0)

    def _describe(self, what: str) -> None:
        self._bar.set_description_str(f"{self._done}/{self._slides} slides, {what}", refresh=False)


class _Lines:
    """What a bar writes over itself on a terminal, as lines of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _bytes_of(row: SlideRow) -> int:
    """At least 1, so that files that are absent or out of reach are steps too."""
    try:
        return max(1, row.path.stat().st_size)
    except OSError:
        return 1
