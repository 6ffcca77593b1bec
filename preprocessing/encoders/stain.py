"""Stain normalisation of single tiles, by torchstain (MIT licence), towards a fixed reference.

Macenko et al. 2009 ("A method for normalizing histology slides for quantitative analysis", ISBI)
find the two stains of a tile and exchange them for the reference's: the stain vectors and largest
concentrations of their own code, which torchstain carries as its default. Reinhard et al. 2001
match mean and deviation in CIELAB: the reference's are means over 43 tiles of tissue of
CMU-1-Small-Region.svs, OpenSlide's test slide (CC0).

Each tile is fitted alone, so what little is stained on a tile of glass would be stretched to the
reference's full strength: with a fourth of a tile stained, Macenko darkens it by some 15 grey
values more than the same tissue on a full tile, with 3 % by 80. Tiles with tissue on less than a
fifth, hardly a pixel stained in all channels, or fewer than two colours stay as they are. Where the
second colour has less than 1 % of the pixels, Macenko finds one stain twice and darkens the tile.
Eosin alone, IHC and pen are all taken for haematoxylin and eosin; Reinhard tints glass.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer
    from torchstain.torch.normalizers.reinhard import TorchReinhardNormalizer

StainName = Literal["macenko", "reinhard"]

_LAB_MEAN, _LAB_DEVIATION = (55.6, 24.5, -10.4), (23.0, 13.9, 9.6)
# As in Macenko's code: transmitted light, and the optical density (natural) in all channels of the
# pixels that stain vectors are found in.
_LIGHT, _STAINED = 240, 0.15
_LEAST_TISSUE, _LEAST_STAINED = 0.2, 0.05
# Second eigenvalue of the covariance of optical densities: 0.0015 or more on 500 tiles of
# tissue; noise of sigma 1 on plain grey has 0.00006.
_LEAST_SPREAD = 3e-4


def stain_normaliser(name: StainName) -> Callable[[Tensor], Tensor]:
    """Maps (B, 3, h, w) RGB 0..255 to float32 of the same shape, device and range.

    Tiles that cannot be fitted come back unchanged. The CPU fits whatever the device: eigenvectors
    differ between their libraries, and what is no number becomes a colour on a GPU. Raises
    `ConfigError` where torchstain is not installed.
    """
    try:
        from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer
        from torchstain.torch.normalizers.reinhard import TorchReinhardNormalizer
    except ImportError as error:
        raise ConfigError(
            f"encoder.stain: {name} needs torchstain, which is not installed: "
            "pip install 'histomil[stain]'"
        ) from error
    if name == "macenko":
        return _each_tile(_Macenko(TorchMacenkoNormalizer()))
    return _each_tile(_Reinhard(TorchReinhardNormalizer()))


def describe(name: StainName) -> str:
    """For the provenance: what changed the tiles, and towards which reference."""
    reference = {
        "macenko": "stain vectors and concentrations of Macenko et al. 2009",
        "reinhard": f"CIELAB mean {_LAB_MEAN}, deviation {_LAB_DEVIATION}",
    }[name]
    return (
        f"{name}, torchstain {version('torchstain')}, each tile alone, reference: {reference}; "
        f"unchanged where less than {_LEAST_TISSUE:g} of it is tissue"
    )


class _Macenko:
    def __init__(self, normaliser: "TorchMacenkoNormalizer") -> None:
        self._normaliser = normaliser

    def __call__(self, tile: Tensor) -> Tensor:
        """(3, h, w) to (h, w, 3)."""
        return self._normaliser.normalize(tile, Io=_LIGHT, beta=_STAINED, stains=False)[0]


class _Reinhard:
    def __init__(self, normaliser: "TorchReinhardNormalizer") -> None:
        normaliser.target_means = torch.tensor(_LAB_MEAN)
        normaliser.target_stds = torch.tensor(_LAB_DEVIATION)
        self._normaliser = normaliser

    def __call__(self, tile: Tensor) -> Tensor:
        """(3, h, w) to (h, w, 3)."""
        return self._normaliser.normalize(tile)


def _each_tile(normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def normalised(pixels: Tensor) -> Tensor:
        out = pixels.float().to("cpu", copy=True)
        for row in torch.nonzero(_can_be_fitted(out)).flatten().tolist():
            tile = normalise(out[row])
            if tile.min() >= 0 and tile.max() <= 255:  # as integers, what is no number is not
                out[row] = tile.permute(2, 0, 1)
        return out.to(pixels.device)

    return normalised


def _can_be_fitted(pixels: Tensor) -> Tensor:
    """(B,) whether enough of a tile is stained, and its colours differ in two directions.

    Tissue is what has the density on average over the channels.
    """
    density = -((pixels.flatten(2) + 1) / _LIGHT).log()
    stained = (density >= _STAINED).all(dim=1, keepdim=True).float()
    count = stained.sum(dim=2, keepdim=True).clamp(min=1)
    centred = (density - (density * stained).sum(dim=2, keepdim=True) / count) * stained
    spread = torch.linalg.eigvalsh(centred @ centred.transpose(1, 2) / count)[:, 1]
    tissue = (density.mean(dim=1) >= _STAINED).float().mean(dim=1)
    enough = (tissue >= _LEAST_TISSUE) & (stained.mean(dim=(1, 2)) >= _LEAST_STAINED)
    return enough & (spread >= _LEAST_SPREAD)
