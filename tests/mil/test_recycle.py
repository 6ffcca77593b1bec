"""MHIM v2's recycled tokens: where they go, when their queries move, what inference does."""

import copy
import inspect

import pytest
import torch
from mhim_fakes import SMALL, V2, build, make_bag, make_step, training_output

from mil.models.config import MhimConfig, MhimDsmilConfig, MhimTransmilConfig
from mil.models.mhim import Mhim
from mil.models.mhim_masks import MaskRules
from mil.models.segments import Segments

BASES = {
    "abmil": MhimConfig(**SMALL, **V2, merge_test=True),
    "transmil": MhimTransmilConfig(hidden_dim=8, **V2, merge_test=True),
    "dsmil": MhimDsmilConfig(hidden_dim=8, query_dim=4, **V2, merge_test=True),
}


@pytest.fixture
def second():
    """MHIM v2 without dropout, whose queries move fast enough to see."""
    return build(MhimConfig(**SMALL, **V2, query_momentum=0.5))


def test_student_encodes_kept_tiles_and_then_its_bags_tokens(second):
    """20 tiles: 4 masked, 12 stay, 4 become 2 tokens; 1 tile stays alone, without tokens."""
    seen = []
    encode = second.student.encode
    second.student.encode = lambda embedded, segments: (
        seen.append((embedded, segments)) or encode(embedded, segments)
    )
    tokens = []
    second.recycle.register_forward_hook(lambda _m, _args, out: tokens.append(out))
    training_output(second, make_bag(20), make_bag(1, seed=1), make_bag(20, seed=2))
    ((embedded, segments),) = seen
    assert segments.sizes == (14, 1, 14)
    assert torch.equal(embedded[12:14], tokens[0][0])
    assert torch.equal(embedded[27:29], tokens[0][1])
    lone = second.student.embedding(make_bag(1, seed=1))[0]
    assert torch.allclose(embedded[14], lone, atol=1e-6)


def test_queries_move_after_the_update_by_the_mean_token_of_the_steps_bags(second):
    tokens = []
    second.recycle.register_forward_hook(lambda _m, _args, out: tokens.append(out.detach()))
    before = second.recycle.queries.clone()
    bags = [make_bag(20), make_bag(33, seed=1), make_bag(8, seed=2)]
    training_output(second, *bags).heads.sum().backward()
    assert torch.equal(second.recycle.queries, before)
    second.after_update(make_step())
    expected = 0.5 * before + 0.5 * tokens[0].mean(dim=0)
    assert torch.allclose(second.recycle.queries, expected, atol=1e-7)
    assert not second.recycle.queries.requires_grad
    moved = second.recycle.queries.clone()
    second.after_update(make_step())  # nothing was noted since
    assert torch.equal(second.recycle.queries, moved)
    training_output(second, *bags)
    second.after_update(make_step())
    expected = 0.5 * moved + 0.5 * tokens[1].mean(dim=0)
    assert torch.allclose(second.recycle.queries, expected, atol=1e-7)
    moved = second.recycle.queries.clone()
    training_output(second.eval(), *bags)  # looks at the loss, but does not train
    second.after_update(make_step())
    assert torch.equal(second.recycle.queries, moved)


@pytest.mark.parametrize("times", [1, 2])
def test_queries_move_alike_in_packs_of_one_and_where_a_step_is_replayed(second, times):
    bags = [make_bag(20), make_bag(20, seed=1)]
    other = copy.deepcopy(second)
    for _ in range(times):
        for bag in bags:
            training_output(second, bag)
    second.after_update(make_step())
    for bag in bags:
        training_output(other, bag)
    other.after_update(make_step())
    assert torch.allclose(second.recycle.queries, other.recycle.queries, atol=1e-7)


def test_the_gradient_does_not_depend_on_how_fast_queries_move():
    grads = []
    for momentum in (0.0, 0.9999, 1.0):
        method = build(MhimConfig(**SMALL, **V2, query_momentum=momentum))
        output = training_output(method, make_bag(30))
        (output.heads.logsumexp(dim=2).sum() + output.penalty.sum()).backward()
        grads.append(method.recycle.norm.weight.grad)
    assert grads[0].abs().max() > 0
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_checkpoints_hold_the_queries(second):
    training_output(second, make_bag(20))
    second.after_update(make_step())
    other = build(MhimConfig(**SMALL, **V2))
    assert not torch.equal(other.recycle.queries, second.recycle.queries)
    other.load_state_dict(second.state_dict())
    assert torch.equal(other.recycle.queries, second.recycle.queries)


@pytest.mark.parametrize("base", BASES)
def test_tokens_at_inference_are_of_all_tiles_and_leave_the_queries_alone(base):
    method = build(BASES[base])
    bag = make_bag(30)
    before = method.recycle.queries.clone()
    method(bag)  # in training mode: neither masked nor noted
    method.after_update(make_step())
    assert torch.equal(method.recycle.queries, before)
    merged, plain = method.eval()(bag), method.student(bag)
    assert torch.equal(method(bag).logits, merged.logits)
    assert torch.equal(merged.attention, plain.attention)
    assert torch.equal(merged.scores, plain.scores)
    assert not torch.allclose(merged.logits, plain.logits, atol=1e-4)
    embedded = method.student.embedding(bag)
    tokens = method.recycle(embedded, Segments.one(embedded))[0]
    # a student whose embedding hands on all of this, for a bag of as many tiles
    method.student.embedding.forward = lambda _: torch.cat([embedded, tokens])
    expected = method.student(make_bag(30 + len(tokens))).logits
    assert torch.allclose(merged.logits, expected, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_every_base_answers_with_its_heads_by_their_weights(base):
    """On which the answer with recycled tokens at inference rests."""
    student = build(BASES[base]).eval().student
    bag = make_bag(30)
    output = student.encode(student.embedding(bag), Segments.one(bag)).output
    weights = output.weights / output.weights.sum()
    expected = (weights[:, None] * output.heads[:, 0]).sum(dim=0)
    assert torch.allclose(student(bag).logits, expected, atol=1e-6)


def test_recycling_without_a_network_is_refused(second):
    needed = inspect.signature(Mhim).parameters.keys() & vars(second).keys()
    options = {name: getattr(second, name) for name in needed - {"rules", "recycle", "merge_test"}}
    rules = MaskRules(0, 0, 0.1, 1, keep_ratio=0.8)
    with pytest.raises(ValueError, match=r"keep_ratio 0\.8 and merge_test False need a recycle"):
        Mhim(second.baseline(), rules=rules, recycle=None, merge_test=False, **options)
