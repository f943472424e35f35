"""Pictures of boxes, masks and overlays."""

import numpy as np
import pytest

from visionattn.visualization.predictions import (
    draw_classification,
    draw_detections,
    draw_grid,
    draw_segmentation,
    palette,
)

CLASSES = ("ant", "cow", "zebra")
GREY = np.full((48, 64, 3), 128, np.uint8)


def has(picture, colour):
    return (picture == np.array(colour, np.uint8)).all(axis=-1).any()


def test_colours_are_distinct_and_do_not_depend_on_how_many():
    assert len(set(palette(150))) == 150 and palette(150)[:10] == palette(10)


def test_boxes_masks_and_legend_are_drawn_in_the_classes_colours():
    boxes, labels = np.array([[8, 8, 24, 40], [30, 4, 60, 44]], np.float32), np.array([0, 2])
    plain = draw_detections(GREY, boxes, labels, None, None, CLASSES)
    assert plain.shape[1] == 480 and plain.shape[0] > 360 and plain.dtype == np.uint8  # enlarged, a legend beneath
    colours = palette(3)
    for colour, seen in zip(colours, (True, False, True), strict=True):
        assert has(plain[:360], colour) == has(plain[360:], colour) == seen
    edge = (plain[200, :] == colours[0]).all(axis=-1)
    assert edge[58:63].any() and edge[178:183].any()  # left and right, 7.5 times as far out
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 20:30, 10:20] = True
    shaded = draw_detections(GREY, boxes, labels, np.array([0.5, 0.9]), masks, CLASSES)
    assert (shaded[180, 110] != plain[180, 110]).any() and (shaded[180, 300] == plain[180, 300]).all()


@pytest.mark.parametrize("masks", [None, np.zeros((0, 48, 64), bool)])
def test_a_picture_without_objects(masks):
    picture = draw_detections(GREY, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), masks, CLASSES)
    assert picture.shape == (360, 480, 3) and (picture == 128).all()


def test_large_pictures_keep_their_size():
    assert draw_detections(np.zeros((600, 800, 3), np.uint8), [], [], None, None, CLASSES).shape == (600, 800, 3)


def test_segmentation_shades_classes_and_leaves_the_rest():
    mask = np.full((48, 64), 255)
    mask[:, :20], mask[:, 20:40] = 0, 2
    picture = draw_segmentation(GREY, mask, CLASSES)
    colours = palette(3)
    assert np.abs(picture[100, 50].astype(int) - (np.array(colours[0]) + 128) / 2).max() <= 1
    assert (picture[100, 400] == 128).all()
    assert has(picture[360:], colours[0]) and has(picture[360:], colours[2]) and not has(picture[360:], colours[1])
    named = draw_segmentation(GREY, mask, ("background", "ant", "cow"), [(0, 0, 0), (9, 9, 9), (1, 2, 3)])
    assert (named[100, 50] == 128).all() and has(named[360:], (1, 2, 3))


def test_classes_and_grids():
    picture = draw_classification(GREY, "ant")
    assert picture.shape[0] > 360 and (picture[360:] < 100).any()
    grid = draw_grid([GREY, GREY[:20], GREY[:, :30]], columns=2)
    assert grid.shape == (48 * 2 + 8, 64 * 2 + 8, 3)
    assert (grid[:48, :64] == 128).all() and (grid[56:, :30] == 128).all() and (grid[20:48, 72:] == 255).all()
    assert draw_grid([GREY], columns=4).shape == GREY.shape
