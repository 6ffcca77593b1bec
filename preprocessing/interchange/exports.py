"""Feature stores -> the files of another tool."""

import logging
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError
from preprocessing.interchange.base import Format, OutgoingSlide
from preprocessing.interchange.formats import format_named
from preprocessing.stores.store import open_store, store_path

_log = logging.getLogger(__name__)


def export_features(
    format: str,  # noqa: A002 - what it is
    features_dir: Path,
    slide_ids: Iterable[str],
    encoder: str,
    target: Path,
    *,
    limits: QualityConfig = QualityConfig(),  # noqa: B008 - it is frozen
) -> list[Path]:
    """Writes the usable tiles of each slide below `target`; the paths of all that was written.

    Tiles that could not be read, or are beyond `limits`, are left out, which the log says. Raises
    `StoreError` before anything is written if any of the files exists, or a store is damaged.
    """
    tool = format_named(format)

    def opened(slide_id: str) -> OutgoingSlide:
        return OutgoingSlide(open_store(store_path(features_dir, slide_id), limits), encoder)

    # Opened twice, because all of an archive's slides at once would fill the memory.
    planned = {slide_id: _planned(tool, target, opened(slide_id)) for slide_id in slide_ids}
    paths = [path for of_slide in planned.values() for path in of_slide]
    existing = [path for path in paths if path.exists()]
    if existing:
        raise StoreError(
            f"{existing[0]} and {len(existing) - 1} more of the files to be written exist; move "
            "them away, or name another folder"
        )
    for slide in map(opened, tqdm(planned, unit="slide", mininterval=2)):
        if slide.left_out:
            _log.info(
                "slide %r: %d tiles left out: unreadable, or beyond the limits",
                slide.slide_id,
                slide.left_out,
            )
        tool.write(target, slide)
    return paths


def _planned(tool: Format, target: Path, slide: OutgoingSlide) -> list[Path]:
    if len(slide.coords_px0) == 0:
        raise StoreError(
            f"slide {slide.slide_id!r}: none of its {slide.left_out} tiles is readable and within "
            "the limits; leave the slide out"
        )
    return tool.paths(target, slide)
