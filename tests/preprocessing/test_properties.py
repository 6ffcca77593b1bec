import json

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.manifest import SlideRow
from preprocessing.slides.properties import kept_properties, objective_power, stated_properties
from preprocessing.slides.slide import Slide

APERIO = {
    "openslide.vendor": "aperio",
    "openslide.mpp-x": "0.2527",
    "openslide.mpp-y": "2.527e-01",
    "openslide.objective-power": "40",
    "openslide.quickhash-1": "6335ea0e6cc54c2cba64bb265d3c713a50cd84484924e3a9c109558c13521d5c",
    "openslide.level-count": "1",
    "openslide.level[0].downsample": "1",
    "openslide.level[0].tile-width": "240",
    "openslide.bounds-x": "0",
    "tiff.ResolutionUnit": "inch",
    "tiff.Make": "Leica",
    "aperio.AppMag": "40",
}
OTHERS = {
    "philips.DICOM_PIXEL_SPACING": '"0.000226316" "0.000226321"',
    "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X": "0.2325",
    "leica.device-model": "Leica SCN400;Leica SCN",
    "leica.illumination-source": "brightfield",
    "dicom.TransferSyntaxUID": "1.2.840.10008.1.2.4.50",
    "dicom.PhotometricInterpretation": "YBR_FULL_422",
    "dicom.LossyImageCompressionRatio": "2.92",
}
# What scanners and clinics do write there, or might.
PERSONAL = {
    "aperio.Barcode": "S21-10432;1",
    "aperio.Date": "12/29/09",
    "aperio.Filename": "Smith_John_1950",
    "aperio.ImageID": "1004486",
    "aperio.ScanScope ID": "CPAPERIOCS",
    "aperio.Slide": "7",
    "aperio.Title": "Smith",
    "aperio.User": "b414003d-95c6-48b0-9369-8010ed517ba7",
    "dicom.ContainerIdentifier": "S21-10432",
    "dicom.DeviceSerialNumber": "CPAPERIOCS",
    "dicom.PatientBirthDate": "19500101",
    "dicom.PatientID": "4711",
    "dicom.PatientName": "Smith^John",
    "dicom.SeriesInstanceUID": "1.2.840.10008.9.1",
    "dicom.StudyDate": "20210412",
    "hamamatsu.Created": "2011/05/23",
    "hamamatsu.NDP.S/N": "950291",
    "hamamatsu.Reference": "S21-10432 Smith",
    "leica.barcode": "UzIxLTEwNDMy",
    "leica.creation-date": "2018-11-03T10:29:21.633Z",
    "mirax.GENERAL.SLIDE_CREATIONDATETIME": "03/11/2018 10:29:21",
    "mirax.GENERAL.SLIDE_ID": "9B8E4F2C",
    "mirax.GENERAL.SLIDE_NAME": "Smith John",
    "openslide.barcode": "S21-10432",
    "openslide.comment": "John Smith, born 1950",
    "philips.DICOM_DERIVATION_DESCRIPTION": 'sourceFilename="T12-02872 Smith.ndpi"',
    "philips.PIM_DP_UFS_BARCODE": "UzIxLTEwNDMy",
    "tiff.Artist": "Dr. Jones",
    "tiff.Copyright": "Hospital",
    "tiff.DateTime": "2017:02:07 13:06:43",
    "tiff.DocumentName": "Smith.tif",
    "tiff.HostComputer": "path-ws-3",
    "tiff.ImageDescription": "Aperio Image Library |AppMag = 20|User = Smith|Title = John Smith",
    "tiff.Software": "typed by Smith",
    "ventana.SlideID": "S21-10432",
    "ventana.UnitNumber": "2000515",
    "ventana.UserName": "jones",
    "a scanner of tomorrow.Patient": "Smith",
}
# Known keys that hold something else than they are for.
MISUSED = {
    "openslide.mpp-x": "Smith",
    "openslide.quickhash-1": "John Smith",
    "openslide.objective-power": "20\nJohn Smith",
    "openslide.level[0].width": "512 Smith",
    "openslide.level[Smith].width": "512",
    "openslide.mpp-x.Smith": "0.5",
    "aperio.AppMag": "S21-10432",
    "aperio.MPP": "\u0664\u0667",
    "leica.illumination-source": "Smith",
    "dicom.PhotometricInterpretation": "Smith^John",
    "dicom.TransferSyntaxUID": "1.2.276.0.7230010.3.1.4.296485376",
    "philips.DICOM_PIXEL_SPACING": '"Smith" "0.000226321"',
    "ventana.ScannerModel": "DP200 of the institute in the street of Dr. John Smith",
}


