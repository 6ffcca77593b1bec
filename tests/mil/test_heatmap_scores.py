"""Tile scores: what the model is asked, what is refused, and what the files keep."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from heatmap_fakes import FirstFeatureModel, MarginTask, make_layout, make_scores, stored_slide
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.heatmaps.render import Backdrop
from mil.heatmaps.scores import CohortScale, TileLayout, TileScores, score_slide
from mil.heatmaps.tables import read_scale, read_tile_table, write_scale, write_tile_table
from preprocessing.errors import CheckpointError, MppError, StoreError
from preprocessing.stores.store import open_store, write_store


def score(features: list[list[float]], dtype: torch.dtype = torch.float32) -> TileScores:
    layout = make_layout([(i, 0) for i in range(len(features))])
    bag = torch.tensor(features, dtype=dtype)
    return score_slide(FirstFeatureModel().eval(), MarginTask(), bag, layout=layout, label="m")


def test_scores_are_the_models_own() -> None:
    scores = score([[0.0, 2.0], [math.log(3.0), -1.0]])
    np.testing.assert_allclose(scores.attention, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(scores.evidence, [4.0, -2.0])
    np.testing.assert_allclose(scores.log2_attention, [-1.0, math.log2(1.5)], rtol=1e-6)
    # The bag's logits are ±(0.25·2 - 0.75·1) = ±0.25, so P(yes) is the logistic of twice that.
    assert scores.prediction["prob_yes"] == pytest.approx(1 / (1 + math.exp(0.5)))
    assert (scores.model, scores.evidence_name) == ("m", "margin")


def test_a_slide_of_a_patients_bag_keeps_its_share_of_the_attention(tmp_path: Path) -> None:
    first, mine, last = torch.tensor([[0.0, 2.0]]), torch.ones(2, 2), torch.tensor([[1.0, -4.0]])
    model = FirstFeatureModel().eval()
    layout = make_layout([(0, 0), (1, 0)])
    scores = score_slide(
        model, MarginTask(), mine, layout=layout, label="m", before=[first], after=[last]
    )
    whole = model(torch.cat([first, mine, last]))
    np.testing.assert_allclose(scores.attention, whole.attention[1:3].detach(), rtol=1e-6)
    np.testing.assert_allclose(scores.relative_attention, 4 * scores.attention, rtol=1e-6)
    np.testing.assert_allclose(scores.evidence, [2.0, 2.0])
    both = whole.logits.detach().softmax(0)[1].item()
    assert scores.prediction["prob_yes"] == pytest.approx(both)
    path = tmp_path / "s1.csv"
    write_tile_table(scores, path)
    assert read_tile_table(path).bag_tiles == 4


def test_more_attention_than_one_or_a_bag_smaller_than_its_slide_is_refused() -> None:
    scores = make_scores([(0, 0), (1, 0)], attention=[0.2, 0.3], bag_tiles=9)
    assert scores.attention.sum() == pytest.approx(0.5)
    with pytest.raises(CheckpointError, match="sum to 1"):
        make_scores([(0, 0), (1, 0)], attention=[0.7, 0.7], bag_tiles=9)
    with pytest.raises(CheckpointError, match="its 2 tiles cannot be part of a bag of 1"):
        make_scores([(0, 0), (1, 0)], bag_tiles=1)


def test_half_precision_features_are_answered_in_the_models_precision() -> None:
    scores = score([[0.0, 2.0], [0.5, -1.0]], torch.float16)
    assert scores.attention.dtype == scores.evidence.dtype == np.float32


def test_a_model_in_training_answers_in_evaluation_mode_and_stays_in_training() -> None:
    model = FirstFeatureModel().train()
    layout = make_layout([(0, 0)])
    scores = score_slide(model, MarginTask(), torch.ones(1, 2), layout=layout, label="m")
    assert np.isfinite(scores.evidence).all()
    assert model.training


def test_a_bag_of_one_tile() -> None:
    scores = score([[7.0, 1.5]])
    assert scores.attention.tolist() == [1.0]
    assert scores.log2_attention.tolist() == [0.0]


def test_no_attention_at_all_is_the_low_end_of_the_scale() -> None:
    attention = [1.0, *[0.0] * 127]
    scores = make_scores([(i, 0) for i in range(128)], attention=attention)
    assert scores.log2_attention[0] == 6.0
    assert set(scores.log2_attention[1:]) == {-6.0}


def test_tiles_that_could_not_be_read_have_no_place(tmp_path: Path) -> None:
    store = open_store(write_store(tmp_path, stored_slide(read_error=[False, True, False])))
    layout = TileLayout.of_store(store)
    assert layout.slide_id == "s1"
    assert layout.coords_px0.tolist() == [[0, 0], [200, 0]]
    np.testing.assert_allclose(layout.tissue_fraction, [0.5, 0.7])
    assert (layout.tile_px0, layout.stride_px0) == ((90.0, 91.0), (100.0, 101.0))
    assert layout.mpp == (0.5, 0.25)
    backdrop = Backdrop.of_store(store)
    assert backdrop.extent_px0 == (30 * 10.0, 20 * 11.0)
    assert backdrop.mask_px0_per_px == (20.0, 22.0)
    assert backdrop.tissue_mask.shape == (10, 15)


def test_features_and_tiles_must_match() -> None:
    with pytest.raises(StoreError, match=r"'s1'.*features of 3 tiles.*of 2"):
        score_slide(
            FirstFeatureModel(),
            MarginTask(),
            torch.ones(3, 2),
            layout=make_layout([(0, 0), (1, 0)]),
            label="m",
        )


def test_a_usable_tile_without_features_is_refused() -> None:
    with pytest.raises(StoreError, match=r"'s1': 1 of 2 tiles have features that are not finite"):
        score([[0.0, 1.0], [math.nan, 1.0]])


def test_a_model_that_answers_nonsense_is_refused() -> None:
    model = FirstFeatureModel()
    model.sign.data.fill_(math.inf)
    layout = make_layout([(0, 0)])
    with pytest.raises(CheckpointError, match=r"'s1', model 'm'.*evidence"):
        score_slide(model, MarginTask(), torch.ones(1, 2), layout=layout, label="m")


def test_attention_must_be_shares() -> None:
    with pytest.raises(CheckpointError, match=r"sum 2"):
        make_scores([(0, 0), (1, 0)], attention=[1.0, 1.0])


@pytest.mark.parametrize("mpp", [(0.0, 0.5), (0.5, math.nan), (math.inf, 0.5)])
def test_unknown_mpp_is_refused(mpp: tuple[float, float]) -> None:
    with pytest.raises(MppError, match=r"'s1'.*micrometres.*manifest"):
        make_layout([(0, 0)], mpp=mpp)


def test_a_slide_without_usable_tiles_has_no_map() -> None:
    with pytest.raises(StoreError, match="one usable tile or more"):
        make_layout([])


def test_scale_is_the_99th_percentile_of_all_tiles_and_symmetric_in_sign() -> None:
    evidence = np.arange(1, 101, dtype=float)
    scale = CohortScale.fit([evidence[:50], -evidence[50:]], "log-odds")
    # Linear interpolation at 0.99·(100 - 1) = 98.01 between the 99th and the 100th smallest value.
    assert scale.evidence_limit == pytest.approx(99.01)
    assert (scale.slides, scale.tiles, scale.evidence_name) == (2, 100, "log-odds")


def test_equal_evidence_has_a_scale_and_none_has_not() -> None:
    assert CohortScale.fit([np.zeros(3)], "risk").evidence_limit > 0
    with pytest.raises(ValueError, match="'risk' needs at least one slide"):
        CohortScale.fit([], "risk")


def test_joint_scale_holds_every_model_and_one_question() -> None:
    scales = [CohortScale(limit, "risk", slides=2, tiles=10) for limit in (1.5, 4.0, 2.0)]
    assert CohortScale.joint(scales) == CohortScale(4.0, "risk", slides=6, tiles=30)
    with pytest.raises(ValueError, match=r"\['log-odds', 'risk'\]"):
        CohortScale.joint([*scales, CohortScale(1.0, "log-odds", 1, 1)])


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), tiles=st.integers(1, 20))
def test_a_tile_table_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tiles: int
) -> None:
    rng = np.random.default_rng(seed)
    attention = rng.dirichlet(np.ones(tiles))
    pairs = {name: tuple(rng.uniform(30, 900, 2)) for name in ("tile_px0", "stride_px0")}
    written = make_scores(
        [(i, i) for i in range(tiles)],
        evidence=rng.normal(size=tiles) * 10.0 ** rng.integers(-20, 20),
        attention=attention,
        prediction={"risk": float(rng.normal())},
        slide_id="007",
        model="NA",
        mpp=tuple(rng.uniform(0.1, 2, 2)),
        **pairs,
    )
    path = tmp_path_factory.mktemp("tables") / "tiles.csv"
    write_tile_table(written, path)
    read = read_tile_table(path)
    for name, value in vars(written).items():
        np.testing.assert_array_equal(getattr(read, name), value, err_msg=name, strict=False)
        assert type(getattr(read, name)) is type(value)
    assert [found.name for found in path.parent.iterdir()] == ["tiles.csv"]


def test_tile_table_columns(tmp_path: Path) -> None:
    write_tile_table(make_scores([(0, 0), (2, 1)], evidence=[1, -1]), tmp_path / "t.csv")
    head, first, second = (tmp_path / "t.csv").read_text().splitlines()
    assert head.startswith(
        "slide_id,x_px0,y_px0,width_px0,height_px0,tissue_fraction,attention,log2_attention,evidence,"
    )
    assert first.startswith("s1,0,0,100.0,100.0,1.0,0.5,0.0,1.0,")
    assert second.startswith("s1,200,100,100.0,100.0,1.0,0.5,0.0,-1.0,")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a tile table"),
        ("a,b\n1,2\n", "columns .*'attention'.* are missing"),
    ],
)
def test_another_file_is_no_tile_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(StoreError, match=rf"other\.csv.*{message}"):
        read_tile_table(path)


def test_a_damaged_tile_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_tile_table(make_scores([(0, 0), (1, 0)]), path)
    whole = path.read_text()
    path.write_text(whole.replace("0.5", "half", 1))
    with pytest.raises(StoreError, match=r"expected numbers.*half"):
        read_tile_table(path)
    path.write_text(whole.replace("s1", "s2", 1))
    with pytest.raises(StoreError, match="2 rows of 2 slides"):
        read_tile_table(path)


def test_a_scale_file_keeps_the_scale(tmp_path: Path) -> None:
    scale = CohortScale(evidence_limit=3.3, evidence_name="margin", slides=2, tiles=10)
    write_scale(scale, tmp_path / "scale.json")
    assert read_scale(tmp_path / "scale.json") == scale
    (tmp_path / "scale.json").write_text('{"evidence_limit": 1}')
    with pytest.raises(StoreError, match=r"scale\.json: expected a cohort scale"):
        read_scale(tmp_path / "scale.json")
    (tmp_path / "scale.json").write_text("{")
    with pytest.raises(StoreError, match=r"scale\.json: expected the JSON"):
        read_scale(tmp_path / "scale.json")
