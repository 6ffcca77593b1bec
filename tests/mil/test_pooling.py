"""Mean and max pooling: values, gradients, and what counts as attention."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from mil.models.config import MaxConfig, MeanConfig
from mil.models.pooling import first_maxima, pool
from mil.models.segments import Segments

CPU = torch.device("cpu")
CONFIGS = {"mean": MeanConfig(hidden_dim=8), "max": MaxConfig(hidden_dim=8)}


def make_method(name, *, outputs=OUTPUTS):
    torch.manual_seed(0)
    return build_method(CONFIGS[name], DIM, outputs).double()


def tile_answers(method, bag):
    """Logits (tiles, outputs), tile by tile in numpy."""
    w = {name: p.detach().numpy() for name, p in method.named_parameters()}
    embedded = [
        np.maximum(w["embedding.linear.weight"] @ x + w["embedding.linear.bias"], 0)
        for x in bag.numpy()
    ]
    return np.array([w["classifier.weight"] @ h + w["classifier.bias"] for h in embedded])


@pytest.mark.parametrize("tiles", [1, 2, 19])
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_equal_the_formulas(name, tiles):
    method, bag = make_method(name).eval(), make_bag(tiles)
    answers = tile_answers(method, bag)
    expected = answers.mean(axis=0) if name == "mean" else answers.max(axis=0)
    answer = method(bag)
    np.testing.assert_allclose(answer.logits.detach(), expected, rtol=0, atol=1e-12)
    output = method.training_output(Bags.pack([bag]), make_step())
    np.testing.assert_allclose(output.heads[0, 0].detach(), expected, rtol=0, atol=1e-12)
    assert output.weights.tolist() == [1]
    assert output.penalty.tolist() == [0]


def test_attention_is_even_under_mean_and_the_share_of_maxima_under_max():
    bag = make_bag(7)
    assert make_method("mean")(bag).attention.tolist() == pytest.approx([1 / 7] * 7)
    method = make_method("max").eval()
    winners = tile_answers(method, bag).argmax(axis=0)
    expected = np.bincount(winners, minlength=7) / OUTPUTS
    assert method(bag).attention.tolist() == pytest.approx(expected.tolist())


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_pools_of_a_pack_are_those_of_its_bags_and_of_equal_maxima_the_first_counts(bags, dtype):
    values = torch.tensor([value for bag in bags for value in bag], dtype=dtype)[:, None]
    segments = Segments([len(bag) for bag in bags], CPU)
    starts = np.cumsum([0] + [len(bag) for bag in bags])
    first = [start + bag.index(max(bag)) for start, bag in zip(starts, bags, strict=False)]
    assert first_maxima(values.T, segments).tolist() == [first]
    assert pool(values, segments, "max")[:, 0].tolist() == [max(bag) for bag in bags]
    mean = pool(values, segments, "mean")
    expected = torch.tensor([[sum(bag) / len(bag)] for bag in bags])
    torch.testing.assert_close(mean, expected.to(dtype))


def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals_alone():
    values = torch.tensor([[1.0], [5.0], [5.0], [7.0]], requires_grad=True)
    pool(values, Segments((3, 1), CPU), "max").sum().backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [0, 1, 0, 1]


def test_a_mean_in_half_precision_does_not_overflow():
    values = torch.full((3000, 1), 100.0, dtype=torch.float16)
    assert pool(values, Segments((3000,), CPU), "mean").item() == pytest.approx(100)


@pytest.mark.parametrize("name", CONFIGS)
def test_methods_promises(name):
    assert_answers_are_sound(make_method(name), (1, 2, 7))
    assert_answers_are_sound(make_method(name, outputs=1), (1, 2, 7))
    assert_order_does_not_matter(make_method(name))
    assert_tile_logits_are_those_of_one_tile_bags(make_method(name))
    assert_packed_equals_one_by_one(make_method(name), make_bags(5, 1, 12))
    assert_packed_equals_one_by_one(make_method(name), make_bags(4, 4))
    assert_gradients_reach(make_method(name), lambda seed: Bags.pack([make_bag(40, seed=seed)]))
    assert_bfloat16_is_finite(lambda: make_method(name), lambda n: make_bags(n, 3), (1, 2, 300))


@pytest.mark.parametrize("config", [MeanConfig(), MaxConfig()])
def test_parameters_are_those_of_embedding_and_classifier(config):
    method = build_method(config, 1024, 2)
    assert sum(p.numel() for p in method.parameters()) == 1024 * 512 + 512 + 2 * 512 + 2
