# From slides to heatmaps. Choose a study with --configfile; without one, the demo runs.
from snakemake.utils import min_version

min_version("9.5")

if not config:

    configfile: f"{workflow.basedir}/configs/demo.yaml"


include: "workflows/common.smk"
include: "workflows/preprocessing.smk"
include: "workflows/training.smk"
include: "workflows/review.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        f"{OUT}/report.html",
        f"{OUT}/all_slides_done",
