"""What other runs left behind: killed while they wrote, rotted since, or written meanwhile."""

import os
from dataclasses import replace

import pytest
from encode_fakes import CONFIG, FakeEncoder, assert_same, contents, lazy, only, two_slides

from preprocessing.artefacts import _HOST, partials_in, whole_file, whole_folder
from preprocessing.errors import ConfigError
from preprocessing.extraction.encode import encode_shard
from preprocessing.extraction.jobs import Extraction, jobs
from preprocessing.stores.store import store_path


@pytest.fixture
def rows(tmp_path):
    return two_slides(tmp_path)


@pytest.mark.parametrize("writer", ["7", f"{_HOST}-{os.getpid()}", "0123abcd-5"])
def test_a_kill_between_the_renames_costs_no_other_encoder(rows, tmp_path, writer):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    before, path = contents(tmp_path, "a"), store_path(tmp_path, "a")
    path.rename(tmp_path / f"a.zarr.partial-{writer}-old")
    (tmp_path / f"a.zarr.partial-{writer}").mkdir()
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(name="second"))
    after = contents(tmp_path, "a")
    assert_same({key: after[key] for key in before}, before)
    of_another_machine = ["a.zarr.partial-0123abcd-5"] if writer.startswith("0123abcd") else []
    assert [partial.name for partial in partials_in(tmp_path)] == of_another_machine


@pytest.mark.parametrize("patient", ["patient-a", "other"])
def test_what_rotted_is_not_copied_under_a_new_checksum(rows, tmp_path, patient):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    chunk = store_path(tmp_path, "a") / "features" / "fake" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[10] ^= 4
    chunk.write_bytes(content)
    encoder = lazy(name="second" if patient == "patient-a" else "fake")
    row = replace(rows[0], patient_id=patient)
    status = only(encode_shard([row], CONFIG, tmp_path, encoder=encoder))
    assert status.status == "failed"
    assert "features/fake: incomplete or damaged store" in status.error
    assert chunk.read_bytes() == content


def test_what_a_killed_preview_left_is_removed(rows, tmp_path):
    leftover = tmp_path / "previews" / ".a.partial-7.png"
    leftover.parent.mkdir()
    leftover.touch()
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    assert [p.name for p in leftover.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("first", [True, False])
def test_what_another_run_wrote_meanwhile_is_not_lost(rows, tmp_path, first):
    class Slow(FakeEncoder):
        def features(self, pixels):
            if not self.batches:
                encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(name="meanwhile"))
            return super().features(pixels)

    if not first:
        encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    with pytest.raises(ConfigError, match=r"slide 'a': another run wrote .*a\.zarr while"):
        encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(Slow(), "slow"))
    assert "meanwhile" in contents(tmp_path, "a")
    assert only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(name="slow"))).tiles
    assert {"meanwhile", "slow"} <= contents(tmp_path, "a").keys()


def test_what_another_run_is_writing_is_left_to_it(rows, tmp_path):
    """This very process stands in for the other run: it is alive."""
    preview = tmp_path / "previews" / "a.png"
    with whole_file(preview) as page, whole_folder(store_path(tmp_path, "a")) as store:
        page.touch()
        store.mkdir()
        (job,) = jobs(rows[:1], CONFIG, tmp_path, lazy())
        assert isinstance(job, Extraction)
        job.close()
    assert preview.exists()
    assert store_path(tmp_path, "a").exists()
