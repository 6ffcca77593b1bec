"""What each of the training's settings does, and what is refused."""

import math

import pytest
import torch
from test_train import (
    CONFIG,
    DIM,
    MeanHeads,
    changed,
    copied,
    differ,
    make_part,
    survival_part,
    train,
)
from torch import nn

from mil.models.base import Bags, Step, TrainingOutput
from mil.models.build import build_method
from mil.models.config import AbmilConfig
from preprocessing.errors import ConfigError


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "weight_decay": 0.5},
        {"weight_decay": 0.5},
        {"schedule": "constant"},
        {"warmup_epochs": 1.5},
        {"clip_norm": 1e-3},
        {"precision": "bfloat16"},
        {"sampling": "balanced"},
        {"max_tiles": 3},
        {"feature_dropout": 0.5},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_setting_is_heard(tmp_path, settings):
    """A training with the setting ends elsewhere than one without."""
    part, task = make_part(10, seed=0)
    ends = []
    for config in (CONFIG, changed(**settings)):
        torch.manual_seed(3)
        method = build_method(AbmilConfig(hidden_dim=8, attention_dim=4), DIM, 2)
        train(method, task, part, tmp_path / str(len(ends)), config=config)
        ends.append(copied(method))
    assert differ(*ends)
    assert all(tensor.isfinite().all() for tensor in ends[1].values())


def test_history_tells_rate_gradient_and_speed(tmp_path):
    part, task = make_part(7, seed=0)
    method = build_method(AbmilConfig(hidden_dim=8, attention_dim=4), DIM, 2)
    history = train(method, task, part, tmp_path, config=changed(epochs=3, warmup_epochs=1))
    assert list(history["epoch"]) == [0, 1, 2]
    # three steps an epoch: full after the first epoch, then half a cosine over six steps
    cosine = [0.5 * (1 + math.cos(math.pi * done / 6)) for done in (2, 5)]
    assert history["learning_rate"].tolist() == pytest.approx([1e-2, *(1e-2 * c for c in cosine)])
    assert (history["gradient_norm"] > 0).all()
    tiles = sum(len(part.bag(i, torch.device("cpu"))) for i in range(7))
    assert (history["tiles_per_second"] * history["seconds"] > tiles).all()  # and validation
    assert (history["seconds"] > 0).all()


def test_the_norm_in_the_history_is_that_of_the_whole_gradient(tmp_path):
    part, task = make_part(6, seed=0)
    torch.manual_seed(3)
    method = MeanHeads()
    means = torch.stack([part.bag(i, torch.device("cpu")).mean(0) for i in range(6)])
    heads = [method.first(means), method.second(means)]
    losses = [nn.functional.cross_entropy(head, part.encoded) for head in heads]
    (losses[0] + 0.5 * losses[1] + method.first.weight.square().sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in method.parameters()]).norm()
    method.zero_grad()
    config = changed(epochs=1, bags_per_step="epoch", clip_norm=1e-6)
    history = train(method, task, part, tmp_path, config=config)
    assert history["gradient_norm"].tolist() == pytest.approx([float(expected)], rel=1e-5)


def test_balanced_sampling_refuses_a_task_without_classes(tmp_path):
    part, task = survival_part(9, seed=0)
    method = build_method(AbmilConfig(hidden_dim=8, attention_dim=4), DIM, 1)
    with pytest.raises(ConfigError, match=r"sampling: balanced .* CoxTask has no classes"):
        train(method, task, part, tmp_path, config=changed(sampling="balanced"))


def test_half_precision_is_refused_on_the_cpu(tmp_path):
    part, task = make_part(4, seed=0)
    with pytest.raises(ConfigError, match=r"precision: float16 needs a CUDA device, .* bfloat16"):
        train(MeanHeads(), task, part, tmp_path, config=changed(precision="float16"))


def test_a_warmup_as_long_as_the_training_is_refused():
    with pytest.raises(ValueError, match="warmup_epochs: 6 must be less than epochs, 6"):
        changed(warmup_epochs=6)


def test_methods_are_told_the_classes_of_their_bags(tmp_path):
    part, task = make_part(7, seed=0)
    told = []

    class Listening(MeanHeads):
        def training_output(self, bags: Bags, step: Step) -> TrainingOutput:
            told.append((bags.tiles.split(bags.segments.sizes), bags.labels))
            return super().training_output(bags, step)

    train(Listening(), task, part, tmp_path, config=changed(epochs=1))
    whole = [part.bag(i, torch.device("cpu")) for i in range(7)]
    seen = [
        (place, labels.tolist())
        for bags, of_bags in told
        for bag, labels in zip(bags, of_bags, strict=True)
        for place, mine in enumerate(whole)
        if torch.equal(bag, mine)
    ]
    expected = [(i, [label == "a", label == "b"]) for i, label in enumerate(part.table["y"])]
    assert sorted(seen) == expected
