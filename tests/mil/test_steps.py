"""Packs against the whole graph, in float64, with dropout and the methods' masks on."""

import weakref
from functools import partial
from itertools import pairwise

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_graph import one_graph

from mil.models.base import Bags, Step
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MhimConfig
from mil.tasks.build import fit_task
from mil.tasks.config import ClassificationConfig, CoxConfig, MultilabelConfig, SurvivalConfig
from mil.training.steps import StepLoss, accumulate, deal, packs_of, two_passes

DIM = 6
BAGS = 8
SIZES = [1 + 3 * index for index in range(BAGS)]
TARGETS = pd.DataFrame(
    {
        "months": [1.0, 2, 2, 3, 4, 5, 5, 6],
        "dead": [1, 1, 1, 0, 1, 0, 1, 0],
        "grade": [*"abcabcab"],
        "braf": [1, 0, None, None, 1, 0, 1, None],
        "kras": [0, 1, 1, None, None, 0, 1, 0],
    }
)
METHODS = {
    "abmil": AbmilConfig(hidden_dim=8, attention_dim=4, dropout=0.3),
    "acmil": AcmilConfig(hidden_dim=8, attention_dim=4, branches=3, top_k=4, dropout=0.3),
    "mhim": MhimConfig(hidden_dim=8, attention_dim=4, mask_high=0.2, teacher_dropout=True),
}
TASKS = {
    "cox": CoxConfig(time="months", event="dead"),
    "survival": SurvivalConfig(time="months", event="dead"),
    "classes": ClassificationConfig(label="grade", class_weights="balanced"),
    "labels": MultilabelConfig(labels=("braf", "kras")),  # bags with two, one or no known label
}
WAYS = [
    ("cox", two_passes),
    *(
        (name, way)
        for name in ("survival", "classes", "labels")
        for way in (two_passes, accumulate)
    ),
]


