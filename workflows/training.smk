# Feature stores -> splits, models, metrics, comparisons.
rule split:
    input:
        f"{OUT}/features/process_list.csv",
        LABEL_TABLES,
        STUDY.mil.split.files,
    output:
        f"{OUT}/splits/{{task}}.json",
        f"{OUT}/splits/{{task}}.cohort.json",
    log:
        f"{OUT}/logs/split/{{task}}.log",
    params:
        settings=split_settings,
    shell:
        "{HISTOMIL} split {ARGS} --task {wildcards.task} 2>&1 | tee {log:q}"


MEMBER = f"{OUT}/models/{{task}}/{{method}}/fold{{fold}}/seed{{seed}}"
TRAIN = (
    "OMP_NUM_THREADS={threads} {HISTOMIL} train {ARGS} --task {wildcards.task} "
    "--method {wildcards.method} --fold {wildcards.fold} --seed {wildcards.seed} "
    "2>&1 | tee {log:q}"
)


rule train:
    input:
        f"{OUT}/splits/{{task}}.json",
    output:
        f"{MEMBER}/predictions.csv",
        f"{MEMBER}/fitted.json",
        f"{MEMBER}/seal.json",
        f"{MEMBER}/{CHECKPOINT}",
    log:
        f"{OUT}/logs/train/{{task}}-{{method}}-{{fold}}-{{seed}}.log",
    wildcard_constraints:
        method="|".join(STUDY.mil.methods) or "none",
    resources:
        gpu=gpus(STUDY.mil.train.device),
    params:
        settings=method_settings,
    shell:
        TRAIN


rule baseline:
    input:
        f"{OUT}/splits/{{task}}.json",
    output:
        f"{MEMBER}/predictions.csv",
        f"{MEMBER}/fitted.json",
        f"{MEMBER}/seal.json",
    log:
        f"{OUT}/logs/train/{{task}}-{{method}}-{{fold}}-{{seed}}.log",
    wildcard_constraints:
        method="|".join(BASELINES),
    params:
        settings=lambda wildcards: digest(question(wildcards)),
    shell:
        TRAIN


rule evaluate:
    input:
        prediction_files,
    output:
        f"{OUT}/evaluation/{{task}}/{{method}}/metrics.csv",
        f"{OUT}/evaluation/{{task}}/{{method}}/predictions.csv",
    log:
        f"{OUT}/logs/evaluate/{{task}}-{{method}}.log",
    params:
        settings=STUDY.mil.bootstrap,
    shell:
        "OMP_NUM_THREADS={threads} {HISTOMIL} evaluate {ARGS} --task {wildcards.task} "
        "--method {wildcards.method} 2>&1 | tee {log:q}"


rule compare:
    input:
        lambda wildcards: [
            f"{OUT}/evaluation/{wildcards.task}/{answerer}/predictions.csv"
            for answerer in STUDY.answerers(wildcards.task)
        ],
    output:
        f"{OUT}/evaluation/{{task}}/comparison.csv",
        f"{OUT}/evaluation/{{task}}/comparison_table.csv",
        f"{OUT}/evaluation/{{task}}/comparison_table.md",
    log:
        f"{OUT}/logs/compare/{{task}}.log",
    params:
        settings=digest(STUDY.mil.bootstrap, STUDY.mil.reference),
    shell:
        "OMP_NUM_THREADS={threads} {HISTOMIL} compare-task {ARGS} --task {wildcards.task} "
        "2>&1 | tee {log:q}"
