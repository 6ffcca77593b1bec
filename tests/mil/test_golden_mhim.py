"""MHIM v1 on ABMIL against arrays of the published implementation (float64, dropout off)."""

import re

import numpy as np
import pytest
import torch
from golden_arrays import assert_close, read_golden, tensor
from torch.nn import functional

from mil.models.abmil import Abmil
from mil.models.base import Bags, Step
from mil.models.mhim import Mhim, cosine_schedule
from mil.models.mhim_masks import MaskDraws, MaskRules, hard_tile_mask, part_tiles
from mil.models.segments import Segments

WEIGHTS = {
    "embedding.linear.weight": "emb_w",
    "embedding.linear.bias": "emb_b",
    "attention.V.weight": "att_1_w",
    "attention.w.weight": "att_2_w",
    "classifier.weight": "cls_w",
    "classifier.bias": "cls_b",
}


@pytest.fixture
def arrays(shared):
    return read_golden(shared, "mhim_v1_abmil.npz")


@pytest.fixture
def bags(arrays):
    """(setting, prefix) of every golden bag: ('HAM', 'HAM_N50_'), ..."""
    matches = (re.fullmatch(r"(.+)_N(\d+)_x", name) for name in arrays)
    found = [(m[1], f"{m[1]}_N{m[2]}_") for m in matches if m]
    assert found
    return found


def weights(arrays, prefix):
    return {ours: tensor(arrays[prefix + name]) for ours, name in WEIGHTS.items()}


def build(arrays, setting, prefix):
    """The method of one setting; temperatures and momentum are the paper's."""
    cfg = {
        name.removeprefix(f"{setting}_cfg_"): value
        for name, value in arrays.items()
        if name.startswith(f"{setting}_cfg_")
    }
    hidden_dim, dim = arrays[f"{setting}_student_emb_w"].shape
    student = Abmil(
        dim,
        len(arrays[f"{setting}_student_cls_w"]),
        hidden_dim=hidden_dim,
        attention_dim=len(arrays[f"{setting}_student_att_1_w"]),
        scoring="relu",
        activation="relu",
        embedding_bias=True,
        attention_bias=False,
        dropout=0.0,
        initialisation="xavier",
    ).double()
    method = Mhim(
        student,
        rules=MaskRules(
            random=float(cfg.get("mask_ratio", 0.0)),
            low=float(cfg.get("mask_ratio_l", 0.0)),
            high=float(cfg.get("mask_ratio_h", 0.0)),
            high_share=float(cfg.get("mask_ratio_hr", 1.0)),
        ),
        high_schedule="cosine" if "mrh_sche" in cfg else "constant",
        consistency_weight=float(arrays[f"{prefix}alpha"]),
        student_temperature=1.0,
        teacher_temperature=0.1,
        momentum=0.9999,
        momentum_schedule="constant",
        teacher_dropout=False,
        score="attention",
        student_init="embedding",
        recycle=None,
        merge_test=False,
    )
    method.student.load_state_dict(weights(arrays, f"{setting}_student_"))
    method.teacher.load_state_dict(weights(arrays, f"{setting}_teacher_"))
    return method, cfg


def first_in_order(permutation, order):
    """Draws of every tile, such that tile order[permutation[j]] has the j-th smallest."""
    draws = torch.ones(len(order), dtype=torch.float64)
    draws[order[tensor(permutation)]] = torch.linspace(0, 0.5, len(permutation)).double()
    return draws


def rules_and_draws(method, cfg, arrays, prefix):
    """Golden permutations are of ranks: from the lowest score (random), from the highest (high)."""
    total = len(cfg["mrh_sche"]) if "mrh_sche" in cfg else 1
    rules = method.rules_at(int(arrays[f"{prefix}iteration"]), total)
    scores = tensor(arrays[f"{prefix}teacher_attn"])[0]
    tiles = len(scores)
    candidates = int(rules.high_candidates(torch.tensor(tiles)))
    # a permutation is absent where the rule takes none or all of its candidates
    random = arrays.get(f"{prefix}perm_random", np.arange(tiles))
    high = arrays.get(f"{prefix}perm_high", np.arange(candidates))
    assert len(high) == candidates
    return rules, MaskDraws(
        random=first_in_order(random, scores.argsort()),
        high=first_in_order(high, scores.argsort(descending=True)),
        keep=torch.zeros(tiles),
    )


def encode(model, bag):
    return model.encode(model.embedding(bag), Segments.one(bag))


def test_teacher_and_masks_equal_the_golden_arrays(arrays, bags):
    for setting, prefix in bags:
        method, cfg = build(arrays, setting, prefix)
        bag = tensor(arrays[f"{prefix}x"])
        teacher = encode(method.teacher, bag)
        assert_close(teacher.features[0], arrays[f"{prefix}teacher_feat"], f"{prefix}teacher_feat")
        attention = method.teacher(bag).attention[None]
        assert_close(attention, arrays[f"{prefix}teacher_attn"], f"{prefix}teacher_attn")
        rules, draws = rules_and_draws(method, cfg, arrays, prefix)
        assert_close(rules.high, arrays[f"{prefix}mask_ratio_h_used"], f"{prefix}ratio")
        segments = Segments.one(bag)
        masked = hard_tile_mask(method.hardness(teacher), segments, rules, draws)
        assert masked.nonzero()[:, 0].tolist() == arrays[f"{prefix}masked_ids"].tolist(), prefix
        parts = part_tiles(masked, segments, rules, draws)
        assert parts.kept.tolist() == arrays[f"{prefix}keep_ids"].tolist(), prefix
        assert (parts.recycled.tolist(), parts.recycled_sizes) == ([], [0])


