"""How good a tile is as a picture: its sharpness, its share of ink and of nothing at all.

Sharpness is the strength of fine structure relative to coarse: the root of the energy of a
Laplacian over pixels of about 0.5 um (after a 3 x 3 binomial filter) over that of a Laplacian over
4 x 4 such pixels. Stain and contrast cancel, and tissue of all kinds has nearly the same ratio. It
is divided by the ratio of a straight ideal edge, so that 1 is about as sharp as such pixels show:

    430 real H&E tiles of 0.5 um per pixel, 12 sources      median (2nd to 98th percentile)
    as they are                                             0.84 (0.68 to 1.4)
    blurred by a Gaussian of sigma 0.5 um                   0.62 (0.53 to 0.86)
                                   1 um                     0.45 (0.40 to 0.53)
                                   2 um                     0.31 (0 to 0.36)
    glass: 0, or what its dust has

A third of the contrast, noise of sigma 1 or JPEG of quality 70 move the first three medians by 0.1
at most. Finer tiles are first reduced to about 0.5 um per pixel, so theirs agree. Coarser tiles
cannot show as small a blur, and sharp ones have 1.4 at 1 um per pixel: set limits for one
`grid.mpp`. At 0.5 um per pixel, 0.55 drops what is blurred by 1 um or more and nothing sharp.

Ink and blank are shares of area in pixels of about 8 um. Colours are taken relative to a fixed
white, as a tile does not tell the colour of its slide's glass.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from preprocessing.tissue.ink import is_black, is_pale_ink, is_red_ink, is_vivid_ink

_FINE_UM, _COARSER = 0.5, 4
_IDEAL_EDGE = 0.19
# Energies, in grey values squared, of the Laplacian of the noise that scanners and JPEG leave
# (sigma 1 before the binomial filter), and of coarse structure too weak to compare with.
_FINE_NOISE, _COARSE_FLOOR = 0.4, 16.0

_COLOUR_UM = 8.0
_WHITE = 245.0
_DIMMEST_GLASS, _GREYEST, _NOT_PINK = 200.0, 18.0, 6.0
_UNLIT = 20.0
_PALEST_INK = 0.75  # more transparent blue may be the glass of a scanner set so

_CPU_TILES = 4  # at a time: they stay in the processor's cache


@torch.no_grad()
def tile_quality(pixels: Tensor, mpp: float) -> Tensor:
    """(B, 3) float32 in the order of `store.QUALITY`, of (B, 3, h, w) RGB 0..255 on any device.

    `mpp` is um per pixel of the tiles. Raises `ValueError` for tiles of less than 16 pixels.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < 16:
        raise ValueError(f"expected (B, 3, h, w) of 16 px or more, got {tuple(pixels.shape)}")
    if not mpp > 0:
        raise ValueError(f"mpp of the tiles must be positive, got {mpp!r}")
    if not len(pixels):
        return pixels.new_zeros((0, 3))
    parts = pixels.float().split(_CPU_TILES if pixels.device.type == "cpu" else len(pixels))
    return torch.cat([_quality(part, mpp) for part in parts])


def _quality(pixels: Tensor, mpp: float) -> Tensor:
    side = min(max(1, round(_COLOUR_UM / mpp)), *pixels.shape[2:])
    colours = avg_pool2d(pixels, side).unbind(1)
    return torch.stack([_sharpness(pixels, mpp), _ink_share(*colours), _blank_share(*colours)], 1)


def _sharpness(pixels: Tensor, mpp: float) -> Tensor:
    """Of green, which all the usual dyes take; over all channels, those of a lens that brings
    colours to different places would blur each other.
    """
    green = pixels[:, 1:2]
    largest = min(green.shape[2:]) // (4 * _COARSER)
    if (side := min(round(_FINE_UM / mpp), largest)) > 1:
        green = avg_pool2d(green, side)
    fine = (_laplacian_energy(_binomial(green)) - _FINE_NOISE).clamp(min=0)
    coarse = _laplacian_energy(avg_pool2d(green, _COARSER)) + _COARSE_FLOOR
    return (fine / coarse).sqrt() / _IDEAL_EDGE


def _binomial(grey: Tensor) -> Tensor:
    rows = torch.add(grey[..., :-2, :], grey[..., 1:-1, :], alpha=2).add_(grey[..., 2:, :])
    return torch.add(rows[..., :-2], rows[..., 1:-1], alpha=2).add_(rows[..., 2:]).div_(16)


def _laplacian_energy(grey: Tensor) -> Tensor:
    """(B,) mean square, in grey values."""
    around = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1]
    around.add_(grey[..., 1:-1, :-2]).add_(grey[..., 1:-1, 2:])
    return around.sub_(grey[..., 1:-1, 1:-1], alpha=4).square_().mean(dim=(1, 2, 3))


def _ink_share(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    lit = torch.maximum(torch.maximum(red, green), blue) >= _UNLIT
    red, green, blue = ((colour / _WHITE).clamp(max=1) for colour in (red, green, blue))
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    pale = is_pale_ink(red, green, low=low, high=high) & (red < _PALEST_INK)
    ink = (
        is_black(low, high)
        | is_vivid_ink(red, green, blue, low=low, high=high)
        | is_red_ink(red, green, blue, low=low, high=high)
        | pale
    )
    return (ink & lit).float().mean(dim=(1, 2))


def _blank_share(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Glass, bright and nearly grey but not pale pink, and what no light came through."""
    low = torch.minimum(torch.minimum(red, green), blue)
    high = torch.maximum(torch.maximum(red, green), blue)
    grey = (high - low <= _GREYEST) & (green >= torch.minimum(red, blue) - _NOT_PINK)
    glass = (low >= _DIMMEST_GLASS) & grey
    return (glass | (high < _UNLIT)).float().mean(dim=(1, 2))
