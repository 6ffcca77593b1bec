"""Trained models on disk: safetensors weights, and in their header what it takes to use them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mil.bags import TileOrigin
from mil.config import TaskSection
from mil.decisions import Decision, decisions_state, restore_decisions
from mil.ensemble_files import ensemble_paths
from mil.heatmaps.scores import CohortScale
from mil.models.base import MilMethod
from mil.models.build import build_method
from mil.models.config import MethodConfig, resolved
from mil.tasks.base import Task
from mil.tasks.build import restore_task
from preprocessing.artefacts import whole_file
from preprocessing.errors import CheckpointError

FORMAT = "histomil-checkpoint-3"
_METHOD: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)


@dataclass(frozen=True)
class Seen:
    """SHA-256 of the patient ids and slide fingerprints that a model was trained or validated on.

    A checkpoint may leave the house, so that it holds no id in plain text. A hash is no secret to
    someone who can list the possible ids.
    """

    patients: frozenset[str]
    slides: frozenset[str]

    @classmethod
    def of(cls, patient_ids: Iterable[str], fingerprints: Iterable[str]) -> Self:
        return cls(frozenset(map(_hashed, patient_ids)), frozenset(map(_hashed, fingerprints)))

    def knows(self, patient_id: str, fingerprints: Iterable[str]) -> bool:
        return _hashed(patient_id) in self.patients or not self.slides.isdisjoint(
            map(_hashed, fingerprints)
        )

    def state(self) -> dict[str, list[str]]:
        return {"patients": sorted(self.patients), "slides": sorted(self.slides)}

    @classmethod
    def restore(cls, state: dict[str, list[str]]) -> Self:
        return cls(frozenset(state["patients"]), frozenset(state["slides"]))


def _hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A model and all that its answers need.

    The `task` it answers, of which bags (`section`), and what is called of the answers at each
    level (`decisions`); the tiles it understands (`origin`); a `label` and a `scale` for its maps;
    whom it has `seen`.
    """

    method: MilMethod
    task: Task
    origin: TileOrigin
    label: str
    scale: CohortScale
    section: TaskSection
    decisions: dict[str, Decision]
    seen: Seen
    notes: dict[str, Any]


def save_checkpoint(checkpoint: Checkpoint, config: MethodConfig, dim: int, path: Path) -> None:
    header = {
        "format": FORMAT,
        "method": resolved(config),
        "dim": dim,
        "task": checkpoint.task.state(),
        "origin": asdict(checkpoint.origin),
        "label": checkpoint.label,
        "scale": asdict(checkpoint.scale),
        "section": checkpoint.section.model_dump(mode="json", exclude={"truth"}),
        "decisions": decisions_state(checkpoint.decisions),
        "seen": checkpoint.seen.state(),
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
            f"{header.get('format')!r}; train it anew"
        )
    task = restore_task(header["task"])
    config = _METHOD.validate_python(header["method"])
    method = build_method(config, header["dim"], task.outputs, task.classes)
    method.load_state_dict(weights)
    return Checkpoint(
        method=method.eval(),
        task=task,
        origin=TileOrigin(**header["origin"]),
        label=header["label"],
        scale=CohortScale(**header["scale"]),
        section=TaskSection.model_validate(header["section"]),
        decisions=restore_decisions(header["decisions"]),
        seen=Seen.restore(header["seen"]),
        notes=header["notes"],
    )


def load_ensemble(path: Path) -> dict[Path, Checkpoint]:
    """The models of `ensemble_paths`; refuses those of different questions, settings or splits."""
    paths = ensemble_paths(path)
    if not paths:
        raise CheckpointError(
            f"{path} holds no fold<k>/seed<s>/checkpoint.safetensors: name a checkpoint, or the "
            "folder of a trained method (models/<task>/<method>)"
        )
    members = {one: load_checkpoint(one) for one in paths}
    for one, member in members.items():
        _refuse_stranger((one, member), (paths[0], members[paths[0]]))
    return members


def _refuse_stranger(one: tuple[Path, Checkpoint], first: tuple[Path, Checkpoint]) -> None:
    """Refuses a model that is left over from another training than the first of the folder."""
    asked, expected = (m.section.model_dump(exclude={"truth"}) for _, m in (one, first))
    if asked != expected or one[1].task.outputs != first[1].task.outputs:
        raise CheckpointError(
            f"{one[0]} answers another question than {first[0]}: an ensemble has one; train the "
            "folder's folds anew with the same settings"
        )
    for what in ("settings", "splits"):
        if one[1].notes.get(what) != first[1].notes.get(what):
            raise CheckpointError(
                f"{one[0]} was trained with other {what} than {first[0]}: one of them is left over "
                "from an earlier training; remove its folder, or train all folds and seeds anew"
            )


def unseen_members(
    members: dict[Path, Checkpoint], patient_id: str, fingerprints: Iterable[str]
) -> tuple[dict[Path, Checkpoint], bool]:
    """The models that saw neither the patient nor one of the slide files; all of them, and True,
    if there is no such model.
    """
    slides = list(fingerprints)
    unseen = {
        path: member
        for path, member in members.items()
        if not member.seen.knows(patient_id, slides)
    }
    return (unseen, False) if unseen else (members, True)


def refuse_other_origin(checkpoint: Checkpoint, origin: TileOrigin, path: Path) -> None:
    """Refuses features that were made in another way than those the model was trained on."""
    expected, came = asdict(checkpoint.origin), asdict(origin)
    different = {k: (expected[k], came[k]) for k in expected if expected[k] != came[k]}
    if different:
        lines = "; ".join(f"{k}: trained on {a!r}, given {b!r}" for k, (a, b) in different.items())
        raise CheckpointError(
            f"{path} cannot answer for these features ({lines}); extract features with its settings"
        )
