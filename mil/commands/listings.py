"""What there is to choose from."""

import argparse
import shutil


def list_encoders(_: argparse.Namespace) -> int:
    from preprocessing.encoders.registry import encoder_lines

    print("\n".join(encoder_lines(shutil.get_terminal_size((120, 24)).columns)))
    return 0


def list_presets(_: argparse.Namespace) -> int:
    from mil.cohorts.presets import preset_lines

    print("\n".join(preset_lines(shutil.get_terminal_size().columns)))
    return 0


def list_methods(parsed: argparse.Namespace) -> int:
    from mil.models.config import method_lines

    print("\n".join(method_lines(parsed.name)))
    return 0
