"""MHIM's teacher and student: who moves, who learns, who answers."""

import copy
import math

import pytest
import torch
from mhim_fakes import DIM, OUTPUTS, SMALL, V2, build, make_bag, make_step, training_output
from torch import nn

from mil.models.build import build_method
from mil.models.config import AcmilConfig, MhimConfig
from mil.models.mhim import consistency_loss


@pytest.fixture
def mhim():
    return build(MhimConfig(**SMALL, dropout=0.25, momentum=0.75))


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_teacher_moves_by_momentum_alone(mhim):
    fill(mhim.teacher, 4.0)
    fill(mhim.student, 8.0)
    mhim.after_update(make_step())
    assert {v.item() for p in mhim.teacher.parameters() for v in p.unique()} == {5.0}
    assert {v.item() for p in mhim.student.parameters() for v in p.unique()} == {8.0}


def test_momentum_and_hard_share_follow_their_schedules():
    method = build_method(
        MhimConfig(**SMALL, momentum=0.9, momentum_schedule="cosine", mask_high=0.2), DIM, OUTPUTS
    )
    halfway = method.rules_at(50, 100)
    assert method.momentum_at(0, 100) == pytest.approx(0.9)
    assert method.momentum_at(50, 100) == pytest.approx(0.95)
    assert method.momentum_at(100, 100) == pytest.approx(1.0)
    assert method.rules_at(0, 100).high == pytest.approx(0.2)
    assert halfway.high == pytest.approx(0.1)
    assert method.rules_at(99, 100).high > 0
    assert halfway.random == method.rules.random


def test_teacher_evaluates_while_the_student_trains(mhim):
    assert mhim.training
    assert mhim.student.training
    assert not mhim.teacher.training
    assert not mhim.eval().student.training
    assert not mhim.train().teacher.training
    published = build_method(MhimConfig(**SMALL, teacher_dropout=True), DIM, OUTPUTS)
    assert published.teacher.training
    assert not published.eval().teacher.training


def test_inference_is_the_student_on_the_whole_bag(mhim):
    bag = make_bag(20)
    mhim.eval()
    before = mhim(bag).logits
    fill(mhim.teacher, 0.5)
    assert torch.equal(mhim(bag).logits, before)
    assert torch.equal(mhim.student(bag).logits, before)


def test_adopt_gives_all_to_the_teacher_and_the_embedding_to_the_student(mhim):
    baseline = mhim.baseline()
    assert [n for n, _ in baseline.named_parameters()] == [
        n for n, _ in mhim.student.named_parameters()
    ]
    assert all(p.requires_grad for p in baseline.parameters())
    fill(baseline, 0.125)
    initial = copy.deepcopy(mhim.student.state_dict())
    assert not torch.equal(initial["classifier.weight"], baseline.classifier.weight)
    mhim.adopt(baseline)
    for parameter in mhim.teacher.parameters():
        assert (parameter == 0.125).all()
        assert not parameter.requires_grad
    for name, value in mhim.student.state_dict().items():
        if name.startswith("embedding."):
            assert (value == 0.125).all()
        else:
            assert torch.equal(value, initial[name])
    fill(baseline, 9.0)
    assert all((p == 0.125).all() for p in mhim.teacher.parameters())


def test_adopt_refuses_another_method_and_another_shape(mhim):
    with pytest.raises(TypeError, match=r"baseline is an Abmil.*got Acmil"):
        mhim.adopt(build_method(AcmilConfig(**SMALL), DIM, OUTPUTS))
    wider = build_method(MhimConfig(hidden_dim=16, attention_dim=4), DIM, OUTPUTS).baseline()
    with pytest.raises(RuntimeError, match="size mismatch"):
        mhim.adopt(wider)


def test_checkpoints_hold_the_teacher(mhim):
    fill(mhim.teacher, 3.0)
    other = build_method(MhimConfig(**SMALL), DIM, OUTPUTS)
    other.load_state_dict(mhim.state_dict())
    assert all((p == 3.0).all() for p in other.teacher.parameters())
    assert all(not p.requires_grad for p in other.teacher.parameters())


@pytest.mark.parametrize("start", ["none", "embedding", "all"])
def test_the_student_starts_from_what_its_configuration_says(start):
    method = build(MhimConfig(**SMALL, **V2, student_init=start))
    initial = copy.deepcopy(method.state_dict())
    baseline = method.baseline()
    fill(baseline, 0.125)
    method.adopt(baseline)
    for name, value in method.state_dict().items():
        of_student = name.startswith("student.") and start == "all"
        of_embedding = name.startswith("student.embedding.") and start == "embedding"
        if name.startswith("teacher.") or of_student or of_embedding:
            assert (value == 0.125).all(), name
        else:
            assert torch.equal(value, initial[name]), name


def test_student_sees_kept_tiles_in_their_order(mhim):
    seen = []
    mhim.student.embedding.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    bags = [make_bag(40), make_bag(25, seed=1)]
    training_output(mhim, *bags)
    (kept,) = seen
    pack = torch.cat(bags)
    positions = [int((pack == tile).all(dim=1).nonzero()) for tile in kept]
    assert 0 < sum(position < 40 for position in positions) < 40
    assert 0 < sum(position >= 40 for position in positions) < 25
    assert positions == sorted(positions)


def test_consistency_is_the_mean_over_the_rows_of_a_bags_features():
    student, teacher = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(0))
    ours = consistency_loss(student, teacher, student_temperature=2.0, teacher_temperature=0.1)
    assert ours.shape == (4,)
    for bag in range(4):
        rows = [
            nn.functional.cross_entropy(s / 2.0, (t / 0.1).softmax(dim=0))
            for s, t in zip(student[bag], teacher[bag], strict=True)
        ]
        assert ours[bag].item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


def test_xavier_initialisation_has_its_variance_and_no_bias():
    torch.manual_seed(0)
    student = build_method(MhimConfig(), 1024, 2).student
    linear = student.embedding.linear
    assert isinstance(linear, nn.Linear)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / (1024 + 512)), rel=0.01)
    assert (linear.bias == 0).all()
