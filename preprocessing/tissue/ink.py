"""Colours that no stained tissue has: ink of pens and black borders.

Every function takes transmissions, 0..1, of red, green and blue, each divided by the glass's, as
arrays or tensors of one shape alike, and says for each pixel whether it has that colour. Pixels
should be averages over about 8 um: single nuclei are darker and bluer than any tissue is.

Special stains in blue or green (Alcian blue, the collagen of trichromes) have ink's colours. Their
slides need masks.
"""

from typing import Any

# Single nuclei aside: Ruifrok's haematoxylin vector reaches 0.6 at optical density 1, but if nuclei
# were at 1.5 and covered 60 % of a ground at 0.3, the average would be 0.5.
_MOST_SATURATED_HAEMATOXYLIN = 0.6
# The bluest haematoxylin, 10^(-0.62 d) - 10^(-0.75 d), reaches 0.07 at d = 0.6; a green stroke over
# dense tumour still has 0.15.
_LARGEST_GREEN_EXCESS = 0.12
# Of the light that is missing, haematoxylin takes 0.8 or more as much green as red, whatever its
# strength and however much glass is averaged in; eosin and DAB take more green than red. Blue and
# green pens take 0.4 to 0.65.
_LEAST_GREEN_TAKEN = 0.7
_FAINTEST_INK = 0.12


def is_black(low: Any, high: Any) -> Any:
    """Black ink, also worn to grey, and unlit borders; `low` and `high` over the channels."""
    return (high < 0.2) | ((high < 0.43) & (high - low < 0.1))


def is_vivid_ink(red: Any, green: Any, blue: Any, *, low: Any, high: Any) -> Any:
    """Blue, green and cyan ink as it is in the middle of a stroke.

    Haematoxylin without eosin (IHC) may look blue, but an average over some um of its tissue is
    never as saturated.
    """
    cyan = (green - red > 0.2) & (low < 0.7 * high)
    deep = low < (1 - _MOST_SATURATED_HAEMATOXYLIN) * high
    return cyan | (deep & (blue - red > 0.25) & (green - red > -0.04))


def is_pale_ink(red: Any, green: Any, *, low: Any, high: Any) -> Any:
    """Such ink washed out on glass, or over tissue that shines through."""
    washed = (1 - green < _LEAST_GREEN_TAKEN * (1 - red)) & (red < 1 - _FAINTEST_INK)
    return washed | ((green - red > _LARGEST_GREEN_EXCESS) & (low < 0.7 * high))


def is_cold_rim(red: Any, green: Any, blue: Any) -> Any:
    """What the soft edge of such a stroke looks like, and much of IHC tissue, too."""
    return (green - red > 0.02) | ((blue - red > 0.05) & (green - red > -0.02))


def is_red_ink(red: Any, green: Any, blue: Any, *, low: Any, high: Any) -> Any:
    """Red ink takes blue as much as green, which eosin and haematoxylin do not. The difference
    counts both ways, so that brown chromogens, with far less blue than green, are no ink.
    """
    return (low < 0.4 * high) & (abs(blue - green) < 0.2 * (red - green))


def is_red_rim(red: Any, green: Any, blue: Any) -> Any:
    return abs(blue - green) < 0.3 * (red - green)
