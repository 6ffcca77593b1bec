"""What every method promises, and what masks must hold; values are in the golden tests."""

import copy

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mil.models.acmil import Acmil
from mil.models.base import Step
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MethodConfig, MhimConfig
from mil.models.mhim import Mhim

DIM, OUTPUTS, TOP_K = 12, 3, 10
SMALL = {"hidden_dim": 8, "attention_dim": 4}
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
    "mhim": MhimConfig(**SMALL),
    "mhim-lr-ham": MhimConfig(
        **SMALL,
        mask_random=0.7,
        mask_low=0.2,
        mask_high=0.02,
        high_share=1.0,
        momentum_schedule="cosine",
    ),
    "mhim-unmasked": MhimConfig(**SMALL, mask_random=0.0, mask_high=0.0, teacher_dropout=True),
    "mhim-everything-masked": MhimConfig(**SMALL, mask_random=1.0, high_schedule="constant"),
}


@pytest.fixture(params=CONFIGS)
def method(request):
    torch.manual_seed(0)
    return build_method(CONFIGS[request.param], DIM, OUTPUTS)


def make_bag(tiles, *, seed=0, dtype=torch.float32):
    return torch.randn(tiles, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_step(*, index=0, total=10, seed=0):
    return Step(index=index, total=total, generator=torch.Generator().manual_seed(seed))


def loss_of(output):
    """Heads by their weights, plus the penalty, with a task loss that depends on every logit."""
    per_head = output.heads.logsumexp(dim=1) - output.heads[:, 0]
    return (output.weights * per_head).sum() + output.penalty


# --- every method


def test_forward_has_the_promised_shapes(method):
    for tiles in (1, 2, 7):
        output = method.eval()(make_bag(tiles))
        assert output.logits.shape == (OUTPUTS,)
        assert output.scores.shape[1] == tiles
        assert output.attention.shape == (tiles,)
        assert output.attention.sum().item() == pytest.approx(1, abs=1e-6)
        mean = output.scores.softmax(dim=1).mean(dim=0)
        assert torch.allclose(output.attention, mean)


@pytest.mark.parametrize("tiles", [1, 2, TOP_K - 1, TOP_K, TOP_K + 1, 60])
def test_training_is_finite_at_every_bag_size(method, tiles):
    for seed in range(3):
        method.zero_grad()
        output = method.training_output(make_bag(tiles, seed=seed), make_step(seed=seed))
        assert output.heads.shape == (len(output.weights), OUTPUTS)
        assert output.penalty.shape == ()
        loss = loss_of(output)
        loss.backward()
        assert torch.isfinite(loss)
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_order_of_tiles_does_not_matter(method):
    method.eval().double()
    bag = make_bag(23, dtype=torch.float64)
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(1))
    straight, shuffled = method(bag), method(bag[order])
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
    bag = make_bag(17, dtype=torch.float64)
    one_by_one = torch.stack([method(tile[None]).logits for tile in bag])
    assert torch.allclose(method.tile_logits(bag), one_by_one, atol=1e-12, rtol=0)


def test_gradients_reach_every_trained_parameter(method):
    bag = make_bag(40)
    one_tile_is_left = isinstance(method, Mhim) and method.rules.random == 1
    for seed in range(4):  # over a few masks, so that no ReLU unit is out of play throughout
        loss_of(method.training_output(bag, make_step(seed=seed))).backward()
    for name, parameter in method.named_parameters():
        if name.startswith("teacher."):
            assert not parameter.requires_grad
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        # softmax ignores a constant, and everything where one tile is left
        flat = name.endswith("attention.w.bias") or (one_tile_is_left and ".attention." in name)
        if not flat:
            assert parameter.grad.abs().max() > 0, name


def test_a_step_is_determined_by_its_generator(method):
    bag = make_bag(50)
    method.eval()  # dropout draws from the global generator

    def losses():
        return [
            loss_of(method.training_output(bag, make_step(seed=seed))).item() for seed in range(6)
        ]

    assert losses() == losses()
    share = {Mhim: lambda: method.rules.random, Acmil: lambda: method.drop}
    draws_matter = 0 < share.get(type(method), lambda: 0.0)() < 1
    assert (len(set(losses())) > 1) == draws_matter


def test_drawing_masks_leaves_the_global_generator_alone(method):
    method.eval()
    before = torch.get_rng_state()
    method.training_output(make_bag(20), make_step())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tiles", [1, 2, TOP_K, 300])
def test_bfloat16_stays_finite(method, tiles):
    method.to(torch.bfloat16)
    bag = (100 * make_bag(tiles)).to(torch.bfloat16)
    loss = loss_of(method.training_output(bag, make_step()))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    output = method.eval()(bag)
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.scores).all()


def test_autocast_training_stays_finite(method):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(method.training_output(make_bag(30), make_step()))
    loss.backward()
    assert torch.isfinite(loss)


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


# --- parameters and configuration


@pytest.mark.parametrize(
    ("config", "expected"),
    [(AbmilConfig(), 656_771), (AcmilConfig(), 662_417), (AcmilConfig(branches=1), 656_771)],
)
def test_parameter_counts_are_the_published_ones(config, expected):
    method = build_method(config, 1024, 2)
    assert sum(p.numel() for p in method.parameters()) == expected


def test_mhim_trains_the_published_number_of_parameters():
    method = build_method(MhimConfig(), 1024, 2)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 591_490
    assert sum(p.numel() for p in method.parameters()) == 2 * 591_490


def test_the_method_is_chosen_by_name_and_survives_json():
    adapter = TypeAdapter(MethodConfig)
    for config in CONFIGS.values():
        assert adapter.validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="'abmil', 'acmil', 'mhim'"):
        adapter.validate_python({"name": "abmill"})
    with pytest.raises(ValidationError, match=r"dropp[\s\S]*Extra inputs are not permitted"):
        adapter.validate_python({"name": "acmil", "dropp": 0.5})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        adapter.validate_python({"name": "mhim", "mask_low": 1.5})


# --- ACMIL


def test_stkim_acts_in_training_output_alone():
    torch.manual_seed(0)
    method = build_method(AcmilConfig(**SMALL), DIM, OUTPUTS)
    bag = make_bag(30)
    training, evaluating = method.train()(bag), method.eval()(bag)
    assert torch.equal(training.logits, evaluating.logits)
    assert torch.isfinite(training.scores).all()
    assert (training.attention > 0).all()
    masked = method.training_output(bag, make_step()).heads[0]
    assert not torch.allclose(masked, evaluating.logits)


def test_acmil_heads_weigh_one_for_the_slide_and_one_for_all_branches():
    torch.manual_seed(0)
    output = build_method(AcmilConfig(**SMALL, branches=4), DIM, OUTPUTS).training_output(
        make_bag(30), make_step()
    )
    assert output.weights.tolist() == [1, 0.25, 0.25, 0.25, 0.25]
    assert 0 < output.penalty <= 1
    one = build_method(AcmilConfig(**SMALL, branches=1), DIM, OUTPUTS)
    output = one.training_output(make_bag(30), make_step())
    assert output.weights.tolist() == [1]
    assert output.penalty == 0
