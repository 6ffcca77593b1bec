"""Features in memory or streamed: the same bits, in the memory that was asked for."""

import shutil
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from fake_archive import write_features

from mil import bags
from mil.bags import CohortFeatures, PackedTiles, StoredTiles, load_features
from mil.config import TrainConfig
from mil.models.build import build_method
from mil.models.config import AcmilConfig, MhimConfig
from mil.tasks.build import fit_task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import CoxConfig
from mil.training.parts import Part
from mil.training.train import answer, tile_evidence, train_method
from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError
from preprocessing.stores import store as stores
from preprocessing.stores.pack import pack_features, pack_path
from preprocessing.stores.store import SlideFeatures, open_store, store_path, write_store

CPU = torch.device("cpu")
DIM = 6
SLIDES = [f"s{i}" for i in range(9)]


@pytest.fixture
def folder(tmp_path):
    """Nine slides of 2 to 9 tiles; the second tile of s3 could not be read."""
    rng = np.random.default_rng(0)
    for i, slide_id in enumerate(SLIDES):
        write_features(tmp_path, slide_id, slide_id, rng.normal(size=(9 - i % 8, DIM)))
    path = store_path(tmp_path, "s3")
    whole = open_store(path)
    features = whole.features("lite0")
    features[1] = np.nan
    unread = np.arange(len(whole)) == 1
    write_store(
        tmp_path,
        SlideFeatures(
            provenance=whole.provenance,
            coords_px0=whole.coords_px0,
            tissue_fraction=whole.tissue_fraction,
            read_error=unread,
            quality=whole.quality,
            features={"lite0": features},
            thumbnail=whole.thumbnail,
            tissue_mask=whole.tissue_mask,
        ),
    )
    return tmp_path


def both(folder) -> tuple[CohortFeatures, CohortFeatures]:
    return tuple(load_features(folder, SLIDES, "lite0", how) for how in ("memory", "stream"))


def make_pack(folder, limits=QualityConfig()):  # noqa: B008 - it is frozen
    return pack_features(folder, SLIDES, "lite0", limits, pack_path(folder, "lite0"))


def three(folder) -> tuple[CohortFeatures, CohortFeatures, CohortFeatures]:
    """In memory, streamed from the stores, and streamed from a pack."""
    memory, stream = both(folder)
    assert isinstance(stream.tiles, StoredTiles)
    make_pack(folder)
    packed = load_features(folder, SLIDES, "lite0", "stream")
    assert isinstance(packed.tiles, PackedTiles)
    return memory, stream, packed


def test_streamed_features_are_those_in_memory(folder):
    memory, *streamed = three(folder)
    for stream in streamed:
        assert memory.fingerprints == stream.fingerprints
        assert memory.dim == stream.dim == DIM
        assert stream.readers(CPU) == bags.READERS
    for slide_id in SLIDES:
        expected = open_store(store_path(folder, slide_id))
        usable = torch.from_numpy(expected.features("lite0")[expected.usable])
        for features in (memory, *streamed):
            assert torch.equal(features.bag([slide_id]), usable.float())
            assert features.sizes([slide_id]) == (len(usable),)
            assert features.stored([slide_id]).dtype == torch.float16
    assert memory.sizes(["s3"]) == (9 - 3 - 1,)


def test_the_bag_of_a_patient_is_its_slides_in_the_order_given(folder):
    for features in three(folder):
        ids = ["s5", "s3", "s0"]
        bag = features.bag(ids)
        starts = np.cumsum([0, *features.sizes(ids)])
        assert starts[-1] == len(bag)
        for place, slide_id in enumerate(ids):
            mine = bag[starts[place] : starts[place + 1]]
            assert torch.equal(mine, features.bag([slide_id]))


def test_slides_in_memory_are_views_of_one_tensor(folder):
    memory, _ = both(folder)
    storage = {memory.stored([slide_id]).untyped_storage().data_ptr() for slide_id in SLIDES}
    assert len(storage) == 1
    total = sum(memory.sizes(SLIDES)) * DIM * 2
    assert memory.stored(["s0"]).untyped_storage().nbytes() == total