def test_student_losses_and_inference_equal_the_golden_arrays(arrays, bags):
    for setting, prefix in bags:
        method, cfg = build(arrays, setting, prefix)
        bag, label = tensor(arrays[f"{prefix}x"]), tensor(arrays[f"{prefix}label"])[None]
        rules, draws = rules_and_draws(method, cfg, arrays, prefix)
        output = method.masked_output(Bags.pack([bag]), rules, draws)
        assert output.weights.tolist() == [1.0]
        assert_close(output.heads[0], arrays[f"{prefix}student_logits"], f"{prefix}student_logits")
        task_loss = functional.cross_entropy(output.heads[0], label)
        assert_close(task_loss, arrays[f"{prefix}loss_ce"], f"{prefix}loss_ce")
        consistency = output.penalty[0] / float(arrays[f"{prefix}alpha"])
        assert_close(consistency, arrays[f"{prefix}loss_cons"], f"{prefix}loss_cons")
        total = task_loss + output.penalty[0]
        assert_close(total, arrays[f"{prefix}loss_total"], f"{prefix}loss_total")
        inference = method.eval()(bag).logits[None]
        assert_close(inference, arrays[f"{prefix}test_logits"], f"{prefix}test_logits")


def test_bags_in_one_pack_have_the_golden_logits_and_penalties(arrays, bags):
    for setting in {setting for setting, _ in bags}:
        prefixes = [prefix for s, prefix in bags if s == setting]
        assert len(prefixes) > 1
        method, cfg = build(arrays, setting, prefixes[0])
        pack = Bags.pack([tensor(arrays[f"{prefix}x"]) for prefix in prefixes])
        both = [rules_and_draws(method, cfg, arrays, prefix) for prefix in prefixes]
        assert both[0][0] == both[-1][0]
        draws = MaskDraws(
            *(torch.cat([vars(d)[rule] for _, d in both]) for rule in vars(both[0][1]))
        )
        output = method.masked_output(pack, both[0][0], draws)
        for place, prefix in enumerate(prefixes):
            logits = arrays[f"{prefix}student_logits"][0]
            assert_close(output.heads[0, place], logits, f"{prefix}student_logits")
            consistency = output.penalty[place] / float(arrays[f"{prefix}alpha"])
            assert_close(consistency, arrays[f"{prefix}loss_cons"], f"{prefix}loss_cons")


def test_gradients_one_adam_step_and_ema_equal_the_golden_arrays(arrays, bags):
    stepped = [(s, prefix) for s, prefix in bags if f"{prefix}grad_emb_w" in arrays]
    assert stepped
    for setting, prefix in stepped:
        method, cfg = build(arrays, setting, prefix)
        # the published optimiser; the teacher is among the parameters, and must not move by it
        adam = torch.optim.Adam(method.parameters(), lr=2e-4, weight_decay=1e-5)
        bag, label = tensor(arrays[f"{prefix}x"]), tensor(arrays[f"{prefix}label"])[None]
        rules, draws = rules_and_draws(method, cfg, arrays, prefix)
        output = method.masked_output(Bags.pack([bag]), rules, draws)
        (functional.cross_entropy(output.heads[0], label) + output.penalty[0]).backward()
        student = dict(method.student.named_parameters())
        for ours, name in WEIGHTS.items():
            assert_close(student[ours].grad, arrays[f"{prefix}grad_{name}"], f"{prefix}{name}")
        adam.step()
        method.after_update(Step(index=0, total=1, generator=torch.Generator()))
        teacher = dict(method.teacher.named_parameters())
        for ours, name in WEIGHTS.items():
            after = arrays[f"{prefix}student_after_{name}"]
            assert_close(student[ours], after, f"{prefix}student_after_{name}")
            after = arrays[f"{prefix}teacher_after_{name}"]
            assert_close(teacher[ours], after, f"{prefix}teacher_after_{name}")
            assert teacher[ours].grad is None


def test_recorded_mask_schedules_are_the_cosine(arrays):
    recorded = [name for name in arrays if name.endswith("_cfg_mrh_sche")]
    assert recorded
    for name in recorded:
        start = float(arrays[name.replace("mrh_sche", "mask_ratio_h")])
        total = len(arrays[name])
        ours = [cosine_schedule(start, 0.0, index=i, total=total) for i in range(total)]
        assert_close(np.array(ours), arrays[name], name)


def test_cosine_schedules_equal_the_golden_arrays(shared):
    """Names say start, end and length: mask_ratio_h_0p02_to_0_T70."""
    with np.load(shared / "golden" / "schedules.npz") as archive:
        schedules = dict(archive)
    assert schedules
    for name, golden in schedules.items():
        match = re.fullmatch(r".+_([\dp]+)_to_([\dp]+)_T(\d+)", name)
        assert match, name
        start, end = (float(text.replace("p", ".")) for text in match.group(1, 2))
        total = int(match[3])
        assert len(golden) == total
        ours = [cosine_schedule(start, end, index=i, total=total) for i in range(total)]
        assert_close(np.array(ours), golden, name)
