"""Errors that a user can act on.

    HistomilError
    ├── ConfigError          a configuration or a command line that cannot be meant
    ├── ManifestError        slides.csv: duplicates, missing files, bad values
    ├── SlideError           one slide; its id opens the message
    │   ├── UnreadableSlide  openslide refuses the file or a region of it
    │   ├── MppError         micrometres per pixel missing, implausible or contradictory
    │   └── NoTissue         nothing to tile
    ├── StoreError           a feature store that is incomplete, foreign or of another schema
    ├── EncoderUnavailable   weights that cannot be had here (gated, offline, not installed)
    ├── CohortError          labels that do not fit the slides, or contradict each other
    ├── TrainingError        a training that did not converge to numbers
    └── CheckpointError      a checkpoint that does not fit the question

Every message says what was expected, what came, where (slide, key, path) and what to do next.
"""


class HistomilError(Exception):
    pass


class ConfigError(HistomilError):
    pass


class ManifestError(HistomilError):
    pass


class SlideError(HistomilError):
    def __init__(self, slide_id: str, message: str) -> None:
        super().__init__(f"slide {slide_id!r}: {message}")
        self.slide_id = slide_id


class UnreadableSlide(SlideError):
    pass


class MppError(SlideError):
    pass


class NoTissue(SlideError):
    pass


class StoreError(HistomilError):
    pass


class EncoderUnavailable(HistomilError):
    pass


class CohortError(HistomilError):
    pass


class TrainingError(HistomilError):
    pass


class CheckpointError(HistomilError):
    pass