def test_auto_streams_what_would_take_too_much_memory(folder, monkeypatch):
    needed = sum(both(folder)[0].sizes(SLIDES)) * DIM * 2
    for available, streamed in ((needed / 0.6 - 1, True), (needed / 0.6 + 1, False)):
        monkeypatch.setattr(bags, "available_bytes", lambda available=available: available)
        features = load_features(folder, SLIDES, "lite0")
        assert isinstance(features.tiles, StoredTiles) == streamed


def test_slides_without_a_tile_to_use_are_all_named(folder, monkeypatch):
    """s1 has a tile that is within no limit, s3 one that could not be read."""
    write_features(folder, "s1", "s1", np.ones((2, DIM)), ink=np.array([0.9, 0.8]))
    limits = QualityConfig(max_ink=0.5)
    with pytest.raises(StoreError, match=r"slide 's1': of 2 tiles 0 could not be read, and no"):
        load_features(folder, ["s1"], "lite0", limits=limits)
    monkeypatch.setattr(stores.FeatureStore, "usable", np.zeros(9, dtype=bool))
    with pytest.raises(StoreError, match=r"'s0': of 9 .*\n.*'s3': of 6 tiles 1 .*\n.*relax"):
        load_features(folder, ["s0", "s3"], "lite0")


def test_tiles_beyond_the_limits_are_in_no_bag(folder):
    features = np.arange(4 * DIM).reshape(4, DIM)
    write_features(folder, "s0", "s0", features, ink=np.array([0.9, 0.1, 0.8, 0.5]))
    limits = QualityConfig(max_ink=0.5)
    expected = torch.from_numpy(features[[1, 3]].astype(np.float16))
    pack_features(folder, ["s0"], "lite0", limits, pack_path(folder, "lite0"))
    for how in ("memory", "stream"):
        loaded = load_features(folder, ["s0"], "lite0", how, limits=limits)
        assert torch.equal(loaded.stored(["s0"]), expected)
        assert loaded.sizes(["s0"]) == (2,)
    assert isinstance(loaded.tiles, PackedTiles)


def test_a_stale_pack_is_passed_over_with_a_warning(folder, caplog):
    make_pack(folder)
    write_features(folder, "s4", "s4", np.full((5, DIM), 7))
    features = load_features(folder, SLIDES, "lite0", "stream")
    assert isinstance(features.tiles, StoredTiles)
    assert torch.equal(features.bag(["s4"]), torch.full((5, DIM), 7.0))
    assert "reading the feature stores instead" in caplog.text
    assert "other features or tiles of 1 of 9 slide(s): s4; make the pack anew" in caplog.text
    without = [slide_id for slide_id in SLIDES if slide_id != "s4"]
    assert isinstance(load_features(folder, without, "lite0", "stream").tiles, PackedTiles)


def test_a_pack_is_not_looked_for_where_features_fit_into_memory(folder, caplog):
    make_pack(folder)
    write_features(folder, "s4", "s4", np.full((5, DIM), 7))
    assert isinstance(load_features(folder, SLIDES, "lite0").tiles, dict)
    assert not caplog.text


def part_of(features, task_of) -> tuple[Part, object]:
    """Bags of a slide or two, with classes and follow-up."""
    bags_of = [("s0", "s1"), ("s2",), ("s3", "s4"), ("s5",), ("s6", "s7"), ("s8",)]
    ids = [f"p{i}" for i in range(len(bags_of))]
    table = pd.DataFrame(
        {
            "patient_id": ids,
            "y": [*"abbaba"],
            "months": [1.0, 3, 2, 5, 4, 6],
            "dead": [1, 0, 1, 1, 0, 1],
            "slide_ids": bags_of,
        },
        index=ids,
    )
    task = task_of(table)
    return Part(table, task.encode(table), features), task


