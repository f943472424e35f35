"""Tasks of the diagnostics: true labels, splits by identity, ceilings that are reached, nothing to guess by."""

import numpy as np
import pytest

from visionattn.data.synthetic.diagnostics import TASKS, find_source, solve
from visionattn.data.synthetic.diagnostics.pictures import load_pictures

SOURCES = ["digits", *(["digits+fashion"] if find_source() != "digits" else [])]
# What the reference solutions reach at least, in shares of 300 test scenes; clothes are hard to read at 24 px.
CEILINGS = {"same": 0.88, "few examples": 0.78, "count": 0.98, "long way": 1.0}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", TASKS)
def test_the_reference_solution_reaches_the_ceiling(name, source):
    assert solve(name, 300, source=source).mean() >= CEILINGS.get(name, 0.96)


@pytest.mark.parametrize("name", TASKS)
def test_answers_come_as_often_as_chance_says(name):
    labels = np.concatenate([part.labels for part in TASKS[name].make("test", 600)])
    shares = np.bincount(labels, minlength=TASKS[name].classes) / len(labels)
    assert len(shares) == TASKS[name].classes
    assert shares.max() == pytest.approx(TASKS[name].chance, abs=0.06)


@pytest.mark.parametrize("name", TASKS)
def test_scenes_follow_from_their_numbers(name):
    parts, again, more = (TASKS[name].make("train", count, seed=3) for count in (6, 6, 9))
    for part, same, longer in zip(parts, again, more, strict=True):
        assert np.array_equal(part.images, same.images) and np.array_equal(part.labels, same.labels)
        assert np.array_equal(part.images, longer.images[: len(part)])
        assert part.evidence.any((1, 2)).all() and part.images.dtype == np.uint8
    other = TASKS[name].make("train", 6, seed=4)
    assert not np.array_equal(parts[0].images, other[0].images)


@pytest.mark.parametrize("source", SOURCES)
def test_no_picture_is_in_both_splits(source):
    train, test = (load_pictures(split, 12, source) for split in ("train", "test"))
    seen = {picture.tobytes() for picture in train.ink}
    shared = sum(picture.tobytes() in seen for picture in test.ink)
    assert shared == 0
    assert set(train.classes) == set(test.classes)


def test_few_examples_are_few():
    (part,) = TASKS["few examples"].make("train", 2000, object_px=24, examples=2)
    crops = set()
    for image, ((left, top, side),) in zip(part.images, part.places, strict=True):
        crop = image[top : top + side, left : left + side, 0].astype(float)
        crops.add((crop > 120).tobytes())
    (full,) = TASKS["few examples"].make("train", 2000, object_px=24, examples=100)
    many = {
        (image[top : top + side, left : left + side, 0] > 120).tobytes()
        for image, ((left, top, side),) in zip(full.images, full.places, strict=True)
    }
    assert len(crops) < len(many)


def centred(rows):
    """Rows of mean 0 and length 1, whose products are correlations."""
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_classes_of_same_are_held_out(source):
    sets = {}
    for split in ("train", "test"):
        kinds = np.arange(10 if source == "digits" else 20)
        held_out = kinds % 10 >= 7
        sets[split] = set(kinds[held_out if split == "test" else ~held_out])
        (part,) = TASKS["same"].make(split, 50, source=source)
        pictures = load_pictures(split, 10, source)
        known = centred(pictures.ink.reshape(len(pictures.ink), -1))
        for image, label, places in zip(part.images, part.labels, part.places, strict=True):
            found = []
            for left, top, side in places[:2]:
                crop = image[top : top + side, left : left + side, 1].astype(float) / 255
                # An object is one of the pictures times a grey, on noise.
                found.append(int(pictures.classes[np.argmax(known @ centred(crop.reshape(1, -1))[0])]))
            assert set(found) <= sets[split]
            assert (found[0] == found[1]) == bool(label)
    assert not sets["train"] & sets["test"]


def test_where_marks_lie_says_little_of_the_long_way():
    from sklearn.ensemble import RandomForestClassifier

    (part,) = TASKS["long way"].make("test", 3000)
    places = part.places[..., :2].reshape(len(part), -1).astype(float)
    features = np.hstack([places, places[:, :2] - places[:, 2:], np.abs(places[:, :2] - places[:, 2:])])
    forest = RandomForestClassifier(100, random_state=0).fit(features[:2000], part.labels[:2000])
    assert forest.score(features[2000:], part.labels[2000:]) == pytest.approx(TASKS["long way"].shortcut, abs=0.05)


def test_scenes_grow_with_their_size():
    (part,) = TASKS["pointer"].make("test", 4, size=64)
    assert part.images.shape == (4, 64, 64, 3)
    assert part.places[0, 0, 2] == 16
    for name, side, larger in (("shift", 48, 14), ("far shift", 64, 18)):
        (part,) = TASKS[name].make("test", 8)
        assert part.images.shape[1] == side
        assert [place[0][2] for place in part.places] == [12, larger] * 4


def test_harder_scenes_have_more():
    (easy,) = TASKS["pointer"].make("test", 3)
    (hard,) = TASKS["pointer"].make("test", 3, objects=4)
    assert (easy.places.shape[1], hard.places.shape[1]) == (2, 4)
    assert solve("corruption", 60, severity=3.0).mean() > 0.9  # reads the scenes without the change


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "split must be one of train, test"),
        ({"size": 16}, "size must be at least 32"),
        ({"count": 0}, "count at least 1"),
        ({"rows": 3}, "difficulty of pointer must be one of object_px, objects, kinds, gap"),
        ({"source": "letters"}, "source must be one of"),
        ({"objects": 5}, "objects must be at most kinds=4"),
        ({"objects": 9, "kinds": 9}, "hardly fit"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    if arguments.get("source"):
        with pytest.raises(ValueError, match=message):
            TASKS["clutter"].make("test", 1, **arguments)
        return
    with pytest.raises(ValueError, match=message):
        TASKS["pointer"].make(**{"split": "test", "count": 1, **arguments})


@pytest.mark.parametrize("arguments", [{"rows": 5, "size": 64}, {"columns": 3}, {"rows": 4}])
def test_a_table_that_does_not_fit_is_refused(arguments):
    with pytest.raises(ValueError, match="rows must be at most kinds=4"):
        TASKS["neighbour"].make("test", 1, **arguments)


def test_neighbours_are_further_apart_than_a_stem_sees():
    """The stem of the mixers' hosts sees 19 px: in no such window are both digits with more than their edges."""
    (part,) = TASKS["neighbour"].make("test", 50)
    for places in part.places:
        lefts, rights = places[::2], places[1::2]
        assert (rights[:, 0] - (lefts[:, 0] + lefts[:, 2]) >= 14).all()
        assert (lefts[:, 1] == rights[:, 1]).all()
