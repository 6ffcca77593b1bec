import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch

from preprocessing.encoders.stain import describe, stain_normaliser
from preprocessing.errors import ConfigError

pytest.importorskip("torchstain", reason="the extra `stain` is not installed")

NAMES = ("macenko", "reinhard")
# Natural optical densities: the stain vectors of Macenko's code, and others to start from.
REFERENCE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
OTHER = np.array([[0.65, 0.65, 0.40], [0.20, 0.90, 0.39]])


def stained(vectors, *, seed=0, side=96, share=1.0, strength=1.0):
    """(3, h, w): both stains in independent amounts, glass below the share."""
    rng = np.random.default_rng(seed)
    amounts = strength * rng.gamma(2.0, 0.4, (side * side, 2))
    amounts[int(share * side * side) :] = 0
    rgb = 240 * np.exp(-amounts @ vectors)
    return torch.from_numpy(rgb.T.reshape(3, side, side)).float().clamp(0, 255)


def tinted(seed=0):
    return stained(OTHER, seed=seed, strength=0.6)


@pytest.mark.parametrize("name", NAMES)
def test_slides_of_two_laboratories_come_closer(name):
    normalise = stain_normaliser(name)
    pale, dark = stained(OTHER, strength=0.5), stained(REFERENCE, strength=1.2)
    before = (pale.mean(dim=(1, 2)) - dark.mean(dim=(1, 2))).abs().max()
    one, two = normalise(torch.stack([pale, dark]))
    after = (one.mean(dim=(1, 2)) - two.mean(dim=(1, 2))).abs().max()
    assert after < 0.25 * before


def test_macenko_gives_the_references_stain_vectors():
    """Of a normalised tile, densities lie in the plane of the reference's two vectors."""
    made = stain_normaliser("macenko")(tinted()[None])[0].flatten(1).numpy()
    density = -np.log((made + 1) / 240)
    clear = (made > 20).all(axis=0) & (made < 200).all(axis=0)
    amounts, residual, *_ = np.linalg.lstsq(REFERENCE.T, density[:, clear], rcond=None)
    assert np.sqrt(residual.mean() / clear.sum()) < 0.02
    assert np.percentile(amounts, 1) > -0.2


def test_reinhard_gives_the_references_mean_and_deviation():
    from torchstain.torch.utils.rgb2lab import rgb2lab

    made = stain_normaliser("reinhard")(tinted()[None])[0]
    lightness, a, b = rgb2lab(made / 255)
    assert (lightness / 2.55).mean() == pytest.approx(55.6, abs=2.5)
    assert (a - 128).mean() == pytest.approx(24.5, abs=2.5)
    assert (b - 128).mean() == pytest.approx(-10.4, abs=2.5)
    assert (lightness / 2.55).std() == pytest.approx(23.0, abs=3)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_that_cannot_be_fitted_are_unchanged(name):
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (3, 96, 96))).float()
    blank, grey, black = 243 + noise, 128 + noise, torch.zeros(3, 96, 96)
    one_stain = stained(np.stack([OTHER[1], OTHER[1]]))
    nearly_blank = stained(OTHER, share=0.15)
    tiles = torch.stack([blank, grey, black, one_stain, nearly_blank, 255 + black])
    tiles = tiles.clamp(0, 255)
    before = tiles.clone()
    torch.testing.assert_close(stain_normaliser(name)(tiles), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_tile_does_not_depend_on_its_neighbours(name):
    normalise = stain_normaliser(name)
    tiles = torch.stack([tinted(0), torch.full((3, 96, 96), 244.0), tinted(1)])
    before = tiles.clone()
    together = normalise(tiles)
    torch.testing.assert_close(tiles, before, rtol=0, atol=0)
    for row in range(3):
        torch.testing.assert_close(normalise(tiles[row : row + 1])[0], together[row])
    assert (together.shape, together.dtype) == (tiles.shape, torch.float32)
    assert together.min() >= 0
    assert together.max() <= 255
    assert (together[0] - tiles[0]).abs().mean() > 5
    torch.testing.assert_close(normalise(tiles.byte()), normalise(tiles.byte().float()))
    assert normalise(tiles[:0]).shape == (0, 3, 96, 96)


@pytest.mark.parametrize("name", NAMES)
def test_the_provenance_names_the_package_and_the_reference(name):
    assert describe(name).startswith(f"{name}, torchstain {version('torchstain')}, each tile alone")
    assert "reference: " in describe(name)


def test_without_torchstain_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchstain.torch.normalizers.macenko", None)
    with pytest.raises(
        ConfigError, match=r"macenko needs torchstain.*pip install 'histomil\[stain"
    ):
        stain_normaliser("macenko")
