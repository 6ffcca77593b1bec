"""The loop against a hand-written method, and against itself with steps read in other ways."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mil.bags import CohortFeatures, TileOrigin
from mil.config import TrainConfig
from mil.models.base import BagOutput, Bags, MilMethod, Step, TrainingOutput
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig
from mil.tasks.base import Task
from mil.tasks.build import fit_task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import CoxConfig
from mil.training.parts import Part
from mil.training.train import answer, train_method
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

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:
        means = torch.stack([bag.mean(0) for bag in bags.tiles.split(bags.segments.sizes)])
        heads = torch.stack([self.first(means), self.second(means)])
        penalty = self.first.weight.square().sum().expand(len(bags))
        return TrainingOutput(heads, torch.tensor([1.0, 0.5]), penalty)

    def tile_logits(self, bag: Tensor) -> Tensor:
        return self.first(bag)

    def after_update(self, step: Step) -> None:
        self.steps.append((step.index, step.total))


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
MAKE = {"classes": make_part, "cox": survival_part}


def changed(**settings) -> TrainConfig:
    return TrainConfig.model_validate(CONFIG.model_dump() | settings)


def train(method, task, part, folder, *, config, validation=None) -> pd.DataFrame:
    parts = (part, part if validation is None else validation)
    return train_method(method, task, parts, config=config, state_dir=folder, run_id="x")


def copied(method) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def differ(one, other) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


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


@pytest.mark.parametrize("make", ["classes", "cox"])
@pytest.mark.parametrize("size", ["epoch", 4])
def test_bags_read_in_several_passes_train_the_same_model(tmp_path, make, size):
    part, task = MAKE[make](9, seed=0)
    # A bias before the softmax, or of a log-risk, has no gradient but rounding errors, which Adam
    # makes large.
    abmil = AbmilConfig(hidden_dim=8, attention_dim=4, attention_bias=False)
    weights = []
    for most in (1, 12, 1000):
        torch.manual_seed(3)
        method = build_method(abmil, DIM, task.outputs)
        start = copied(method)
        config = changed(epochs=3, bags_per_step=size, tiles_per_pass=most)
        train(method, task, part, tmp_path / str(most), config=config)
        weights.append(copied(method))
    assert differ(start, weights[0])
    for ours in weights[1:]:
        for name in weights[0].keys() - ({"classifier.bias"} if make == "cox" else set()):
            assert torch.allclose(weights[0][name], ours[name], atol=1e-5), name


@pytest.mark.parametrize(("make", "passes"), [("classes", 1), ("cox", 2)])
def test_a_pass_holds_no_more_tiles_than_asked_for(tmp_path, monkeypatch, make, passes):
    part, task = MAKE[make](9, seed=0)  # of 1, 2, ..., 9 tiles
    seen = []
    method = build_method(AbmilConfig(hidden_dim=8, attention_dim=4), DIM, task.outputs)
    original = method.training_output

    def noted(bags: Bags, step: Step) -> TrainingOutput:
        seen.append(bags.segments.sizes)
        return original(bags, step)

    monkeypatch.setattr(method, "training_output", noted)
    config = changed(epochs=1, bags_per_step="epoch", tiles_per_pass=8)
    train(method, task, part, tmp_path, config=config)
    assert all(sum(sizes) <= 8 or sizes == (9,) for sizes in seen)
    assert max(map(len, seen)) > 1
    assert sum(map(sum, seen)) == passes * 45


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
    part.features.tiles["s1"].add_(1)
    after = answer(method, part)
    changed = (before != after).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False]


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
