"""Manifests and label tables of a few lines."""

from pathlib import Path

from mil.cohorts.config import LabelsConfig
from mil.tasks.config import SurvivalConfig
from preprocessing.manifest import SlideRow

SURVIVAL = SurvivalConfig(time="time", event="event")


def rows(*pairs: tuple[str, str], **extra: list[str]) -> list[SlideRow]:
    return [
        SlideRow(slide, patient, Path("x.tiff"), extra={k: v[i] for k, v in extra.items()})
        for i, (slide, patient) in enumerate(pairs)
    ]


THREE = (("s1", "007"), ("s2", "007"), ("s3", "8"))
ROWS = rows(*THREE)


def labels(tmp_path: Path, text: str, **settings) -> LabelsConfig:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return LabelsConfig(table=path, **settings)
