"""Why labels and slides do not go together, in words that say what to change and where."""

from collections.abc import Mapping

import pandas as pd

from mil.cohorts.label_table import LabelTable, looks_censored
from mil.cohorts.slide_ids import near_misses
from mil.config_messages import meant
from mil.tasks.columns import named
from mil.tasks.config import TaskConfig
from preprocessing.errors import CohortError


def refuse_disagreement(
    slides: pd.DataFrame, columns: tuple[str, ...], target: TaskConfig | None = None
) -> None:
    """`columns`: those of the `target`; the remedy is for its kind."""
    differing = [name for name in columns if torn_patients(slides, (name,))]
    if not differing:
        return
    torn = torn_patients(slides, tuple(differing))
    told = (
        f"{patient} ({'; '.join(', '.join(sorted(set(v.dropna()))) for _, v in rows.items())})"
        for patient, rows in slides[slides["patient_id"].isin(torn)]
        .set_index("patient_id")[differing]
        .groupby(level=0)
    )
    raise CohortError(
        f"slides of one patient disagree on {' and '.join(differing)}: {named(told)}; give each "
        f"patient one value{_answers_of_slides(slides, columns, target)}"
    )


def _answers_of_slides(
    slides: pd.DataFrame, columns: tuple[str, ...], target: TaskConfig | None
) -> str:
    """How slides may answer by themselves; a follow-up is never a slide's own."""
    kind = target.kind if target is not None else None
    if kind == "survival" or (kind is None and len(columns) > 1):
        return ""
    joined = ""
    if kind in (None, "classification") and (slides[list(columns)].nunique() == 2).all():
        joined = "aggregate: max and `positive` (a patient is positive if one slide is) or "
    return (
        f"; or ask about slides (bag: slide) with {joined}aggregate: none (slides for themselves)"
    )


def torn_patients(slides: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    values = slides.groupby("patient_id")[list(columns)].nunique()
    return values.index[(values > 1).any(axis=1)].tolist()


def refuse_absent(table: LabelTable, columns: tuple[str, ...], keys: Mapping[str, str]) -> None:
    """`keys`: column -> the key of the configuration that asks for it."""
    have = [str(c) for c in table.frame.columns]
    for name in columns:
        read_as = [canonical for canonical, source in table.sources.items() if source == name]
        if name not in have and "censorship" in read_as:
            read_as = ["event (1 = observed)"]
        if name not in have and read_as:
            raise CohortError(
                f"{table.name}: its column {name!r} is read as {read_as[0]}; write that in "
                f"{keys.get(name, 'the task')}"
            )
    censored = [c for c in have if looks_censored(c)]
    if "event" in columns and "event" not in have and censored:
        raise CohortError(
            f"{table.name}: no column event, but {', '.join(censored)}; if 1 = censored there, set "
            f"labels.columns.censorship: {censored[0]}, and event will be 1 - {censored[0]}"
        )
    asked = [c for c in columns if looks_censored(c)]
    if asked:
        raise CohortError(
            f"{table.name}: the task asks for {asked[0]!r}, whose name says 1 = censored; set "
            f"labels.columns.censorship: {asked[0]} and ask for event (1 = observed)"
        )
    lacking = [c for c in columns if c not in have]
    if lacking:
        told = (f"{keys[c]}: " if c in keys else "" for c in lacking)
        each = "; ".join(
            f"{k}no column {c!r}{meant(c, have)}" for k, c in zip(told, lacking, strict=True)
        )
        raise CohortError(f"{each}; {table.name} has {', '.join(have)}")


def refuse_other_patients(manifest: pd.DataFrame, table: LabelTable) -> None:
    if not {"slide_id", "patient_id"} <= set(table.frame.columns):
        return
    known = table.frame[["slide_id", "patient_id"]].dropna()
    both = manifest[["slide_id", "patient_id"]].merge(known, on="slide_id", suffixes=("", "_label"))
    torn = both[both["patient_id"] != both["patient_id_label"]]
    if len(torn):
        pairs = (
            f"{r.slide_id} (table: {r.patient_id_label}, manifest: {r.patient_id})"
            for r in torn.itertuples()
        )
        raise CohortError(
            f"{table.name} and the manifest name different patients for slide(s) {named(pairs)}; "
            f"correct one of them{near_misses(torn['patient_id_label'], torn['patient_id'])}"
        )


def no_slide(
    table: LabelTable, manifest: pd.DataFrame, columns: tuple[str, ...], *, matching: int
) -> str:
    """Why no slide of the manifest has a label."""
    key = table.key
    if matching:
        return (
            f"{table.name}: {matching} slides of the manifest have a row, but in each of them "
            f"{' or '.join(columns)} is empty"
        )
    labels, slides = table.frame[key].unique().tolist(), manifest[key].unique().tolist()
    hint = near_misses(labels, slides)
    if key == "slide_id" and "patient_id" in table.frame:
        shared = set(table.frame["patient_id"].dropna()) & set(manifest["patient_id"])
        hint += f"; patients do match ({len(shared)})" if shared else ""
    return (
        f"{table.name}: none of its {len(table.frame)} rows matches a slide of the manifest by "
        f"{key}: labels have {named(labels)}; slides have {named(slides)}{hint}"
    )
