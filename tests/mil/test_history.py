"""Rows and TensorBoard events of a training, also of one that is taken up again."""

import pytest
from event_records import scalars

from mil.training.history import History


def row(epoch):
    return {"epoch": epoch, "train_loss": 1.0 / (epoch + 1), "validation_loss": 2.0}


def test_a_history_that_is_taken_up_again_begins_its_events_anew(tmp_path):
    for shown in (True, True, False):
        history = History(tmp_path / "main", shown=shown)
        history.restore([row(0), row(1)])
        history.append(row(2))
        history.close()
        assert list(history.table()["epoch"]) == [0, 1, 2]
        assert history.losses() == {"train_loss": 1 / 3, "validation_loss": 2.0}
        if shown:
            events = scalars(tmp_path / "main")
            assert [step for step, _ in events] == [0, 1, 2]
            assert events[2][1] == pytest.approx({"train_loss": 1 / 3, "validation_loss": 2.0})
    assert not (tmp_path / "main").exists()  # nothing is left of a run that had asked for events


def test_rows_are_copied_when_restored(tmp_path):
    rows = [row(0)]
    history = History(tmp_path, shown=False)
    history.restore(rows)
    history.append(row(1))
    assert len(rows) == 1
