"""Labels of crowded boxes: none hides another, each is near its own."""

import numpy as np

from visionattn.visualization.placement import place_labels


def rectangles(places, sizes):
    return [(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, sizes, strict=True)]


def overlap(a, b):
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def test_a_lone_label_stands_on_its_box():
    assert place_labels(np.array([[100, 50, 200, 150]]), [(40, 20)], (640, 480)) == [(100, 30)]
    # At the upper edge there is no room above.
    ((left, top),) = place_labels(np.array([[100, 0, 200, 150]]), [(40, 20)], (640, 480))
    assert top >= 0 and (left, top) != (100, -20)


def test_crowded_labels_do_not_hide_each_other():
    generator = np.random.default_rng(0)
    corners = generator.uniform(100, 300, (40, 2))
    boxes = np.hstack([corners, corners + generator.uniform(20, 80, (40, 2))])
    sizes = [(60, 18)] * 40
    placed = rectangles(place_labels(boxes, sizes, (640, 480)), sizes)
    assert all(overlap(a, b) == 0 for n, a in enumerate(placed) for b in placed[:n])
    assert all(left >= 0 and top >= 0 and right <= 640 and bottom <= 480 for left, top, right, bottom in placed)
    middles = [((a + c) / 2, (b + d) / 2) for a, b, c, d in placed]
    distances = [np.hypot(*(np.array(m) - (box[:2] + box[2:]) / 2)) for m, box in zip(middles, boxes, strict=True)]
    assert np.median(distances) < 80


def test_where_there_is_no_room_the_last_labels_are_left_out():
    places = place_labels(np.tile([[10, 10, 30, 30]], (20, 1)), [(60, 20)] * 20, (120, 60))
    shown = [place for place in places if place is not None]
    assert shown == places[: len(shown)] and 2 <= len(shown) <= 6
