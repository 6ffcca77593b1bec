"""Models of the published sizes have the published numbers of parameters."""

import pytest

from mil.models.build import build_method
from mil.models.config import (
    AbmilConfig,
    AcmilConfig,
    AcmilMhaConfig,
    DsmilConfig,
    MhimConfig,
    MhimDsmilConfig,
    MhimTransmilConfig,
    TransmilConfig,
)

UNUSED_IN_DSMIL = 512 * 2 + 2  # a classifier of one bag vector, which that of MHIM's code also has


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (AbmilConfig(), 656_771),
        (AcmilConfig(), 662_417),
        (AcmilConfig(branches=1), 656_771),
        (AcmilMhaConfig(), 6_317_580),
        (TransmilConfig(), 2_672_146),
        (DsmilConfig(), 873_734 - UNUSED_IN_DSMIL),
    ],
)
def test_parameter_counts_are_the_published_ones(config, expected):
    method = build_method(config, 1024, 2)
    assert sum(p.numel() for p in method.parameters()) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MhimConfig(), 591_490),
        (MhimTransmilConfig(), 2_672_146),
        (MhimDsmilConfig(), 873_734 - UNUSED_IN_DSMIL),
    ],
)
def test_mhim_trains_the_published_number_of_parameters(config, expected):
    method = build_method(config, 1024, 2)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == expected
    assert sum(p.numel() for p in method.parameters()) == 2 * expected


def test_recycling_adds_the_published_number_of_parameters():
    method = build_method(MhimConfig(preset="v2"), 1024, 2)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert trained + method.recycle.queries.numel() == 591_490 + 1_052_672
