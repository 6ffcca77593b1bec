# The study, validated by the classes that the command line uses, and what the rules share.
import fcntl
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)  # a clone that is not installed validates too

from mil.config import BASELINES, digest, dump_study, validate_study
from mil.models.config import resolved
from mil.ensemble_files import CHECKPOINT, ensemble_paths
from preprocessing.artefacts import whole_file
from preprocessing.errors import HistomilError
from preprocessing.manifest import read_manifest
from preprocessing.plan import plan_shards

try:
    STUDY = validate_study(config, source=" + ".join(map(str, workflow.configfiles)))
    SHARDS = plan_shards(STUDY.preprocessing)
except HistomilError as error:
    raise WorkflowError(str(error))

OUT = str(STUDY.output)
CONFIG = f"{OUT}/config.yaml"
HISTOMIL = f"{shlex.quote(sys.executable)} -m mil.cli"
ARGS = f"--config {shlex.quote(CONFIG)}"
PAIRS = [(task, method) for task in STUDY.mil.tasks for method in STUDY.mil.methods]
ANSWERS = [
    (task, answerer) for task in STUDY.mil.tasks for answerer in STUDY.answerers(task)
]
LABEL_TABLES = (
    [STUDY.mil.labels.table, *STUDY.mil.labels.join] if STUDY.mil.labels else []
)


LOCKS = []


onstart:
    # Snakemake's own lock outlives a killed run; the kernel takes this one back.
    Path(OUT).mkdir(parents=True, exist_ok=True)
    LOCKS.append(open(f"{OUT}/.lock", "w"))
    try:
        fcntl.flock(LOCKS[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            f"another run is writing to {OUT}: wait for it, or end it"
        )
    with whole_file(Path(CONFIG)) as partial:
        partial.write_text(dump_study(STUDY))


def member_files(wildcards, name):
    return [
        f"{STUDY.member_dir(wildcards.task, wildcards.method, fold, seed)}/{name}"
        for fold in range(STUDY.mil.split.number_of_folds)
        for seed in STUDY.seeds(wildcards.method)
    ]


def prediction_files(wildcards):
    return member_files(wildcards, "predictions.csv")


def checkpoint_files(wildcards):
    return member_files(wildcards, CHECKPOINT)


def question(wildcards):
    section = STUDY.mil.tasks[wildcards.task]
    return section.model_dump(mode="json", exclude={"truth", "baselines"})


def manifest_columns(wildcards):
    """What a task reads of the manifest; a synthetic one is no more than its settings."""
    if STUDY.preprocessing.synthetic:
        return []
    names = (*STUDY.mil.tasks[wildcards.task].covariates, STUDY.mil.split.group)
    return [
        [row.slide_id, row.patient_id, *(row.extra.get(name) for name in names)]
        for row in read_manifest(STUDY.preprocessing.manifest)
    ]


def split_settings(wildcards):
    mil = STUDY.mil
    return digest(
        mil.labels,
        mil.split,
        question(wildcards),
        manifest_columns(wildcards),
        STUDY.preprocessing.quality,
    )


def method_settings(wildcards):
    """Not the device: it changes no result that anyone asked to have again."""
    return digest(
        question(wildcards),
        resolved(STUDY.mil.methods[wildcards.method]),
        STUDY.mil.train.settings(),
    )


def truth_settings(wildcards):
    """With what the outlines are now; those of a synthetic cohort are no more than its settings."""
    truth = STUDY.mil.tasks[wildcards.task].truth
    if truth is None or STUDY.preprocessing.synthetic:
        return digest(truth)
    outlines = [(path.name, path.stat()) for path in truth.folder.glob("*.geojson")]
    return digest(
        truth, sorted([name, at.st_size, at.st_mtime_ns] for name, at in outlines)
    )


def gpus(device):
    """A job's claim on the GPU counter; `auto` claims one where there is any."""
    return int(
        device == "cuda" or (device == "auto" and bool(shutil.which("nvidia-smi")))
    )


wildcard_constraints:
    shard=r"\d+",
    fold=r"\d+",
    seed=r"\d+",
    task=r"[A-Za-z0-9_-]+",
    method=r"[A-Za-z0-9_-]+",
