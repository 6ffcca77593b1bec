"""Predictions are written once and sealed: an edited table is refused, and looks are counted.

Every seal is one line of `<output>/seals.jsonl`. The test part answers honestly only the first time
that it is asked; the report tells under how many settings, folds and seeds it has been.
"""

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from mil.config import StudyConfig
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError

SEALED = ("predictions.csv", "fitted.json")


def seal(folder: Path, run_id: str) -> None:
    """Seals predictions.csv and fitted.json of a member's folder."""
    with whole_file(folder / "seal.json") as partial:
        partial.write_text(json.dumps({"run": run_id, **_digests(folder)}, indent=1))


def is_sealed(folder: Path, run_id: str) -> bool:
    """Whether the folder holds whole predictions of this very run."""
    return _content(folder) == {"run": run_id, **_digests(folder)}


def refuse_unsealed(folder: Path, run_id: str) -> None:
    """Raises CohortError if predictions are absent, unsealed, changed since, or of another run."""
    if not (folder / "predictions.csv").is_file():
        raise CohortError(f"no predictions in {folder}: train that fold first")
    content = _content(folder)
    if content is None:
        raise CohortError(
            f"{folder} holds predictions without a seal, or with one that cannot be read: train "
            "that fold anew"
        )
    found = _digests(folder)
    changed = [name for name in SEALED if content.get(name) != found.get(name)]
    if changed:
        raise CohortError(
            f"{folder}: {' and '.join(changed)} changed after the seal was set; metrics are "
            "computed from untouched predictions only: train that fold anew"
        )
    if content.get("run") != run_id:
        raise CohortError(
            f"{folder}: the predictions were made under other settings, labels or splits than "
            "now; train that fold anew"
        )


def ledger_path(study: StudyConfig) -> Path:
    return study.output / "seals.jsonl"


def enter(study: StudyConfig, entry: dict[str, object]) -> None:
    """Appends one line: which test part was predicted, when, under which settings."""
    line = json.dumps({"when": datetime.now(UTC).isoformat(timespec="seconds"), **entry})
    path = ledger_path(study)
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")  # by a kill, in mid-line
    with path.open("a") as stream:
        stream.write("\n" * torn + line + "\n")


def looks(study: StudyConfig, task: str) -> dict[str, int]:
    """Answerer -> how often its test parts were predicted under other settings, folds or seeds."""
    path = ledger_path(study)
    if not path.is_file():
        return {}
    seen: dict[str, set[str]] = {}
    for entry in map(_entry, path.read_text().splitlines()):
        if entry.get("task") == task:
            look = json.dumps([entry.get(name) for name in ("settings", "splits", "seeds")])
            seen.setdefault(str(entry.get("answerer")), set()).add(look)
    return {answerer: len(each) for answerer, each in seen.items()}


def _entry(line: str) -> dict[str, object]:
    """Empty for what a kill left of a line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _content(folder: Path) -> dict[str, str] | None:
    """What the seal says; None without a seal, or with one that cannot be read."""
    try:
        content = json.loads((folder / "seal.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _digests(folder: Path) -> dict[str, str]:
    files = [folder / name for name in SEALED]
    return {f.name: sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
