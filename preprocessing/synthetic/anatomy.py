"""The tissue of one slide: what the structures grow into and what the painter reads.

Everything is drawn in micrometres from the slide's own generator before a pixel size is known,
so that the same tissue can be scanned at any mpp.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.synthetic.fields import MacroGrid, Raster
from preprocessing.synthetic.nuclei import Nuclei


@dataclass
class Anatomy:
    """Macro rasters of one slide, and its cells.

    `solid_um`: signed, about a distance, positive in material (not in glass, lumen or fat).
    Stain amounts from 0 to 1: `eosin` + `fibre` x texture; `haematoxylin` between the nuclei.
    `along_um`, `across_um`: texture coordinates that run with and across the collagen.
    """

    grid: MacroGrid
    solid_um: Raster
    eosin: Raster
    fibre: Raster
    haematoxylin: Raster
    along_um: Raster
    across_um: Raster
    taken: NDArray[np.bool_]
    nuclei: list[Nuclei] = field(default_factory=list)
    red_cells_um: list[NDArray[np.float64]] = field(default_factory=list)

    def blend(
        self, weight: NDArray, *, eosin: float, fibre: float, haematoxylin: float, at: Any = ...
    ) -> None:
        """Replaces the local stain by the given one as far as `weight` (0 to 1) says."""
        for raster, value in (
            (self.eosin, eosin),
            (self.fibre, fibre),
            (self.haematoxylin, haematoxylin),
        ):
            raster[at] += weight * (value - raster[at])

    def seed(self, kind: str, points_um: NDArray, angles: NDArray) -> None:
        """Adds nuclei at those points that lie in material."""
        kept = self.grid.at(self.solid_um, points_um) > 1.5
        self.nuclei.append(Nuclei(kind, points_um[kept], angles[kept]))

    def fibre_angles(self, points_um: NDArray) -> NDArray[np.float64]:
        """Direction of the collagen, radians from x to y: where `across_um` does not change."""
        by_y = np.gradient(self.across_um, axis=0)
        by_x = np.gradient(self.across_um, axis=1)
        return np.arctan2(-self.grid.at(by_x, points_um), self.grid.at(by_y, points_um))
