"""What every method promises, and what masks must hold; values are in the golden tests."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mil.models.acmil import Acmil, stkim_draws
from mil.models.acmil_mha import AcmilMha
from mil.models.base import Bags, Step
from mil.models.build import build_method
from mil.models.config import (
    AbmilConfig,
    AcmilConfig,
    AcmilMhaConfig,
    ClamConfig,
    DsmilConfig,
    InsConfig,
    MaxConfig,
    MeanConfig,
    MethodConfig,
    MhimConfig,
    MhimDsmilConfig,
    MhimTransmilConfig,
    TransmilConfig,
)
from mil.models.mhim import Mhim
from mil.models.mhim_masks import MaskDraws

DIM, OUTPUTS, TOP_K = 12, 3, 10
SMALL = {"hidden_dim": 8, "attention_dim": 4}
NARROW = {"hidden_dim": 8}
V2 = {"preset": "v2", "mask_high": 0.2, "recycled_tokens": 2, "recycle_head_dim": 4}
CONFIGS = {
    "abmil-gated": AbmilConfig(**SMALL),
    "abmil-tanh-gelu": AbmilConfig(**SMALL, scoring="tanh", activation="gelu"),
    "abmil-relu-xavier": AbmilConfig(
        **SMALL, scoring="relu", attention_bias=False, embedding_bias=True, initialisation="xavier"
    ),
    "abmil-dropout": AbmilConfig(**SMALL, dropout=0.25),
    "acmil-count": AcmilConfig(**SMALL, top_k=TOP_K),
    "acmil-bernoulli": AcmilConfig(**SMALL, mode="bernoulli", drop=1.0),
    "acmil-everything-dropped": AcmilConfig(**SMALL, drop=1.0),
    "acmil-unmasked": AcmilConfig(**SMALL, drop=0.0, top_k=0),
    "acmil-one-branch": AcmilConfig(**SMALL, branches=1),
    "acmil-mha": AcmilMhaConfig(**NARROW, heads=4, top_k=TOP_K),
    "acmil-mha-one-branch": AcmilMhaConfig(**NARROW, heads=2, branches=1, mode="bernoulli"),
    "mhim": MhimConfig(**SMALL),
    "mhim-lr-ham": MhimConfig(
        **SMALL,
        mask_random=0.7,
        mask_low=0.2,
        mask_high=0.02,
        high_share=1.0,
        momentum_schedule="cosine",
    ),
    "mhim-unmasked": MhimConfig(
        **SMALL, mask_random=0.0, mask_high=0.0, teacher_dropout=True, consistency_weight=0.0
    ),
    "mhim-everything-masked": MhimConfig(**SMALL, mask_random=1.0, high_schedule="constant"),
    "mhim-v2": MhimConfig(**SMALL, **V2),
    "mhim-v2-merged": MhimConfig(**SMALL, **V2, merge_test=True, mask_random=0.3),
    "mhim-recycling-alone": MhimConfig(**SMALL, **V2 | {"mask_high": 0.0}, query_momentum=1.0),
    "mhim-transmil": MhimTransmilConfig(**NARROW),
    "mhim-transmil-v2": MhimTransmilConfig(**NARROW, **V2),
    "mhim-dsmil": MhimDsmilConfig(**NARROW, query_dim=4, consistency_weight=0.0),
    "mhim-dsmil-v2": MhimDsmilConfig(**NARROW, **V2, query_dim=4, merge_test=True),
    "transmil": TransmilConfig(**NARROW),
    "dsmil": DsmilConfig(**NARROW, query_dim=4),
    "mean": MeanConfig(**NARROW),
    "max": MaxConfig(**NARROW),
    "clam-sb": ClamConfig(**SMALL),
    "clam-mb": ClamConfig(**SMALL, multi_branch=True, subtyping=True),
    "ins": InsConfig(**NARROW),
}
TILES_HAVE_PLACES = {"transmil", "mhim_transmil"}
ATTENTION_OF_ITS_OWN = {"transmil", "mhim_transmil", "max"}


def built(name):
    torch.manual_seed(0)
    return build_method(CONFIGS[name], DIM, OUTPUTS)


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def method(config):
    torch.manual_seed(0)
    return build_method(config, DIM, OUTPUTS)


def make_bag(tiles, *, seed=0, dtype=torch.float32):
    return torch.randn(tiles, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_bags(*sizes, seed=0, dtype=torch.float32):
    """Bags of some sizes in one pack, bag i of class i modulo the classes."""
    bags = [make_bag(tiles, seed=seed + i, dtype=dtype) for i, tiles in enumerate(sizes)]
    classes = torch.arange(len(sizes)) % OUTPUTS
    return Bags.pack(bags, torch.nn.functional.one_hot(classes, OUTPUTS).bool())


def make_step(*, index=0, total=10, seed=0):
    return Step(index=index, total=total, generator=torch.Generator().manual_seed(seed))


def loss_of(output):
    """Heads by their weights, plus the penalty, with a task loss that depends on every logit."""
    per_head = output.heads.logsumexp(dim=2) - output.heads[:, :, 0]
    return (output.weights * per_head.mean(dim=1)).sum() + output.penalty.mean()


def under_equal_draws(method, bags, *, seed=0):
    """The output of a pack, and of its bags one by one, masks being drawn once."""
    generator = torch.Generator().manual_seed(seed)
    tiles = bags.tiles.split(bags.segments.sizes)
    singles = [
        Bags.pack([bag], labels[None]) for bag, labels in zip(tiles, bags.labels, strict=True)
    ]
    if isinstance(method, Mhim):
        draws = MaskDraws.draw(bags.segments, generator)
        split = zip(*(d.split(bags.segments.sizes) for d in vars(draws).values()), strict=True)
        own = [MaskDraws(*of_bag) for of_bag in split]
        packed = method.masked_output(bags, method.rules, draws)
        alone = zip(singles, own, strict=True)
        return packed, [method.masked_output(s, method.rules, d) for s, d in alone]
    if isinstance(method, (Acmil, AcmilMha)):
        rows = len(method(tiles[0]).scores)
        draws = stkim_draws(rows, bags.segments, top_k=method.top_k, generator=generator)
        own = [draws[:, i : i + 1, : len(bag)] for i, bag in enumerate(tiles)]
        packed = method.masked_output(bags, draws)
        return packed, [method.masked_output(s, d) for s, d in zip(singles, own, strict=True)]
    step = make_step(seed=seed)
    packed = method.training_output(bags, step)
    return packed, [method.training_output(single, step) for single in singles]


def gradients(method, loss):
    method.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


# --- every method


def test_every_method_is_tested_here():
    adapter = TypeAdapter(MethodConfig)
    known = adapter.json_schema()["discriminator"]["mapping"]
    assert {config.name for config in CONFIGS.values()} == set(known)


def test_forward_has_the_promised_shapes(method, config):
    for tiles in (1, 2, 7):
        output = method.eval()(make_bag(tiles))
        assert output.logits.shape == (OUTPUTS,)
        assert output.scores.shape[1] == tiles
        assert output.attention.shape == (tiles,)
        assert output.attention.min() >= 0
        assert output.attention.sum().item() == pytest.approx(1, abs=1e-6)
        if config.name not in ATTENTION_OF_ITS_OWN:
            mean = output.scores.softmax(dim=1).mean(dim=0)
            assert torch.allclose(output.attention, mean)


@pytest.mark.parametrize("tiles", [1, 2, TOP_K - 1, TOP_K, TOP_K + 1, 60])
def test_training_is_finite_at_every_bag_size(method, tiles):
    for seed, sizes in enumerate([(tiles,), (tiles, 3, tiles), (1, 70, tiles, 2)]):
        output = method.training_output(make_bags(*sizes, seed=seed), make_step(seed=seed))
        assert output.heads.shape == (len(output.weights), len(sizes), OUTPUTS)
        assert output.penalty.shape == (len(sizes),)
        loss = loss_of(output)
        grads = gradients(method, loss)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(grad).all() for grad in grads.values())


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=12)
@given(sizes=st.lists(st.integers(1, 25), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_a_pack_is_its_bags_one_by_one(name, sizes, seed):
    method = built(name).double().eval()  # no dropout
    bags = make_bags(*sizes, seed=seed % 1000, dtype=torch.float64)
    packed, singles = under_equal_draws(method, bags, seed=seed)
    heads = torch.cat([single.heads for single in singles], dim=1)
    assert torch.allclose(packed.heads, heads, atol=1e-10, rtol=0)
    penalty = torch.cat([single.penalty for single in singles])
    assert torch.allclose(packed.penalty, penalty, atol=1e-10, rtol=0)
    assert all(torch.equal(packed.weights, single.weights) for single in singles)
    ours = gradients(method, loss_of(packed))
    theirs = gradients(method, torch.stack([loss_of(single) for single in singles]).mean())
    assert ours.keys() == theirs.keys()
    for parameter, gradient in ours.items():
        assert torch.allclose(gradient, theirs[parameter], atol=1e-8, rtol=1e-6), parameter


@pytest.mark.parametrize("sizes", [(9, 9, 9), (5, 17, 8)])
def test_another_second_bag_changes_its_own_output_alone(method, sizes):
    method.double().eval()
    bags = make_bags(*sizes, dtype=torch.float64)
    other = list(bags.tiles.split(sizes))
    other[1] = make_bag(sizes[1], seed=99, dtype=torch.float64)
    before = method.training_output(bags, make_step())
    after = method.training_output(Bags.pack(other, bags.labels), make_step())
    for place in (0, 2):
        assert torch.allclose(after.heads[:, place], before.heads[:, place], atol=1e-12, rtol=0)
        assert torch.allclose(after.penalty[place], before.penalty[place], atol=1e-12, rtol=0)
    assert not torch.allclose(after.heads[:, 1], before.heads[:, 1])


def test_order_of_tiles_matters_where_they_have_places_alone(method, config):
    method.eval().double()
    bag = make_bag(23, dtype=torch.float64)
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(1))
    straight, shuffled = method(bag), method(bag[order])
    if config.name in TILES_HAVE_PLACES:
        assert not torch.allclose(shuffled.logits, straight.logits)
        return
    assert torch.allclose(shuffled.logits, straight.logits, atol=1e-12, rtol=0)
    assert torch.allclose(shuffled.attention, straight.attention[order], atol=1e-12, rtol=0)
    assert torch.allclose(shuffled.scores, straight.scores[:, order], atol=1e-12, rtol=0)


def test_attention_and_features_of_every_tile_count(method):
    method.eval().double()
    bag = make_bag(9, dtype=torch.float64)
    changed = bag.clone()
    changed[4] += 5
    assert not torch.allclose(method(changed).logits, method(bag).logits)


def test_tile_logits_equal_forward_on_one_tile_bags(method):
    method.eval().double()
    if isinstance(method, Mhim):
        method.merge_test = False  # a tile that is asked alone has no tokens beside it
    bag = make_bag(17, dtype=torch.float64)
    one_by_one = torch.stack([method(tile[None]).logits for tile in bag])
    assert torch.allclose(method.tile_logits(bag), one_by_one, atol=1e-12, rtol=0)


def test_gradients_reach_every_trained_parameter(method):
    one_tile_is_left = isinstance(method, Mhim) and method.rules.random == 1
    for seed in range(4):  # over a few masks, so that no ReLU unit is out of play throughout
        loss_of(method.training_output(make_bags(40, 30, 20), make_step(seed=seed))).backward()
    for name, parameter in method.named_parameters():
        if name.startswith("teacher."):
            assert not parameter.requires_grad
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        # softmax ignores a constant, and everything where one tile is left
        flat = name.endswith(("attention.w.bias", ".key.bias"))
        flat |= one_tile_is_left and ".attention." in name
        if not flat:
            assert parameter.grad.abs().max() > 0, name


def draws_matter(method):
    if isinstance(method, Mhim):
        rules = method.rules
        among_hard = rules.high > 0 and rules.high_share < 1
        return rules.random < 1 and (rules.random > 0 or among_hard or rules.keep_ratio < 1)
    return isinstance(method, (Acmil, AcmilMha)) and 0 < method.drop < 1


def test_a_step_is_determined_by_its_generator(method):
    bags = make_bags(50, 20)
    method.eval()  # dropout draws from the global generator

    def losses():
        return [
            loss_of(method.training_output(bags, make_step(seed=seed))).item() for seed in range(6)
        ]

    assert losses() == losses()
    assert (len(set(losses())) > 1) == draws_matter(method)


def test_drawing_masks_leaves_the_global_generator_alone(method):
    method.eval()
    before = torch.get_rng_state()
    method.training_output(make_bags(20, 5), make_step())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tiles", [1, 2, TOP_K, 300])
def test_bfloat16_stays_finite(method, tiles):
    method.to(torch.bfloat16)
    bags = make_bags(tiles, 4)
    bags = Bags((100 * bags.tiles).to(torch.bfloat16), bags.segments, bags.labels)
    output = method.training_output(bags, make_step())
    assert output.heads.dtype == torch.bfloat16
    loss = loss_of(output)
    grads = gradients(method, loss)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    output = method.eval()(bags.tiles[: bags.segments.sizes[0]])
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.scores).all()


@pytest.mark.parametrize("sizes", [(30,), (30, 7, 12)])
def test_autocast_training_stays_finite_and_near_full_precision(method, sizes):
    method.eval()
    bags = make_bags(*sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(method.training_output(bags, make_step()))
    grads = gradients(method, loss)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert all(grad.dtype == torch.float32 for grad in grads.values())


def test_weights_survive_a_checkpoint(method):
    bag = make_bag(11)
    before = method.eval()(bag).logits
    state = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1)
    assert not torch.equal(method(bag).logits, before)
    method.load_state_dict(state)
    assert torch.equal(method(bag).logits, before)


@pytest.mark.parametrize("shape", [(0, DIM), (3, DIM + 1), (2, 3, DIM), (DIM,)])
def test_what_is_no_bag_is_refused(method, shape):
    with pytest.raises(ValueError, match=r"expected a bag of shape \(tiles >= 1, 12\), got"):
        method(torch.zeros(shape))


def test_only_mhim_has_a_baseline(method):
    if isinstance(method, Mhim):
        assert method.baseline() is not None
    else:
        assert method.baseline() is None
        with pytest.raises(TypeError, match="no baseline stage"):
            method.adopt(method)


def test_the_method_is_chosen_by_name_and_survives_json():
    adapter = TypeAdapter(MethodConfig)
    for config in CONFIGS.values():
        assert adapter.validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="'abmil', 'acmil', 'acmil_mha', 'mhim'"):
        adapter.validate_python({"name": "abmill"})
    with pytest.raises(ValidationError, match=r"dropp[\s\S]*Extra inputs are not permitted"):
        adapter.validate_python({"name": "acmil", "dropp": 0.5})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        adapter.validate_python({"name": "mhim", "mask_low": 1.5})
