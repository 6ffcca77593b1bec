"""How fast a bag is read and written on this machine: beside numpy's files, which are the limit.

All sides take turns over the same features, float16 and warm (the system has the files in memory):
`numpy.load` of one flat file; a feature store, opened, checked and read; the same bag of a pack,
copied, since a view alone reads nothing; and CLAM's HDF5, float32 grown batch by batch. Writing
ends when the disk has it, for numpy's file too. Ratios are taken within a turn, then their median.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from preprocessing.config import GridConfig, QualityConfig, TissueConfig
from preprocessing.stores.pack import open_pack, pack_features, pack_path
from preprocessing.stores.provenance import EncoderRecord, Provenance
from preprocessing.stores.store import QUALITY, SlideFeatures, open_store, store_path, write_store

TILES, DIM = 20_000, 1024
_ENCODER, _SLIDE = "bench", "slide"
_TILE_PX, _MPP, _COLUMNS = 224, 0.5, 200
_CLAM_CHUNK, _CLAM_BATCH = 32, 256
_LIMITS = {"read": "numpy.load", "write": "numpy.save"}


@dataclass(frozen=True)
class StoreBench:
    """`seconds` of each side, turn by turn, by what was done: "read" or "write"."""

    tiles: int
    dim: int
    seconds: Mapping[str, Mapping[str, Sequence[float]]]

    def times_limit(self, act: str, side: str) -> float:
        """How many times as long as numpy's file."""
        return self.ratio(act, side, _LIMITS[act])

    def ratio(self, act: str, one: str, other: str) -> float:
        pairs = zip(self.seconds[act][one], self.seconds[act][other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def rows(self) -> list[dict[str, object]]:
        return [
            {
                "": f"{act} {self.tiles} x {self.dim}",
                "file": side,
                "ms": round(1e3 * statistics.median(turns), 1),
                f"limit ms ({_LIMITS['read']}, {_LIMITS['write']})": round(
                    1e3 * statistics.median(sides[_LIMITS[act]]), 1
                ),
                "times the limit": round(self.times_limit(act, side), 2),
            }
            for act, sides in self.seconds.items()
            for side, turns in sides.items()
        ]


def bench_store(*, tiles: int = TILES, dim: int = DIM, repeats: int = 9) -> StoreBench:
    """Half a minute, and 1 GB of the temporary folder."""
    features = np.random.default_rng(0).normal(size=(tiles, dim)).astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = _slide(features)
        writers: dict[str, Callable[[Path], object]] = {
            "numpy.save": lambda to: _save(to / "bag.npy", features),
            "store": lambda to: write_store(to, slide),
            "CLAM's h5": lambda to: _write_clam(to / "bag.h5", features),
        }
        turns = max(1, repeats // 3)
        for write in writers.values():
            write(folder)
        # To replace a file is another cost than to write one.
        fresh = (folder / f"turn{number}" for number in count())
        written = _take_turns(
            {side: partial(_write_anew, write, fresh) for side, write in writers.items()}, turns
        )
        store = open_store(store_path(folder, _SLIDE))
        made = pack_features(
            folder, [_SLIDE], _ENCODER, QualityConfig(), pack_path(folder, _ENCODER)
        )
        pack = open_pack(made, {_SLIDE: store})
        readers: dict[str, Callable[[], object]] = {
            "numpy.load": lambda: np.load(folder / "bag.npy"),
            "store": lambda: open_store(store_path(folder, _SLIDE)).features(_ENCODER),
            "store, open already": lambda: store.features(_ENCODER),
            "pack": lambda: pack[_SLIDE].copy(),
            "CLAM's h5": lambda: _read_clam(folder / "bag.h5"),
        }
        read = _take_turns(readers, repeats)
    return StoreBench(tiles, dim, {"read": read, "write": written})


def as_record(bench: StoreBench) -> dict[str, float]:
    """`read_vs_npy`, `pack_vs_npy`, `write_vs_npy`: times as long as numpy's file; `clam_vs_read`:
    times as long as a store to read CLAM's.
    """
    return {
        "read_vs_npy": round(bench.times_limit("read", "store"), 3),
        "pack_vs_npy": round(bench.times_limit("read", "pack"), 3),
        "write_vs_npy": round(bench.times_limit("write", "store"), 3),
        "clam_vs_read": round(bench.ratio("read", "CLAM's h5", "store"), 3),
    }


def as_table(bench: StoreBench) -> str:
    return pd.DataFrame(bench.rows()).to_string(index=False)


def _take_turns(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each side, after a turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in tqdm(range(repeats + 1), unit="turn", mininterval=0):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _write_anew(write: Callable[[Path], object], folders: Iterator[Path]) -> None:
    folder = next(folders)
    folder.mkdir()
    write(folder)


def _save(path: Path, features: NDArray[np.float16]) -> None:
    with path.open("wb") as file:
        np.save(file, features)
        file.flush()
        os.fsync(file.fileno())


def _write_clam(path: Path, features: NDArray[np.float16]) -> None:
    with h5py.File(path, "w") as file:
        width = features.shape[1]
        data = file.create_dataset(
            "features", (0, width), np.float32, maxshape=(None, width), chunks=(_CLAM_CHUNK, width)
        )
        for start in range(0, len(features), _CLAM_BATCH):
            rows = features[start : start + _CLAM_BATCH].astype(np.float32)
            data.resize(start + len(rows), axis=0)
            data[start:] = rows


def _read_clam(path: Path) -> object:
    with h5py.File(path) as file:
        return file["features"][:]  # pyright: ignore[reportIndexIssue]


def _slide(features: NDArray[np.float16]) -> SlideFeatures:
    """A slide of so many tiles in rows of `_COLUMNS`."""
    tiles, dim = features.shape
    places = np.arange(tiles)
    coords = np.stack([places % _COLUMNS, places // _COLUMNS], axis=1) * _TILE_PX
    record = EncoderRecord(
        dim=dim, weight_digest="none", transform="none", precision="float32", licence="none"
    )
    sides = ("tile_px0_x", "tile_px0_y", "stride_px0_x", "stride_px0_y")
    resolutions = ("mpp_x", "mpp_y", "requested_mpp", "effective_mpp_x", "effective_mpp_y")
    scales = [f"{of}_px0_per_px_{axis}" for of in ("thumbnail", "mask") for axis in ("x", "y")]
    provenance = Provenance.model_validate(
        {
            **dict.fromkeys(("slide_id", "patient_id", "slide_fingerprint", "vendor"), _SLIDE),
            **dict.fromkeys(("mpp_source", "created"), "bench"),
            **dict.fromkeys(sides, _TILE_PX),
            **dict.fromkeys(resolutions, _MPP),
            **dict.fromkeys(scales, 32),
            "level0_width": _COLUMNS * _TILE_PX,
            "level0_height": (tiles // _COLUMNS + 1) * _TILE_PX,
            "bounds_px0": None,
            "tile_px": _TILE_PX,
            "read_level": 0,
            "tissue": TissueConfig(),
            "grid": GridConfig(mpp=_MPP),
            "versions": {},
            "encoders": {_ENCODER: record},
        }
    )
    return SlideFeatures(
        provenance=provenance,
        coords_px0=coords.astype(np.int32),
        tissue_fraction=np.ones(tiles, dtype=np.float32),
        read_error=np.zeros(tiles, dtype=bool),
        quality=np.zeros((tiles, len(QUALITY)), dtype=np.float32),
        features={_ENCODER: features},
        thumbnail=np.full((64, 64, 3), 255, dtype=np.uint8),
        tissue_mask=np.ones((64, 64), dtype=bool),
    )
