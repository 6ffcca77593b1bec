"""ABMIL against arrays of the published implementation (float64, dropout off)."""

import re

import numpy as np
import pytest
import torch
from golden_arrays import assert_close, tensor
from torch.nn import functional

from mil.models.abmil import Abmil
from mil.models.base import Bags, Step

CLASSIFIER = {"classifier.weight": "cls_w", "classifier.bias": "cls_b"}
GATED = {
    "embedding.linear.weight": "fc1_w",
    "attention.V.weight": "att_V_w",
    "attention.V.bias": "att_V_b",
    "attention.U.weight": "att_U_w",
    "attention.U.bias": "att_U_b",
    "attention.w.weight": "att_w_w",
    "attention.w.bias": "att_w_b",
    **CLASSIFIER,
}
TANH = {
    "embedding.linear.weight": "fc1_w",
    "attention.V.weight": "att_1_w",
    "attention.V.bias": "att_1_b",
    "attention.w.weight": "att_2_w",
    "attention.w.bias": "att_2_b",
    **CLASSIFIER,
}


def load(shared, scoring):
    """The model with the golden weights, the arrays, and {parameter: golden name}."""
    file, names = {"gated": ("abmil_gated.npz", GATED), "tanh": ("abmil_plain.npz", TANH)}[scoring]
    with np.load(shared / "golden" / file) as archive:
        arrays = dict(archive)
    hidden_dim, dim = arrays["w_fc1_w"].shape
    model = Abmil(
        dim,
        len(arrays["w_cls_w"]),
        hidden_dim=hidden_dim,
        attention_dim=len(arrays["w_" + names["attention.V.weight"]]),
        scoring=scoring,
        activation="relu",
        embedding_bias=False,
        attention_bias=True,
        dropout=0.0,
        initialisation="kaiming",
    ).double()
    model.load_state_dict({ours: tensor(arrays["w_" + name]) for ours, name in names.items()})
    return model, arrays, names


def numbers(arrays, pattern):
    found = sorted(int(m[1]) for m in (re.fullmatch(pattern, name) for name in arrays) if m)
    assert found, f"no array is called like {pattern}"
    return found


@pytest.mark.parametrize("scoring", ["gated", "tanh"])
def test_forward_equals_the_golden_arrays(shared, scoring):
    model, arrays, _ = load(shared, scoring)
    for tiles in numbers(arrays, r"x_(\d+)"):
        output = model.eval()(tensor(arrays[f"x_{tiles}"]))
        assert_close(output.scores, arrays[f"scores_{tiles}"], f"scores_{tiles}")
        assert_close(output.attention[None], arrays[f"attn_{tiles}"], f"attn_{tiles}")
        assert_close(output.logits[None], arrays[f"logits_{tiles}"], f"logits_{tiles}")


def test_loss_and_gradients_equal_the_golden_arrays(shared):
    model, arrays, names = load(shared, "gated")
    for tiles in numbers(arrays, r"loss_(\d+)"):
        model.zero_grad()
        bags = Bags.pack([tensor(arrays[f"x_{tiles}"])])
        output = model.training_output(bags, Step(0, 1, torch.Generator()))
        assert output.weights.tolist() == [1.0]
        assert output.penalty.tolist() == [0.0]
        label = tensor(arrays[f"label_{tiles}"])[None]
        loss = functional.cross_entropy(output.heads[0], label)
        assert_close(loss, arrays[f"loss_{tiles}"], f"loss_{tiles}")
        loss.backward()
        parameters = dict(model.named_parameters())
        for ours, name in names.items():
            golden = f"grad{tiles}_{name}"
            assert_close(parameters[ours].grad, arrays[golden], golden)
