"""CLAM's answers and losses against a derivation of its own, tile by tile in numpy."""

import math

import numpy as np
import pytest
import torch
from method_checks import (
    DIM,
    OUTPUTS,
    assert_answers_are_sound,
    assert_bfloat16_is_finite,
    assert_gradients_reach,
    assert_order_does_not_matter,
    assert_packed_equals_one_by_one,
    assert_tile_logits_are_those_of_one_tile_bags,
    make_bag,
    make_bags,
    make_step,
    one_hot,
)

from mil.models.base import Bags
from mil.models.build import build_method
from mil.models.clam import instance_losses
from mil.models.config import ClamConfig

K = 3
SMALL = {"hidden_dim": 8, "attention_dim": 4, "instances": K}
SIZES = [1, 2, K - 1, K, K + 1, 2 * K - 1, 2 * K, 20]
FORMS = [
    {"multi_branch": branches, "instance_loss": loss, "subtyping": subtyping}
    for branches in (False, True)
    for loss in ("svm", "cross_entropy")
    for subtyping in (False, True)
]


def make_method(form=FORMS[0], *, outputs=OUTPUTS):
    torch.manual_seed(0)
    method = build_method(ClamConfig(**SMALL, **form), DIM, outputs)
    with torch.no_grad():  # Xavier's biases are 0, which would hide a forgotten one
        for name, parameter in method.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return method.double().eval()


def tile_loss(logits, label, kind):
    if kind == "cross_entropy":
        return -math.log(math.exp(logits[label]) / sum(math.exp(p) for p in logits))
    terms = [math.exp((j != label) + p - logits[label]) for j, p in enumerate(logits)]
    return math.log(sum(terms))


def by_hand(method, bag, labels, form):
    """Logits (outputs,) and the instance loss."""
    w = {name: p.detach().numpy() for name, p in method.named_parameters()}

    def layer(name, vector):
        return w[f"{name}.weight"] @ vector + w[f"{name}.bias"]

    tiles = [np.maximum(layer("embedding.linear", x), 0) for x in bag.numpy()]
    scores = []
    for h in tiles:
        gates = np.tanh(layer("attention.V", h)) / (1 + np.exp(-layer("attention.U", h)))
        scores.append(layer("attention.w", gates))
    logits, loss = [], 0.0
    for c, positive in enumerate(labels):
        branch = [s[c if form["multi_branch"] else 0] for s in scores]
        total = sum(math.exp(s) for s in branch)
        vector = sum(math.exp(s) / total * h for s, h in zip(branch, tiles, strict=True))
        name, row = (f"classifiers.{c}", 0) if form["multi_branch"] else ("classifiers.0", c)
        logits.append(w[f"{name}.weight"][row] @ vector + w[f"{name}.bias"][row])
        ranked = sorted(range(len(tiles)), key=lambda n, branch=branch: -branch[n])
        ends = [(n, 1) for n in ranked[:K]] + [(n, 0) for n in ranked[-K:]]
        if not positive:
            ends = [(n, 0) for n in ranked[:K]] if form["subtyping"] else []
        losses = [
            tile_loss(layer(f"instance_classifiers.{c}", tiles[n]), label, form["instance_loss"])
            for n, label in ends
        ]
        loss += np.mean(losses) if losses else 0.0
    return logits, loss / len(labels) if form["subtyping"] else loss


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
@pytest.mark.parametrize("tiles", SIZES)
def test_answer_and_losses_equal_the_formulas(form, tiles):
    method, bag = make_method(form), make_bag(tiles)
    for labels in ([True, False, False], [False, False, True], [True, False, True], [False] * 3):
        logits, loss = by_hand(method, bag, labels, form)
        output = method.training_output(Bags.pack([bag], torch.tensor([labels])), make_step())
        np.testing.assert_allclose(output.heads[0, 0].detach(), logits, rtol=0, atol=1e-12)
        np.testing.assert_allclose(method(bag).logits.detach(), logits, rtol=0, atol=1e-12)
        assert output.weights.tolist() == pytest.approx([0.7])
        assert output.penalty.item() == pytest.approx(0.3 * loss, abs=1e-12)


