"""Reads TensorBoard event files of scalars."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def scalars(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, {tag: value}) of all event files below `folder`, in the order written."""
    by_step: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("**/*tfevents*")):
        for event in _events(path.read_bytes()):
            for value in event.summary.value:
                of_step = by_step.setdefault(event.step, {})
                assert value.tag not in of_step, f"{value.tag} of step {event.step} is there twice"
                of_step[value.tag] = value.simple_value
    return list(by_step.items())


def _events(data: bytes) -> list[Event]:
    """Records are length, its checksum, the event, its checksum."""
    place, found = 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        found.append(Event.FromString(data[place + 12 : place + 12 + length]))
        place += 16 + length
    return found
