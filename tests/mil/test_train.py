"""The loop against a hand-written method and task, and exact resume with the real methods."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mil.bags import CohortFeatures, TileOrigin
from mil.config import TrainConfig
from mil.models.base import BagOutput, MilMethod, Step, TrainingOutput
from mil.models.build import build_method
from mil.models.config import AcmilConfig, MhimConfig
from mil.tasks.base import Task
from mil.tasks.build import fit_task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import CoxConfig
from mil.train import Part, answer, train_method
from preprocessing.errors import CohortError, ConfigError

ORIGIN = TileOrigin("fake", "0", "none", 0.5, 224)
DIM = 6


class MeanHeads(MilMethod):
    """Two linear heads on the mean tile, weights 1 and 0.5, and a penalty on the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(DIM, 2)
        self.second = nn.Linear(DIM, 2)
        self.steps: list[tuple[int, int]] = []

    def forward(self, bag: Tensor) -> BagOutput:
        uniform = torch.full((len(bag),), 1 / len(bag))
        return BagOutput(self.first(bag.mean(0)), uniform[None], uniform)

    def training_output(self, bag: Tensor, step: Step) -> TrainingOutput:
        mean = bag.mean(0)
        heads = torch.stack([self.first(mean), self.second(mean)])
        return TrainingOutput(heads, torch.tensor([1.0, 0.5]), self.first.weight.square().sum())

    def tile_logits(self, bag: Tensor) -> Tensor:
        return self.first(bag)

    def after_update(self, step: Step) -> None:
        self.steps.append((step.index, step.total))


class Interrupted(Exception):
    pass


def make_part(bags: int, seed: int) -> tuple[Part, ClassificationTask]:
    """Bags of 1 to 9 tiles; tiles of class b are shifted."""
    generator = torch.Generator().manual_seed(seed)
    labels = ["a" if i % 2 else "b" for i in range(bags)]
    tiles = {
        f"s{i}": (torch.randn(1 + i % 9, DIM, generator=generator) + (label == "b")).half()
        for i, label in enumerate(labels)
    }
    table = pd.DataFrame(
        {"patient_id": list(tiles), "y": labels, "slide_ids": [(s,) for s in tiles]},
        index=list(tiles),
    )
    task = ClassificationTask(("a", "b"), label="y", positive="b")
    features = CohortFeatures(tiles, {s: s for s in tiles}, ORIGIN)
    return Part(table, task.encode(table), features), task


def survival_part(bags: int, seed: int) -> tuple[Part, Task]:
    """The bags of `make_part`; class b dies early."""
    part, _ = make_part(bags, seed)
    late = (part.table["y"] == "a").to_numpy()
    table = part.table.assign(
        months=[1 + i % 5 + 5 * is_late for i, is_late in enumerate(late)],
        dead=[int(i % 3 > 0) for i in range(bags)],
    )
    task = fit_task(CoxConfig(time="months", event="dead"), table)
    return replace(part, table=table, encoded=task.encode(table)), task


CONFIG = TrainConfig(epochs=6, patience=6, learning_rate=1e-2, bags_per_step=3, device="cpu")


def test_one_step_is_weighted_heads_plus_mean_penalty(tmp_path):
    part, task = make_part(4, seed=0)
    torch.manual_seed(3)
    method = MeanHeads()
    means = torch.stack([part.bag(i, torch.device("cpu")).mean(0) for i in range(4)])
    expected = (
        nn.functional.cross_entropy(method.first(means), part.encoded)
        + 0.5 * nn.functional.cross_entropy(method.second(means), part.encoded)
        + method.first.weight.square().sum()
    ).item()
    config = TrainConfig(epochs=1, bags_per_step=4, device="cpu")
    history = train_method(
        method, task, (part, part), config=config, state_dir=tmp_path, run_id="x"
    )
    assert history["train_loss"].iloc[0] == pytest.approx(expected, rel=1e-5)


def test_schedules_see_every_step_once(tmp_path):
    part, task = make_part(7, seed=0)
    method = MeanHeads()
    config = TrainConfig(epochs=3, patience=3, bags_per_step=3, device="cpu")
    train_method(method, task, (part, part), config=config, state_dir=tmp_path, run_id="x")
    assert method.steps == [(i, 9) for i in range(9)]


def test_an_epoch_in_one_step_equals_one_step_of_all_bags(tmp_path):
    """The two passes end with the weights that the whole graph gives."""
    part, task = make_part(9, seed=0)
    weights = []
    for size in ("epoch", 9):
        torch.manual_seed(3)
        method = build_method(AcmilConfig(hidden_dim=8, attention_dim=4, dropout=0.2), DIM, 2)
        config = TrainConfig(epochs=3, learning_rate=1e-2, bags_per_step=size, device="cpu")
        train_method(
            method, task, (part, part), config=config, state_dir=tmp_path / str(size), run_id="x"
        )
        weights.append(method.state_dict())
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5), name


