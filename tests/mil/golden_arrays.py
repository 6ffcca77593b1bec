"""Reading the golden arrays, and comparing with them."""

import re

import numpy as np
import torch

TOLERANCE = 1e-10


def read_golden(shared, name):
    with np.load(shared / "golden" / name) as archive:
        return dict(archive)


def bag_sizes_of(arrays):
    """The numbers of instances of the bags x_<N>."""
    found = sorted(int(m[1]) for m in (re.fullmatch(r"x_(\d+)", name) for name in arrays) if m)
    assert found
    return found


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def assert_close(ours, golden, what, tolerance=TOLERANCE):
    ours = ours.detach() if isinstance(ours, torch.Tensor) else tensor(ours)
    difference = float((ours - tensor(golden)).abs().max())
    assert difference <= tolerance, f"{what}: max abs difference {difference}"
