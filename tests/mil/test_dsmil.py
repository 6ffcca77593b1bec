"""DSMIL against a derivation of its own from the paper's formulas, tile by tile in numpy."""

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
)

from mil.models.base import Bags
from mil.models.build import build_method
from mil.models.config import DsmilConfig
from mil.models.segments import Segments

TOLERANCE = 1e-10
SMALL = DsmilConfig(hidden_dim=8, query_dim=4)


def make_method(config=SMALL, *, outputs=OUTPUTS):
    torch.manual_seed(0)
    method = build_method(config, DIM, outputs)
    with torch.no_grad():  # Xavier's biases are 0, which would hide a forgotten one
        for name, parameter in method.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return method.double()


def by_hand(method, bag):
    """Instance logits, critical tiles, scores, attention, bag vectors, bag logits."""
    w = {name: p.detach().numpy() for name, p in method.named_parameters()}

    def layer(name, vector):
        return w[f"{name}.weight"] @ vector + w[f"{name}.bias"]

    tiles = [np.maximum(layer("embedding.linear", x), 0) for x in bag.numpy()]
    instances = np.array([layer("instance_classifier", h) for h in tiles])
    queries = [np.tanh(layer("query.2", np.maximum(layer("query.0", h), 0))) for h in tiles]
    values = [np.maximum(layer("value.0", h), 0) for h in tiles]
    critical = [max(range(len(tiles)), key=lambda n, c=c: instances[n, c]) for c in range(OUTPUTS)]
    scores = np.empty((OUTPUTS, len(tiles)))
    for c in range(OUTPUTS):
        for n, query in enumerate(queries):
            scores[c, n] = sum(query * queries[critical[c]]) / math.sqrt(len(query))
    attention = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    vectors = [sum(a * v for a, v in zip(row, values, strict=True)) for row in attention]
    conv = w["bag_classifier.weight"]
    logits = w["bag_classifier.bias"].copy()
    for c in range(OUTPUTS):
        for other in range(OUTPUTS):
            logits[c] += conv[c, other] @ vectors[other]
    return instances, critical, scores, attention, np.array(vectors), logits


@pytest.mark.parametrize("tiles", [1, 2, 19])
def test_both_streams_equal_the_formulas(tiles):
    method, bag = make_method().eval(), make_bag(tiles)
    instances, critical, scores, attention, vectors, logits = by_hand(method, bag)
    best = np.array([instances[n, c] for c, n in enumerate(critical)])

    answer = method(bag)
    np.testing.assert_allclose(answer.scores.detach(), scores, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        answer.attention.detach(), attention.mean(axis=0), rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(answer.logits.detach(), (logits + best) / 2, rtol=0, atol=TOLERANCE)

    encoded = method.encode(method.embedding(bag), Segments.one(bag))
    heads = encoded.output.heads[:, 0].detach()
    np.testing.assert_allclose(heads, [logits, best], rtol=0, atol=TOLERANCE)
    assert encoded.output.weights.tolist() == [0.5, 0.5]
    assert encoded.output.penalty.tolist() == [0]
    np.testing.assert_allclose(encoded.features[0].detach(), vectors, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        encoded.hardness()[0].detach(), instances.max(axis=1), rtol=0, atol=TOLERANCE
    )
    bias = method.instance_classifier.bias.detach().numpy()
    np.testing.assert_allclose(
        encoded.contributions().detach(), instances - bias, rtol=0, atol=TOLERANCE
    )


def test_the_answer_is_the_normalised_geometric_mean_of_the_heads_probabilities():
    method, bag = make_method().eval(), make_bag(9)
    heads = method.training_output(Bags.pack([bag]), make_step()).heads[:, 0]
    product = heads.softmax(dim=1).prod(dim=0).sqrt()
    torch.testing.assert_close(method(bag).logits.softmax(dim=0), product / product.sum())


def test_of_equal_instance_logits_the_first_tile_is_critical():
    method, bag = make_method().eval(), make_bag(5)
    with torch.no_grad():
        method.instance_classifier.weight.zero_()
    query = method.query(method.embedding(bag))
    to_first = query @ query[0] / math.sqrt(query.shape[1])
    torch.testing.assert_close(method(bag).scores, to_first.expand(OUTPUTS, -1))


def test_the_critical_tile_sends_gradient_through_its_query():
    method = make_method()
    method.embedding.eval()
    bag = make_bag(6)
    critical = by_hand(method, bag)[1][0]
    other = next(n for n in range(6) if n not in by_hand(method, bag)[1])
    tiles = bag.clone().requires_grad_()
    scores = method.eval()(tiles).scores
    (gradient,) = torch.autograd.grad(scores[0, other], tiles)
    assert gradient[critical].abs().max() > 0
    assert gradient[other].abs().max() > 0


def test_methods_promises():
    method = make_method()
    assert_answers_are_sound(method, (1, 2, 7, 60))
    assert_answers_are_sound(make_method(outputs=1), (1, 2, 7))
    assert_order_does_not_matter(method)
    assert_tile_logits_are_those_of_one_tile_bags(method)
    assert_packed_equals_one_by_one(method, make_bags(5, 1, 12))
    assert_packed_equals_one_by_one(method, make_bags(4, 4))
    assert_gradients_reach(make_method(), lambda seed: Bags.pack([make_bag(40, seed=seed)]))
    assert_gradients_reach(
        make_method(outputs=1), lambda seed: Bags.pack([make_bag(40, seed=seed)])
    )
    assert_bfloat16_is_finite(make_method, lambda n: make_bags(n, 3), (1, 2, 300))


def test_parameters_are_those_of_mhim_mil_without_its_idle_classifier():
    """Its 873,734 count a Linear(512, 2) besides, which only its other base models use."""
    method = build_method(DsmilConfig(), 1024, 2)
    assert sum(p.numel() for p in method.parameters()) == 873_734 - (512 * 2 + 2)
