"""The only list of methods: from a configuration section to a model."""

from typing import assert_never

from mil.models.abmil import Abmil
from mil.models.acmil import Acmil
from mil.models.base import MilMethod
from mil.models.config import AbmilConfig, AcmilConfig, MethodConfig, MhimConfig
from mil.models.mhim import MaskRules, Mhim

DEFAULT_HIDDEN_DIM = 512


def build_method(config: MethodConfig, dim: int, outputs: int) -> MilMethod:
    """A fresh model for tile features of width `dim`; weights come from torch's global seed."""
    match config:
        case AbmilConfig():
            return build_abmil(config, dim, outputs)
        case AcmilConfig():
            return build_acmil(config, dim, outputs)
        case MhimConfig():
            return build_mhim(config, dim, outputs)
        case _:
            assert_never(config)


def build_abmil(config: AbmilConfig, dim: int, outputs: int) -> Abmil:
    return Abmil(
        dim,
        outputs,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        attention_dim=config.attention_dim,
        scoring=config.scoring,
        activation=config.activation,
        embedding_bias=config.embedding_bias,
        attention_bias=config.attention_bias,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )


def build_acmil(config: AcmilConfig, dim: int, outputs: int) -> Acmil:
    return Acmil(
        dim,
        outputs,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        attention_dim=config.attention_dim,
        branches=config.branches,
        top_k=config.top_k,
        drop=config.drop,
        mode=config.mode,
        activation=config.activation,
        dropout=config.dropout,
    )


def build_mhim(config: MhimConfig, dim: int, outputs: int) -> Mhim:
    model = Abmil(
        dim,
        outputs,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        attention_dim=config.attention_dim,
        scoring=config.scoring,
        activation=config.activation,
        embedding_bias=True,
        attention_bias=config.attention_bias,
        dropout=config.dropout,
        initialisation="xavier",
    )
    return Mhim(
        model,
        rules=MaskRules(
            random=config.mask_random,
            low=config.mask_low,
            high=config.mask_high,
            high_share=config.high_share,
        ),
        high_schedule=config.high_schedule,
        consistency_weight=config.consistency_weight,
        student_temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        momentum=config.momentum,
        momentum_schedule=config.momentum_schedule,
        teacher_dropout=config.teacher_dropout,
    )
