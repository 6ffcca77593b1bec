"""Trained models on disk: safetensors weights, and in their header what it takes to use them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mil.bags import TileOrigin
from mil.heatmaps.scores import CohortScale
from mil.models.base import MilMethod
from mil.models.build import build_method
from mil.models.config import MethodConfig
from mil.tasks.base import Task
from mil.tasks.build import restore_task
from preprocessing.artefacts import whole_file
from preprocessing.errors import CheckpointError

FORMAT = "histomil-checkpoint-1"
_METHOD: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)


@dataclass(frozen=True)
class Checkpoint:
    """A model, the task it answers, the tiles it understands, a label and a scale for its maps."""

    method: MilMethod
    task: Task
    origin: TileOrigin
    label: str
    scale: CohortScale
    notes: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, config: MethodConfig, dim: int, path: Path) -> None:
    header = {
        "format": FORMAT,
        "method": config.model_dump(mode="json"),
        "dim": dim,
        "task": checkpoint.task.state(),
        "origin": asdict(checkpoint.origin),
        "label": checkpoint.label,
        "scale": asdict(checkpoint.scale),
        "notes": checkpoint.notes,
    }
    weights = {k: v.detach().cpu().contiguous() for k, v in checkpoint.method.state_dict().items()}
    with whole_file(path) as partial:
        save_file(weights, partial, metadata={"histomil": json.dumps(header)})


def load_checkpoint(path: Path) -> Checkpoint:
    """The model in evaluation mode, on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error}") from error
    header = json.loads(metadata.get("histomil", "{}"))
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no histomil checkpoint: expected format {FORMAT!r}, found "
            f"{header.get('format')!r}"
        )
    task = restore_task(header["task"])
    method = build_method(
        _METHOD.validate_python(header["method"]), dim=header["dim"], outputs=task.outputs
    )
    method.load_state_dict(weights)
    origin = TileOrigin(**header["origin"])
    scale = CohortScale(**header["scale"])
    return Checkpoint(method.eval(), task, origin, header["label"], scale, header["notes"])


def refuse_other_origin(checkpoint: Checkpoint, origin: TileOrigin, path: Path) -> None:
    """Refuses features that were made in another way than those the model was trained on."""
    expected, came = asdict(checkpoint.origin), asdict(origin)
    different = {k: (expected[k], came[k]) for k in expected if expected[k] != came[k]}
    if different:
        lines = "; ".join(f"{k}: trained on {a!r}, given {b!r}" for k, (a, b) in different.items())
        raise CheckpointError(
            f"{path} cannot answer for these features ({lines}); extract features with its settings"
        )
