"""Values that papers and published code recommend per data set, by method and by preset.

A section of the configuration with `preset: camelyon16` takes them for the keys that it does not
write. ACMIL: branches K, k and p of its paper's notes; MHIM: its released commands; `v2` is
MHIM-MIL v2 with the middle of its published grid and the number of tokens it counts. How models are
trained is said once for all methods, in `train`: ACMIL's code takes AdamW at 1e-4, MHIM's Adam at
2e-4.
"""

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Any]

_ACMIL: dict[str, Values] = {
    "bracs": {"branches": 5, "top_k": 10, "drop": 0.6},
    "camelyon16": {"branches": 5, "top_k": 10, "drop": 0.8},
    "camelyon16_resnet18": {"branches": 2, "top_k": 10, "drop": 0.8},
    "lbc": {"branches": 5, "top_k": 10, "drop": 0.8},
}

_V2: Values = {
    "activation": "gelu",
    "mask_random": 0.0,
    "mask_low": 0.0,
    "mask_high": 0.03,
    "high_share": 1.0,
    "high_schedule": "constant",
    "score": "instance_probability",
    "keep_ratio": 0.8,
    "recycled_tokens": 5,
    "query_momentum": 0.9999,
    "consistency_weight": 0.5,
    "momentum": 0.9997,
    "momentum_schedule": "constant",
    "student_init": "none",
}

_MHIM: dict[str, Values] = {
    "camelyon16": {
        "mask_random": 0.5,
        "mask_low": 0.0,
        "mask_high": 0.01,
        "high_share": 0.5,
        "high_schedule": "cosine",
        "consistency_weight": 0.1,
        "momentum_schedule": "constant",
    },
    "tcga": {
        "mask_random": 0.7,
        "mask_low": 0.2,
        "mask_high": 0.02,
        "high_share": 1.0,
        "high_schedule": "cosine",
        "consistency_weight": 0.5,
        "momentum_schedule": "cosine",
    },
    "v2": _V2,
}

_MHIM_TRANSMIL: dict[str, Values] = {
    "camelyon16": {
        "mask_random": 0.0,
        "mask_low": 0.8,
        "mask_high": 0.03,
        "high_share": 0.5,
        "high_schedule": "cosine",
        "consistency_weight": 0.1,
        "momentum_schedule": "cosine",
    },
    "tcga": {
        "mask_random": 0.6,
        "mask_low": 0.2,
        "mask_high": 0.02,
        "high_share": 1.0,
        "high_schedule": "cosine",
        "consistency_weight": 0.5,
        "momentum_schedule": "constant",
    },
    "v2": _V2,
}

PRESETS: dict[str, dict[str, Values]] = {
    "acmil": _ACMIL,
    "acmil_mha": _ACMIL,
    "mhim": _MHIM,
    "mhim_transmil": _MHIM_TRANSMIL,
    # v2's score on DSMIL is the highest instance logit, which is what its base calls hard
    "mhim_dsmil": {**_MHIM, "v2": {**_V2, "score": "attention"}},
}


def preset_values(method: str, preset: str) -> Values:
    """Raises ValueError where `method` has no such preset."""
    known = PRESETS[method]
    if preset not in known:
        raise ValueError(
            f"preset: {preset!r} is not known for {method}; known are {', '.join(known)}"
        )
    return known[preset]
