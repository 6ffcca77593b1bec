"""The only list of methods: from a configuration section to a model."""

from typing import TypedDict, assert_never

from mil.models.abmil import Abmil
from mil.models.acmil import Acmil
from mil.models.acmil_mha import AcmilMha
from mil.models.base import MilMethod
from mil.models.clam import Clam
from mil.models.config import (
    DEFAULT_HIDDEN_DIM,
    AbmilConfig,
    AcmilConfig,
    AcmilMhaConfig,
    AnyMhimConfig,
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
from mil.models.dsmil import Dsmil
from mil.models.ins import Ins
from mil.models.layers import Activation, Initialisation
from mil.models.maskable import MaskableMethod
from mil.models.mhim import Mhim
from mil.models.mhim_masks import MaskRules
from mil.models.pooling import InstancePool
from mil.models.recycle import RecycleNetwork
from mil.models.transmil import TransMil


class _Common(TypedDict):
    """What every base of MHIM is built with."""

    hidden_dim: int
    activation: Activation
    dropout: float
    initialisation: Initialisation


def build_method(
    config: MethodConfig, dim: int, outputs: int, classes: tuple[str, ...] = ()
) -> MilMethod:
    """A fresh model for tile features of width `dim`; weights come from torch's global seed.

    `classes` names the outputs of a task whose classes exclude one another (`Task.classes`).
    """
    match config:
        case AbmilConfig():
            return build_abmil(config, dim, outputs)
        case AcmilConfig():
            return build_acmil(config, dim, outputs)
        case AcmilMhaConfig():
            return build_acmil_mha(config, dim, outputs)
        case MhimConfig() | MhimTransmilConfig() | MhimDsmilConfig():
            return build_mhim(config, dim, outputs)
        case TransmilConfig():
            return build_transmil(config, dim, outputs)
        case DsmilConfig():
            return build_dsmil(config, dim, outputs)
        case MeanConfig() | MaxConfig():
            return build_pool(config, dim, outputs)
        case ClamConfig():
            return build_clam(config, dim, outputs)
        case InsConfig():
            return build_ins(config, dim, outputs, classes)
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


def build_acmil_mha(config: AcmilMhaConfig, dim: int, outputs: int) -> AcmilMha:
    return AcmilMha(
        dim,
        outputs,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        heads=config.heads,
        branches=config.branches,
        top_k=config.top_k,
        drop=config.drop,
        mode=config.mode,
        activation=config.activation,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


def build_mhim_base(config: AnyMhimConfig, dim: int, outputs: int) -> MaskableMethod:
    common: _Common = {
        "hidden_dim": config.hidden_dim or DEFAULT_HIDDEN_DIM,
        "activation": config.activation,
        "dropout": config.dropout,
        "initialisation": "xavier",
    }
    match config:
        case MhimConfig():
            return Abmil(
                dim,
                outputs,
                **common,
                attention_dim=config.attention_dim,
                scoring=config.scoring,
                embedding_bias=True,
                attention_bias=config.attention_bias,
            )
        case MhimTransmilConfig():
            return TransMil(dim, outputs, **common, attention_dropout=config.attention_dropout)
        case MhimDsmilConfig():
            return Dsmil(dim, outputs, **common, query_dim=config.query_dim)
        case _:
            assert_never(config)


def build_mhim(config: AnyMhimConfig, dim: int, outputs: int) -> Mhim:
    model = build_mhim_base(config, dim, outputs)
    recycle = None
    if config.keep_ratio < 1:
        recycle = RecycleNetwork(
            config.hidden_dim or DEFAULT_HIDDEN_DIM,
            tokens=config.recycled_tokens,
            heads=config.recycle_heads,
            head_dim=config.recycle_head_dim,
            dropout=config.recycle_dropout,
            momentum=config.query_momentum,
        )
    return Mhim(
        model,
        rules=MaskRules(
            random=config.mask_random,
            low=config.mask_low,
            high=config.mask_high,
            high_share=config.high_share,
            keep_ratio=config.keep_ratio,
        ),
        score=config.score,
        high_schedule=config.high_schedule,
        consistency_weight=config.consistency_weight,
        student_temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        momentum=config.momentum,
        momentum_schedule=config.momentum_schedule,
        teacher_dropout=config.teacher_dropout,
        student_init=config.student_init,
        recycle=recycle,
        merge_test=config.merge_test,
    )


def build_transmil(config: TransmilConfig, dim: int, outputs: int) -> TransMil:
    return TransMil(
        dim,
        outputs,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        activation=config.activation,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        initialisation=config.initialisation,
    )


def build_dsmil(config: DsmilConfig, dim: int, outputs: int) -> Dsmil:
    return Dsmil(
        dim,
        outputs,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        query_dim=config.query_dim,
        activation=config.activation,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )


def build_pool(config: MeanConfig | MaxConfig, dim: int, outputs: int) -> InstancePool:
    return InstancePool(
        dim,
        outputs,
        pooling=config.name,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        activation=config.activation,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )


def build_clam(config: ClamConfig, dim: int, outputs: int) -> Clam:
    return Clam(
        dim,
        outputs,
        multi_branch=config.multi_branch,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        attention_dim=config.attention_dim,
        instances=config.instances,
        instance_loss=config.instance_loss,
        subtyping=config.subtyping,
        bag_weight=config.bag_weight,
        activation=config.activation,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )


def build_ins(config: InsConfig, dim: int, outputs: int, classes: tuple[str, ...]) -> Ins:
    return Ins(
        dim,
        outputs,
        classes=classes,
        negative=config.negative,
        pooling=config.pooling,
        hidden_dim=config.hidden_dim or DEFAULT_HIDDEN_DIM,
        instance_weight=config.instance_weight,
        prototype_momentum=config.prototype_momentum,
        belief_start=config.belief_start,
        belief_end=config.belief_end,
        activation=config.activation,
        dropout=config.dropout,
        initialisation=config.initialisation,
    )
