"""Memory follows neither the number of slides nor their size."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import archive_files as files
import numpy as np
import pytest

from preprocessing.synthetic.pyramid import write_pyramid

PEAK = """
import os, sys
os.fsync = lambda _: None
sys.path.insert(0, {tests!r})
import encode_fakes as t
from pathlib import Path
from preprocessing.config import ReadingConfig, TissueConfig
from preprocessing.extraction.encode import encode_shard
from preprocessing.manifest import SlideRow

rows = [SlideRow(f"s{{n}}", "p", Path(path)) for n, path in enumerate({paths!r})]
few = {{"reading": ReadingConfig(cache_mb=16), "tissue": TissueConfig(mask_mpp=8.0)}}
config = t.config_of(tile_px=256).model_copy(update=few)
statuses = encode_shard(rows, config, Path({out!r}), encoder=t.lazy(t.FakeEncoder(tile_px=256)))
assert [s.status for s in statuses] == ["done"] * len(rows), statuses
# Not ru_maxrss, which a child inherits from the process that started it.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mb(paths: list[Path], out: Path) -> float:
    """Of a process of its own that encodes the slides with a fake encoder."""
    code = PEAK.format(
        tests=str(Path(__file__).parent), paths=[str(path) for path in paths], out=str(out)
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ},
        capture_output=True,
        check=False,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout) / 1024


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The slide, and what encoding it alone takes."""
    folder = tmp_path_factory.mktemp("small")
    path = folder / "slide.tif"
    write_pyramid(path, files.tissue(1024, 1024), mpp=0.5)  # 3 MB of pixels
    return path, peak_mb([path], folder / "out")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of it")
class TestMemory:
    """Bounds of about twice what was measured, and well below the slides' pixels."""

    def test_does_not_grow_with_the_number_of_slides(self, small, tmp_path):
        """Some slides are at hand at once: one is prepared, one encoded, one written."""
        copies = [Path(shutil.copy(small[0], tmp_path / f"{n}.tif")) for n in range(60)]
        few, many = (peak_mb(copies[:n], tmp_path / f"out{n}") for n in (10, 60))
        assert many - few < 40  # the pixels of fifty are 150 MB

    def test_does_not_grow_with_the_slide(self, small, tmp_path):
        _, alone = small
        wide = np.tile(files.tissue(2048, 2048), (2, 8, 1))  # 200 MB of pixels
        write_pyramid(tmp_path / "wide.tif", wide, mpp=0.5)
        more = peak_mb([tmp_path / "wide.tif"], tmp_path / "out") - alone
        assert more < 64
