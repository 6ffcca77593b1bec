"""Rates, decay, clipping and precision against torch's own schedulers, and by hand."""

import math
from functools import partial

import pytest
import torch
from test_train import changed
from torch import nn

from mil.models.base import Bags, Step
from mil.models.build import build_method
from mil.models.config import AcmilConfig
from mil.tasks.classification import ClassificationTask
from mil.training.optimise import Optimiser, rate_at
from mil.training.steps import StepLoss, accumulate

CPU = torch.device("cpu")


def optimiser_of(parameters, *, steps_per_epoch=10, **settings):
    config = changed(**settings)
    return Optimiser(parameters, config, steps_per_epoch=steps_per_epoch, device=CPU)


def rates(total, warmup, **settings):
    config = changed(**settings)
    return [rate_at(i, total=total, warmup=warmup, config=config) for i in range(total)]


def test_cosine_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    expected = []
    for _ in range(30):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates(30, 0) == pytest.approx(expected)


def test_warmup_rises_by_equal_steps_to_the_full_rate_and_the_cosine_follows():
    found = rates(30, 10)
    assert found[:10] == pytest.approx([1e-2 * (i + 1) / 10 for i in range(10)])
    assert found[10] == pytest.approx(1e-2)
    assert found[20] == pytest.approx(0.5e-2)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert rates(30, 4.5)[:6] == pytest.approx(
        [*(1e-2 * (i + 1) / 4.5 for i in range(4)), 1e-2, 1e-2 * cosine(0.5 / 25.5)]
    )


def cosine(done):
    return 0.5 * (1 + math.cos(math.pi * done))


def test_constant_is_constant_after_the_warmup():
    assert rates(9, 3, schedule="constant") == pytest.approx([1e-2 / 3, 2e-2 / 3, *[1e-2] * 7])


def test_warmup_epochs_are_counted_in_steps():
    weight = nn.Parameter(torch.ones(1))
    optimiser = optimiser_of([weight], warmup_epochs=1.5)
    weight.grad = torch.ones(1)
    optimiser.update(2)
    assert optimiser.rate == pytest.approx(1e-2 * 3 / 15)
    assert optimiser.total == 60


@pytest.mark.parametrize(("name", "shrunk"), [("adamw", 1 - 1e-2 * 0.1), ("adam", 1 - 1e-2)])
def test_only_adamw_decays_weights_apart_from_the_gradient(name, shrunk):
    """Without a gradient AdamW shrinks weights by lr x decay; Adam makes a full step of lr."""
    weight = nn.Parameter(torch.ones(3))
    optimiser = optimiser_of([weight], optimizer=name, weight_decay=0.1, schedule="constant")
    weight.grad = torch.zeros(3)
    optimiser.update(0)
    assert weight.detach().tolist() == pytest.approx([shrunk] * 3)


def test_clipping_shortens_a_long_gradient_alone():
    """Two Adam steps tell the ratio of their gradients, which clipping changes."""

    def after(**settings):
        weight = nn.Parameter(torch.zeros(2))
        optimiser = optimiser_of([weight], schedule="constant", **settings)
        norms = []
        for gradient in ([0.3, 0.4], [30.0, 40.0]):
            weight.grad = torch.tensor(gradient)
            norms.append(float(optimiser.update(0)))
        return weight.detach(), norms

    free, norms = after()
    clipped, clipped_norms = after(clip_norm=0.5)
    assert norms == pytest.approx([0.5, 50]) == clipped_norms
    assert not torch.equal(free, clipped)
    weight = nn.Parameter(torch.zeros(2))
    reference = torch.optim.AdamW([weight], lr=1e-2, weight_decay=1e-5)
    for _ in range(2):
        weight.grad = torch.tensor([0.3, 0.4])
        reference.step()
    assert torch.allclose(clipped, weight, atol=1e-7)


def one_step(optimiser, method, bag, index=0):
    task = ClassificationTask(("a", "b"), label="y")
    step = Step(index, 10, torch.Generator().manual_seed(1))
    loss = StepLoss(task, torch.tensor([1]), optimiser.scaled)
    forward = partial(optimiser.forward, method, step=step)
    value = accumulate(forward, [lambda: Bags.pack([bag])], loss)
    return value, optimiser.update(index)


def acmil():
    torch.manual_seed(0)
    return build_method(AcmilConfig(hidden_dim=8, attention_dim=4, branches=2), 6, 2).train()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_near_full_precision(precision):
    """float16 has a scaled loss, whose scale must be gone from the value and the norm."""
    bag = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    found, seen = {}, []
    for name in ("float32", precision):
        method = acmil()
        seen.clear()
        method.embedding.linear.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        optimiser = optimiser_of(method.parameters(), precision=name)
        for _ in range(20):  # float16 leaves steps out until the scale is low enough
            found[name] = one_step(optimiser, method, bag)
            if found[name][1].isfinite():
                break
        assert set(seen) == {getattr(torch, name)}
        assert all(value.dtype == torch.float32 for value in found[name])
        assert all(p.dtype == torch.float32 for p in method.parameters())
    for ours, full in zip(found[precision], found["float32"], strict=True):
        assert float(ours) == pytest.approx(float(full), rel=0.05)
        assert float(ours) != float(full)


def test_a_float16_step_that_overflows_is_left_out_and_the_scale_lowered_and_kept():
    method = acmil()
    optimiser = optimiser_of(method.parameters(), precision="float16")
    before = [p.detach().clone() for p in method.parameters()]
    scale = float(optimiser.scaled(torch.ones(())))
    for p in method.parameters():
        p.grad = torch.full_like(p, torch.inf)
    assert not optimiser.update(0).isfinite()
    assert all(torch.equal(p, old) for p, old in zip(method.parameters(), before, strict=True))
    assert float(optimiser.scaled(torch.ones(()))) == scale / 2

    again = optimiser_of(acmil().parameters(), precision="float16")
    again.load_state_dict(optimiser.state_dict())
    assert float(again.scaled(torch.ones(()))) == scale / 2
