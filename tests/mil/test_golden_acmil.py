"""ACMIL (gated attention) against arrays of the published implementation (float64)."""

import math
import re

import numpy as np
import pytest
import torch
from golden_arrays import assert_close, bag_sizes_of, read_golden, tensor
from torch.nn import functional

from mil.models.acmil import Acmil, diversity_loss, stkim_mask
from mil.models.base import Bags
from mil.models.layers import attention_pool
from mil.models.segments import Segments

SHARED_WEIGHTS = {
    "embedding.linear.weight": "fc1_w",
    "attention.V.weight": "att_V_w",
    "attention.V.bias": "att_V_b",
    "attention.U.weight": "att_U_w",
    "attention.U.bias": "att_U_b",
    "attention.w.weight": "att_w_w",
    "attention.w.bias": "att_w_b",
    "slide_classifier.weight": "slide_w",
    "slide_classifier.bias": "slide_b",
}


@pytest.fixture
def arrays(shared):
    return read_golden(shared, "acmil_ga.npz")


@pytest.fixture
def bag_sizes(arrays):
    return bag_sizes_of(arrays)


@pytest.fixture
def drop(arrays, bag_sizes):
    """A share that gives every golden row its number of masked tiles, floor(k' drop)."""
    lower, upper = 0.0, 1.0
    for tiles in bag_sizes:
        candidates = arrays[f"rand_{tiles}"].shape[1]
        counts = set(arrays[f"mask_{tiles}"].sum(axis=1).tolist())
        assert len(counts) == 1
        count = counts.pop()
        lower = max(lower, count / candidates)
        upper = min(upper, (count + 1) / candidates)
    assert lower < upper
    return (lower + upper) / 2


@pytest.fixture
def names(arrays):
    branches = sum(re.fullmatch(r"w_sub\d+_w", name) is not None for name in arrays)
    assert branches > 1
    heads = {
        f"branch_classifiers.{i}.{ours}": f"sub{i}_{golden}"
        for i in range(branches)
        for ours, golden in (("weight", "w"), ("bias", "b"))
    }
    return SHARED_WEIGHTS | heads


@pytest.fixture
def model(arrays, names, drop):
    hidden_dim, dim = arrays["w_fc1_w"].shape
    model = Acmil(
        dim,
        len(arrays["w_slide_w"]),
        hidden_dim=hidden_dim,
        attention_dim=len(arrays["w_att_V_w"]),
        branches=len(arrays["w_att_w_w"]),
        top_k=max(arrays[name].shape[1] for name in arrays if name.startswith("rand_")),
        drop=drop,
        mode="count",
        activation="relu",
        dropout=0.0,
    ).double()
    model.load_state_dict({ours: tensor(arrays["w_" + name]) for ours, name in names.items()})
    return model


def masked_pooling(model, arrays, tiles):
    """The masked forward with the golden draws: mask, masked scores, pooled bag."""
    embedded = model.embedding(tensor(arrays[f"x_{tiles}"]))
    scores, segments = model.attention(embedded), Segments.one(embedded)
    draws = tensor(arrays[f"rand_{tiles}"])[:, None]
    mask = stkim_mask(scores, draws, segments, drop=model.drop, mode=model.mode)
    return mask, attention_pool(scores.masked_fill(mask, -math.inf), embedded, segments)


def heads_of(model, pooled):
    """Heads (K + 1, 1, outputs), weights and penalty (1,) of a pooled bag."""
    return model.heads(pooled, Segments((pooled.scores.shape[1],), pooled.scores.device))


def losses(model, pooled, label):
    output = heads_of(model, pooled)
    labels = label.expand(len(output.heads))
    per_head = functional.cross_entropy(output.heads[:, 0], labels, reduction="none")
    per_head = output.weights * per_head
    return per_head[0], per_head[1:].sum(), output.penalty[0]


def test_forward_equals_the_golden_arrays(model, arrays, bag_sizes):
    model.eval()
    for tiles in bag_sizes:
        bag = tensor(arrays[f"x_{tiles}"])
        output = model(bag)
        assert_close(output.scores, arrays[f"eval_scores_{tiles}"], f"eval_scores_{tiles}")
        assert_close(output.attention, arrays[f"eval_bag_attn_{tiles}"], f"eval_bag_attn_{tiles}")
        assert_close(output.logits[None], arrays[f"eval_slide_{tiles}"], f"eval_slide_{tiles}")
        embedded = model.embedding(bag)
        pooled = attention_pool(model.attention(embedded), embedded, Segments.one(bag))
        feature = pooled.features.mean(dim=1)
        assert_close(feature, arrays[f"eval_bag_feat_{tiles}"], f"eval_bag_feat_{tiles}")
        heads = heads_of(model, pooled).heads[:, 0]
        assert_close(heads[1:], arrays[f"eval_sub_{tiles}"], f"eval_sub_{tiles}")


