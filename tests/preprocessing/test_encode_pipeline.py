"""What runs beside what, how far ahead, and that a failure anywhere ends all of it."""

import errno
import pkgutil
import queue
import threading
import time

import pytest
from encode_fakes import (
    CONFIG,
    FakeEncoder,
    lazy,
    only,
    tissue_image,
    two_slides,
)
from tiff_files import write_tiff

from preprocessing.errors import ConfigError, StoreError, UnreadableSlide
from preprocessing.extraction import extract
from preprocessing.extraction.encode import encode_shard
from preprocessing.manifest import SlideRow
from preprocessing.slides.reader import read_batches
from preprocessing.slides.slide import Slide
from preprocessing.stores.store import store_path

SECONDS = 60  # far more than any shard here takes, so that a deadlock is a failure and no hang
BATCHES = 6  # of a slide: 96 tiles by 16


@pytest.fixture
def rows(tmp_path):
    rows = two_slides(tmp_path)
    path = write_tiff(tmp_path / "c.tif", tissue_image(2))
    return [*rows, SlideRow("c", "patient-c", path)]


@pytest.fixture
def slides(monkeypatch):
    """Ids of slides in the order of their opening, and how many handles are open now."""
    opened, handles = [], []
    start, copied, end = Slide.__init__, Slide.another, Slide.close

    def init(self, row, **more):
        opened.append(row.slide_id)
        start(self, row, **more)
        handles.append(self)

    def another(self):
        other = copied(self)
        handles.append(other)
        return other

    def close(self):
        handles[:] = [handle for handle in handles if handle is not self]
        end(self)

    monkeypatch.setattr(Slide, "__init__", init)
    monkeypatch.setattr(Slide, "another", another)
    monkeypatch.setattr(Slide, "close", close)
    return opened, handles


def encode(rows, out, *, encoder=None, config=CONFIG):
    """`encode_shard` in a thread that may be given up on; all its threads must have ended."""
    before, answers = set(threading.enumerate()), queue.SimpleQueue()

    def run():
        try:
            answers.put(encode_shard(rows, config, out, encoder=lazy(encoder)))
        except BaseException as error:  # noqa: BLE001 - raised below
            answers.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    answer = answers.get(timeout=SECONDS)
    thread.join(SECONDS)
    names = {each.name.partition("_")[0] for each in set(threading.enumerate()) - before}
    assert not names & {"prepare", "read", "reader", "write"}
    if isinstance(answer, BaseException):
        raise answer
    return answer


class Waiting(FakeEncoder):
    """Computes batch number `at` only once `met`, which must come to be meanwhile."""

    def __init__(self, at, met):
        super().__init__()
        self.at, self.met = at, met

    def features(self, pixels):
        if len(self.batches) == self.at:
            ends = time.monotonic() + SECONDS / 2
            while not self.met() and time.monotonic() < ends:
                time.sleep(0.002)
            assert self.met()
        return super().features(pixels)


class TestOverlap:
    def test_the_next_slide_is_read_while_this_one_is_encoded(self, rows, tmp_path, monkeypatch):
        begun = []

        def spied(handles, *args, **kwargs):
            for batch in read_batches(handles, *args, **kwargs):
                begun.append(handles[0].slide_id)
                yield batch

        monkeypatch.setattr(extract, "read_batches", spied)
        encoder = Waiting(BATCHES - 1, lambda: "b" in begun)
        statuses = encode(rows[:2], tmp_path / "out", encoder=encoder)
        assert [s.status for s in statuses] == ["done", "done"]

    def test_a_store_is_written_while_the_next_slide_is_encoded(self, rows, tmp_path):
        encoder = Waiting(BATCHES, lambda: store_path(tmp_path / "out", "a").exists())
        assert len(encode(rows[:2], tmp_path / "out", encoder=encoder)) == 2

    def test_no_more_than_one_slide_is_prepared_ahead(self, rows, tmp_path, slides):
        opened, _ = slides

        def settled():
            time.sleep(0.3)
            return opened == ["a", "b"]

        assert len(encode(rows, tmp_path / "out", encoder=Waiting(0, settled))) == 3
        assert opened == ["a", "b", "c"]

    def test_no_more_than_a_few_batches_wait(self, tmp_path, monkeypatch):
        """However large the slide: 96 batches here."""
        read = []

        def spied(*args, **kwargs):
            for batch in read_batches(*args, **kwargs):
                read.append(batch)
                yield batch

        def settled():
            time.sleep(0.3)
            return len(read) <= 6

        monkeypatch.setattr(extract, "read_batches", spied)
        row = SlideRow("a", "p", write_tiff(tmp_path / "a.tif", tissue_image()))
        config = CONFIG.model_copy(
            update={"encoder": CONFIG.encoder.model_copy(update={"batch_size": 1})}
        )
        encoder = Waiting(0, settled)
        assert only(encode([row], tmp_path / "out", encoder=encoder, config=config)).tiles == 96
        assert len(read) == 96

    def test_every_handle_is_closed(self, rows, tmp_path, slides):
        _, handles = slides
        encode(rows, tmp_path / "out")
        encode(rows, tmp_path / "out")  # skipped ones too
        assert not handles


