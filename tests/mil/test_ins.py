"""The instance classifier after INS: candidates, soft labels, prototypes and losses, by hand."""

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
from mil.models.config import InsConfig
from preprocessing.errors import ConfigError

CLASSES = ("a", "b", "c")


def make_method(*, outputs=OUTPUTS, **options):
    torch.manual_seed(0)
    classes = CLASSES[:outputs] if outputs > 1 else ()
    return build_method(InsConfig(hidden_dim=8, **options), DIM, outputs, classes).double()


def with_prototypes(method):
    drawn = torch.rand(method.prototypes.shape, generator=torch.Generator().manual_seed(5))
    method.prototypes.copy_(torch.nn.functional.normalize(drawn, dim=1))
    return method


def tile_by_tile(method, bag):
    """Unit embeddings (0, where no ReLU fires) and logits of every tile."""
    w = {name: p.detach().numpy() for name, p in method.named_parameters()}
    for x in bag.numpy():
        h = np.maximum(w["embedding.linear.weight"] @ x + w["embedding.linear.bias"], 0)
        length = math.sqrt(sum(h**2))
        yield h / length if length else h, w["classifier.weight"] @ h + w["classifier.bias"]


def penalty_by_hand(method, bag, candidates, *, phi):
    prototypes, losses = method.prototypes.numpy(), []
    for unit, logits in tile_by_tile(method, bag):
        total = sum(math.exp(logits[c]) for c in candidates)
        soft = {c: phi * math.exp(logits[c]) / total for c in candidates}
        if all(prototypes[c].any() for c in candidates):
            soft[max(candidates, key=lambda c, unit=unit: unit @ prototypes[c])] += 1 - phi
        else:
            soft = {c: s + (1 - phi) / len(candidates) for c, s in soft.items()}
        log_total = math.log(sum(math.exp(logit) for logit in logits))
        losses.append(-sum(s * (logits[c] - log_total) for c, s in soft.items()))
    return np.mean(losses)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("negative", "labels", "candidates"),
    [
        ("a", [True, False, False], [0]),
        ("a", [False, False, True], [0, 2]),
        ("b", [True, False, False], [0, 1]),
        (None, [False, True, False], [1]),
    ],
)
def test_the_instance_loss_equals_the_formula(known, negative, labels, candidates):
    method, bag = make_method(negative=negative, instance_weight=0.5), make_bag(11)
    if known:
        with_prototypes(method)
    step = make_step(index=4, total=10)
    output = method.training_output(Bags.pack([bag], torch.tensor([labels])), step)
    expected = 0.5 * penalty_by_hand(method, bag, candidates, phi=0.95 - 0.15 * 0.4)
    assert output.penalty.item() == pytest.approx(expected, abs=1e-12)
    mean = np.mean([logits for _, logits in tile_by_tile(method, bag)], axis=0)
    np.testing.assert_allclose(output.heads[0, 0].detach(), mean, rtol=0, atol=1e-12)
    assert output.weights.tolist() == [1]


def test_every_candidate_needs_a_prototype_before_any_counts():
    method, bag = make_method(negative="a"), make_bag(11)
    method.prototypes[0, 3] = 1
    labels = torch.tensor([[False, True, False]])
    output = method.training_output(Bags.pack([bag], labels), make_step())
    expected = penalty_by_hand(method, bag, [0, 1], phi=0.95)
    assert output.penalty.item() == pytest.approx(expected, abs=1e-12)


def test_prototypes_move_after_the_step_by_the_tiles_of_all_its_packs():
    method = with_prototypes(make_method(negative="a"))
    before = method.prototypes.numpy().copy()
    bags, candidates = [make_bag(9, seed=1), make_bag(5, seed=2)], [[0], [0, 1]]
    for bag, label in zip(bags, (0, 1), strict=True):
        method.training_output(Bags.pack([bag], one_hot(label)), make_step())
        assert np.array_equal(method.prototypes, before)  # not between forward and backward
    members = {0: [], 1: []}
    for bag, possible in zip(bags, candidates, strict=True):
        for unit, logits in tile_by_tile(method, bag):
            members[max(possible, key=lambda c, logits=logits: logits[c])].append(unit)
    assert all(members.values())
    expected = before.copy()
    for c, units in members.items():
        moved = 0.9 * before[c] + 0.1 * np.mean(units, axis=0)
        expected[c] = moved / math.sqrt(sum(moved**2))
    method.after_update(make_step())
    np.testing.assert_allclose(method.prototypes, expected, rtol=0, atol=1e-12)
    method.after_update(make_step())  # what a step has collected counts once
    np.testing.assert_allclose(method.prototypes, expected, rtol=0, atol=1e-12)


