"""Small MHIM methods, their bags and steps."""

import torch

from mil.models.base import Bags, Step
from mil.models.build import build_method
from mil.models.mhim import Mhim

DIM, OUTPUTS = 12, 3
SMALL = {"hidden_dim": 8, "attention_dim": 4}
V2 = {
    "preset": "v2",
    "mask_high": 0.2,
    "recycled_tokens": 2,
    "recycle_head_dim": 4,
    "recycle_dropout": 0.0,
    "dropout": 0.0,
}


def make_bag(tiles, *, seed=0):
    return torch.randn(tiles, DIM, generator=torch.Generator().manual_seed(seed))


def make_step(*, seed=0):
    return Step(index=0, total=10, generator=torch.Generator().manual_seed(seed))


def training_output(method, *bags, seed=0):
    return method.training_output(Bags.pack(bags), make_step(seed=seed))


def build(config):
    torch.manual_seed(0)
    method = build_method(config, DIM, OUTPUTS)
    assert isinstance(method, Mhim)
    return method
