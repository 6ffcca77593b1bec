"""The methods that the benchmarks compare, at widths that suit small features.

Bags are labelled `negative` or `positive`.
"""

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
    "acmil_mha": AcmilMhaConfig(**WIDTH),
    "mhim": MhimConfig(**ATTENTION),
    "mhim_v2": MhimConfig(**ATTENTION, preset="v2"),
    "mhim_transmil": MhimTransmilConfig(**WIDTH),
    "mhim_dsmil": MhimDsmilConfig(**WIDTH, query_dim=32),
    "ins": InsConfig(**WIDTH, negative="negative"),
}
