"""The training benchmark is fair: both sides compute the same, no more product is counted."""

import json

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mil.bench import train as bench
from mil.bench.plain import ClamFiles, PlainAcmil, PlainMhim, plain_step, write_clam_file
from mil.bench.products import bare_products, flops
from mil.cli import main
from mil.models.base import Bags, Step
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MhimConfig

TILES = 40
CPU = torch.device("cpu")
SHARED = {
    "embedding.weight": "embedding.linear.weight",
    "embedding.bias": "embedding.linear.bias",
    "V.weight": "attention.V.weight",
    "V.bias": "attention.V.bias",
    "U.weight": "attention.U.weight",
    "U.bias": "attention.U.bias",
    "w.weight": "attention.w.weight",
    "w.bias": "attention.w.bias",
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def bag():
    return torch.randn(TILES, bench.DIM, dtype=torch.float64)


def ours_in_their_names(weights, *, heads):
    """Our weights under the plain model's names."""
    names = SHARED | heads
    return {theirs: weights[ours] for theirs, ours in names.items() if ours in weights}


def acmil_heads(branches):
    heads = {f"slide_classifier.{p}": f"slide_classifier.{p}" for p in ("weight", "bias")}
    for i in range(branches if branches > 1 else 0):
        heads |= {
            f"branch_classifiers.{i}.{p}": f"branch_classifiers.{i}.{p}" for p in ("weight", "bias")
        }
    return heads


def our_loss(output, label):
    losses = [
        w * functional.cross_entropy(h, label)
        for w, h in zip(output.weights, output.heads, strict=True)
    ]
    return sum(losses) + output.penalty.mean()


def assert_same_step(ours, theirs, *, heads):
    """The gradients that both have just computed."""
    named = dict(ours.named_parameters())
    gradients = {name: p.grad for name, p in named.items()}
    expected = ours_in_their_names(gradients, heads=heads)
    assert expected.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-9, atol=1e-13), name


@pytest.mark.parametrize("name", ["abmil", "acmil"])
def test_the_plain_loop_computes_the_same(name):
    branches, top_k = (5, 10) if name == "acmil" else (1, 0)
    config = AcmilConfig() if name == "acmil" else AcmilConfig(branches=1, top_k=0)
    ours = build_method(config, bench.DIM, 2).double()
    theirs = PlainAcmil(bench.DIM, 2, branches=branches, top_k=top_k, drop=0.6).double()
    heads = acmil_heads(branches)
    theirs.load_state_dict(ours_in_their_names(ours.state_dict(), heads=heads))
    x, label, draws = bag(), torch.tensor([1]), torch.rand(branches, 1, top_k, dtype=torch.float64)
    loss = our_loss(ours.masked_output(Bags.pack([x]), draws), label)
    plain = theirs.loss(x, label, draws[:, 0])
    assert plain.item() == pytest.approx(loss.item(), rel=1e-12)
    loss.backward()
    plain.backward()
    assert_same_step(ours, theirs, heads=heads)


def test_abmil_is_acmil_of_one_branch():
    one_branch = build_method(AcmilConfig(branches=1, top_k=0), bench.DIM, 2).double().eval()
    abmil = build_method(AbmilConfig(), bench.DIM, 2).double().eval()
    weights = one_branch.state_dict()
    abmil.load_state_dict(
        {k.replace("slide_classifier", "classifier"): v for k, v in weights.items()}
    )
    x = bag()
    assert torch.allclose(abmil(x).logits, one_branch(x).logits, rtol=1e-12)


def test_plain_mhim_computes_the_same(monkeypatch):
    ours = build_method(MhimConfig(dropout=0.0), bench.DIM, 2).double().train()
    theirs = PlainMhim(bench.DIM, 2, random=0.5, high=0.01, share=0.5, dropout=0.0).double()
    heads = {f"classifier.{p}": f"classifier.{p}" for p in ("weight", "bias")}
    for part in ("student", "teacher"):
        weights = getattr(ours, part).state_dict()
        getattr(theirs, part).load_state_dict(ours_in_their_names(weights, heads=heads))
    x, label = bag(), torch.tensor([0])
    masked = torch.arange(TILES) % 2 == 0
    monkeypatch.setattr("mil.models.mhim.hard_tile_mask", lambda *_: masked)
    loss = our_loss(ours.training_output(Bags.pack([x]), Step(0, 1, torch.Generator())), label)
    plain = theirs.loss(x, label, set(masked.nonzero()[:, 0].tolist()))
    assert plain.item() == pytest.approx(loss.item(), rel=1e-12)
    loss.backward()
    plain.backward()
    assert_same_step(ours.student, theirs.student, heads=heads)


def test_plain_masks_hold_what_the_paper_says():
    plain = PlainMhim(bench.DIM, 2, random=0.5, high=0.1, share=0.5, dropout=0.0)
    for _ in range(20):
        masked = plain._masked(torch.arange(100.0))
        assert 50 <= len(masked) <= 60
        assert (
            10 <= len(masked & set(range(80, 100))) <= 20
        )  # half of the 20 hardest, and at random


def test_files_are_as_clam_writes_them(tmp_path):
    features = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    write_clam_file(features, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["features"].chunks == (1, 8)
        assert file["features"].maxshape == (None, 8)
        assert file["coords"].shape == (300, 2)
    read, label = ClamFiles([tmp_path / "a.h5"], [1])[0]
    assert label == 1
    assert np.array_equal(read.numpy(), features)


@pytest.mark.parametrize("name", ["abmil", "acmil", "mhim"])
def test_the_limit_counts_the_products_of_a_step(name):
    contest = bench.contests()[name]
    method = build_method(contest.config, bench.DIM, bench.OUTPUTS)
    tiles = 2000
    features = torch.randn(tiles, bench.DIM)
    with FlopCounterMode(display=False) as counter:
        step = Step(0, 1, torch.Generator().manual_seed(0))
        our_loss(method.training_output(Bags.pack([features]), step), torch.tensor([1])).backward()
    kept = None if contest.kept is None else round(tiles * contest.kept)
    assert counter.get_total_flops() == pytest.approx(flops(tiles, kept, contest.widths), rel=0.02)
    bare_products(50, None if kept is None else 25, contest.widths, CPU)()


def test_a_plain_step_trains():
    model = PlainAcmil(bench.DIM, 2, branches=5, top_k=10, drop=0.6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = bag().float()[None], torch.tensor([1])
    losses = [plain_step(model, optimizer, batch) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_the_command_prints_every_field(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZES", {"": (60, 2, 1), "_1k": (20, 4, 2)})
    assert main(["bench", "train", "--json", "--repeats", "1", "--device", "cpu"]) == 0
    record = json.loads(capsys.readouterr().out)
    for name in ("abmil", "acmil", "mhim"):
        assert {f"{name}_ratio", f"{name}_ratio_1k", f"{name}_vs_gemm"} <= record.keys()
    assert all(value > 0 for value in record.values())
    assert main(["bench", "train", "--repeats", "1", "--device", "cpu"]) == 0
    assert "step / products" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "faster"), [("abmil", 1.15), ("acmil", 1.15), ("mhim", 1.5)])
def test_training_is_faster_than_the_plain_loop(name, faster):
    """Less than what is claimed, of the least time of each side: other work adds to the others."""
    measured = bench.measure(name, 10_000, 2, 1, device="cpu", repeats=5)
    least = {side: min(turns) for side, turns in measured.seconds.items()}
    assert least["plain"] / least["ours"] > faster, measured
    assert least["ours"] / least["products"] < 1.5, measured
