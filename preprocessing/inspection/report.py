"""What is known of one slide after it was looked at."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self


@dataclass(frozen=True)
class SlideReport:
    """What could not be found out is None or empty.

    `state` sums up: "ready" for extraction; "no mpp" where the resolution is unknown or in doubt
    (`mpp_problem`); "damaged" where parts cannot be read, "unreadable" where nothing can
    (`problem`). `downsamples`, one per level, are level-0 pixels per pixel; `bounds_px0` is (x, y,
    width, height) of the scanned area; `reader` is of level 0 and names levels read otherwise.
    `bytes` count all of a slide's files, `further_files` those of a DICOM series after the first.
    """

    slide_id: str
    path: Path
    state: Literal["ready", "no mpp", "damaged", "unreadable"]
    format: str = ""
    width_px0: int | None = None
    height_px0: int | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str = ""
    downsamples: tuple[float, ...] = ()
    bounds_px0: tuple[int, int, int, int] | None = None
    objective_power: float | None = None
    reader: str = ""
    bytes: int = 0
    further_files: int = 0
    quickhash: str = ""
    problem: str = ""
    mpp_problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        return self.state in ("ready", "no mpp")

    def noted(self, note: str) -> Self:
        return replace(self, notes=(*self.notes, note))
