from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import mm3dad
from mm3dad.errors import DataError
from mm3dad.run.explain import Explainer
from mm3dad.view.colors import TRUTH
from mm3dad.view.crops import TILE, Place, draw_places
from mm3dad.view.why import draw_why, explain_place
from tests.methods.parts import SMALL, make_cloud
from tests.methods.parts import make_sample as make_part


@pytest.fixture(scope="module")
def explained(plates):
    explainer = Explainer(plates[1])
    return explainer.explain(make_part(70, "both")), explainer.normals.read


def test_pictures_show_the_place_and_the_matched_normal_patch(explained):
    explanation, read = explained
    row, column = explanation.peaks(1)[0]
    why = explain_place(explanation, row, column, read)
    sheet = draw_why(why)
    assert sheet.shape[1] == 2 * TILE + 4 and sheet.shape[0] > 5 * TILE and draw_why(why, dark=True).mean() < sheet.mean()
    here, normal = why.tiles[0].pictures[0].astype(int), why.tiles[1].pictures[0].astype(int)
    # the stain is red, and no normal part is
    assert (here[..., 0] - here[..., 1]).max() > 100 > (normal[..., 0] - normal[..., 1]).max()
    assert all((picture == TRUTH).all(-1).any() for tile in why.tiles for picture in tile.pictures)
    assert f"{explanation.at(row, column)['rgb'].matches[0].distance:.3g}" in why.tiles[1].note


def test_a_lost_normal_sample_is_said_in_its_place(explained):
    def lose(identity):
        raise DataError(f"{identity} is gone; put it back")

    why = explain_place(explained[0], 30, 30, lose)
    assert why.tiles[0].pictures and all(tile.pictures == () and "put it back" in tile.note for tile in why.tiles[1:])
    assert draw_why(why).shape[0] < 3 * TILE + 100


def test_one_modality_and_no_point(explained):
    explanation, read = explained
    assert explain_place(explanation, 0, 0, read).group is None  # no point was measured there
    alone = dataclasses.replace(explanation, evidence={"rgb": explanation.evidence["rgb"]})
    why = explain_place(alone, 30, 30, read)
    assert why.group is None and why.beside == () and len(why.tiles) == 3
    with pytest.raises(DataError, match="outside"):
        explain_place(explanation, 64, 0, read)


def test_a_cloud_without_a_grid_is_drawn_whole():
    clouds = {cloud.meta.id: cloud for cloud in (make_cloud(seed) for seed in range(3))}
    explanation = mm3dad.create("duet", modalities="xyz", **SMALL).fit(list(clouds.values())).explain(make_cloud(60, defect="dent"))
    why = explain_place(explanation, 0, 11, clouds.__getitem__)
    assert len(why.tiles) == 3 and all(len(tile.pictures) == 1 for tile in why.tiles)
    assert draw_why(why).shape[0] > 3 * TILE


@pytest.mark.parametrize("pixel", [(0, 0), (63, 63), (0, 40)])
def test_crops_at_the_border_and_of_small_samples(pixel):
    part = make_part(1)
    for side in (3, 20, 500):
        drawn = draw_places([Place(part, pixel), Place(dataclasses.replace(part, rgb=None), pixel)], side)
        assert [len(pictures) for pictures in drawn] == [2, 1] and drawn[0][0].shape == (TILE, TILE, 3)
    empty = dataclasses.replace(part, valid=np_false(part))
    assert len(draw_places([Place(empty, pixel)], 20)[0]) == 2


def np_false(part):
    return part.valid & False


def test_heights_share_one_scale():
    """The same bump must not look flat beside a lower one: both crops are coloured by the higher."""
    flat, bent = make_part(1), make_part(2, "dent")
    row, column = (int(one) for one in np.argwhere(bent.mask.numpy()).mean(0))
    alone = draw_places([Place(flat, (row, column))], 20)[0][1].astype(int)
    beside = draw_places([Place(bent, (row, column)), Place(flat, (row, column))], 20)[1][1].astype(int)
    assert np.ptp(beside.sum(-1)) < np.ptp(alone.sum(-1))
