"""Where the checkpoints of trained models lie; light enough for the workflow to import."""

from pathlib import Path

CHECKPOINT = "checkpoint.safetensors"


def ensemble_paths(path: Path) -> list[Path]:
    """One checkpoint, or all of a folder as training leaves them: fold<k>/seed<s>/."""
    return sorted(path.glob(f"fold*/seed*/{CHECKPOINT}")) if path.is_dir() else [path]
