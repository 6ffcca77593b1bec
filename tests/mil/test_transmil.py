"""TransMIL against a derivation of its own from the papers' formulas, entry by entry in numpy."""

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
    assert_packed_equals_one_by_one,
    assert_tile_logits_are_those_of_one_tile_bags,
    make_bag,
    make_bags,
    make_step,
)
from pydantic import ValidationError

from mil.models.base import Bags
from mil.models.build import build_method
from mil.models.config import TransmilConfig
from mil.models.nystrom import NystromAttention, attend
from mil.models.segments import Segments
from mil.models.transmil import Ppeg, TransMil

TOLERANCE = 1e-10
HIDDEN, HEADS, LANDMARKS = 16, 8, 8
SMALL = TransmilConfig(hidden_dim=HIDDEN)
SIZES = [1, 2, LANDMARKS - 2, LANDMARKS - 1, LANDMARKS, 20, 60]  # and the class token


def make_method(config=SMALL, *, outputs=OUTPUTS):
    torch.manual_seed(0)
    method = build_method(config, DIM, outputs)
    with torch.no_grad():  # biases of 0 and layer norms of 1 would hide a forgotten one
        for parameter in method.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return method.double()


def weights_of(module):
    return {name: p.detach().numpy() for name, p in module.named_parameters()}


def softmax(matrix):
    e = np.exp(matrix)
    return e / e.sum(axis=1, keepdims=True)


def norm(w, name, tokens):
    rows = []
    for token in tokens:
        centred = token - token.mean()
        rows.append(centred / math.sqrt((centred**2).mean() + 1e-5))
    return np.array(rows) * w[f"{name}.weight"] + w[f"{name}.bias"]


def nystrom_by_hand(w, tokens):
    """Output (n, hidden), what the first token attends to (heads, n), values (heads, n, d)."""
    n, hidden = tokens.shape
    d = hidden // HEADS
    zeros = next(z for z in range(LANDMARKS) if (z + n) % LANDMARKS == 0)
    run = (zeros + n) // LANDMARKS
    padded = [np.zeros(hidden)] * zeros + list(tokens)
    projected = np.array([w["qkv.weight"] @ x for x in padded])
    parts = []
    for head in range(HEADS):
        q, k, v = (projected[:, i * hidden + head * d :][:, :d] for i in range(3))
        q = q / math.sqrt(d)
        q_marks = np.array([sum(q[i * run : (i + 1) * run]) / run for i in range(LANDMARKS)])
        k_marks = np.array([sum(k[i * run : (i + 1) * run]) / run for i in range(LANDMARKS)])
        near, middle, far = (
            softmax(q @ k_marks.T),
            softmax(q_marks @ k_marks.T),
            softmax(q_marks @ k.T),
        )
        parts.append((near, middle, far, v))
    row_sum = max(sum(abs(row)) for _, middle, _, _ in parts for row in middle)
    column_sum = max(sum(abs(column)) for _, middle, _, _ in parts for column in middle.T)
    identity = np.eye(LANDMARKS)
    heads, attention, values = [], [], []
    for head, (near, middle, far, v) in enumerate(parts):
        z = middle.T / (row_sum * column_sum)
        for _ in range(6):
            mz = middle @ z
            z = z @ (13 * identity - mz @ (15 * identity - mz @ (7 * identity - mz))) / 4
        matrix = near @ z @ far
        taps = w["convolution.weight"][head, 0, :, 0]
        local = np.zeros_like(v)
        for i in range(len(v)):
            for j, tap in enumerate(taps):
                if 0 <= i + j - 16 < len(v):
                    local[i] += tap * v[i + j - 16]
        heads.append((matrix @ v + local)[zeros:])
        attention.append(matrix[zeros, zeros:])
        values.append(v[zeros:])
    side_by_side = np.concatenate(heads, axis=1)
    out = np.array([w["out.0.weight"] @ row + w["out.0.bias"] for row in side_by_side])
    return out, np.array(attention), np.array(values)


