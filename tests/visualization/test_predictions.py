"""Pictures of classes, boxes, masks and overlays."""

import numpy as np
import pytest
import torch

from visionattn.visualization import (
    draw_classification,
    draw_detections,
    draw_grid,
    draw_sample,
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


def test_boxes_that_are_turned_round_outside_or_no_number_do_no_harm():
    boxes = np.array([[40, 30, 10, 5], [-50, -50, 500, 500], [np.nan, 0, 3, np.inf]])
    assert draw_detections(GREY, boxes, [0, 1, 2], [0.9, 0.8, np.nan], None, CLASSES).shape[1] == 480


def test_large_pictures_keep_their_size():
    assert draw_detections(np.zeros((600, 800, 3), np.uint8), [], [], None, None, CLASSES).shape == (600, 800, 3)


@pytest.mark.parametrize("shape", [(2000, 1), (1, 2000), (100_000, 1)])
def test_narrow_pictures_take_little_memory(shape):
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    drawn = (
        draw_classification(image, ["ant"], [0.5]),
        draw_segmentation(image, mask, CLASSES),
        draw_detections(image, [[0, 0, 1, 1]], [0], None, None, CLASSES),
    )
    for picture in drawn:
        assert picture.nbytes < 10e6 and picture.shape[1] >= 320


def test_segmentation_shades_classes_and_leaves_the_rest():
    mask = np.full((48, 64), 255)
    mask[:, :20], mask[:, 20:40] = 0, 2
    picture = draw_segmentation(GREY, mask, CLASSES)
    colours = palette(3)
    assert np.abs(picture[100, 50].astype(int) - (np.array(colours[0]) + 128) / 2).max() <= 1
    assert (picture[100, 400] == 128).all()
    assert has(picture[360:], colours[0]) and has(picture[360:], colours[2]) and not has(picture[360:], colours[1])
    named = draw_segmentation(GREY, mask, ("background", "ant", "cow"), [[0, 0, 0], [9, 9, 9], [1, 2, 3]])
    assert (named[100, 50] == 128).all() and has(named[360:], (1, 2, 3))


def test_the_border_between_two_classes_is_seen():
    mask = np.zeros((48, 64), int)
    mask[:, 32:] = 1
    picture = draw_segmentation(GREY, mask, CLASSES)
    strengths = np.abs(picture[100].astype(int) - palette(3)[1]).sum(-1)
    assert strengths[240] < strengths[300] / 2  # nearer to the pure colour than inside


def test_an_inset_keeps_the_size_whatever_is_in_the_picture():
    mask = np.zeros((48, 64), int)
    for drawn in (
        draw_classification(GREY, ["ant", "cow"], [0.9, 0.1], inset=True),
        draw_segmentation(GREY, mask, CLASSES, inset=True),
        draw_detections(GREY, [[3, 3, 9, 9]], [0], [0.5], None, CLASSES, inset=True),
        draw_detections(GREY, [], [], [], None, CLASSES, inset=True),
    ):
        assert drawn.shape == (360, 480, 3)


def test_classes_and_grids():
    picture = draw_classification(GREY, "ant")
    assert picture.shape[0] > 360 and (picture[360:] < 100).any()
    grid = draw_grid([GREY, GREY[:20], GREY[:, :30]], columns=2)
    assert grid.shape == (48 * 2 + 8, 64 * 2 + 8, 3)
    assert (grid[:48, :64] == 128).all() and (grid[56:, :30] == 128).all() and (grid[20:48, 72:] == 255).all()
    assert draw_grid([GREY], columns=4).shape == GREY.shape


def test_long_names_are_cut_to_the_picture():
    assert draw_classification(GREY, ["long " * 500], [0.5]).shape[1] == 480
    assert draw_segmentation(GREY, np.zeros((48, 64), int), ["long " * 500]).shape[1] == 480


@pytest.mark.parametrize(
    "annotation",
    [
        {"label": 2},
        {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([1])},
        {"mask": torch.zeros(48, 64, dtype=torch.int64)},
    ],
)
def test_samples_of_every_task(annotation):
    sample = {"inputs": torch.from_numpy(GREY).permute(2, 0, 1), "data_samples": annotation}
    picture = draw_sample(sample, {"classes": CLASSES})
    assert picture.shape[1] == 480 and picture.shape[0] > 360
