"""What an epoch reads: each bag once, or each class equally often."""

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import MAKE, changed

from mil.tasks.build import fit_task
from mil.tasks.config import MultilabelConfig
from mil.training.sampling import Sampler, balanced


def epoch_of(sampler, seed=0):
    return sampler.epoch(torch.Generator().manual_seed(seed))


@settings(max_examples=100)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_balanced_gives_every_class_that_exists_its_share(labels, seed):
    classes = torch.nn.functional.one_hot(torch.tensor(labels), 4).bool()
    drawn = balanced(classes, torch.Generator().manual_seed(seed))
    assert len(drawn) == len(labels)
    counts = [sum(labels[i] == label for i in drawn.tolist()) for label in set(labels)]
    assert max(counts) - min(counts) <= 1


def test_balanced_draws_all_bags_of_a_class_in_any_order():
    classes = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 1]), 2).bool()
    epochs = [balanced(classes, torch.Generator().manual_seed(i)).tolist() for i in range(100)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {
        (0, 0, 3, 3), (0, 1, 3, 3), (0, 2, 3, 3), (1, 1, 3, 3), (1, 2, 3, 3), (2, 2, 3, 3)
    }  # fmt: skip
    assert {epoch[0] for epoch in epochs} == {0, 1, 2, 3}


def test_with_an_odd_bag_classes_take_turns_at_being_more():
    classes = torch.tensor([[True, False], [True, False], [False, True]])
    often = [balanced(classes, torch.Generator().manual_seed(i)).eq(2).sum() for i in range(50)]
    assert set(map(int, often)) == {1, 2}


def test_bags_without_any_label_are_a_class_of_their_own():
    targets = pd.DataFrame({"braf": [1, 1, 1, 0, 0], "kras": [1, 0, 0, 0, 0]})
    task = fit_task(MultilabelConfig(labels=("braf", "kras")), targets)
    part = MAKE["classes"](5, seed=0)[0]
    part = type(part)(targets, task.encode(targets), part.features)
    sampler = Sampler.of(task, part, changed(sampling="balanced", bags_per_step=5))
    drawn = [draw.bag for i in range(200) for draw in epoch_of(sampler, i)[0]]
    share = pd.Series(drawn).value_counts(normalize=True)
    # a third of the turns each: braf (0, 1, 2), kras (0), none (3, 4)
    assert share[0] == pytest.approx(1 / 9 + 1 / 3, abs=0.05)
    assert share[1] == pytest.approx(1 / 9, abs=0.04)
    assert share[4] == pytest.approx(1 / 6, abs=0.04)


@pytest.mark.parametrize(("make", "size"), [("classes", 3), ("cox", 3), ("cox", "epoch")])
def test_shuffled_epochs_read_every_bag_once_and_tell_their_steps(make, size):
    part, task = MAKE[make](13, seed=0)
    sampler = Sampler.of(task, part, changed(bags_per_step=size))
    orders = []
    for seed in range(3):
        steps = epoch_of(sampler, seed)
        assert len(steps) == sampler.steps
        orders.append([draw.bag for step in steps for draw in step])
        assert sorted(orders[-1]) == list(range(13))
    assert orders[0] != orders[1] != orders[2]


def test_a_bag_is_read_in_another_way_every_epoch():
    part, task = MAKE["classes"](13, seed=0)
    sampler = Sampler.of(task, part, changed())
    generator = torch.Generator().manual_seed(0)
    epochs = [sampler.epoch(generator) for _ in range(2)]
    seeds = [{draw.bag: draw.seed for step in epoch for draw in step} for epoch in epochs]
    assert len({*seeds[0].values(), *seeds[1].values()}) == 26
