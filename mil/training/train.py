"""One training loop that knows neither method nor task, exact under resume.

loss = sum over heads of weight x task loss over the step's bags + mean penalty of the bags; for its
gradient see mil.training.steps, for what a step reads mil.training.sampling.

The epoch with the lowest validation loss is kept. After every epoch the whole state (weights,
optimiser, generators, best weights) goes to a file, so that a killed run, started again, ends with
the weights of an uninterrupted one (on the CPU, with the same number of threads).
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from mil.models.base import Bags, MilMethod, Step
from mil.tasks.base import Task
from mil.training.compilation import compile_networks
from mil.training.config import TrainConfig
from mil.training.history import History
from mil.training.optimise import Optimiser
from mil.training.parts import Alteration, Draw, Part, placed
from mil.training.prefetch import ahead
from mil.training.sampling import Sampler
from mil.training.steps import StepLoss, accumulate, packs_of, two_passes
from preprocessing.artefacts import whole_file
from preprocessing.errors import ConfigError, TrainingError

_log = logging.getLogger(__name__)


def pick_device(config: TrainConfig) -> torch.device:
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but torch finds no CUDA device here; use auto or cpu")
    if name == "cpu" and config.precision == "float16":
        raise ConfigError(
            "train.precision: float16 needs a CUDA device, and this training runs on the CPU; use "
            "float32, or bfloat16"
        )
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
    another run is not resumed. Raises ConfigError where a step cannot hold what the task compares
    or nothing can be compiled, CohortError where the validation part cannot judge the task.
    """
    device = pick_device(config)
    sampler = Sampler.of(task, parts[0], config)
    task.refuse_validation(parts[1].encoded)
    training, validation = placed(parts, device)

    def trained(stage: str, model: MilMethod, run: str) -> pd.DataFrame:
        history = History(state_dir / "tensorboard" / stage, shown=config.tensorboard)
        loop = Stage(model.to(device), task, (training, validation), config, sampler, history)
        return loop.run(state_dir / f"{stage}.state.pt", run).assign(stage=stage)

    histories = []
    baseline = method.baseline()
    if baseline is not None:
        histories.append(trained("baseline", baseline, f"{run_id}-baseline"))
        method.adopt(baseline)
    histories.append(trained("main", method, run_id))
    return pd.concat(histories, ignore_index=True)


