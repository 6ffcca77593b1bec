"""The methods that the benchmarks compare, at widths that suit small features.

Bags are labelled `negative` or `positive`.
"""

import tempfile
from pathlib import Path

import torch

from mil.config import TrainConfig
from mil.models.base import MilMethod
from mil.models.build import build_method
from mil.models.config import (
    AbmilConfig,
    AcmilConfig,
    AcmilMhaConfig,
    ClamConfig,
    DsmilConfig,
    InsConfig,
    MaxConfig,
    MeanConfig,
    MethodConfig,
    MhimConfig,
    MhimDsmilConfig,
    MhimTransmilConfig,
    TransmilConfig,
)
from mil.tasks.base import Task
from mil.training.parts import Part
from mil.training.train import train_method

WIDTH = {"hidden_dim": 64}
ATTENTION = {**WIDTH, "attention_dim": 32}
METHODS: dict[str, MethodConfig] = {
    "mean": MeanConfig(**WIDTH),
    "max": MaxConfig(**WIDTH),
    "abmil": AbmilConfig(**ATTENTION),
    "clam_sb": ClamConfig(**ATTENTION),
    "clam_mb": ClamConfig(**ATTENTION, multi_branch=True),
    "dsmil": DsmilConfig(**WIDTH, query_dim=32),
    "transmil": TransmilConfig(**WIDTH),
    "acmil": AcmilConfig(**ATTENTION),
    "acmil_drop0": AcmilConfig(**ATTENTION, drop=0.0),
    "acmil_top50": AcmilConfig(**ATTENTION, top_k=50, drop=0.9),
    "acmil_mha": AcmilMhaConfig(**WIDTH),
    "mhim": MhimConfig(**ATTENTION),
    "mhim_v2": MhimConfig(**ATTENTION, preset="v2"),
    "mhim_v2_mask0.3pct": MhimConfig(**ATTENTION, preset="v2", mask_high=0.003),
    "mhim_transmil": MhimTransmilConfig(**WIDTH),
    "mhim_dsmil": MhimDsmilConfig(**WIDTH, query_dim=32),
    "ins": InsConfig(**WIDTH, negative="negative"),
}


def trained(
    config: MethodConfig, task: Task, parts: tuple[Part, Part], train: TrainConfig
) -> MilMethod:
    """A model fitted to the first of the parts, at the epoch that the second chooses."""
    torch.manual_seed(train.seed)
    method = build_method(config, parts[0].features.dim, task.outputs, task.classes)
    with tempfile.TemporaryDirectory() as folder:
        train_method(method, task, parts, config=train, state_dir=Path(folder), run_id="benchmark")
    return method
