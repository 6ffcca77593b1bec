"""What goes wrong on real slides: pen strokes on the cover glass, patches out of focus."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

_PEN_RGB = {"blue": (40, 70, 170), "green": (25, 130, 75)}


def draw_pen(rng: np.random.Generator, rgb: NDArray[np.uint8], *, mpp: float) -> None:
    """A marker stroke on the cover glass, in place: opaque enough to hide what lies below."""
    height_px, width_px = rgb.shape[:2]
    start = rng.uniform((0.05, 0.05), (0.95, 0.3)) * (width_px, height_px)
    if rng.random() < 0.5:
        start[1] = height_px - start[1]
    steps = np.linspace(0, 1, 40)
    heading = rng.uniform(-0.5, 0.5) + rng.choice([0, np.pi]) + rng.uniform(-1.2, 1.2) * steps
    stride_px = rng.uniform(250, 600) / mpp / len(steps)
    path = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * stride_px, axis=0)
    thickness_px = rng.uniform(35, 70) / mpp
    mask = Image.new("L", (width_px // 4 + 1, height_px // 4 + 1))
    draw = ImageDraw.Draw(mask)
    for x, y in path / 4:
        radius = thickness_px / 8
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    soft = mask.filter(ImageFilter.GaussianBlur(1.5)).resize((width_px, height_px))
    alpha = np.asarray(soft)
    rows, columns = np.nonzero(alpha)
    if not len(rows):
        return
    window = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    ink = np.array(_PEN_RGB[str(rng.choice(sorted(_PEN_RGB)))]) / 255
    weight = (alpha[window].astype(np.float32) / 255 * rng.uniform(0.85, 0.97))[..., None]
    through = rgb[window] * (1 - weight + weight * ink)
    rgb[window] = np.rint(through * (1 - 0.35 * weight) + 0.35 * weight * ink * 255)


def defocus(
    rng: np.random.Generator, rgb: NDArray[np.uint8], centre_um: NDArray, *, mpp: float
) -> None:
    """An out-of-focus patch around a point, in place, fading out at its edge."""
    height_px, width_px = rgb.shape[:2]
    radius_px = rng.uniform(110, 230) / mpp
    centre_px = centre_um / mpp
    left, top = np.maximum(centre_px - radius_px, 0).astype(int)
    right, bottom = np.minimum(centre_px + radius_px, (width_px, height_px)).astype(int)
    window = slice(top, bottom), slice(left, right)
    sharp = rgb[window].copy()
    blurred = np.asarray(
        Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(rng.uniform(1.6, 3.0) / mpp))
    )
    y, x = np.ogrid[top:bottom, left:right]
    radius = np.hypot((x - centre_px[0]) / radius_px, (y - centre_px[1]) / radius_px)
    weight = np.clip((1 - radius) * 5, 0, 1).astype(np.float32)[..., None]
    rgb[window] = np.rint(sharp + weight * (blurred.astype(np.float32) - sharp))
