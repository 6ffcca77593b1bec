"""Predictions are written once and sealed: an edited table is refused, and looks are counted.

Every seal is one line of `<output>/seals.jsonl`. The test part answers honestly only the first time
that it is asked; the report tells how often, and under how many settings, it has been.
"""

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from mil.config import StudyConfig
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError


def seal(folder: Path, run_id: str) -> None:
    """Seals predictions.csv and fitted.json of a member's folder."""
    with whole_file(folder / "seal.json") as partial:
        partial.write_text(json.dumps({"run": run_id, **_digests(folder)}, indent=1))


def is_sealed(folder: Path, run_id: str) -> bool:
    """Whether the folder holds whole predictions of this very run."""
    path = folder / "seal.json"
    if not path.is_file():
        return False
    content = json.loads(path.read_text())
    return content["run"] == run_id and content == {"run": run_id, **_digests(folder)}


def refuse_unsealed(folder: Path) -> None:
    """Raises CohortError if predictions are absent, unsealed, or have been changed since."""
    if not (folder / "predictions.csv").is_file():
        raise CohortError(f"no predictions in {folder}: train that fold first")
    path = folder / "seal.json"
    if not path.is_file():
        raise CohortError(f"{folder} holds predictions without a seal: train that fold anew")
    content = json.loads(path.read_text())
    changed = [name for name, found in _digests(folder).items() if content.get(name) != found]
    if changed:
        raise CohortError(
            f"{folder}: {' and '.join(changed)} changed after the seal was set; metrics are "
            "computed from untouched predictions only: train that fold anew"
        )


def ledger_path(study: StudyConfig) -> Path:
    return study.output / "seals.jsonl"


def enter(study: StudyConfig, entry: dict[str, object]) -> None:
    """Appends one line: which test part was predicted, when, under which settings."""
    line = json.dumps({"when": datetime.now(UTC).isoformat(timespec="seconds"), **entry})
    with ledger_path(study).open("a") as stream:
        stream.write(line + "\n")


def looks(study: StudyConfig, task: str) -> dict[str, int]:
    """Answerer -> under how many different settings its test parts have been predicted."""
    path = ledger_path(study)
    if not path.is_file():
        return {}
    seen: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["task"] == task:
            seen.setdefault(entry["answerer"], set()).add(entry["settings"])
    return {answerer: len(settings) for answerer, settings in seen.items()}


def _digests(folder: Path) -> dict[str, str]:
    files = [folder / name for name in ("predictions.csv", "fitted.json")]
    return {f.name: sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
