"""ACMIL (multi-head attention) against arrays of the published implementation (float64)."""

import pytest
import torch
from golden_arrays import assert_close, bag_sizes_of, read_golden, tensor
from torch.nn import functional

from mil.models.acmil import stkim_mask
from mil.models.acmil_mha import AcmilMha
from mil.models.base import Bags
from mil.models.layers import attention_pool
from mil.models.segments import Segments

TOP_K, DROP = 10, 0.6
READER = {"value": "v", "out": "o", "norm": "ln"}


@pytest.fixture
def arrays(shared):
    return read_golden(shared, "acmil_mha.npz")


@pytest.fixture
def bag_sizes(arrays):
    return bag_sizes_of(arrays)


def linear_names(ours, golden):
    return {f"{ours}.weight": f"w_{golden}_w", f"{ours}.bias": f"w_{golden}_b"}


def golden_weights(arrays, branches):
    names = {"embedding.linear.weight": "w_fc1_w"} | linear_names("slide_classifier", "slide")
    for layer, short in READER.items():
        names |= linear_names(f"slide_reader.{layer}", f"bag_{short}")
    for i in range(branches):
        names |= linear_names(f"branch_classifiers.{i}", f"sub{i}")
        names |= linear_names(f"queries.{i}.query", f"br{i}_q")
        names |= linear_names(f"queries.{i}.key", f"br{i}_k")
        for layer, short in READER.items():
            names |= linear_names(f"branch_readers.{i}.{layer}", f"br{i}_{short}")
    weights = {ours: tensor(arrays[golden]) for ours, golden in names.items()}
    return weights | {f"queries.{i}.token": tensor(arrays["w_q"])[0, i] for i in range(branches)}


@pytest.fixture
def model(arrays, bag_sizes):
    hidden_dim, dim = arrays["w_fc1_w"].shape
    heads, branches, _ = arrays[f"eval_scores_{bag_sizes[0]}"].shape
    model = AcmilMha(
        dim,
        len(arrays["w_slide_w"]),
        hidden_dim=hidden_dim,
        heads=heads,
        branches=branches,
        top_k=TOP_K,
        drop=DROP,
        mode="count",
        activation="relu",
        dropout=0.0,
        attention_dropout=0.0,
    ).double()
    model.load_state_dict(golden_weights(arrays, branches))
    return model


def draws_for(scores, mask):
    """Draws (rows, 1, k) that mask the golden tiles, if STKIM may mask just these."""
    by_rank = mask.gather(1, scores.argsort(dim=1, descending=True)[:, :TOP_K])
    return torch.where(by_rank, 0.25, 0.75)[:, None]


def golden_draws(model, arrays, tiles):
    scores = model.scores(model.embedding(tensor(arrays[f"x_{tiles}"])))
    return draws_for(scores, tensor(arrays[f"mask_{tiles}"]).flatten(0, 1))


def losses(output, place, label):
    labels = label.expand(len(output.heads))
    per_head = functional.cross_entropy(output.heads[:, place], labels, reduction="none")
    per_head = output.weights * per_head
    return per_head[0], per_head[1:].sum(), output.penalty[place]


def test_forward_equals_the_golden_arrays(model, arrays, bag_sizes):
    model.eval()
    for tiles in bag_sizes:
        bag = tensor(arrays[f"x_{tiles}"])
        output = model(bag)
        scores = arrays[f"eval_scores_{tiles}"]
        assert_close(output.scores, scores.reshape(-1, tiles), f"eval_scores_{tiles}")
        attention = tensor(scores).softmax(dim=2).mean(dim=(0, 1))
        assert_close(output.attention, attention.numpy(), f"attention of {tiles}")
        assert_close(output.logits[None], arrays[f"eval_slide_{tiles}"], f"eval_slide_{tiles}")
        embedded = model.embedding(bag)
        segments = Segments.one(bag)
        pooled = attention_pool(model.scores(embedded), embedded, segments)
        heads = model.heads(pooled, segments).heads[:, 0]
        assert_close(heads[1:], arrays[f"eval_sub_{tiles}"], f"eval_sub_{tiles}")


def test_masks_equal_the_golden_arrays(model, arrays, bag_sizes):
    for tiles in bag_sizes:
        bag = tensor(arrays[f"x_{tiles}"])
        scores = model.scores(model.embedding(bag))
        golden = tensor(arrays[f"mask_{tiles}"]).flatten(0, 1)
        draws = draws_for(scores, golden)
        mask = stkim_mask(scores, draws, Segments.one(bag), drop=DROP, mode="count")
        assert torch.equal(mask, golden), f"mask_{tiles}"
        masked = tensor(arrays[f"train_scores_{tiles}"]).flatten(0, 1)
        assert_close(scores[~mask], masked[~golden].numpy(), f"train_scores_{tiles}")


def test_masked_heads_and_losses_equal_the_golden_arrays(model, arrays, bag_sizes):
    for tiles in bag_sizes:
        bags = Bags.pack([tensor(arrays[f"x_{tiles}"])])
        output = model.masked_output(bags, golden_draws(model, arrays, tiles))
        assert_close(output.heads[0], arrays[f"train_slide_{tiles}"], f"train_slide_{tiles}")
        assert_close(output.heads[1:, 0], arrays[f"train_sub_{tiles}"], f"train_sub_{tiles}")
        slide, branches, diversity = losses(output, 0, tensor(arrays[f"label_{tiles}"]))
        assert_close(slide, arrays[f"loss_slide_{tiles}"], f"loss_slide_{tiles}")
        assert_close(branches, arrays[f"loss_sub_{tiles}"], f"loss_sub_{tiles}")
        assert_close(diversity, arrays[f"loss_div_{tiles}"], f"loss_div_{tiles}")


def test_bags_in_one_pack_have_the_golden_heads_and_losses(model, arrays, bag_sizes):
    assert len(bag_sizes) > 1
    bags = Bags.pack([tensor(arrays[f"x_{tiles}"]) for tiles in bag_sizes])
    draws = torch.cat([golden_draws(model, arrays, tiles) for tiles in bag_sizes], dim=1)
    output = model.masked_output(bags, draws)
    for place, tiles in enumerate(bag_sizes):
        heads = output.heads[:, place]
        assert_close(heads[:1], arrays[f"train_slide_{tiles}"], f"train_slide_{tiles}")
        assert_close(heads[1:], arrays[f"train_sub_{tiles}"], f"train_sub_{tiles}")
        slide, branches, diversity = losses(output, place, tensor(arrays[f"label_{tiles}"]))
        assert_close(slide, arrays[f"loss_slide_{tiles}"], f"loss_slide_{tiles}")
        assert_close(branches, arrays[f"loss_sub_{tiles}"], f"loss_sub_{tiles}")
        assert_close(diversity, arrays[f"loss_div_{tiles}"], f"loss_div_{tiles}")
