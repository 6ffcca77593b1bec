"""ACMIL, gated and multi-head: when it masks, how its heads weigh, and how attention starts."""

import pytest
import torch
from pydantic import ValidationError

from mil.models.base import Bags, Step
from mil.models.build import build_method
from mil.models.config import AcmilConfig, AcmilMhaConfig

DIM, OUTPUTS = 12, 3
SMALL = {"hidden_dim": 8, "attention_dim": 4}
NARROW = {"hidden_dim": 8}


def make_bags(*sizes):
    generator = torch.Generator().manual_seed(0)
    return Bags.pack([torch.randn(tiles, DIM, generator=generator) for tiles in sizes])


def make_step():
    return Step(index=0, total=10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("config", [AcmilConfig(**SMALL), AcmilMhaConfig(**NARROW)])
def test_stkim_acts_in_training_output_alone(config):
    torch.manual_seed(0)
    method = build_method(config, DIM, OUTPUTS)
    bags = make_bags(30)
    method.eval()  # no dropout
    evaluating = method(bags.tiles)
    assert torch.isfinite(evaluating.scores).all()
    assert (evaluating.attention > 0).all()
    masked = method.training_output(bags, make_step()).heads[0, 0]
    assert not torch.allclose(masked, evaluating.logits)
    if isinstance(config, AcmilConfig):  # which has no dropout by default
        training = method.train()(bags.tiles)
        assert torch.equal(training.logits, evaluating.logits)
        assert torch.equal(training.scores, evaluating.scores)


@pytest.mark.parametrize(
    "config", [AcmilConfig(**SMALL, branches=4), AcmilMhaConfig(**NARROW, branches=4)]
)
def test_acmil_heads_weigh_one_for_the_slide_and_one_for_all_branches(config):
    torch.manual_seed(0)
    output = build_method(config, DIM, OUTPUTS).training_output(make_bags(30, 8), make_step())
    assert output.weights.tolist() == [1, 0.25, 0.25, 0.25, 0.25]
    assert ((output.penalty > 0) & (output.penalty <= 1)).all()
    alone = build_method(config.model_copy(update={"branches": 1}), DIM, OUTPUTS)
    output = alone.training_output(make_bags(30, 8), make_step())
    assert output.weights.tolist() == [1]
    assert output.penalty.tolist() == [0, 0]


def test_multi_head_branches_start_with_nearly_even_attention():
    """Published: between 0.0086 and 0.0115 for 100 tiles, as queries start at almost nothing."""
    torch.manual_seed(0)
    attention = build_method(AcmilMhaConfig(), 1024, 2).eval()(torch.randn(100, 1024)).attention
    assert 0.008 < attention.min() < attention.max() < 0.0125


def test_heads_that_cannot_share_the_embedding_are_refused():
    with pytest.raises(ValidationError, match="heads: 8 does not divide hidden_dim: 12"):
        AcmilMhaConfig(hidden_dim=12)
    with pytest.raises(ValidationError, match="heads: 3 does not divide hidden_dim: 512"):
        AcmilMhaConfig(heads=3)
