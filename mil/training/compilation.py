"""torch.compile for the networks within a method, whatever the size of a bag."""

from collections.abc import Iterator

import torch
from torch import nn

from mil.models.base import MilMethod
from preprocessing.errors import ConfigError


def compile_networks(method: MilMethod, device: torch.device) -> None:
    """Compiles `method` in place; parameters and their names stay what they are.

    Masks, pooling and schedules remain Python: they depend on how many bags and tiles a step has,
    and would be compiled again and again. Raises ConfigError where nothing can be compiled.
    """
    _refuse_without_compiler(device)
    for network in _networks(method):
        network.compile(dynamic=True)


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are called with tensors alone."""
    for child in module.children():
        if isinstance(child, MilMethod | nn.ModuleList):
            yield from _networks(child)
        else:
            yield child


def _refuse_without_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: x + x)(torch.ones(2, device=device))
    except Exception as error:  # of many kinds: no compiler, an old GPU, a folder without rights
        cause = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ConfigError(
            f"train.compile: true, but torch cannot compile for {device.type} here ({cause}); "
            "install what it asks for, or set train.compile: false"
        ) from error
