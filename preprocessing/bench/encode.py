"""How fast tiles become features on this machine, against its two limits.

Four sides take turns with the same slide, grid and batch size:

    reader     decoding alone, all reading threads
    encoder    the network alone on normalised tiles that lie on the device: no pipeline is faster
    memory     the pipeline, its batches copied from the host's memory instead of read
    together   `encode_shard`: read, quality, normalised, encoded, written

The share is that of `together` in the slower of the first two, within a turn. On a GPU networks of
random weights follow, whose speed is that of trained ones: from those that no reader keeps up with
to those that any does.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.bench.reader_slides import YCBCR, painted_tissue, write_svs
from preprocessing.config import EncoderConfig, GridConfig, PreprocessingConfig
from preprocessing.encoders.base import EncoderSpec, TileEncoder
from preprocessing.encoders.gpu import Uploader, choose_device, choose_precision
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.encoders.network import NetworkEncoder
from preprocessing.encoders.registry import load_encoder
from preprocessing.errors import StoreError
from preprocessing.extraction.encode import encode_shard
from preprocessing.extraction.extract import Batch, Encoding
from preprocessing.extraction.pipeline import Ahead
from preprocessing.extraction.prepare import prepare_slide, tile_geometry
from preprocessing.manifest import SlideRow
from preprocessing.slides.reader import read_batches
from preprocessing.slides.slide import open_slide

TILE_PX = 224
_SLIDE_MPP = 0.25
_WARM_UP = 1  # slides of `together` that do not count
# Tiles of the synthetic slide, batch size, slides that count, batches of a pass over memory.
_ON_CPU, _ON_GPU = (40, 8, 1, 4), (2000, 256, 4, 20)
RANDOM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet50": ("resnet50", 2048, {}),
    "vit_s": ("vit_small_patch16_224", 384, {}),
    "vit_l": ("vit_large_patch16_224", 1024, {"init_values": 1e-5}),
    "vit_g": ("vit_giant_patch14_dinov2", 1536, {"img_size": TILE_PX}),
}
"""The networks of random weights: timm's name, the dimension, and timm's arguments."""


@dataclass(frozen=True)
class Measured:
    """Tiles a second of each side, medians over the turns; `device_busy` is the share of time in
    which the device had tiles to work on, as `encode_shard` tells it.
    """

    encoder: str
    device: str
    precision: str
    reader_tiles_s: float
    encoder_tiles_s: float
    memory_tiles_s: float
    together_tiles_s: float
    share: float
    device_busy: float


@dataclass(frozen=True)
class _Setting:
    rows: list[SlideRow]
    config: PreprocessingConfig
    batches: int


def bench_encode(
    slides: Sequence[Path] | None = None,
    encoder: str = "lite0",
    *,
    device: str = "auto",
    mpp: float = 0.5,
    repeats: int = 3,
) -> list[Measured]:
    """`encoder` first, on a GPU then the networks of `RANDOM`. Without `slides` one is made:
    JPEG tiles of 0.25 um per pixel, tissue throughout.
    """
    on = choose_device(device)
    tiles, batch_size, repeated, batches = _ON_CPU if on == "cpu" else _ON_GPU
    config = PreprocessingConfig(
        manifest=Path("slides.csv"),
        grid=GridConfig(mpp=mpp, tile_px=TILE_PX),
        encoder=EncoderConfig(name=encoder, batch_size=batch_size, device=device),  # pyright: ignore[reportArgumentType]
        readers=min(16, os.cpu_count() or 1),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = list(slides or [_made_slide(Path(folder) / "made.svs", tiles, mpp)])
        counted = paths * (1 if slides else repeated)
        rows = [
            SlideRow(f"{number}", f"{number}", path)
            for number, path in enumerate([*paths[:1] * _WARM_UP, *counted])
        ]
        setting = _Setting(rows, config, batches)
        measured = [_measure(load_encoder(config.encoder), setting, repeats)]
        if on != "cpu":
            others = (_random_encoder(name, on) for name in RANDOM)
            measured.extend(_measure(other, setting, repeats) for other in others)
    return measured


def as_record(measured: Sequence[Measured]) -> dict[str, float]:
    """The first row under the fields' own names, further ones as `<encoder>_<field>`."""
    record = {}
    for row in measured:
        prefix = "" if row is measured[0] else f"{row.encoder}_"
        for field in (
            *("reader_tiles_s", "encoder_tiles_s", "memory_tiles_s", "together_tiles_s"),
            *("share", "device_busy"),
        ):
            record[prefix + field] = round(getattr(row, field), 3)
    return record


def as_table(measured: Sequence[Measured]) -> str:
    rows = [
        {
            "encoder": row.encoder,
            "device": f"{row.device}, {row.precision}",
            "reader": round(row.reader_tiles_s, 1),
            "encoder alone": round(row.encoder_tiles_s, 1),
            "from memory": round(row.memory_tiles_s, 1),
            "together": round(row.together_tiles_s, 1),
            "of the slower": f"{row.share:.0%}",
            "device busy": f"{row.device_busy:.0%}",
        }
        for row in measured
    ]
    return "tiles a second\n" + pd.DataFrame(rows).to_string(index=False)


