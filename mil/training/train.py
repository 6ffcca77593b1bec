"""One training loop that knows neither method nor task, exact under resume.

loss = sum over heads of weight x task loss over the step's bags + mean penalty of the bags; for its
gradient see mil.steps. Where a task compares bags, they are dealt to steps of `bags_per_step` or a
few more, so that each step has something to compare; "epoch" makes all training bags one step.

The epoch with the lowest validation loss is kept. After every epoch the whole state (weights,
optimiser, generators, best weights) goes to a file, so that a killed run, started again, ends with
the weights of an uninterrupted one (on the CPU, with the same number of threads).
"""

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from mil.bags import CohortFeatures
from mil.config import TrainConfig
from mil.models.base import MilMethod, Step
from mil.steps import deal, one_graph, two_passes
from mil.tasks.base import Task
from preprocessing.artefacts import whole_file
from preprocessing.errors import ConfigError, TrainingError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Bags of one part of a fold: `table` as Cohort.bags makes it, `encoded` its targets."""

    table: pd.DataFrame
    encoded: Tensor
    features: CohortFeatures

    def __len__(self) -> int:
        return len(self.table)

    def bag(self, index: int, device: torch.device) -> Tensor:
        return self.features.bag(self.table["slide_ids"].iloc[index]).to(device)


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; use auto or cpu")
    return torch.device(name)


def train_method(
    method: MilMethod,
    task: Task,
    parts: tuple[Part, Part],
    *,
    config: TrainConfig,
    state_dir: Path,
    run_id: str,
) -> pd.DataFrame:
    """Trains `method` in place, its baseline stage first if it has one; returns the history.

    `parts` are training and validation; `run_id` names the data and settings, and a state file of
    another run is not resumed. Raises ConfigError where a step cannot hold what the task compares,
    CohortError where the validation part cannot judge the task.
    """
    if task.several_bags and config.bags_per_step == 1:
        raise ConfigError(
            f"train.bags_per_step: 1, but the loss of {type(task).__name__} compares patients with "
            "each other; set it to epoch (all training patients), or to 2 or more"
        )
    task.refuse_validation(parts[1].encoded)
    device = pick_device(config.device)
    histories = []
    baseline = method.baseline()
    if baseline is not None:
        path = state_dir / "baseline.state.pt"
        history = _Stage(baseline.to(device), task, parts, config).run(path, f"{run_id}-baseline")
        histories.append(history.assign(stage="baseline"))
        method.adopt(baseline)
    history = _Stage(method.to(device), task, parts, config).run(
        state_dir / "main.state.pt", run_id
    )
    histories.append(history.assign(stage="main"))
    return pd.concat(histories, ignore_index=True)


class _Stage:
    """One model trained from where its state file stands to the end."""

    def __init__(
        self, method: MilMethod, task: Task, parts: tuple[Part, Part], config: TrainConfig
    ) -> None:
        self.method, self.task, self.config = method, task, config
        self.train, self.validation = parts
        self.device = next(method.parameters()).device
        trainable = [p for p in method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            trainable, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed)
        self.order_generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best_loss = math.inf
        self.best_epoch = -1
        self.best_weights = _copy(method.state_dict())

    def run(self, state_path: Path, run_id: str) -> pd.DataFrame:
        torch.manual_seed(self.config.seed)  # dropout
        if state_path.exists():
            self._load(state_path, run_id)
        progress = tqdm(range(self.config.epochs), initial=self.epoch, unit="epoch", mininterval=2)
        while not self._finished():
            self._one_epoch()
            progress.update()
            progress.set_postfix(self.history[-1], refresh=False)
            self._save(state_path, run_id)
        progress.close()
        self.method.load_state_dict(self.best_weights)
        return pd.DataFrame(self.history)

    def _finished(self) -> bool:
        stale = self.epoch - 1 - self.best_epoch
        early = self.epoch >= self.config.min_epochs and stale >= self.config.patience
        return early or self.epoch >= self.config.epochs

    def _one_epoch(self) -> None:
        rate = 0.5 * (1 + math.cos(math.pi * self.epoch / self.config.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * rate
        batches = self._batches()
        self.method.train()
        losses = [
            self._one_step(batch, index + self.epoch * len(batches), len(batches))
            for index, batch in enumerate(batches)
        ]
        validation_loss = self._validation_loss()
        if not (math.isfinite(sum(losses)) and math.isfinite(validation_loss)):
            raise TrainingError(
                f"epoch {self.epoch}: the loss is no longer a number (training {sum(losses):g}, "
                f"validation {validation_loss:g}); lower train.learning_rate, now "
                f"{self.config.learning_rate:g}, and look for extreme feature values"
            )
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch = validation_loss, self.epoch
            self.best_weights = _copy(self.method.state_dict())
        row = {"epoch": self.epoch, "train_loss": sum(losses) / len(losses)}
        self.history.append({**row, "validation_loss": validation_loss})
        self.epoch += 1

    def _batches(self) -> list[Tensor]:
        """The bags of each step of an epoch, by index."""
        order = torch.randperm(len(self.train), generator=self.order_generator)
        size = self.config.bags_per_step
        if size == "epoch":
            return [order]
        if self.task.several_bags:
            return deal(order, self.task.leads(self.train.encoded), size)
        return list(order.split(size))

    def _one_step(self, batch: Tensor, index: int, steps_per_epoch: int) -> float:
        step = Step(index, steps_per_epoch * self.config.epochs, self.generator)
        bags = [partial(self.train.bag, int(i), self.device) for i in batch]
        encoded = self.train.encoded[batch].to(self.device)
        many = self.task.several_bags or self.config.bags_per_step == "epoch"
        backward = two_passes if many else one_graph
        self.optimizer.zero_grad()
        loss = backward(self.method, bags, step, lambda logits: self.task.loss(logits, encoded))
        self.optimizer.step()
        self.method.after_update(step)
        return loss

    def _validation_loss(self) -> float:
        logits = answer(self.method, self.validation)
        return float(self.task.loss(logits, self.validation.encoded))

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }

    def _save(self, path: Path, run_id: str) -> None:
        state = {
            **self._state(),
            "run_id": run_id,
            "weights": self.method.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "order_generator": self.order_generator.get_state(),
            "dropout_generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all(),
        }
        with whole_file(path) as partial:
            torch.save(state, partial)

    def _load(self, path: Path, run_id: str) -> None:
        if not is_zipfile(path):  # torch.save writes one; its end is what a cut-off file lacks
            _log.warning("%s is cut off or damaged: training starts from the beginning", path)
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["run_id"] != run_id:
            return
        for name in self._state():
            setattr(self, name, state[name])
        self.method.load_state_dict(state["weights"])
        self.best_weights = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.order_generator.set_state(state["order_generator"].cpu())
        torch.set_rng_state(state["dropout_generator"].cpu())
        torch.cuda.set_rng_state_all([g.cpu() for g in state["cuda_generators"]])


@torch.inference_mode()
def answer(method: MilMethod, part: Part) -> Tensor:
    """Logits (bags, outputs) of the unmasked bags, on the CPU."""
    device = next(method.parameters()).device
    method.eval()
    return torch.stack([method(part.bag(i, device)).logits for i in range(len(part))]).cpu()


@torch.inference_mode()
def tile_evidence(method: MilMethod, task: Task, part: Part) -> list[np.ndarray]:
    """Evidence (tiles,) of every bag of the part."""
    device = next(method.parameters()).device
    method.eval()
    bags = (part.bag(i, device) for i in range(len(part)))
    return [task.evidence(method.tile_logits(bag)).cpu().numpy() for bag in bags]


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
