# Feature stores -> splits, models, metrics.
rule split:
    input:
        f"{OUT}/features/process_list.csv",
        STUDY.mil.labels or [],
    output:
        f"{OUT}/splits/{{task}}.json",
    log:
        f"{OUT}/logs/split/{{task}}.log",
    params:
        settings=lambda wildcards: digest(
            STUDY.mil.split, STUDY.mil.tasks[wildcards.task]
        ),
    shell:
        "{HISTOMIL} split {ARGS} --task {wildcards.task} 2>&1 | tee {log:q}"


rule train:
    input:
        f"{OUT}/splits/{{task}}.json",
    output:
        f"{OUT}/models/{{task}}/{{method}}/fold{{fold}}/checkpoint.safetensors",
        f"{OUT}/models/{{task}}/{{method}}/fold{{fold}}/history.csv",
        f"{OUT}/models/{{task}}/{{method}}/fold{{fold}}/predictions.csv",
    log:
        f"{OUT}/logs/train/{{task}}-{{method}}-{{fold}}.log",
    resources:
        gpu=gpus(STUDY.mil.train.device),
    params:
        settings=fold_settings,
    shell:
        "OMP_NUM_THREADS={threads} {HISTOMIL} train {ARGS} --task {wildcards.task} "
        "--method {wildcards.method} --fold {wildcards.fold} 2>&1 | tee {log:q}"


rule evaluate:
    input:
        prediction_files,
    output:
        f"{OUT}/evaluation/{{task}}/{{method}}/metrics.csv",
        f"{OUT}/evaluation/{{task}}/{{method}}/predictions.csv",
        f"{OUT}/evaluation/{{task}}/{{method}}/figure.png",
    log:
        f"{OUT}/logs/evaluate/{{task}}-{{method}}.log",
    params:
        settings=STUDY.mil.bootstrap,
    shell:
        "OMP_NUM_THREADS={threads} {HISTOMIL} evaluate {ARGS} --task {wildcards.task} --method {wildcards.method} "
        "2>&1 | tee {log:q}"
