"""What became of each slide of a shard, as a small JSON file that says the shard is done."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from preprocessing.artefacts import whole_file
from preprocessing.config import Section
from preprocessing.errors import ManifestError, StoreError


@dataclass(frozen=True)
class SlideStatus:
    """`tiles` in the store (0 where failed), `tiles_unreadable` among them where they were read;
    `error` is for people, `traceback` for the log.

    `seconds` are those of the run between the slide before and this one: opening it and writing
    its store ran beside others. `waited_for_reading` is the share of them in which the encoder
    had no tiles: near 1 says that more readers or faster storage would help, near 0 that the
    encoder is the limit.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    tiles: int
    seconds: float
    tiles_unreadable: int = 0
    waited_for_reading: float = 0.0
    error: str = ""
    traceback: str = ""


class _StatusFile(Section):
    settings: str
    slides: list[SlideStatus]


_ADAPTER = TypeAdapter(_StatusFile)


def write_status(path: Path, statuses: Sequence[SlideStatus], *, settings: str) -> None:
    """Atomically: the file exists only if all of the shard's slides were tried.

    `settings` digests what the shard was made from and how; `read_status` asks for the same.
    """
    require_unique((status.slide_id for status in statuses), str(path))
    document = _ADAPTER.dump_json(_StatusFile(settings=settings, slides=list(statuses)), indent=1)
    with whole_file(path) as partial:
        partial.write_bytes(document)


def read_status(path: Path, *, settings: str) -> list[SlideStatus]:
    try:
        found = _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such status file; run the encoding of this shard") from error
    except ValidationError as error:
        raise StoreError(
            f"{path}: expected {{'slides': [...]}} as the encoding writes it; delete it and run "
            f"the encoding again: {error}"
        ) from error
    if found.settings != settings:
        raise StoreError(
            f"{path}: its slides, or the settings of their extraction, have changed since; run the "
            "encoding of this shard again"
        )
    return found.slides


def require_unique(slide_ids: Iterable[str], where: str) -> None:
    repeated = [slide_id for slide_id, count in Counter(slide_ids).items() if count > 1]
    if repeated:
        raise ManifestError(f"{where}: slide_id(s) {', '.join(repeated)} appear more than once")