def test_masks_and_masked_heads_equal_the_golden_arrays(model, arrays, bag_sizes):
    for tiles in bag_sizes:
        mask, pooled = masked_pooling(model, arrays, tiles)
        golden = arrays[f"mask_{tiles}"]
        assert np.array_equal(mask.numpy(), golden), f"mask_{tiles}"
        # a masked score is -inf here and -1e9 there: both weigh exactly nothing
        scores = arrays[f"train_scores_{tiles}"]
        assert_close(pooled.scores[~mask], scores[~golden], f"train_scores_{tiles}")
        assert (scores[golden] < scores[~golden].min()).all()
        assert torch.equal(pooled.attention == 0, mask)
        heads = heads_of(model, pooled).heads[:, 0]
        assert_close(heads[:1], arrays[f"train_slide_{tiles}"], f"train_slide_{tiles}")
        assert_close(heads[1:], arrays[f"train_sub_{tiles}"], f"train_sub_{tiles}")


def test_losses_equal_the_golden_arrays(model, arrays, bag_sizes):
    for tiles in bag_sizes:
        _, pooled = masked_pooling(model, arrays, tiles)
        slide, branches, diversity = losses(model, pooled, tensor(arrays[f"label_{tiles}"]))
        assert_close(slide, arrays[f"loss_slide_{tiles}"], f"loss_slide_{tiles}")
        assert_close(branches, arrays[f"loss_sub_{tiles}"], f"loss_sub_{tiles}")
        assert_close(diversity, arrays[f"loss_div_{tiles}"], f"loss_div_{tiles}")
        total = slide + branches + diversity
        assert_close(total, arrays[f"loss_total_{tiles}"], f"loss_total_{tiles}")


def test_bags_in_one_pack_have_the_golden_heads_and_losses(model, arrays, bag_sizes):
    assert len(bag_sizes) > 1
    bags = Bags.pack([tensor(arrays[f"x_{tiles}"]) for tiles in bag_sizes])
    draws = torch.ones(len(arrays["w_att_w_w"]), len(bag_sizes), model.top_k)
    for place, tiles in enumerate(bag_sizes):  # of a bag with fewer tiles the last ones are unused
        golden = tensor(arrays[f"rand_{tiles}"])
        draws[:, place, : golden.shape[1]] = golden
    output = model.masked_output(bags, draws)
    for place, tiles in enumerate(bag_sizes):
        heads = output.heads[:, place]
        assert_close(heads[:1], arrays[f"train_slide_{tiles}"], f"train_slide_{tiles}")
        assert_close(heads[1:], arrays[f"train_sub_{tiles}"], f"train_sub_{tiles}")
        assert_close(output.penalty[place], arrays[f"loss_div_{tiles}"], f"loss_div_{tiles}")


def test_gradients_equal_the_golden_arrays(model, arrays, bag_sizes, names):
    with_gradient = [tiles for tiles in bag_sizes if f"grad{tiles}_fc1_w" in arrays]
    assert with_gradient
    for tiles in with_gradient:
        model.zero_grad()
        _, pooled = masked_pooling(model, arrays, tiles)
        sum(losses(model, pooled, tensor(arrays[f"label_{tiles}"]))).backward()
        parameters = dict(model.named_parameters())
        for ours, name in names.items():
            golden = f"grad{tiles}_{name}"
            assert_close(parameters[ours].grad, arrays[golden], golden)


def test_diversity_loss_is_the_mean_cosine_of_pairs(arrays, bag_sizes):
    for tiles in bag_sizes:
        attention = tensor(arrays[f"train_scores_{tiles}"]).softmax(dim=1)
        pairs = [
            functional.cosine_similarity(attention[i], attention[j], dim=0, eps=1e-8)
            for i in range(len(attention))
            for j in range(i)
        ]
        expected = torch.stack(pairs).mean().numpy()
        ours = diversity_loss(attention, Segments((tiles,), attention.device))
        assert_close(ours[0], expected, f"pairs of {tiles}")
