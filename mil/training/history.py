"""What a training did, an epoch a row: history.csv, and TensorBoard events where asked for."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

WALL_CLOCK = ("seconds", "tiles_per_second")
"""Columns that differ between two runs of the same training."""


class History:
    """Rows of `epoch`, `train_loss` (mean over steps), `validation_loss`, `learning_rate` and
    `gradient_norm` (last step's, and mean over steps), `seconds` and `tiles_per_second`.

    `events`: folder where TensorBoard looks for the run; nothing is left there if not `shown`.
    """

    def __init__(self, events: Path, *, shown: bool) -> None:
        self.rows: list[dict[str, Any]] = []
        self._events, self._shown = events, shown
        self._writer: SummaryWriter | None = None

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Begins with the `rows` of an earlier process, whose later events, if any, are gone."""
        self.rows = []
        shutil.rmtree(self._events, ignore_errors=True)
        if self._shown:
            from tensorboardX import SummaryWriter  # slow to import, and seldom asked for

            self._writer = SummaryWriter(str(self._events))
        for row in rows:
            self.append(row)

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._writer is not None:
            for name in row.keys() - {"epoch"}:
                self._writer.add_scalar(name, row[name], row["epoch"])
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def losses(self) -> dict[str, float]:
        """Of the last epoch."""
        return {name: self.rows[-1][name] for name in ("train_loss", "validation_loss")}

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)
