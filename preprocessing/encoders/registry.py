"""The only list of encoders, and the one door through which they are loaded.

Rows of hub models follow the loading code of TRIDENT, slide2vec and lazyslide-models; where
`checked` is False neither weights nor model card could be read, and licences are as those
projects state them. Left out, because they need a package that is not on PyPI or another
project's code: CONCH v1 (conch), MUSK (musk, fairscale).
This module imports no torch: a workflow may ask for names and tile sizes at no cost.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from preprocessing.config import EncoderConfig
from preprocessing.encoders import rows_other, rows_timm
from preprocessing.encoders.base import EncoderSpec, Loader
from preprocessing.encoders.custom import custom_spec, stated_facts
from preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from preprocessing.encoders.network import NetworkEncoder

_ROWS = (rows_other.DEFAULT, *rows_timm.ROWS, *rows_other.ROWS)
REGISTRY: dict[str, EncoderSpec] = {row.name: row for row in _ROWS}
_HEADER = ("name", "dim", "px", "um/px", "precision", "pooling", "access", "checked", "licence")


def find_spec(config: EncoderConfig) -> EncoderSpec:
    """The row of a name; `timm:`, `hf:` and `torchscript:` give a row from `encoder.custom`.

    Such a row has dim 0 until its network is loaded.
    """
    spec = REGISTRY.get(config.name) or custom_spec(config)
    if spec is None:
        raise ConfigError(
            f"encoder.name {config.name!r} is unknown; expected one of {', '.join(REGISTRY)}, or "
            "timm:<model>, hf:<owner/repository> or torchscript:<path>"
        )
    if config.custom is not None and config.name in REGISTRY:
        raise ConfigError(
            f"encoder.custom describes encoders that are not in the registry, encoder.name is "
            f"{config.name!r}; remove encoder.custom, or name timm:, hf: or torchscript:"
        )
    return spec


def load_encoder(config: EncoderConfig) -> "NetworkEncoder":
    """The encoder with its weights; `EncoderUnavailable` says why not and what to do."""
    spec = find_spec(config)
    from preprocessing.encoders import hub
    from preprocessing.encoders.gpu import choose_device, choose_precision
    from preprocessing.encoders.lite0 import load_lite0
    from preprocessing.encoders.network import NetworkEncoder

    load: dict[Loader, Callable[[EncoderSpec], nn.Module]] = {
        "package": load_lite0,
        "timm": hub.load_timm,
        "transformers": hub.load_transformers,
        "file": hub.load_file,
        "torchscript": hub.load_torchscript,
    }
    device = choose_device(config.device)
    network = load[spec.loader](spec)
    if not spec.dim:
        spec = hub.completed(spec, network, stated_facts(config))
    return NetworkEncoder(
        spec,
        network,
        device=device,
        precision=choose_precision(config.precision, spec, gpu=device != "cpu"),
        stain=config.stain,
        compiled_for=config.batch_size if config.compile else None,
        weight_digest=hub.file_digest(spec) if spec.loader == "torchscript" else None,
    )


def encoder_lines(width: int = 100) -> list[str]:
    """The registry as a table of at most `width` columns, a header first.

    `checked`: "weights" were loaded and numbers compared; "shape" where the architecture was built
    with random weights and gives the row's dimension; "no" where neither was possible.
    """
    cells = [_HEADER, *(_cells(spec) for spec in REGISTRY.values())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADER) - 1)]
    lines = []
    for row in cells:
        padded = (cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=True))
        line = "  ".join((*padded, row[-1]))
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return lines


def _cells(spec: EncoderSpec) -> tuple[str, ...]:
    mpp = "any" if spec.mpp is None else "-".join(f"{v:g}" for v in dict.fromkeys(spec.mpp))
    side = f"{spec.tile_px}→{spec.crop_px}" if spec.crop_px else str(spec.tile_px)
    checked = "weights" if spec.checked else "shape" if spec.architecture else "no"
    return (
        spec.name,
        str(spec.dim),
        side,
        mpp,
        spec.precision,
        spec.pooling,
        "gated" if spec.gated else "open",
        checked,
        spec.licence,
    )