def test_the_smooth_svm_is_its_definition():
    """Berrada et al. 2018: log sum over labels of exp(margin + p_j - p_y), at tau = alpha = 1."""
    losses = instance_losses(torch.tensor([2.0, -1.0]), "svm")
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-2)), math.log1p(math.exp(4))])
    far = instance_losses(torch.tensor([500.0, -500.0]), "svm")  # no overflow
    assert far.tolist() == [0, 1001]
    even = instance_losses(torch.zeros(2), "svm")
    assert even.tolist() == pytest.approx([math.log1p(math.e)] * 2)


@pytest.mark.parametrize("tiles", [1, K])
def test_in_a_bag_of_k_tiles_or_fewer_each_has_both_pseudo_labels(tiles):
    """Then which is highest does not matter: another attention gives the same instance loss."""
    method, bags = make_method(), make_bags(tiles, labels=one_hot(1))
    more = make_bags(K + 1, labels=one_hot(1))
    before = [method.training_output(those, make_step()).penalty.item() for those in (bags, more)]
    with torch.no_grad():
        method.attention.w.weight.neg_()
    after = [method.training_output(those, make_step()).penalty.item() for those in (bags, more)]
    assert after[0] == pytest.approx(before[0], abs=1e-12)
    assert after[1] != pytest.approx(before[1], abs=1e-3)


def test_without_classes_there_is_no_instance_loss():
    method = make_method()
    output = method.training_output(make_bags(9), make_step())
    assert output.weights.tolist() == [1]
    assert output.penalty.tolist() == [0]


def test_dropout_acts_on_embedding_and_gates_in_training_alone():
    method, bag = make_method(), make_bag(30)
    torch.testing.assert_close(method(bag).logits, method(bag).logits, rtol=0, atol=0)
    method.train()
    method.embedding.eval()
    assert not torch.equal(method(bag).scores, method(bag).scores)
    method.attention.eval()
    assert torch.equal(method(bag).scores, method(bag).scores)


@pytest.mark.parametrize("form", FORMS[::3])
def test_methods_promises(form):
    assert_answers_are_sound(make_method(form), SIZES)
    assert_answers_are_sound(make_method(form, outputs=1), SIZES)
    assert_order_does_not_matter(make_method(form))
    assert_tile_logits_are_those_of_one_tile_bags(make_method(form))
    labels = one_hot(0, 2, 1, 1)
    assert_packed_equals_one_by_one(make_method(form), make_bags(9, 1, 2, 4, labels=labels))
    assert_packed_equals_one_by_one(make_method(form), make_bags(4, 4, 4, 4, labels=labels))
    assert_packed_equals_one_by_one(make_method(form), make_bags(9, 1, 2))
    assert_gradients_reach(
        make_method(form),
        lambda seed: Bags.pack([make_bag(40, seed=seed)] * 3, one_hot(0, 1, 2)),
        but_for=["attention.w.bias"],  # softmax ignores a constant
    )
    assert_bfloat16_is_finite(
        lambda: make_method(form),
        lambda n: make_bags(n, 3, labels=one_hot(0, 2)),
        (1, 2, K, 300),
    )


def test_parameters_are_as_many_as_published():
    """789K for CLAM-MB (Tang et al. 2023), which is without the instance classifiers' 2,052."""
    sizes = {"single": ClamConfig(), "multi": ClamConfig(multi_branch=True)}
    counts = {
        name: sum(p.numel() for p in build_method(config, 1024, 2).parameters())
        for name, config in sizes.items()
    }
    assert counts == {"single": 788_739 + 2 * (512 * 2 + 2), "multi": 788_996 + 2 * (512 * 2 + 2)}