class Stage:
    """One model trained from where its state file stands to the end."""

    def __init__(
        self,
        method: MilMethod,
        task: Task,
        parts: tuple[Part, Part],
        config: TrainConfig,
        sampler: Sampler,
        history: History,
    ) -> None:
        self.method, self.task, self.config = method, task, config
        self.train, self.validation = parts
        self.sampler, self.history = sampler, history
        self.device = next(method.parameters()).device
        if config.compile:
            compile_networks(method, self.device)
        self.alteration = Alteration(config.max_tiles, config.feature_dropout)
        self.labels = task.labels(self.train.encoded)
        self.optimiser = Optimiser(
            method.parameters(), config, steps_per_epoch=sampler.steps, device=self.device
        )
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed)
        self.order_generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        self.best_loss = math.inf
        self.best_epoch = -1
        self.best_weights = _copy(method.state_dict())

    def run(self, state_path: Path, run_id: str) -> pd.DataFrame:
        torch.manual_seed(self.config.seed)  # dropout
        self.history.restore(self._load(state_path, run_id))
        epochs = range(self.config.epochs)
        with (
            closing(self.history),
            tqdm(epochs, initial=self.epoch, unit="epoch", mininterval=2) as progress,
        ):
            while not self._finished():
                self._one_epoch()
                progress.update()
                progress.set_postfix(self.history.losses(), refresh=False)
                self._save(state_path, run_id)
        self.method.load_state_dict(self.best_weights)
        return self.history.table()

    def _finished(self) -> bool:
        stale = self.epoch - 1 - self.best_epoch
        early = self.epoch >= self.config.min_epochs and stale >= self.config.patience
        return early or self.epoch >= self.config.epochs

    def _one_epoch(self) -> None:
        started = time.perf_counter()
        losses, norms, tiles = self.training_pass()
        trained = time.perf_counter()
        validation_loss = self._validation_loss()
        if not (math.isfinite(losses.sum()) and math.isfinite(validation_loss)):
            raise TrainingError(
                f"epoch {self.epoch}: the loss is no longer a number (training "
                f"{float(losses.sum()):g}, validation {validation_loss:g}); lower "
                f"train.learning_rate, now {self.config.learning_rate:g}, and look for extreme "
                "feature values"
            )
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch = validation_loss, self.epoch
            self.best_weights = _copy(self.method.state_dict())
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": float(losses.mean()),
                "validation_loss": validation_loss,
                "learning_rate": self.optimiser.rate,
                "gradient_norm": float(norms[norms.isfinite()].mean()),
                "seconds": time.perf_counter() - started,
                "tiles_per_second": tiles / (trained - started),
            }
        )
        self.epoch += 1

    def training_pass(self) -> tuple[Tensor, Tensor, int]:
        """Losses and gradient norms (steps,) of an epoch, and the tiles that it read."""
        self.method.train()
        steps = self.sampler.epoch(self.order_generator)
        sizes = [self.train.sizes(draws, self.alteration) for draws in steps]
        packs = [
            [draws[bags] for bags in packs_of(size, self.config.tiles_per_pass)]
            for draws, size in zip(steps, sizes, strict=True)
        ]
        order = (draws for step in packs for _ in range(self._passes(step)) for draws in step)
        loads = (partial(self._pack, draws) for draws in order)
        results = []
        with closing(ahead(loads, threads=self.train.features.readers(self.device))) as loaded:
            for place, step in enumerate(packs):
                results.append(self._one_step(step, loaded, place + self.epoch * len(packs)))
        losses, norms = zip(*results, strict=True)
        return torch.stack(losses).cpu(), torch.stack(norms).cpu(), sum(map(sum, sizes))

    def _passes(self, packs: list[list[Draw]]) -> int:
        """How often the packs of a step are read."""
        return 2 if self.task.several_bags and len(packs) > 1 else 1

    def _pack(self, draws: list[Draw]) -> Bags:
        return self.train.pack(draws, self.alteration, labels=self.labels, device=self.device)

    def _one_step(
        self, packs: list[list[Draw]], loaded: Iterator[Bags], index: int
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the norm of its gradient; `loaded` gives the packs in order."""
        step = Step(index, self.optimiser.total, self.generator)
        bags = [draw.bag for pack in packs for draw in pack]
        encoded = self.train.encoded[bags].to(self.device)
        loss = StepLoss(self.task, encoded, self.optimiser.scaled)
        forward = partial(self.optimiser.forward, self.method, step=step)
        loads = [partial(next, loaded)] * len(packs)
        if self._passes(packs) == 1:
            value = accumulate(forward, loads, loss)
        else:
            value = two_passes(forward, loads, loss, self.generator)
        norm = self.optimiser.update(index)
        self.method.after_update(step)
        return value, norm

    def _validation_loss(self) -> float:
        logits = answer(self.method, self.validation)
        return float(self.task.loss(logits, self.validation.encoded))

    def _progress(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "best_loss": self.best_loss, "best_epoch": self.best_epoch}

    def _save(self, path: Path, run_id: str) -> None:
        state = {
            **self._progress(),
            "run_id": run_id,
            "history": self.history.rows,
            "weights": self.method.state_dict(),
            "best_weights": self.best_weights,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "order_generator": self.order_generator.get_state(),
            "device": self.device.type,
            "dropout_generator": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_generator"] = torch.cuda.get_rng_state(self.device)
        with whole_file(path) as partial_path:
            torch.save(state, partial_path)

    def _load(self, path: Path, run_id: str) -> list[dict[str, Any]]:
        """Goes to where the state file of this run stands, if there is one; its history."""
        if not path.exists():
            return []
        if not is_zipfile(path):  # torch.save writes one; its end is what a cut-off file lacks
            _log.warning("%s is cut off or damaged: training starts from the beginning", path)
            return []
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["run_id"] != run_id:
            return []
        if state["device"] != self.device.type:
            _log.warning(
                "%s was written on %s, this is %s, where random numbers are others: training "
                "starts from the beginning",
                path,
                state["device"],
                self.device.type,
            )
            return []
        for name in self._progress():
            setattr(self, name, state[name])
        self.method.load_state_dict(state["weights"])
        self.best_weights = state["best_weights"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.order_generator.set_state(state["order_generator"])
        torch.set_rng_state(state["dropout_generator"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)
        return state["history"]


@torch.inference_mode()
def answer(method: MilMethod, part: Part) -> Tensor:
    """Logits (bags, outputs) of the unmasked bags, on the CPU."""
    device = next(method.parameters()).device
    method.eval()
    with closing(part.bags(device)) as bags:
        return torch.stack([method(bag).logits for bag in bags]).cpu()


@torch.inference_mode()
def tile_evidence(method: MilMethod, task: Task, part: Part) -> list[np.ndarray]:
    """Evidence (tiles,) of every bag of the part."""
    device = next(method.parameters()).device
    method.eval()
    with closing(part.bags(device)) as bags:
        return [task.evidence(method.tile_logits(bag)).cpu().numpy() for bag in bags]


def _copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