def test_what_the_optics_say_is_kept_as_it_is():
    assert kept_properties(APERIO | OTHERS) == APERIO | OTHERS
    assert list(kept_properties(APERIO | OTHERS)) == sorted(APERIO | OTHERS)


@pytest.mark.parametrize("key", PERSONAL)
def test_what_may_name_a_person_is_dropped(key):
    assert kept_properties(APERIO | {key: PERSONAL[key]}) == APERIO


@pytest.mark.parametrize("key", MISUSED)
def test_a_known_key_with_a_foreign_value_is_dropped(key):
    assert key not in kept_properties(APERIO | {key: MISUSED[key]})


def test_model_of_a_converted_file_is_whatever_somebody_typed():
    tags = {"tiff.Make": "Smith", "tiff.Model": "John"}
    assert kept_properties(tags) == {}
    generic = {"openslide.vendor": "generic-tiff"}
    assert kept_properties(generic | tags) == generic
    assert kept_properties({"openslide.vendor": "hamamatsu", "tiff.Model": "C9600-12"}) == {
        "openslide.vendor": "hamamatsu",
        "tiff.Model": "C9600-12",
    }


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=40)))
def test_unknown_keys_never_pass(properties):
    assert not kept_properties(properties)


@pytest.mark.parametrize(
    ("name", "power", "model"),
    [
        ("CMU-1-Small-Region.svs", 20.0, None),
        ("fluor-DAPI-387.ndpi", 40.0, "C9600-12"),
        ("TCGA-CR-7395-01A-01-TS1.svs", None, None),
        ("broken/boxes_0.dcm", 20.0, None),
    ],
)
def test_real_files(shared, name, power, model):
    with openslide.OpenSlide(shared / "slides" / name) as handle:
        properties = dict(handle.properties)
    kept = kept_properties(properties)
    assert objective_power(properties) == objective_power(kept) == power
    assert kept.get("tiff.Model") == model
    assert kept["openslide.quickhash-1"] == properties["openslide.quickhash-1"]
    text = json.dumps(kept)
    for key, value in properties.items():
        hidden = ("User", "Date", "Time", "UID", "S/N", "Serial", "Description", "ScanScope", "ID")
        if any(word in key for word in hidden) and len(value) > 4:
            assert value not in text or key == "dicom.TransferSyntaxUID", key


@pytest.mark.parametrize(
    ("text", "power"),
    [
        ("20", 20.0),
        ("2.5", 2.5),
        ("", None),
        ("0", None),
        ("-20", None),
        ("nan", None),
        ("x", None),
    ],
)
def test_objective_power(text, power):
    assert objective_power({"openslide.objective-power": text}) == power
    assert objective_power({}) is None


def test_names_without_a_value_are_passed_over(tmp_path):
    """openslide lists a name of other letters than UTF-8's, and then knows no such name."""
    path = tmp_path / "s.svs"
    described = "Aperio Image Library v1\r\n|AppMag = 20|MPP = 0.5|Färbung = HE|X = 1"
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    latin = described.encode("latin-1")
    tifffile.imwrite(path, image, tile=(256, 256), description=latin, metadata=None)
    with openslide.OpenSlide(path) as handle:
        assert len(set(handle.properties)) > len(stated := stated_properties(handle.properties))
    assert (stated["aperio.MPP"], stated["aperio.X"]) == ("0.5", "1")
    with Slide(SlideRow("s", "p", path)) as slide:
        assert slide.properties["aperio.AppMag"] == "20"
