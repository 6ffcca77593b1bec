"""Two passes against the whole graph, in float64, with dropout and the methods' masks on."""

import weakref

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.models.base import Step
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MhimConfig
from mil.steps import deal, one_graph, two_passes
from mil.tasks.build import fit_task
from mil.tasks.config import ClassificationConfig, CoxConfig, SurvivalConfig

DIM = 6
BAGS = 8
TARGETS = pd.DataFrame(
    {"months": [1.0, 2, 2, 3, 4, 5, 5, 6], "dead": [1, 1, 1, 0, 1, 0, 1, 0], "grade": [*"abcabcab"]}
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
}


def bag(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randn(1 + 3 * index, DIM, generator=generator, dtype=torch.float64)


def gradients(backward, method, task):
    """Loss, gradients, and where the random generators stand afterwards."""
    method.zero_grad()
    torch.manual_seed(1)
    masks = torch.Generator().manual_seed(2)
    encoded = task.encode(TARGETS)
    bags = [lambda i=i: bag(i) for i in range(BAGS)]
    loss = backward(method, bags, Step(3, 10, masks), lambda head: task.loss(head, encoded))
    grads = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return loss, grads, (torch.get_rng_state(), masks.get_state())


@pytest.mark.parametrize("target", TASKS)
@pytest.mark.parametrize("config", METHODS)
def test_two_passes_give_the_gradient_of_the_whole_graph(config, target):
    task = fit_task(TASKS[target], TARGETS)
    torch.manual_seed(0)
    method = build_method(METHODS[config], DIM, task.outputs).double().train()
    loss, expected, states = gradients(one_graph, method, task)
    ours, grads, our_states = gradients(two_passes, method, task)
    assert ours == pytest.approx(loss, rel=1e-12)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert torch.allclose(grad, expected[name], rtol=1e-9, atol=1e-13), name
    assert max(grad.abs().max() for grad in grads.values()) > 1e-3
    for ours_state, state in zip(our_states, states, strict=True):
        assert torch.equal(ours_state, state)  # the next step draws the same


def test_without_the_same_masks_the_gradient_would_differ():
    """The check above can fail: another seed gives another gradient."""
    task = fit_task(TASKS["cox"], TARGETS)
    torch.manual_seed(0)
    method = build_method(METHODS["acmil"], DIM, 1).double().train()
    _, first, _ = gradients(one_graph, method, task)

    def other(method, bags, step, loss):
        return one_graph(method, bags, Step(3, 10, torch.Generator().manual_seed(9)), loss)

    _, second, _ = gradients(other, method, task)
    assert any(not torch.allclose(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("backward", "most"), [(two_passes, 0), (one_graph, BAGS - 1)])
def test_two_passes_hold_one_bag(backward, most):
    """How many earlier bags are alive, at most, when one is loaded."""
    task = fit_task(TASKS["cox"], TARGETS)
    method = build_method(METHODS["abmil"], DIM, 1).double().train()
    encoded, loaded, alive = task.encode(TARGETS), [], []

    def load(index):
        alive.append(sum(ref() is not None for ref in loaded))
        tiles = bag(index)
        loaded.append(weakref.ref(tiles))
        return tiles

    bags = [lambda i=i: load(i) for i in range(BAGS)]
    backward(method, bags, Step(0, 1, torch.Generator()), lambda head: task.loss(head, encoded))
    assert max(alive) == most


@settings(max_examples=200, deadline=None)
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
