# Models -> heatmaps and the report.
rule heatmap:
    input:
        prediction_files,
        checkpoint_files,
    output:
        f"{OUT}/heatmaps/{{task}}/{{method}}/predictions.csv",
    log:
        f"{OUT}/logs/heatmap/{{task}}-{{method}}.log",
    params:
        settings=truth_settings,
    shell:
        "OMP_NUM_THREADS={threads} {HISTOMIL} heatmap {ARGS} --task {wildcards.task} --method {wildcards.method} "
        "2>&1 | tee {log:q}"


def applied_models(wildcards):
    """Every checkpoint; the folder itself where it holds none, for the stage to say so."""
    folder = STUDY.mil.apply[wildcards.name]
    return [str(path) for path in ensemble_paths(folder) or [folder]]


rule apply:
    input:
        f"{OUT}/features/process_list.csv",
        applied_models,
        LABEL_TABLES,
    output:
        f"{OUT}/applied/{{name}}/predictions.csv",
        f"{OUT}/applied/{{name}}/heatmaps/predictions.csv",
    log:
        f"{OUT}/logs/apply/{{name}}.log",
    params:
        settings=digest(
            STUDY.mil.labels, STUDY.mil.bootstrap, STUDY.preprocessing.quality
        ),
    shell:
        "(export OMP_NUM_THREADS={threads}; {HISTOMIL} predict {ARGS} --apply {wildcards.name} && "
        "{HISTOMIL} heatmap {ARGS} --apply {wildcards.name}) 2>&1 | tee {log:q}"


rule report:
    input:
        f"{OUT}/features/process_list.csv",
        [
            f"{OUT}/evaluation/{task}/{answerer}/metrics.csv"
            for task, answerer in ANSWERS
        ],
        [f"{OUT}/evaluation/{task}/comparison.csv" for task in STUDY.mil.tasks],
        [f"{OUT}/heatmaps/{task}/{method}/predictions.csv" for task, method in PAIRS],
        [f"{OUT}/applied/{name}/predictions.csv" for name in STUDY.mil.apply],
    output:
        f"{OUT}/report.html",
    log:
        f"{OUT}/logs/report.log",
    shell:
        "{HISTOMIL} report {ARGS} 2>&1 | tee {log:q}"
