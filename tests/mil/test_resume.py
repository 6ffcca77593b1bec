"""Killed and started again, a training ends with the same bits; nothing of it is told twice."""

import multiprocessing
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from event_records import scalars
from test_train import DIM, MAKE, changed
from torch import Tensor

from mil.bags import CohortFeatures
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MhimConfig
from mil.training.history import WALL_CLOCK
from mil.training.train import train_method

METHODS = {
    "abmil": AbmilConfig(hidden_dim=8, attention_dim=4, dropout=0.1),
    "acmil": AcmilConfig(hidden_dim=8, attention_dim=4, dropout=0.1),
    "mhim": MhimConfig(hidden_dim=8, attention_dim=4, mask_high=0.2),
}
EVERYTHING = {
    "max_tiles": 5,
    "feature_dropout": 0.2,
    "warmup_epochs": 1.5,
    "clip_norm": 0.5,
    "precision": "bfloat16",
    "tensorboard": True,
    "tiles_per_pass": 9,
}


class Interrupted(Exception):
    pass


def run(folder: Path, method: str, make: str, **settings) -> tuple[dict[str, Tensor], pd.DataFrame]:
    part, task = MAKE[make](13, seed=0)
    validation, _ = MAKE[make](6, seed=1)
    torch.manual_seed(5)
    model = build_method(METHODS[method], DIM, task.outputs)
    history = train_method(
        model,
        task,
        (part, validation),
        config=changed(**settings),
        state_dir=folder,
        run_id="same",
    )
    return model.state_dict(), history


def assert_same(whole, resumed):
    pd.testing.assert_frame_equal(
        *(history.drop(columns=list(WALL_CLOCK)) for _, history in (whole, resumed))
    )
    assert whole[0].keys() == resumed[0].keys()
    for name, tensor in whole[0].items():
        assert torch.equal(tensor, resumed[0][name]), name


def dying(calls: int, die):
    """`CohortFeatures.stored`, that may be called so often."""
    original, left = CohortFeatures.stored, [calls]

    def stored(self, slide_ids):
        left[0] -= 1
        if left[0] < 0:
            die()
        return original(self, slide_ids)

    return stored


def interrupt():
    raise Interrupted


@pytest.mark.parametrize("method", ["acmil", "mhim"])
@pytest.mark.parametrize("calls", [7, 45])
@pytest.mark.parametrize(
    ("make", "settings"),
    [
        ("classes", {}),
        ("cox", {}),
        ("cox", {"bags_per_step": "epoch"}),
        ("classes", {**EVERYTHING, "sampling": "balanced"}),
        ("cox", EVERYTHING),
    ],
    ids=["classes", "cox", "cox-epoch", "classes-everything", "cox-everything"],
)
def test_interrupted_and_resumed_ends_with_the_same_weights(
    tmp_path, monkeypatch, method, calls, make, settings
):
    whole = run(tmp_path / "whole", method, make, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(CohortFeatures, "stored", dying(calls, interrupt))
        with pytest.raises(Interrupted):
            run(tmp_path / "killed", method, make, **settings)
    torch.randn(100)  # the new process stands elsewhere in the global random stream
    assert_same(whole, run(tmp_path / "killed", method, make, **settings))


def killed_run(folder: Path) -> None:
    """The process kills itself in its third epoch, after the epoch's record is written."""
    CohortFeatures.stored = dying(3 * 19 + 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(folder, "abmil", "classes", **EVERYTHING)


def test_a_killed_process_is_continued_and_its_events_are_told_once(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed_run, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    events = tmp_path / "tensorboard" / "main"
    assert [step for step, _ in scalars(events)] in ([0, 1], [0, 1, 2])  # written by a thread
    # as if the state of the last of these epochs had not been written any more
    (path,) = events.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    weights, history = run(tmp_path, "abmil", "classes", **EVERYTHING)
    assert_same(run(tmp_path / "whole", "abmil", "classes", **EVERYTHING), (weights, history))
    told = scalars(events)
    assert [step for step, _ in told] == list(history["epoch"])
    columns = set(history) - {"epoch", "stage"}
    for (_, values), row in zip(told, history.to_dict("records"), strict=True):
        assert values == pytest.approx({name: row[name] for name in columns}, rel=1e-6)