def test_a_task_that_compares_bags_refuses_steps_of_one(tmp_path):
    part, task = survival_part(9, seed=0)
    config = CONFIG.model_copy(update={"bags_per_step": 1})
    method = build_method(AcmilConfig(hidden_dim=8, attention_dim=4), DIM, 1)
    with pytest.raises(ConfigError, match=r"bags_per_step: 1, .* CoxTask .* epoch .* 2 or more"):
        train_method(method, task, (part, part), config=config, state_dir=tmp_path, run_id="x")


def test_a_validation_part_that_cannot_judge_is_refused_before_training(tmp_path):
    part, task = survival_part(9, seed=0)
    censored = replace(part, encoded=part.encoded * torch.tensor([1.0, 0.0]))
    method = build_method(AcmilConfig(hidden_dim=8, attention_dim=4), DIM, 1)
    with pytest.raises(CohortError, match="0 events among the 9 validation cases"):
        train_method(method, task, (part, censored), config=CONFIG, state_dir=tmp_path, run_id="x")
    assert not list(tmp_path.iterdir())


def test_every_bag_of_a_step_gets_its_own_answer():
    part, _ = make_part(5, seed=1)
    method = MeanHeads()
    before = answer(method, part)
    part.features.tiles["s1"] += 1
    after = answer(method, part)
    changed = (before != after).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize(
    "config",
    [
        AcmilConfig(hidden_dim=8, attention_dim=4, dropout=0.1),
        MhimConfig(hidden_dim=8, attention_dim=4, mask_high=0.2),
    ],
    ids=["acmil", "mhim"],
)
@pytest.mark.parametrize("calls", [7, 45])
@pytest.mark.parametrize(
    ("make", "bags_per_step"),
    [(make_part, 3), (survival_part, 3), (survival_part, "epoch")],
    ids=["classes", "cox", "cox-epoch"],
)
def test_killed_and_resumed_ends_with_the_same_weights(
    tmp_path, monkeypatch, config, calls, make, bags_per_step
):
    part, task = make(13, seed=0)
    validation, _ = make(6, seed=1)
    train = CONFIG.model_copy(update={"bags_per_step": bags_per_step})

    def run(folder: str) -> tuple[dict[str, Tensor], pd.DataFrame]:
        torch.manual_seed(5)
        method = build_method(config, DIM, task.outputs)
        history = train_method(
            method,
            task,
            (part, validation),
            config=train,
            state_dir=tmp_path / folder,
            run_id="same",
        )
        return method.state_dict(), history

    whole, whole_history = run("whole")
    original, left = Part.bag, [calls]

    def dying(self: Part, index: int, device: torch.device) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted
        return original(self, index, device)

    monkeypatch.setattr(Part, "bag", dying)
    with pytest.raises(Interrupted):
        run("killed")
    monkeypatch.setattr(Part, "bag", original)
    torch.randn(100)  # the new process stands elsewhere in the global random stream
    resumed, resumed_history = run("killed")

    pd.testing.assert_frame_equal(whole_history, resumed_history)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_state_of_another_run_is_not_resumed(tmp_path):
    part, task = make_part(6, seed=0)

    def epochs_run(run_id: str) -> int:
        method = MeanHeads()
        train_method(method, task, (part, part), config=CONFIG, state_dir=tmp_path, run_id=run_id)
        return len(method.steps) // 2

    assert epochs_run("one") == 6
    assert epochs_run("one") == 0
    assert epochs_run("two") == 6


def test_best_epoch_is_kept_and_training_stops_early(tmp_path):
    part, task = make_part(8, seed=0)
    # Validation labels are the reverse of the training labels: the first epoch is the best.
    reverse = replace(part, encoded=1 - part.encoded)
    torch.manual_seed(0)
    method = MeanHeads()
    config = CONFIG.model_copy(update={"patience": 2, "min_epochs": 1, "epochs": 50})
    history = train_method(
        method, task, (part, reverse), config=config, state_dir=tmp_path, run_id="x"
    )
    best = history["validation_loss"].idxmin()
    assert len(history) == best + 3
    loss = float(task.loss(answer(method, reverse), reverse.encoded))
    assert loss == pytest.approx(history["validation_loss"].min())


def test_a_method_without_baseline_refuses_one():
    with pytest.raises(TypeError, match="MeanHeads has no baseline stage"):
        MeanHeads().adopt(MeanHeads())
