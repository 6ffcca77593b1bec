"""Pictures of sections on glass as a scanner sees them, with the truth."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from preprocessing.config import TissueConfig
from preprocessing.tissue.segmentation import find_tissue

EOSIN, HAEMATOXYLIN, GLASS = (226, 150, 190), (120, 80, 150), (244, 242, 245)


def photograph(picture):
    """What a scanner makes of it: soft edges, noise, JPEG."""
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)), dtype=float)
    noisy = soft + np.random.default_rng(0).normal(0, 3, soft.shape)
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer).convert("RGB"))


def section(glass=GLASS):
    """A section of 160 x 160 of 300 x 240 px with dense spots, and where it is."""
    picture = Image.new("RGB", (300, 240), glass)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((40, 40, 199, 199), fill=EOSIN)
    for x in range(60, 200, 40):
        draw.ellipse((x, x, x + 20, x + 20), fill=HAEMATOXYLIN)
    truth = np.zeros((240, 300), dtype=bool)
    truth[40:200, 40:200] = True
    return picture, truth


def find(rgb, mpp=8.0, **settings_):
    return find_tissue(rgb, TissueConfig(**settings_), px0_per_px_x=32, px0_per_px_y=32, mpp=mpp)
