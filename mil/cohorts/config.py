"""The `labels:` section of a study: a label table as it is in the wild, and what it means."""

from pathlib import Path

from pydantic import Field, model_validator

from mil.cohorts.presets import PRESETS
from mil.config_messages import meant
from preprocessing.config import Section


class LabelsConfig(Section):
    """The label table as it is in the wild, and what its columns mean; nothing is guessed."""

    table: Path = Field(description="CSV, TSV or XLSX, one row a slide or a patient")
    preset: str | None = Field(default=None, description="a known layout, see `histomil presets`")
    columns: dict[str, str] = Field(
        default={}, description="canonical name -> the table's column; goes before the preset"
    )
    join: tuple[Path, ...] = Field(
        default=(), description="further tables of the same layout, joined by slide or patient"
    )
    bare_ids: bool = Field(
        default=False,
        description="strip folders and file endings from the table's slide ids; most presets do",
    )

    @model_validator(mode="after")
    def _preset_is_known(self) -> "LabelsConfig":
        if self.preset is not None and self.preset not in PRESETS:
            msg = (
                f"preset: {self.preset!r} is not known; known are {', '.join(sorted(PRESETS))}"
                f"{meant(self.preset, PRESETS)}"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _event_has_one_source(self) -> "LabelsConfig":
        if {"event", "censorship"} <= set(self.columns):
            msg = "columns: give event or censorship (1 = censored), not both"
            raise ValueError(msg)
        return self
