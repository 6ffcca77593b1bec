"""Are the feature stores of an archive what its manifest and its statuses say they are?"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from preprocessing.artefacts import partials_in
from preprocessing.errors import StoreError
from preprocessing.process_list import read_process_list
from preprocessing.stores.pack import open_pack, read_index
from preprocessing.stores.store import open_store, store_path

THREADS = 4
Problem = str
"""What is wrong, where, and what to do about it; one line."""


def check_archive(
    features_dir: Path, slide_ids: Collection[str], *, deep: bool = False
) -> tuple[list[str], int]:
    """Lines for a person, and an exit code: 1 where a slide failed or anything is wrong.

    `slide_ids` are those of the manifest. Raises `ManifestError` without a process list.
    """
    statuses = {status.slide_id: status for status in read_process_list(features_dir)}
    failed = [s for slide_id, s in statuses.items() if s.status == "failed"]
    done = [slide_id for slide_id, s in statuses.items() if s.status != "failed"]
    problems = [
        f"slide {slide_id!r}: not in the process list; run extract, then status"
        for slide_id in slide_ids
        if slide_id not in statuses
    ]
    problems += check_stores(features_dir, slide_ids, done=done, deep=deep)
    lines = [f"failed: {status.error}" for status in failed]
    lines += [f"wrong: {problem}" for problem in problems]
    if failed:
        lines.append(
            f"{len(failed)} slide(s) failed, all others are done; correct them or take them out of "
            "the manifest, and run again"
        )
    if problems:
        lines.append(f"{len(problems)} problem(s) with the feature stores of {features_dir}")
    return lines, 1 if lines else 0


def check_stores(
    features_dir: Path,
    slide_ids: Collection[str],
    *,
    done: Collection[str] = (),
    deep: bool = False,
) -> list[Problem]:
    """What is wrong with the stores of `slide_ids`, with what else lies there, and with packs.

    `done` slides must have a store. `deep` reads every value and compares checksums, which proves
    that features are what was written and takes as long as the disk does.
    """
    expected = [s for s in slide_ids if s in done or store_path(features_dir, s).exists()]
    checks = [partial(_check_store, features_dir, slide_id, deep=deep) for slide_id in expected]
    packs = [path for path in _folders(features_dir / "packs") if ".partial-" not in path.name]
    checks += [partial(_check_pack, features_dir, pack, deep=deep) for pack in packs]
    # A damaged store is found again by the pack that was made of it.
    found = list(dict.fromkeys(_run(checks)))
    return found + _leftovers(features_dir, slide_ids)


def _run(checks: list[Callable[[], None]]) -> Iterator[Problem]:
    """The complaints of the checks, in order."""

    def complaint(check: Callable[[], None]) -> Problem | None:
        try:
            check()
        except StoreError as error:
            return " ".join(str(error).split())
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(complaint, checks)
        for problem in tqdm(found, total=len(checks), unit="store", mininterval=2):
            if problem is not None:
                yield problem


def _check_store(features_dir: Path, slide_id: str, *, deep: bool) -> None:
    path = store_path(features_dir, slide_id)
    if not path.exists():
        raise StoreError(
            f"{path}: absent, though its slide counts as done; delete the status files in "
            f"{features_dir / 'shards'} and run extract again"
        )
    store = open_store(path)
    if deep:
        store.verify()


def _check_pack(features_dir: Path, folder: Path, *, deep: bool) -> None:
    index = read_index(folder)
    paths = {slide.slide_id: store_path(features_dir, slide.slide_id) for slide in index.slides}
    stores = {s: open_store(path, index.limits) for s, path in paths.items() if path.exists()}
    pack = open_pack(folder, stores)
    if deep:
        pack.verify()


def _leftovers(features_dir: Path, slide_ids: Iterable[str]) -> list[Problem]:
    places = [features_dir, *(features_dir / name for name in ("shards", "packs", "previews"))]
    partials = [path for place in places for path in partials_in(place)]
    known = {store_path(features_dir, slide_id) for slide_id in slide_ids}
    strange = [
        path for path in _folders(features_dir) if path.suffix == ".zarr" and path not in known
    ]
    return [
        f"{path}: left by a run that was interrupted; delete it, if none is running now"
        for path in sorted(partials)
    ] + [
        f"{path}: of no slide of the manifest; delete it, or put the slide back" for path in strange
    ]


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.glob("*") if path.is_dir())
