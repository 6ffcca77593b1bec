"""The list of formats, by the name that a user gives."""

from preprocessing.errors import ConfigError
from preprocessing.interchange.base import Format
from preprocessing.interchange.clam import Clam
from preprocessing.interchange.raw2features import Raw2Features
from preprocessing.interchange.stamp import Stamp
from preprocessing.interchange.trident import Trident
from preprocessing.interchange.wsidata import Wsidata

FORMATS: dict[str, Format] = {
    "clam": Clam(),
    "trident": Trident(),
    "stamp": Stamp(),
    "wsidata": Wsidata(),
    "raw2features": Raw2Features(),
}


def format_named(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"format {name!r} is not known; known are {', '.join(FORMATS)}")
    return FORMATS[name]