def bag(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randn(SIZES[index], DIM, generator=generator, dtype=torch.float64)


def packs(most):
    """Loaders of the bags in packs of `most` tiles."""
    places = [range(BAGS)[pack] for pack in packs_of(SIZES, most)]
    return [partial(lambda those: Bags.pack([bag(i) for i in those]), those) for those in places]


def gradients(way, method, task, *, most, masks=2):
    """Loss, gradients, and where the random generators stand afterwards."""
    method.zero_grad()
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(masks)
    forward = partial(method.training_output, step=Step(3, 10, generator))
    extra = (generator,) if way is two_passes else ()
    value = way(forward, packs(most), StepLoss(task, task.encode(TARGETS)), *extra)
    grads = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return float(value), grads, (torch.get_rng_state(), generator.get_state())


def built(config, target):
    task = fit_task(TASKS[target], TARGETS)
    torch.manual_seed(0)
    return build_method(METHODS[config], DIM, task.outputs).double().train(), task


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, grad in ours.items():
        assert torch.allclose(grad, expected[name], rtol=1e-9, atol=1e-13), name
    assert max(grad.abs().max() for grad in ours.values()) > 1e-3


@pytest.mark.parametrize("most", [1, 25, 1000], ids=["bag by bag", "packs", "one pack"])
@pytest.mark.parametrize(("target", "way"), WAYS)
@pytest.mark.parametrize("config", METHODS)
def test_pack_by_pack_gives_the_gradient_of_the_whole_graph(config, target, way, most):
    method, task = built(config, target)
    loss, expected, states = gradients(one_graph, method, task, most=most)
    ours, grads, our_states = gradients(way, method, task, most=most)
    assert ours == pytest.approx(loss, rel=1e-12)
    assert_same(grads, expected)
    for ours_state, state in zip(our_states, states, strict=True):
        assert torch.equal(ours_state, state)  # the next step draws the same


@pytest.mark.parametrize(("target", "way"), WAYS)
@pytest.mark.parametrize("config", ["abmil", "acmil"])
def test_how_bags_are_packed_changes_nothing_where_nothing_is_drawn(config, target, way):
    """Draws are made pack by pack, so that without masks and dropout alone there is equality."""
    off = {"dropout": 0.0} | ({"drop": 0.0} if config == "acmil" else {})
    task = fit_task(TASKS[target], TARGETS)
    torch.manual_seed(0)
    settings_off = METHODS[config].model_copy(update=off)
    method = build_method(settings_off, DIM, task.outputs).double().train()
    loss, expected, _ = gradients(one_graph, method, task, most=1)
    for most in (25, 1000):
        ours, grads, _ = gradients(way, method, task, most=most)
        assert ours == pytest.approx(loss, rel=1e-12)
        assert_same(grads, expected)


def test_without_the_same_masks_the_gradient_would_differ():
    """The checks above can fail: another seed gives another gradient."""
    method, task = built("acmil", "cox")
    _, first, _ = gradients(one_graph, method, task, most=25)
    _, second, _ = gradients(one_graph, method, task, most=25, masks=9)
    assert any(not torch.allclose(first[name], second[name]) for name in first)


def test_a_scaled_loss_has_a_scaled_gradient_and_its_own_value():
    for target, way in WAYS:
        method, task = built("abmil", target)
        loss, expected, _ = gradients(way, method, task, most=25)
        method.zero_grad()
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        forward = partial(method.training_output, step=Step(3, 10, generator))
        scaled = StepLoss(task, task.encode(TARGETS), lambda loss: 8 * loss)
        extra = (generator,) if way is two_passes else ()
        assert float(way(forward, packs(25), scaled, *extra)) == pytest.approx(loss, rel=1e-12)
        grads = {n: p.grad / 8 for n, p in method.named_parameters() if p.grad is not None}
        assert_same(grads, expected)


@pytest.mark.parametrize(
    ("target", "way", "most"),
    [("cox", two_passes, 0), ("classes", accumulate, 0), ("cox", one_graph, BAGS - 1)],
)
def test_only_the_whole_graph_holds_more_than_a_pack(target, way, most):
    """How many earlier packs are alive, at most, when one is loaded."""
    method, task = built("abmil", target)
    loaded, alive = [], []

    def load(index):
        alive.append(sum(ref() is not None for ref in loaded))
        tiles = bag(index)
        loaded.append(weakref.ref(tiles))
        return Bags.pack([tiles])

    generator = torch.Generator()
    forward = partial(method.training_output, step=Step(0, 1, generator))
    extra = (generator,) if way is two_passes else ()
    loss = StepLoss(task, task.encode(TARGETS))
    way(forward, [partial(load, i) for i in range(BAGS)], loss, *extra)
    assert max(alive) == most


@pytest.mark.parametrize("config", METHODS)
def test_a_bag_has_a_say_in_its_own_answer_alone(config):
    """Masks and dropout on: the second bag of a step is changed."""
    method, _ = built(config, "classes")
    bags = [bag(i) for i in (3, 2, 4)]

    def answer():
        torch.manual_seed(1)
        step = Step(3, 10, torch.Generator().manual_seed(2))
        return method.training_output(Bags.pack(bags), step)

    before = answer()
    bags[1] = bags[1] + 1
    after = answer()
    assert (before.heads != after.heads).any(dim=2).any(dim=0).tolist() == [False, True, False]
    if before.penalty.any():
        assert (before.penalty != after.penalty).tolist() == [False, True, False]


@settings(max_examples=200)
@given(
    bags=st.integers(1, 60), size=st.integers(2, 20), share=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_dealt_steps_share_bags_and_leads_evenly(bags, size, share, seed):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(bags, generator=generator)
    leads = torch.rand(bags, generator=generator) < share
    steps = deal(order, leads, size)
    assert sorted(torch.cat(steps).tolist()) == list(range(bags))
    sizes = [len(step) for step in steps]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(size, bags)
    held = [int(leads[step].sum()) for step in steps]
    assert max(held) - min(held) <= 1


@settings(max_examples=200)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=20), most=st.integers(1, 60))
def test_packs_are_full_but_never_too_large(sizes, most):
    packed = [sizes[pack] for pack in packs_of(sizes, most)]
    assert [size for pack in packed for size in pack] == sizes
    assert all(pack and (sum(pack) <= most or len(pack) == 1) for pack in packed)
    # no pack could have taken the first bag of the next
    assert all(sum(pack) + following[0] > most for pack, following in pairwise(packed))