def fails(error):
    def fail(*_, **__):
        raise error

    return fail


def after(batches, error):
    def read(*args, **kwargs):
        for number, batch in enumerate(read_batches(*args, **kwargs)):
            if number == batches:
                raise error
            yield batch

    return read


BUG = RuntimeError("a bug")
FULL = OSError(errno.ENOSPC, "No space left on device")
UNREADABLE = UnreadableSlide("a", "gone")


class TestFailure:
    @pytest.mark.parametrize(
        ("name", "failing"),
        [
            ("jobs.prepare_slide", fails(BUG)),
            ("extract.read_batches", after(0, BUG)),
            ("extract.read_batches", after(3, BUG)),
            ("extract.tile_quality", fails(BUG)),
            ("extract.Encoding.drain", fails(BUG)),
            ("encode.write_store", fails(FULL)),
            ("encode.write_preview", fails(FULL)),
            ("jobs.Slide.another", fails(BUG)),
        ],
    )
    def test_what_would_go_wrong_again_ends_everything(
        self, rows, tmp_path, monkeypatch, slides, name, failing
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"preprocessing.extraction.{name}", failing)
            with pytest.raises((RuntimeError, OSError)) as caught:
                encode(rows, tmp_path / "out")
        assert caught.value.__notes__ == ["slide 'a'"]
        del caught.value.__notes__
        assert not slides[1]
        assert [s.status for s in encode(rows, tmp_path / "out")].count("done") >= 2

    @pytest.mark.parametrize("at", [0, 2, BATCHES - 1, BATCHES + 2])
    def test_encoder_that_fails(self, rows, tmp_path, slides, at):
        class OutOfMemory(FakeEncoder):
            def features(self, pixels):
                if len(self.batches) == at:
                    raise RuntimeError("CUDA out of memory")
                return super().features(pixels)

        with pytest.raises(RuntimeError, match="out of memory") as caught:
            encode(rows, tmp_path / "out", encoder=OutOfMemory())
        assert caught.value.__notes__ == [f"slide {'a' if at < BATCHES else 'b'!r}"]
        assert not slides[1]
        # What was finished before is not lost.
        assert store_path(tmp_path / "out", "a").exists() == (at >= BATCHES)

    @pytest.mark.parametrize(
        ("name", "failing"),
        [
            ("jobs.prepare_slide", fails(UNREADABLE)),
            ("extract.read_batches", after(0, UNREADABLE)),
            ("extract.read_batches", after(4, UNREADABLE)),
            ("encode.write_store", fails(StoreError("refused"))),
        ],
    )
    def test_what_is_wrong_with_a_slide_fails_it_alone(
        self, rows, tmp_path, monkeypatch, slides, name, failing
    ):
        whole = pkgutil.resolve_name(f"preprocessing.extraction.{name}")

        def only_the_second(*args, **kwargs):
            about = {"read_batches": args[0], "write_store": args[-1]}.get(whole.__name__, args)
            slide = (
                about[0].slide_id if isinstance(about, list | tuple) else about.provenance.slide_id
            )
            return (failing if slide == "b" else whole)(*args, **kwargs)

        monkeypatch.setattr(f"preprocessing.extraction.{name}", only_the_second)
        out = tmp_path / "out"
        statuses = encode(rows, out)
        assert [s.status for s in statuses] == ["done", "failed", "done"]
        assert [s.slide_id for s in statuses] == ["a", "b", "c"]
        assert "Traceback" in statuses[1].traceback
        assert statuses[1].error in ("slide 'a': gone", "refused")
        assert (statuses[0].tiles, statuses[1].tiles) == (96, 0)
        assert sorted(p.name for p in out.glob("*.zarr")) == ["a.zarr", "c.zarr"]
        assert not slides[1]

    @pytest.mark.parametrize("name", ["jobs.prepare_slide", "extract.read_batches"])
    def test_a_setting_that_cannot_be_meant_stops_the_shard(
        self, rows, tmp_path, monkeypatch, slides, name
    ):
        failing = after(2, ConfigError("no")) if "read" in name else fails(ConfigError("no"))
        monkeypatch.setattr(f"preprocessing.extraction.{name}", failing)
        with pytest.raises(ConfigError, match="no") as caught:
            encode(rows, tmp_path / "out")
        assert not getattr(caught.value, "__notes__", [])
        assert not slides[1]
