"""A slide of known colours, an encoder whose features are plain to see, and short cuts."""

from pathlib import Path

import numpy as np
import torch
from tiff_files import write_tiff

from preprocessing.config import EncoderConfig, GridConfig, PreprocessingConfig, TissueConfig
from preprocessing.encoders.base import EncoderSpec
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.manifest import SlideRow
from preprocessing.status import SlideStatus
from preprocessing.stores.provenance import EncoderRecord
from preprocessing.stores.store import open_store, store_path

TILE_PX = 64


class FakeEncoder:
    """Mean red, green and blue of a tile, times a number that stands for the weights."""

    precision = "float32"
    dim = 3
    device = torch.device("cpu")

    def __init__(
        self, weight: float = 1.0, *, tile_px: int = TILE_PX, transform: str = "means"
    ) -> None:
        self.weight = weight
        self.transform = transform
        self.weight_digest = f"digest-{weight}"
        self.spec = EncoderSpec(
            "fake", "here", "package", dim=3, licence="none", gated=False, tile_px=tile_px
        )
        self.batches: list[int] = []

    def features(self, pixels):
        self.batches.append(len(pixels))
        return pixels.mean(dim=(2, 3)) * self.weight


class CountingLoad:
    def __init__(self, encoder: FakeEncoder) -> None:
        self.encoder = encoder
        self.calls = 0

    def __call__(self) -> FakeEncoder:
        self.calls += 1
        return self.encoder


def lazy(encoder: FakeEncoder | None = None, name: str = "fake") -> LazyEncoder:
    """Its record is known without loading, as that of the embedded default is."""
    encoder = encoder or FakeEncoder()
    record = EncoderRecord(
        dim=3,
        weight_digest=encoder.weight_digest,
        transform=encoder.transform,
        precision="float32",
        licence="none",
    )
    return LazyEncoder(name, CountingLoad(encoder), known=record, spec=encoder.spec)


def tissue_image(seed: int = 0) -> np.ndarray:
    """White glass, one block of purple tissue at x 256..1024, y 128..640, every spot different."""
    rng = np.random.default_rng(seed)
    image = np.full((768, 1280, 3), 244, dtype=np.uint8)
    colours = np.array([150, 70, 150]) + rng.integers(-25, 26, (512 // 32, 768 // 32, 3))
    image[128:640, 256:1024] = np.repeat(np.repeat(colours, 32, axis=0), 32, axis=1)
    return image


def config_of(**grid) -> PreprocessingConfig:
    return PreprocessingConfig(
        manifest=Path("slides.csv"),
        grid=GridConfig(**{"mpp": 0.5, "tile_px": TILE_PX} | grid),
        tissue=TissueConfig(mask_mpp=4.0, min_area_um2=1000, max_hole_um2=1000),
        encoder=EncoderConfig(batch_size=16),
        max_bad_tiles=0.5,
    )


CONFIG = config_of()


def two_slides(folder: Path) -> list[SlideRow]:
    return [
        SlideRow(name, f"patient-{name}", write_tiff(folder / f"{name}.tif", tissue_image(seed)))
        for seed, name in enumerate(("a", "b"))
    ]


def one_slide_in_jpeg(folder: Path) -> SlideRow:
    """Its stored tiles can be damaged: deflate would give wrong pixels, JPEG an error."""
    return SlideRow("a", "p", write_tiff(folder / "a.tif", tissue_image(), compression="jpeg"))


def only(statuses: list[SlideStatus]) -> SlideStatus:
    (status,) = statuses
    return status


def contents(folder: Path, slide_id: str) -> dict[str, np.ndarray]:
    store = open_store(store_path(folder, slide_id))
    return {name: store.features(name) for name in store.encoders} | {
        "coords": store.coords_px0,
        "read_error": store.read_error,
    }


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, two[key])
