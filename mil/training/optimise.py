"""The optimiser with its schedule, numerical precision and clipping.

    rate_t = lr (t + 1) / W                                while t < W, the steps of the warm-up
    rate_t = lr (1 + cos(pi (t - W) / (T - W))) / 2        then, of T steps in all (cosine)

Steps and not epochs count, so that a training of few epochs is as smooth as one of many. Gradients
are clipped after the backward pass and after a scaled loss's scale is taken out of them.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mil.models.base import Bags, MilMethod, Step, TrainingOutput
from mil.training.config import TrainConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def rate_at(index: int, *, total: int, warmup: float, config: TrainConfig) -> float:
    """The learning rate of step `index` of `total`, the first `warmup` of them rising."""
    if index < warmup:
        return config.learning_rate * min(1.0, (index + 1) / warmup)
    if config.schedule == "constant":
        return config.learning_rate
    done = (index - warmup) / (total - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Optimiser:
    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: TrainConfig,
        *,
        steps_per_epoch: int,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.total = steps_per_epoch * config.epochs
        self.warmup = steps_per_epoch * config.warmup_epochs
        self.rate = 0.0
        self._parameters = [p for p in parameters if p.requires_grad]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        self._optimizer = kind(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "float16")

    def forward(self, method: MilMethod, bags: Bags, step: Step) -> TrainingOutput:
        """In the precision asked for; what leaves the method, and its loss, is float32."""
        if self.config.precision == "float32":
            return method.training_output(bags, step)
        with torch.autocast(self.device.type, dtype=_DTYPES[self.config.precision]):
            out = method.training_output(bags, step)
        parts = {name: getattr(out, name).float() for name in ("heads", "weights", "penalty")}
        return replace(out, **parts)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to backpropagate: float16 gradients of the loss itself would vanish."""
        return self._scaler.scale(loss)

    def update(self, index: int) -> Tensor:
        """Moves the weights by the gradients, which are then gone; returns the gradients' norm.

        In float16 a step whose gradients overflow is left out, and their norm is not finite.
        """
        self.rate = rate_at(index, total=self.total, warmup=self.warmup, config=self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._scaler.unscale_(self._optimizer)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = nn.utils.clip_grad_norm_(self._parameters, limit)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
