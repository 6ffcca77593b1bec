import pytest

from preprocessing.errors import ManifestError, StoreError
from preprocessing.status import SlideStatus, read_status, write_status

STATUSES = (
    SlideStatus("a", "done", 12, 1.5),
    SlideStatus("b", "failed", 0, 0.1, error="slide 'b': gone", traceback="Traceback ..."),
)


def test_round_trip_leaves_one_file(tmp_path):
    path = tmp_path / "done" / "shard.json"
    write_status(path, STATUSES, settings="one")
    assert read_status(path, settings="one") == list(STATUSES)
    assert [p.name for p in path.parent.iterdir()] == ["shard.json"]


def test_one_slide_twice(tmp_path):
    with pytest.raises(ManifestError, match="a appear more than once"):
        write_status(tmp_path / "s.json", [STATUSES[0], STATUSES[0]], settings="one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", '{"slides": [{"slide_id": "a"}]}', '{"slides": 1}'])
def test_damaged_file(tmp_path, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"s\.json.*expected"):
        read_status(path, settings="one")


def test_absent_file(tmp_path):
    with pytest.raises(StoreError, match="no such status file"):
        read_status(tmp_path / "s.json", settings="one")


def test_status_of_other_settings(tmp_path):
    path = tmp_path / "s.json"
    write_status(path, STATUSES, settings="one")
    with pytest.raises(StoreError, match=r"s\.json.*have changed since"):
        read_status(path, settings="two")