def ppeg_by_hand(w, tiles):
    n, hidden = tiles.shape
    side = math.ceil(math.sqrt(n))
    grid = list(tiles) + list(tiles)[: side * side - n]
    if side < 7:
        grid += [np.zeros(hidden)] * (49 - side * side)
        side = 7
    out = tiles.copy()
    for place in range(n):
        row, column = divmod(place, side)
        for name, width in (("conv7", 7), ("conv5", 5), ("conv3", 3)):
            kernel = w[f"{name}.weight"][:, 0]
            out[place] += w[f"{name}.bias"]
            for i in range(width):
                for j in range(width):
                    y, x = row + i - width // 2, column + j - width // 2
                    if 0 <= y < side and 0 <= x < side:
                        out[place] += kernel[:, i, j] * grid[y * side + x]
    return out


def by_hand(method, bag):
    """Logits (outputs,), bag vector, class token's attention (heads, n), contributions."""
    w = weights_of(method)

    def inside(name):
        return {key[len(name) + 1 :]: p for key, p in w.items() if key.startswith(name + ".")}

    linear = inside("embedding.linear")
    tiles = [np.maximum(linear["weight"] @ x + linear["bias"], 0) for x in bag.numpy()]
    tokens = np.array([w["class_token"][0], *tiles])
    attended, attention, values = nystrom_by_hand(inside("attention1"), norm(w, "norm1", tokens))
    tokens = tokens + attended
    tokens = np.array([tokens[0], *ppeg_by_hand(inside("ppeg"), tokens[1:])])
    tokens = tokens + nystrom_by_hand(inside("attention2"), norm(w, "norm2", tokens))[0]
    vector = norm(w, "norm", tokens)[0]
    logits = w["classifier.weight"] @ vector + w["classifier.bias"]
    out = inside("attention1.out.0")
    contributions = []
    for n in range(1, len(tokens)):
        by_tile = np.concatenate([attention[h, n] * values[h, n] for h in range(HEADS)])
        contributions.append(w["classifier.weight"] @ (out["weight"] @ by_tile + out["bias"]))
    return logits, vector, attention[:, 1:], np.array(contributions)


@pytest.mark.parametrize("tiles", SIZES)
def test_everything_equals_the_formulas(tiles):
    method, bag = make_method().eval(), make_bag(tiles)
    logits, vector, attention, contributions = by_hand(method, bag)
    close = {"rtol": 0, "atol": TOLERANCE}
    answer = method(bag)
    np.testing.assert_allclose(answer.logits.detach(), logits, **close)
    np.testing.assert_allclose(answer.scores, attention, **close)
    positive = np.maximum(attention.mean(axis=0), 0)
    np.testing.assert_allclose(answer.attention, positive / positive.sum(), **close)

    encoded = method.encode(method.embedding(bag), Segments.one(bag))
    np.testing.assert_allclose(encoded.output.heads[0, 0].detach(), logits, **close)
    assert encoded.output.weights.tolist() == [1]
    np.testing.assert_allclose(encoded.features[0, 0].detach(), vector, **close)
    np.testing.assert_allclose(encoded.hardness(), attention, **close)
    np.testing.assert_allclose(encoded.contributions().detach(), contributions, **close)


