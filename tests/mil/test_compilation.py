"""Compiled networks train to the answers of plain ones, and a killed training is still exact."""

import pytest
import torch
from test_resume import Interrupted, dying, interrupt
from test_train import DIM, changed, copied, make_part, train
from torch import nn

from mil.bags import CohortFeatures
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MhimConfig
from mil.training.train import answer
from preprocessing.errors import ConfigError

# torch's own, where it looks at the tensor between two compiled networks
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
SMALL = {"hidden_dim": 8, "attention_dim": 4}
METHODS = {
    "abmil": AbmilConfig(**SMALL, dropout=0.0),
    "acmil": AcmilConfig(**SMALL, dropout=0.0),
    "mhim": MhimConfig(**SMALL, dropout=0.0, mask_high=0.2),
}


def trained(folder, config, *, compiled: bool):
    part, task = make_part(10, seed=0)
    torch.manual_seed(3)
    method = build_method(config, DIM, 2)
    train(method, task, part, folder, config=changed(epochs=3, compile=compiled))
    return method


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_compiled_networks_train_to_the_plain_answers(compiler, tmp_path, name):
    """Answers and not weights: an attention's bias has no gradient but rounding."""
    part, _ = make_part(10, seed=0)
    plain = answer(trained(tmp_path / "plain", METHODS[name], compiled=False), part)
    compiled = answer(trained(tmp_path / "compiled", METHODS[name], compiled=True), part)
    assert plain.std() > 0.01
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_training_that_was_interrupted_ends_with_the_same_weights(
    compiler, tmp_path, monkeypatch
):
    config = AbmilConfig(**SMALL, dropout=0.5)
    whole = copied(trained(tmp_path / "whole", config, compiled=True))
    with monkeypatch.context() as patch:
        patch.setattr(CohortFeatures, "stored", dying(13, interrupt))
        with pytest.raises(Interrupted):
            trained(tmp_path / "resumed", config, compiled=True)
    resumed = copied(trained(tmp_path / "resumed", config, compiled=True))
    for key, tensor in whole.items():
        assert torch.equal(tensor, resumed[key]), key


def test_the_networks_of_teacher_and_student_are_compiled_but_no_method_is(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__)
    )
    monkeypatch.setattr(torch, "compile", lambda call: call)
    trained(tmp_path, METHODS["mhim"], compiled=True)
    networks = ["Embedding", "AttentionScores", "Linear"]
    assert compiled == [*networks, *networks, *networks]  # the baseline, then teacher and student


def test_what_cannot_be_compiled_is_refused_before_training(tmp_path, monkeypatch):
    def without_compiler(call):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", without_compiler)
    with pytest.raises(ConfigError, match=r"train.compile: true.*cpu.*No working C\+\+ compiler"):
        trained(tmp_path, METHODS["abmil"], compiled=True)
