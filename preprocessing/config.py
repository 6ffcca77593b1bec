"""The `preprocessing:` root of a study's YAML; every default is written here, once."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A configuration section: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SyntheticConfig(Section):
    """Synthetic slides with known tumour outlines, for the demo and for tests."""

    patients: int = Field(default=36, ge=6)
    seed: int = 0
    width_px: int = Field(default=3072, ge=1024, description="level-0 width of the 0.5 mpp slides")
    height_px: int = Field(default=2304, ge=768)


class RegionsConfig(Section):
    """Regions of interest drawn by people: `<slide_id>.geojson` in `folder`, as QuPath exports."""

    folder: Path
    include: tuple[str, ...] = Field(
        default=(), description="classes of regions to tile; empty: all that are not excluded"
    )
    exclude: tuple[str, ...] = Field(default=(), description="classes of regions to leave out")
    frame: Literal["qupath", "level0"] = Field(
        description="qupath: its origin is the scanned area's corner; level0: openslide's"
    )
    replace_tissue: bool = Field(
        default=False, description="tile included regions whether or not tissue is found in them"
    )
    required: bool = Field(
        default=True,
        description="a slide without a file, or without an area to include, fails; else is whole",
    )

    @model_validator(mode="after")
    def _classes_are_on_one_side(self) -> Self:
        both = sorted({*self.include} & {*self.exclude})
        if both:
            msg = f"include and exclude both name {', '.join(both)}"
            raise ValueError(msg)
        return self


class TissueConfig(Section):
    """Tissue mask from the lowest level that is at least as fine as `mask_mpp`."""

    mask_mpp: float = Field(default=8.0, gt=0, description="um per mask pixel")
    min_area_um2: float = Field(default=20_000.0, ge=0, description="smaller islands are dropped")
    max_hole_um2: float = Field(default=20_000.0, ge=0, description="smaller holes are filled")
    masks: Path | None = Field(
        default=None, description="folder of <slide_id>.png over the whole slide, white = tissue"
    )
    regions: RegionsConfig | None = None


class QualityConfig(Section):
    """Limits that a tile must keep to be used. Values are stored for every tile, so that other
    limits need no other extraction; a limit that is absent asks nothing.
    """

    min_sharpness: float | None = Field(
        default=None, ge=0, description="at 0.5 um per pixel 0.85 is usual, 0.45 is 1 um of blur"
    )
    max_ink: float | None = Field(default=None, ge=0, le=1, description="share of the tile's area")
    max_blank: float | None = Field(
        default=None, ge=0, le=1, description="share of the tile's area"
    )


class ReadingConfig(Section):
    """How tiles are read; what it was for each slide stands in its store."""

    direct: bool = Field(
        default=True,
        description="decode JPEG tiles without openslide where pixels are proven identical",
    )
    scaled_decoding: bool = Field(
        default=True,
        description="there, decode at 1/2 or less where tiles are about that much coarser",
    )
    cache_mb: int = Field(default=256, ge=16, description="decoded tiles of the slide being read")


class GridConfig(Section):
    """Square tiles at a requested resolution; overlap 0 puts them edge to edge."""

    mpp: float = Field(gt=0, description="requested um per tile pixel")
    tile_px: int = Field(default=224, ge=16, description="tile side as the encoder sees it")
    overlap_px: int = Field(default=0, ge=0)
    min_tissue: float = Field(
        default=0.25, ge=0, le=1, description="least tissue fraction of a tile"
    )
    max_upsampling: float = Field(
        default=1.1, ge=1, description="how much finer than level 0 the requested mpp may be"
    )

    @model_validator(mode="after")
    def _tiles_advance(self) -> Self:
        if self.overlap_px >= self.tile_px:
            msg = f"overlap_px {self.overlap_px} must be less than tile_px {self.tile_px}"
            raise ValueError(msg)
        return self


class CustomEncoderConfig(Section):
    """What an encoder outside of the registry is told; what is absent its source must state."""

    tile_px: int | None = Field(default=None, ge=16)
    mean: tuple[float, float, float] | None = Field(
        default=None, description="of red, green and blue in 0..1"
    )
    std: tuple[float, float, float] | None = None
    mpp: tuple[float, float] | None = Field(default=None, description="recommended um per pixel")
    pooling: Literal["model", "cls", "cls+mean", "map mean", "pooler"] | None = None
    precision: Literal["float32", "float16", "bfloat16"] | None = Field(
        default=None, description="the recommended one, which encoder.precision auto takes"
    )
    licence: str | None = None


class EncoderConfig(Section):
    name: str = Field(
        default="lite0",
        description="registry row, or timm:<model>, hf:<repository>, torchscript:<path>",
    )
    custom: CustomEncoderConfig | None = None
    batch_size: int = Field(default=32, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="auto: the encoder's half precision on a GPU, else float32"
    )
    compile: bool = Field(default=False, description="torch.compile: pays for long runs on a GPU")
    stain: Literal["none", "macenko", "reinhard"] = Field(
        default="none", description="stain normalisation of every tile before it is encoded"
    )


class PreprocessingConfig(Section):
    manifest: Path = Field(description="slides.csv: slide_id, patient_id, path[, mpp]")
    synthetic: SyntheticConfig | None = Field(
        default=None, description="make these slides, and the manifest, first"
    )
    tissue: TissueConfig = TissueConfig()
    grid: GridConfig
    quality: QualityConfig = QualityConfig()
    reading: ReadingConfig = ReadingConfig()
    encoder: EncoderConfig = EncoderConfig()
    readers: int = Field(default=2, ge=1, description="threads that read one slide's tiles")
    shard_size: int = Field(default=64, ge=1, description="slides per workflow job")
    max_bad_tiles: float = Field(
        default=0.2, ge=0, le=1, description="a slide with a larger share of unreadable tiles fails"
    )
