"""What a JPEG stream and a TIFF directory say of themselves, and what is not believed."""

import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from tiff_files import noise, texture

from preprocessing.bench.reader_slides import split_tables
from preprocessing.geometry import Size
from preprocessing.slides.tiff_file import StoredFile
from preprocessing.slides.tiff_index import TileIndex, index_levels
from preprocessing.slides.tiff_jpeg import frame_header, frame_size, stream_head

ADOBE_YCBCR = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
ADOBE_RGB = ADOBE_YCBCR[:-1] + b"\x00"


def stream(width=48, height=32, subsampling="420"):
    return simplejpeg.encode_jpeg(texture(width, height), colorsubsampling=subsampling)


def with_segment(jpeg: bytes, segment: bytes) -> bytes:
    return jpeg[:2] + segment + jpeg[2:]


class TestStreams:
    @pytest.mark.parametrize("subsampling", ["444", "422", "420"])
    def test_tables_put_back_decode_to_the_same(self, subsampling):
        whole = stream(subsampling=subsampling)
        tables, rest = split_tables(whole)
        assert len(rest) < len(whole)
        head = stream_head(tables, rgb=False)
        np.testing.assert_array_equal(
            simplejpeg.decode_jpeg(head + rest[2:]), simplejpeg.decode_jpeg(whole)
        )

    def test_the_head_says_what_the_components_are(self):
        planes = [np.ascontiguousarray(texture(48, 32)[..., n]) for n in range(3)]
        tables, rest = split_tables(simplejpeg.encode_jpeg_yuv_planes(*planes, quality=95))
        image = {
            rgb: simplejpeg.decode_jpeg(stream_head(tables, rgb=rgb) + rest[2:])
            for rgb in (True, False)
        }
        assert np.abs(image[True].astype(int) - texture(48, 32)).mean() < 4
        assert np.abs(image[False].astype(int) - texture(48, 32)).mean() > 20

    @pytest.mark.parametrize(
        "tables",
        [
            b"",
            b"\xff\xd8",
            stream(),
            b"\xff\xd8\xff\xfe\x00\x04no\xff\xd9",
            split_tables(stream())[0][:-3] + b"\xff\xd9",
        ],
    )
    def test_tables_that_are_none(self, tables):
        assert stream_head(tables, rgb=False) is None

    def test_frame_header(self):
        frames = [
            frame_header(stream(subsampling=kind), start=2, rgb=False)
            for kind in ("444", "422", "420")
        ]
        assert len(set(frames)) == 3
        assert [frame_size(frame) for frame in frames] == [(48, 32)] * 3
        wide = frame_header(stream(64, 32), start=2, rgb=False)
        assert wide not in frames
        assert frame_size(wide) == (64, 32)

    @pytest.mark.parametrize(
        ("segment", "rgb", "believed"),
        [
            (ADOBE_RGB, True, True),
            (ADOBE_YCBCR, True, False),
            (ADOBE_RGB, False, False),
            (ADOBE_YCBCR, False, True),
            (b"\xff\xfe\x00\x06note", True, True),
            (b"\xff\xe1\x00\x06Exif", True, True),
            (b"\xff\xee\x00\x04xx", True, False),
            (b"\xff\xcc\x00\x04xx", True, False),
        ],
    )
    def test_markers_that_change_colours_are_not_believed(self, segment, rgb, believed):
        _, rest = split_tables(stream())
        frame = frame_header(with_segment(rest, segment), start=2, rgb=rgb)
        assert (frame is not None) == believed

    def test_the_header_of_a_spliced_stream_is_the_tiles_own(self):
        tables, rest = split_tables(stream())
        head = stream_head(tables, rgb=False)
        spliced = head + rest[2:]
        alone = frame_header(rest, start=2, rgb=False)
        assert frame_header(spliced, start=len(head), rgb=False) == alone is not None

    def test_jfif_is_ycbcr(self):
        assert frame_header(stream(), start=2, rgb=False) is not None
        assert frame_header(stream(), start=2, rgb=True) is None

    @given(st.binary(max_size=40), st.integers(0, 200))
    def test_no_stream_at_all(self, garbage, cut):
        assert frame_header(garbage, start=0, rgb=False) is None
        whole = stream()
        scan = whole.index(b"\xff\xda")
        assert frame_header(whole[: min(cut, scan)], start=2, rgb=False) is None


class TestStoredFile:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"before" + stream() + b"after")
        file = StoredFile(path)
        yield file
        file.close()

    def test_the_head_takes_the_place_of_the_start_marker(self, file):
        assert file.stream(6, len(stream()), b"head") == b"head" + stream()[2:]

    @pytest.mark.parametrize(
        ("offset", "length"), [(0, 20), (7, 20), (6, 0), (6, 1), (6, 10**6), (2**64 - 1, 20)]
    )
    def test_what_is_no_stream(self, file, offset, length):
        assert file.stream(offset, length, b"head") is None

    def test_a_read_that_breaks_off(self, file, monkeypatch):
        monkeypatch.setattr("os.pread", lambda file, length, offset: stream()[: length - 1])
        assert file.stream(6, len(stream()), b"head") is None


class TestIndex:
    def write(self, path, image, **how):
        settings = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg"} | how
        tifffile.imwrite(path, image, metadata=None, **settings)
        return Size(image.shape[1], image.shape[0])

    def test_offsets_and_lengths_are_those_of_the_streams(self, tmp_path):
        path = tmp_path / "s.tif"
        size = self.write(path, texture(200, 130))
        (index,) = index_levels(path, "generic-tiff", [size])
        assert isinstance(index, TileIndex)
        assert (index.across, index.down, index.tile) == (4, 3, Size(64, 64))
        stored = path.read_bytes()
        for offset, length in zip(index.offsets, index.byte_counts, strict=True):
            assert stored[offset : offset + 2] == b"\xff\xd8"
            assert stored[offset + length - 2 : offset + length] == b"\xff\xd9"
        assert list(index.under(60, 63, Size(5, 2))) == [0, 1, 4, 5]
        assert list(index.under(64, 0, Size(64, 64))) == [1]

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            ({"compression": "deflate"}, "compression DEFLATE"),
            ({"compression": None}, "compression NONE"),
            ({"compression": "jpeg2000"}, "compression JPEG2000"),
            ({"tile": None}, "0 tiled directories of 200 x 130 px"),
        ],
    )
    def test_other_kinds_of_tiff(self, tmp_path, how, reason):
        path = tmp_path / "s.tif"
        size = self.write(path, noise(200, 130), **how)
        assert index_levels(path, "generic-tiff", [size]) == [reason]

    def test_grey_tiles(self, tmp_path):
        path = tmp_path / "s.tif"
        image = texture(200, 130)[..., 0]
        size = self.write(path, image, photometric="minisblack")
        assert index_levels(path, "generic-tiff", [size]) == ["photometric MINISBLACK"]

    @pytest.mark.parametrize("content", [b"", b"II*\0\x08\0\0\0", b"not a TIFF at all"])
    def test_no_tiff(self, tmp_path, content):
        path = tmp_path / "s.tif"
        path.write_bytes(content)
        (reason,) = index_levels(path, "generic-tiff", [Size(10, 10)])
        assert isinstance(reason, str)