def test_replaying_a_step_moves_the_prototypes_no_further():
    """`two_passes` runs every pack twice: a mean does not mind."""
    once, twice = make_method(), make_method()
    bags = make_bags(9, 4, labels=one_hot(0, 2))
    for method, passes in ((once, 1), (twice, 2)):
        for _ in range(passes):
            method.training_output(bags, make_step())
        method.after_update(make_step())
    torch.testing.assert_close(once.prototypes, twice.prototypes, rtol=0, atol=1e-12)


def test_prototypes_are_in_the_checkpoint_but_not_trained():
    method = with_prototypes(make_method())
    assert torch.equal(method.state_dict()["prototypes"], method.prototypes)
    assert "prototypes" not in dict(method.named_parameters())


def test_without_classes_the_bag_constraint_is_all_there_is():
    method = make_method(outputs=1)
    output = method.training_output(make_bags(9, 3), make_step())
    assert output.heads.shape == (1, 2, 1)
    assert output.penalty.tolist() == [0, 0]
    method.after_update(make_step())
    assert not method.prototypes.any()


def test_a_negative_class_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="'d' is none of the task's classes a, b, c"):
        make_method(negative="d")


def test_several_labels_of_a_slide_are_no_classes_of_its_tiles():
    """A label that is no alternative to another says nothing of which tile has which."""
    method = build_method(InsConfig(hidden_dim=8, negative="a"), DIM, 2)
    labels = torch.tensor([[True, True], [False, False]])
    output = method.training_output(Bags.pack([make_bag(5).float()] * 2, labels), make_step())
    assert output.penalty.tolist() == [0, 0]


def test_tiles_learn_to_tell_apart_what_slide_labels_alone_reveal():
    """Positive slides hold a tenth of tiles shifted along one axis; no tile label is given."""
    torch.manual_seed(0)
    method = build_method(InsConfig(hidden_dim=16, negative="a"), DIM, 2, ("a", "b"))
    generator = torch.Generator().manual_seed(3)
    bags = [torch.randn(60, DIM, generator=generator) for _ in range(20)]
    for bag in bags[::2]:
        bag[:6, 0] += 6
    labels = one_hot(*([1, 0] * 10), outputs=2)
    optimizer = torch.optim.Adam(method.parameters(), lr=5e-3)
    for index in range(60):
        step = make_step(index=index, total=60)
        output = method.training_output(Bags.pack(bags, labels), step)
        task = torch.nn.functional.cross_entropy(output.heads[0], labels.long().argmax(dim=1))
        optimizer.zero_grad()
        (task + output.penalty.mean()).backward()
        optimizer.step()
        method.after_update(step)
    evidence = method.tile_logits(bags[0]) @ torch.tensor([-1.0, 1.0])
    assert evidence[:6].min() > evidence[6:].max()


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_methods_promises(pooling):
    method = make_method(pooling=pooling)
    assert_answers_are_sound(method, (1, 2, 7))
    assert_answers_are_sound(make_method(pooling=pooling, outputs=1), (1, 2, 7))
    assert_order_does_not_matter(method)
    assert_tile_logits_are_those_of_one_tile_bags(method)
    assert_packed_equals_one_by_one(
        with_prototypes(method), make_bags(5, 1, 12, labels=one_hot(0, 1, 2))
    )
    assert_packed_equals_one_by_one(make_method(pooling=pooling), make_bags(5, 1, 12))
    assert_gradients_reach(
        make_method(pooling=pooling),
        lambda seed: Bags.pack([make_bag(40, seed=seed)], one_hot(1)),
    )
    assert_bfloat16_is_finite(
        lambda: make_method(pooling=pooling),
        lambda n: make_bags(n, 3, labels=one_hot(0, 2)),
        (1, 2, 300),
    )
