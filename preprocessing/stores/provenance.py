"""What a feature store says of itself: where every number of it comes from."""

from pydantic import Field

from preprocessing.config import GridConfig, ReadingConfig, Section, TissueConfig

SCHEMA_VERSION = 2


class EncoderRecord(Section):
    """What made one features array; `transform` describes the way from uint8 tile to input."""

    dim: int = Field(gt=0)
    weight_digest: str
    transform: str
    precision: str
    licence: str


class Provenance(Section):
    """Where every number of a store comes from; kept as the group's JSON attribute."""

    schema_version: int = SCHEMA_VERSION
    slide_id: str
    patient_id: str
    slide_fingerprint: str
    vendor: str
    level0_width: int = Field(gt=0)
    level0_height: int = Field(gt=0)
    bounds_px0: tuple[int, int, int, int] | None = Field(description="x, y, width, height")
    mpp_x: float = Field(gt=0)
    mpp_y: float = Field(gt=0)
    mpp_source: str
    objective_power: float | None = None
    properties: dict[str, str] = Field(default={}, description="the vendor's, of a fixed whitelist")
    tile_px: int = Field(gt=0)
    tile_px0_x: float = Field(gt=0)
    tile_px0_y: float = Field(gt=0)
    stride_px0_x: float = Field(gt=0)
    stride_px0_y: float = Field(gt=0)
    requested_mpp: float = Field(gt=0)
    effective_mpp_x: float = Field(gt=0)
    effective_mpp_y: float = Field(gt=0)
    read_level: int = Field(ge=0)
    read_level_mpp: tuple[float, float] | None = Field(default=None, description="x, y")
    reading: ReadingConfig = ReadingConfig()
    reader: str = Field(default="", description="what decoded the tiles, and why not directly")
    decoded_scale: int = Field(default=1, description="1/2, 1/4 and 1/8 decoding are 2, 4 and 8")
    resampling: str = ""
    extraction_version: int = Field(default=0, description="0: from before it was recorded")
    tissue: TissueConfig
    tissue_digest: str = Field(default="", description="of the mask and region files of the slide")
    grid: GridConfig
    thumbnail_px0_per_px_x: float = Field(gt=0)
    thumbnail_px0_per_px_y: float = Field(gt=0)
    mask_px0_per_px_x: float = Field(gt=0)
    mask_px0_per_px_y: float = Field(gt=0)
    imported_from: str = Field(default="", description="the other tool, where it made the tiles")
    versions: dict[str, str]
    created: str = Field(description="ISO 8601, UTC")
    encoders: dict[str, EncoderRecord]
