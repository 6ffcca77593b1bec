"""The machine-readable record beside every result: what ran, on what, with which versions."""

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from mil.config import StudyConfig
from preprocessing.artefacts import whole_file
from preprocessing.versions import installed_version

PACKAGES = ("histomil", "torch", "timm", "numpy", "pandas", "zarr", "scikit-learn", "lifelines")
PACKAGES += ("openslide-python", "openslide-bin", "scikit-image", "snakemake")


@contextmanager
def recorded(
    path: Path, stage: str, study: StudyConfig, inputs: dict[str, Path] | None = None
) -> Iterator[None]:
    """Writes `path` (JSON) when the stage has ended well: settings, versions, inputs' sha256."""
    began = time.monotonic()
    yield
    record = {
        "stage": stage,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 2),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "inputs": {name: _file_digest(file) for name, file in (inputs or {}).items()},
        "config": study.model_dump(mode="json"),
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(record, indent=1))


def _file_digest(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": sha256(path.read_bytes()).hexdigest()}
