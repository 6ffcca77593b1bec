"""Presets of methods: published values fill what a section does not write, and nothing else."""

import re

import pytest
from pydantic import TypeAdapter, ValidationError

from mil.models.config import MethodConfig
from mil.models.presets import PRESETS

METHODS = TypeAdapter(MethodConfig)
ALL = [(method, preset) for method, presets in PRESETS.items() for preset in presets]

# beta_r, beta_l, beta_h, hr, alpha, momentum schedule of the released MHIM commands
MHIM_TABLE = {
    ("mhim", "camelyon16"): (0.5, 0, 0.01, 0.5, 0.1, "constant"),
    ("mhim_dsmil", "camelyon16"): (0.5, 0, 0.01, 0.5, 0.1, "constant"),
    ("mhim", "tcga"): (0.7, 0.2, 0.02, 1, 0.5, "cosine"),
    ("mhim_dsmil", "tcga"): (0.7, 0.2, 0.02, 1, 0.5, "cosine"),
    ("mhim_transmil", "camelyon16"): (0, 0.8, 0.03, 0.5, 0.1, "cosine"),
    ("mhim_transmil", "tcga"): (0.6, 0.2, 0.02, 1, 0.5, "constant"),
}
MHIM_KEYS = (
    "mask_random",
    "mask_low",
    "mask_high",
    "high_share",
    "consistency_weight",
    "momentum_schedule",
)


@pytest.mark.parametrize(("method", "preset"), ALL)
def test_a_preset_fills_every_key_that_it_names_and_no_other(method, preset):
    plain = METHODS.validate_python({"name": method}).model_dump()
    filled = METHODS.validate_python({"name": method, "preset": preset}).model_dump()
    values = {**PRESETS[method][preset], "preset": preset}
    assert {key: filled[key] for key in values} == values
    rest = plain.keys() - values.keys()
    assert {key: filled[key] for key in rest} == {key: plain[key] for key in rest}


@pytest.mark.parametrize(("method", "preset"), ALL)
def test_what_is_written_has_the_last_word_and_the_resolved_section_stands_alone(method, preset):
    for key, value in PRESETS[method][preset].items():
        if isinstance(value, float):
            written = METHODS.validate_python({"name": method, "preset": preset, key: 0.123})
            assert getattr(written, key) == 0.123
            assert METHODS.validate_json(written.model_dump_json()) == written


def test_the_released_mhim_commands_are_presets_and_camelyons_the_defaults():
    for (method, preset), values in MHIM_TABLE.items():
        filled = METHODS.validate_python({"name": method, "preset": preset})
        assert tuple(getattr(filled, key) for key in MHIM_KEYS) == values
        assert (filled.high_schedule, filled.momentum) == ("cosine", 0.9999)
        if preset == "camelyon16":
            plain = METHODS.validate_python({"name": method})
            assert plain == filled.model_copy(update={"preset": None})


@pytest.mark.parametrize("method", ["mhim", "mhim_transmil", "mhim_dsmil"])
def test_the_second_version_is_a_preset(method):
    second = METHODS.validate_python({"name": method, "preset": "v2"})
    assert second.mask_high in (0.01, 0.03, 0.05)
    assert second.keep_ratio in (0.8, 0.9)
    assert second.recycled_tokens in (1, 5, 10)
    assert (second.mask_random, second.mask_low, second.high_share) == (0, 0, 1)
    assert (second.high_schedule, second.momentum_schedule) == ("constant", "constant")
    assert (second.momentum, second.query_momentum) == (0.9997, 0.9999)
    assert (second.consistency_weight, second.teacher_temperature) == (0.5, 0.1)
    assert (second.student_init, second.activation, second.merge_test) == ("none", "gelu", False)
    expected = "attention" if method == "mhim_dsmil" else "instance_probability"
    assert second.score == expected


@pytest.mark.parametrize("method", ["acmil", "acmil_mha"])
def test_acmil_presets_are_those_of_its_paper(method):
    drops = {"bracs": 0.6, "camelyon16": 0.8, "camelyon16_resnet18": 0.8, "lbc": 0.8}
    for preset, drop in drops.items():
        filled = METHODS.validate_python({"name": method, "preset": preset})
        branches = 2 if preset == "camelyon16_resnet18" else 5
        assert (filled.branches, filled.top_k, filled.drop) == (branches, 10, drop)


@pytest.mark.parametrize("method", PRESETS)
def test_an_unknown_preset_is_refused_by_name_with_those_that_are_known(method):
    known = re.escape(", ".join(PRESETS[method]))
    with pytest.raises(ValidationError, match=f"'camelyon' is not known for {method}; .* {known}"):
        METHODS.validate_python({"name": method, "preset": "camelyon"})
    with pytest.raises(ValidationError, match="preset\n  Input should be a valid string"):
        METHODS.validate_python({"name": method, "preset": 16})


def test_tokens_at_inference_need_recycling_in_training():
    with pytest.raises(ValidationError, match="merge_test: true, but keep_ratio: 1 trains no"):
        METHODS.validate_python({"name": "mhim", "merge_test": True})
    assert METHODS.validate_python({"name": "mhim", "preset": "v2", "merge_test": True}).merge_test
