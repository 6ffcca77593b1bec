# Slides -> feature stores. Stores are not declared as outputs: a shard that fails keeps its slides.
if STUDY.preprocessing.synthetic:

    rule synthesize:
        output:
            manifest=STUDY.preprocessing.manifest,
            labels=STUDY.preprocessing.manifest.with_name("labels.csv"),
        log:
            f"{OUT}/logs/synthesize.log",
        params:
            settings=digest(STUDY.preprocessing.synthetic),
        shell:
            "{HISTOMIL} synthesize {ARGS} 2>&1 | tee {log:q}"


rule extract:
    input:
        # ancient: an appended row must not run every shard anew; the settings tell what changed
        ancient(STUDY.preprocessing.manifest),
        lambda wildcards: SHARDS[int(wildcards.shard)].files,
    output:
        f"{OUT}/features/shards/{{shard}}.json",
    log:
        f"{OUT}/logs/extract/{{shard}}.log",
    threads: max(2, STUDY.preprocessing.readers)
    resources:
        gpu=gpus(STUDY.preprocessing.encoder.device),
    params:
        settings=lambda wildcards: SHARDS[int(wildcards.shard)].settings,
    shell:
        "OMP_NUM_THREADS={threads} {HISTOMIL} extract {ARGS} --shard {wildcards.shard} 2>&1 | tee {log:q}"


rule status:
    input:
        expand(f"{OUT}/features/shards/{{shard}}.json", shard=range(len(SHARDS))),
    output:
        f"{OUT}/features/process_list.csv",
    log:
        f"{OUT}/logs/status.log",
    params:
        limits=digest(STUDY.preprocessing.quality),  # previews show them
    shell:
        "{HISTOMIL} status {ARGS} 2>&1 | tee {log:q}"


# After everything else, so that one bad slide never keeps the others from their heatmaps.
rule check:
    input:
        f"{OUT}/features/process_list.csv",
        f"{OUT}/report.html",
    output:
        touch(f"{OUT}/all_slides_done"),
    log:
        f"{OUT}/logs/check.log",
    shell:
        "{HISTOMIL} check {ARGS} 2>&1 | tee {log:q}"
