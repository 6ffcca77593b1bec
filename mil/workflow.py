"""Snakemake, started for some results of a study: what is finished is kept, the rest is made."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.errors import ConfigError

ROOT = Path(__file__).parents[1]
"""Of the clone: the Snakefile and workflows/ lie beside the packages."""


def run_workflow(config: Path, targets: Sequence[Path], *, cores: int, dry_run: bool) -> int:
    """Makes the `targets`, files below the study's output; returns Snakemake's exit code.

    Its messages go to standard error, but for the plan of a dry run.
    """
    command = workflow_command(config, targets, cores=cores)
    if dry_run:
        return _run([*command, "--dry-run"], stdout=None)
    return _run(command, stdout=2)


def workflow_command(config: Path, targets: Sequence[Path], *, cores: int) -> list[str]:
    snakefile = ROOT / "Snakefile"
    if not snakefile.is_file():
        raise ConfigError(
            f"no workflow at {snakefile}: histomil was installed without it; clone the repository "
            "and install it from there (pip install -e .)"
        )
    if cores < 1:
        raise ConfigError(f"--cores: expected 1 or more, got {cores}")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile)]
    command += [*map(str, targets), "--cores", str(cores)]
    command += ["--workflow-profile", str(ROOT / "workflows/profiles/default")]
    return [*command, "--configfile", str(config)]


def _run(command: list[str], *, stdout: int | None) -> int:
    """As a shell counts: 128 + n of a process that signal n ended."""
    process = subprocess.Popen(command, stdout=stdout)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # Snakemake has it, too, and ends its jobs before itself
        code = process.wait()
    return code if code >= 0 else 128 - code
