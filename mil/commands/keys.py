"""Keys of a study that a command line may name."""

from collections.abc import Mapping

from preprocessing.errors import ConfigError


def known(name: str, configured: Mapping[str, object], kind: str) -> None:
    if name not in configured:
        raise ConfigError(f"{kind} {name!r} is not configured; known are {sorted(configured)}")


def index(value: int, count: int, kind: str) -> int:
    if not 0 <= value < count:
        raise ConfigError(f"{kind} {value} does not exist: there are {count}, counted from 0")
    return value
