"""Trained models on disk: safetensors weights, and in their header what it takes to use them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mil.bags import TileOrigin
from mil.config import TaskSection
from mil.decisions import Decision, decisions_state, restore_decisions
from mil.heatmaps.scores import CohortScale
from mil.models.base import MilMethod
from mil.models.build import build_method
from mil.models.config import MethodConfig
from mil.tasks.base import Task
from mil.tasks.build import restore_task
from preprocessing.artefacts import whole_file
from preprocessing.errors import CheckpointError

FORMAT = "histomil-checkpoint-2"
_METHOD: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)


@dataclass(frozen=True)
class Checkpoint:
    """A model and all that its answers need.

    The `task` it answers, of which bags (`section`), and what is called of the answers at each
    level (`decisions`); the tiles it understands (`origin`); a `label` and a `scale` for its maps.
    """

    method: MilMethod
    task: Task
    origin: TileOrigin
    label: str
    scale: CohortScale
    section: TaskSection
    decisions: dict[str, Decision]
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
        "section": checkpoint.section.model_dump(mode="json", exclude={"truth"}),
        "decisions": decisions_state(checkpoint.decisions),
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
    return Checkpoint(
        method=method.eval(),
        task=task,
        origin=TileOrigin(**header["origin"]),
        label=header["label"],
        scale=CohortScale(**header["scale"]),
        section=TaskSection.model_validate(header["section"]),
        decisions=restore_decisions(header["decisions"]),
        notes=header["notes"],
    )


def ensemble_paths(path: Path) -> list[Path]:
    """One checkpoint, or all of a folder as training leaves them: fold<k>/seed<s>/."""
    return sorted(path.glob("fold*/seed*/checkpoint.safetensors")) if path.is_dir() else [path]


def load_ensemble(path: Path) -> dict[Path, Checkpoint]:
    """The models of `ensemble_paths`; refuses those that answer different questions."""
    paths = ensemble_paths(path)
    if not paths:
        raise CheckpointError(
            f"{path} holds no fold<k>/seed<s>/checkpoint.safetensors: name a checkpoint, or the "
            "folder of a trained method (models/<task>/<method>)"
        )
    members = {one: load_checkpoint(one) for one in paths}
    first = members[paths[0]]
    for one, member in members.items():
        asked, expected = (m.section.model_dump(exclude={"truth"}) for m in (member, first))
        if asked != expected or member.task.outputs != first.task.outputs:
            raise CheckpointError(
                f"{one} answers another question than {paths[0]}: an ensemble has one; train the "
                "folder's folds anew with the same settings"
            )
    return members


def refuse_other_origin(checkpoint: Checkpoint, origin: TileOrigin, path: Path) -> None:
    """Refuses features that were made in another way than those the model was trained on."""
    expected, came = asdict(checkpoint.origin), asdict(origin)
    different = {k: (expected[k], came[k]) for k in expected if expected[k] != came[k]}
    if different:
        lines = "; ".join(f"{k}: trained on {a!r}, given {b!r}" for k, (a, b) in different.items())
        raise CheckpointError(
            f"{path} cannot answer for these features ({lines}); extract features with its settings"
        )
