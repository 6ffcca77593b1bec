"""Figures as they are about to be written."""

import numpy as np
from matplotlib.figure import Figure

from mil.figures import calibration, classification, curves, survival, values


class Drawn:
    """Keeps the figure and note that are about to be written, and lets them be written."""

    def __init__(self, monkeypatch) -> None:
        self.figure, self.note = Figure(), ""
        for module in (classification, calibration, curves, survival, values):
            monkeypatch.setattr(module, "finish", self.keep(module.finish))

    def keep(self, finish):
        def kept(figure, path, *, title, note):
            self.figure, self.note = figure, note
            finish(figure, path, title=title, note=note)

        return kept

    def line(self, part: str) -> np.ndarray:
        """(points, 2) of the one line whose label holds `part`."""
        lines = [line for axes in self.figure.axes for line in axes.get_lines()]
        (found,) = [line for line in lines if part in str(line.get_label())]
        return np.column_stack([np.asarray(found.get_xdata()), np.asarray(found.get_ydata())])

    @property
    def texts(self) -> list[str]:
        return [text.get_text() for axes in self.figure.axes for text in axes.texts]

    @property
    def labels(self) -> list[str]:
        return [str(line.get_label()) for axes in self.figure.axes for line in axes.get_lines()]