@pytest.mark.parametrize(
    ("method", "task_of"),
    [
        (
            AcmilConfig(hidden_dim=8, attention_dim=4, dropout=0.2),
            lambda table: ClassificationTask(("a", "b"), label="y"),
        ),
        (
            MhimConfig(hidden_dim=8, attention_dim=4),
            lambda table: fit_task(CoxConfig(time="months", event="dead"), table),
        ),
    ],
    ids=["acmil-classes", "mhim-cox"],
)
def test_streamed_training_gives_the_same_bits(folder, tmp_path, method, task_of):
    config = TrainConfig(
        epochs=3, bags_per_step=3, tiles_per_pass=9, max_tiles=5, feature_dropout=0.2, device="cpu"
    )
    ends = []
    for number, features in enumerate(three(folder)):
        part, task = part_of(features, task_of)
        torch.manual_seed(0)
        model = build_method(method, DIM, task.outputs)
        state_dir = tmp_path / f"run{number}"
        train_method(model, task, (part, part), config=config, state_dir=state_dir, run_id="x")
        evidence = torch.cat(list(map(torch.from_numpy, tile_evidence(model, task, part))))
        ends.append({**model.state_dict(), "answer": answer(model, part), "evidence": evidence})
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
        assert torch.equal(tensor, ends[2][name]), name


def test_streaming_holds_few_bags_at_a_time(folder, tmp_path, monkeypatch):
    """The slides that are alive when another is read: those of packs read ahead and of one in use,
    though the cohort has nine.
    """
    _, features = both(folder)
    part, task = part_of(features, lambda table: ClassificationTask(("a", "b"), label="y"))
    read = StoredTiles.__getitem__
    loaded, alive = [], []

    def counted(self, slide_id):
        alive.append(sum(ref() is not None for ref in loaded))
        tiles = read(self, slide_id)
        loaded.append(weakref.ref(tiles))
        return tiles

    monkeypatch.setattr(StoredTiles, "__getitem__", counted)
    model = build_method(AcmilConfig(hidden_dim=8, attention_dim=4), DIM, task.outputs)
    config = TrainConfig(epochs=4, bags_per_step=6, tiles_per_pass=1, device="cpu")
    train_method(model, task, (part, part), config=config, state_dir=tmp_path / "run", run_id="x")
    assert len(alive) == 4 * 2 * len(SLIDES)
    assert max(alive) <= 2 * (bags.READERS + 1)  # bags of one slide or two


def test_a_store_that_breaks_while_streamed_stops_the_training(folder, tmp_path):
    _, features = both(folder)
    part, task = part_of(features, lambda table: ClassificationTask(("a", "b"), label="y"))
    for chunk in (store_path(folder, "s5") / "features" / "lite0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"cut")
    model = build_method(AcmilConfig(hidden_dim=8, attention_dim=4), DIM, task.outputs)
    config = TrainConfig(epochs=1, device="cpu")
    with pytest.raises(StoreError, match=r"s5.*damaged store.*delete it and extract again"):
        train_method(model, task, (part, part), config=config, state_dir=tmp_path, run_id="x")


@pytest.mark.parametrize("residence", ["memory", "stream"])
def test_features_of_several_dims_under_one_name_are_refused(folder, residence):
    write_features(folder, "s4", "s4", np.ones((3, DIM + 1)))
    with pytest.raises(StoreError, match=r"slide 's4': .*'lite0' have 7 numbers .*'s0' 6; extract"):
        load_features(folder, SLIDES, "lite0", residence)


def test_another_slides_store_under_a_slides_name_is_not_trained_on(folder):
    shutil.rmtree(store_path(folder, "s4"))
    shutil.copytree(store_path(folder, "s5"), store_path(folder, "s4"))
    with pytest.raises(StoreError, match=r"s4\.zarr: holds slide 's5'; give the folder its slide"):
        load_features(folder, SLIDES, "lite0")


def test_open_stores_of_a_cohort_with_limits_keep_no_quality_in_memory(folder):
    store = open_store(store_path(folder, "s0"), QualityConfig(max_blank=0.5))
    assert store.usable.all()
    assert "quality" not in vars(store)