def _measure(encoder: NetworkEncoder, setting: _Setting, repeats: int) -> Measured:
    tiles = _read(setting)[0]
    inputs = _resident(tiles, encoder)
    turns = []
    for turn in range(repeats + 1):
        reader = _read(setting)[1]
        count = setting.batches * len(inputs)
        alone = _rate(count, lambda: _forward(encoder, inputs, setting.batches))
        memory = _rate(count, lambda: _from_memory(encoder, tiles, setting))
        together, busy = _together(encoder, setting)
        if turn:  # the first warms up
            turns.append((reader, alone, memory, together, together / min(reader, alone), busy))
    return Measured(
        encoder.spec.name,
        str(encoder.device),
        encoder.precision,
        *(statistics.median(values) for values in zip(*turns, strict=True)),
    )


def _rate(tiles: int, run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return tiles / (time.perf_counter() - started)


def _read(setting: _Setting) -> tuple[NDArray[np.uint8], float]:
    """The first batch of the first slide, and tiles a second of reading all, nothing decoded yet.

    The slide is open and its tissue known: in `together` that happens beside the slide before.
    """
    row, config, size = setting.rows[0], setting.config, setting.config.encoder.batch_size
    with ExitStack() as stack:
        slide = stack.enter_context(open_slide(row, reading=config.reading))
        geometry = tile_geometry(slide, config.grid)
        coords = prepare_slide(row, slide, geometry, config).coords_px0
        if len(coords) < size:
            raise StoreError(
                f"{row.path}: {len(coords)} tiles at grid.mpp {config.grid.mpp:g}, expected a "
                f"batch of {size} at least; measure on a larger slide"
            )
        more = range(config.readers - 1)
        handles = [slide, *(stack.enter_context(closing(slide.another())) for _ in more)]
        started = time.perf_counter()
        batches = stack.enter_context(
            closing(read_batches(handles, coords, geometry, batch_size=size))
        )
        tiles = next(batches).tiles
        for _ in batches:
            pass
        return tiles, len(coords) / (time.perf_counter() - started)


def _resident(tiles: NDArray[np.uint8], encoder: NetworkEncoder) -> Tensor:
    """The tiles normalised on the device, channels last."""
    pixels = torch.from_numpy(tiles).to(encoder.device).permute(0, 3, 1, 2).float()
    return ((pixels - 127.5) / 64).contiguous(memory_format=torch.channels_last)


def _forward(encoder: NetworkEncoder, inputs: Tensor, batches: int) -> None:
    features = [encoder.forward(inputs) for _ in range(batches)]
    features[-1].cpu()  # waits for all of them


def _from_memory(encoder: TileEncoder, tiles: NDArray[np.uint8], setting: _Setting) -> None:
    """Through the queue, the copies, quality, normalisation and back, but from no slide."""
    size, pin = len(tiles), encoder.device.type == "cuda"

    def batches() -> Generator[Batch]:
        for number in range(setting.batches):
            tensor = torch.from_numpy(tiles)
            rows = np.arange(number * size, (number + 1) * size)
            yield Batch(rows, tensor.pin_memory() if pin else tensor, size)

    encoding = Encoding(
        encoder,
        Uploader(encoder.device),
        tiles=setting.batches * size,
        mpp=setting.config.grid.mpp,
    )
    with Ahead(batches(), limit=4, name="memory") as items:
        for batch in items:
            encoding.add(batch)
    encoding.drain()


def _together(encoder: NetworkEncoder, setting: _Setting) -> tuple[float, float]:
    """Tiles a second after the warm-up, and the share of time in which the device was busy."""
    lazy = LazyEncoder(encoder.spec.name, lambda: encoder, spec=encoder.spec)
    with tempfile.TemporaryDirectory() as folder:
        statuses = encode_shard(setting.rows, setting.config, Path(folder), encoder=lazy)
    failed = [status.error for status in statuses if status.status != "done"]
    if failed:
        raise StoreError(failed[0])
    counted = statuses[_WARM_UP:]
    seconds = sum(status.seconds for status in counted)
    waited = sum(status.seconds * status.waited_for_reading for status in counted)
    return sum(status.tiles for status in counted) / seconds, 1 - waited / seconds


def _random_encoder(name: str, device: str) -> NetworkEncoder:
    architecture, dim, kwargs = RANDOM[name]
    network = timm.create_model(architecture, pretrained=False, num_classes=0, **kwargs)
    spec = EncoderSpec(
        name=name,
        source=architecture,
        loader="timm",
        dim=dim,
        licence="none: random weights",
        gated=False,
        tile_px=TILE_PX,
        mpp=None,
    )
    precision = choose_precision("auto", spec, gpu=device != "cpu")
    return NetworkEncoder(spec, network, device=device, precision=precision)


def _made_slide(path: Path, tiles: int, mpp: float) -> Path:
    """An Aperio-like slide of tissue alone, of about `tiles` tiles of `mpp`."""
    side_px = int(np.ceil(np.sqrt(tiles)) * TILE_PX * mpp / _SLIDE_MPP)
    image = painted_tissue(side_px, side_px, mpp=_SLIDE_MPP)
    write_svs(path, image, mpp=_SLIDE_MPP, storage=YCBCR)
    return path
