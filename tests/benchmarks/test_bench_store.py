"""The benchmark of stores measures what it says, and reading keeps its distance from the limit."""

import h5py
import numpy as np
import pytest

from preprocessing.bench import store as bench
from preprocessing.bench.store import StoreBench, as_record, as_table, bench_store


def test_every_side_is_measured_and_stated(monkeypatch):
    """Each reads the same numbers: what it returns is compared here."""
    returned = {}
    turns = bench._take_turns

    def watched(sides, repeats):
        if "pack" in sides:
            returned.update({name: np.asarray(run(), np.float32) for name, run in sides.items()})
        return turns(sides, repeats)

    monkeypatch.setattr(bench, "_take_turns", watched)
    measured = bench_store(tiles=700, dim=16, repeats=2)
    assert set(returned) == set(measured.seconds["read"])
    first = returned["numpy.load"]
    assert first.shape == (700, 16)
    assert all((values == first).all() for values in returned.values())
    record = as_record(measured)
    assert set(record) == {"read_vs_npy", "pack_vs_npy", "write_vs_npy", "clam_vs_read"}
    assert all(value > 0 for value in record.values())
    table = as_table(measured)
    assert "times the limit" in table
    for side in ("numpy.load", "numpy.save", "store", "pack", "CLAM's h5"):
        assert side in table


def test_ratios_are_medians_of_turns():
    """The third turn was slow for both: its ratio counts, not its seconds."""
    seconds = {"numpy.load": [1.0, 2.0, 9.0], "store": [2.0, 6.0, 18.0]}
    measured = StoreBench(1, 1, {"read": seconds})
    assert measured.times_limit("read", "store") == 2.0
    assert measured.ratio("read", "numpy.load", "store") == 0.5


def test_the_opponents_file_is_as_clam_grows_it(tmp_path):
    features = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float16)
    bench._write_clam(tmp_path / "bag.h5", features)
    with h5py.File(tmp_path / "bag.h5") as file:
        data = file["features"]
        assert (data.dtype, data.chunks, data.maxshape) == (np.float32, (32, 8), (None, 8))
        np.testing.assert_array_equal(data[...], features.astype(np.float32))


@pytest.mark.slow
def test_a_bag_is_read_within_twice_the_claim():
    """The claim is 3 times numpy.load; twice that, so that a busy machine does not fail it."""
    measured = bench_store(repeats=9)
    assert measured.times_limit("read", "store") < 6, as_table(measured)
    assert measured.times_limit("read", "pack") < 3, as_table(measured)
    assert measured.ratio("read", "CLAM's h5", "store") > 1.5, as_table(measured)