@pytest.mark.parametrize("tokens", [2, LANDMARKS, 30])
def test_every_token_receives_what_the_formulas_say(tokens):
    torch.manual_seed(1)
    module = NystromAttention(HIDDEN, heads=HEADS, landmarks=LANDMARKS, dropout=0.1).double().eval()
    x = make_bag(tokens, dim=HIDDEN)
    received, attention, _ = nystrom_by_hand(weights_of(module), x.numpy())
    output, factors = module(x)
    np.testing.assert_allclose(output.detach(), received, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(factors.weights_of_first(), attention, rtol=0, atol=TOLERANCE)
    first, _ = module(x, first_only=True)
    np.testing.assert_allclose(first.detach(), received[:1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 36, 37, 49, 50, 60])
def test_ppeg_equals_the_formulas(tiles):
    torch.manual_seed(1)
    module, x = Ppeg(HIDDEN).double(), make_bag(tiles, dim=HIDDEN)
    encoded = ppeg_by_hand(weights_of(module), x.numpy())
    np.testing.assert_allclose(module(x).detach(), encoded, rtol=0, atol=TOLERANCE)


def test_the_class_tokens_attention_may_be_negative_and_does_not_sum_to_one():
    """As published: about one in a hundred is negative, sums lie a little below 1."""
    scores = make_method().eval()(make_bag(60)).scores
    assert (scores < 0).any()
    assert ((scores.sum(dim=1) - 1).abs() > 1e-3).all()


def test_attention_is_even_where_no_mean_over_heads_is_positive(monkeypatch):
    method = make_method().eval()
    monkeypatch.setattr(
        "mil.models.nystrom.Factors.weights_of_first", lambda factors: -torch.ones(HEADS, 6)
    )
    assert method(make_bag(5)).attention.tolist() == pytest.approx([0.2] * 5)


def test_the_order_of_tiles_matters():
    method, bag = make_method().eval(), make_bag(23)
    difference = method(bag.flip(0)).logits - method(bag).logits
    assert difference.abs().max() > 1e-3


def test_nothing_as_wide_as_tiles_times_landmarks_is_kept_for_backward():
    tokens, kept = 400, []
    module = NystromAttention(HIDDEN, heads=HEADS, landmarks=LANDMARKS, dropout=0.0)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        module(torch.randn(tokens, HIDDEN))
    assert max(kept) < tokens * HEADS * LANDMARKS


def test_attend_is_softmax_attention():
    q, k, v = (torch.randn(2, n, 3, dtype=torch.float64) for n in (4, 5, 5))
    torch.testing.assert_close(attend(q, k, v), (q @ k.mT).softmax(dim=2) @ v)


def test_methods_promises():
    method = make_method()
    assert_answers_are_sound(method, SIZES)
    assert_answers_are_sound(make_method(outputs=1), SIZES)
    assert_tile_logits_are_those_of_one_tile_bags(method)
    assert_packed_equals_one_by_one(method, make_bags(5, 1, 12))
    # Wq, Wk of A2 as well: what they change in the class token's attention
    assert_gradients_reach(make_method(), lambda seed: Bags.pack([make_bag(70, seed=seed)]))
    assert_gradients_reach(
        make_method(outputs=1), lambda seed: Bags.pack([make_bag(70, seed=seed)])
    )
    assert_bfloat16_is_finite(make_method, lambda n: make_bags(n, 3), (1, 2, LANDMARKS, 300))


def test_lone_tiles_are_read_a_few_at_a_time(monkeypatch):
    method, bag = make_method().eval(), make_bag(11)
    at_once = method.tile_logits(bag)
    monkeypatch.setattr("mil.models.transmil.TILES_AT_ONCE", 4)
    torch.testing.assert_close(method.tile_logits(bag), at_once, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_alone():
    method, bags = make_method(), make_bags(9)
    torch.manual_seed(0)
    first, second = (method.training_output(bags, make_step()).heads for _ in range(2))
    assert not torch.equal(first, second)
    method.eval()
    torch.testing.assert_close(
        method.training_output(bags, make_step()).heads[0, 0], method(bags.tiles).logits
    )


def test_parameters_are_as_many_as_published():
    method = build_method(TransmilConfig(), 1024, 2)
    assert sum(p.numel() for p in method.parameters()) == 2_672_146


def test_a_width_that_eight_heads_cannot_share_is_refused():
    with pytest.raises(ValidationError, match="multiple of 8"):
        TransmilConfig(hidden_dim=20)
    with pytest.raises(ValueError, match="8 heads can share, got 20"):
        TransMil(
            DIM,
            OUTPUTS,
            hidden_dim=20,
            activation="relu",
            dropout=0.0,
            attention_dropout=0.0,
            initialisation="xavier",
        )
