"""The command line: one subcommand a stage (mil.cli_parser says what can be written).

Heavy imports happen inside the subcommands, so that --help answers at once. Exit codes: 0 all went
well; 1 something failed, named on standard error; 2 configuration or command cannot be meant.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from mil.cli_parser import build_parser
from mil.commands import archive, benches, listings, stores, study
from mil.config import StudyConfig, load_study
from preprocessing.errors import ConfigError, HistomilError

Command = Callable[[StudyConfig, argparse.Namespace], int]
STAGES: Mapping[str, Command] = {
    "synthesize": archive.synthesize,
    "extract": archive.extract,
    "status": archive.status,
    "check": stores.check,
    "pack": stores.pack,
    "import": stores.import_stores,
    "export": stores.export_stores,
    "split": study.split,
    "train": study.train,
    "evaluate": study.evaluate,
    "compare-task": study.compare_task,
    "compare": study.compare,
    "predict": study.predict,
    "heatmap": study.heatmap,
    "report": study.report,
}
WITHOUT_STUDY: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "inspect": archive.inspect_slides,
    "encoders": listings.list_encoders,
    "methods": listings.list_methods,
    "presets": listings.list_presets,
    "bench": benches.bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("numexpr").setLevel(logging.WARNING)  # it counts its threads aloud
    try:
        if parsed.stage in WITHOUT_STUDY:
            return WITHOUT_STUDY[parsed.stage](parsed)
        return STAGES[parsed.stage](load_study(parsed.config), parsed)
    except HistomilError as error:
        print(f"histomil: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        if error.errno is None:  # of a library, about something else than the system
            raise
        where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        print(
            f"histomil: {error}{where}; see that the disk has room and the folder can be written, "
            "then run the same command again",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
