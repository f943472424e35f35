"""Scenes of stamps: what is taken, that the splits share nothing, and that boxes, masks and pictures agree."""

import json

import numpy as np
import pytest
from PIL import Image

from visionattn.data import CocoDetection, ImageMaskFolder
from visionattn.data.synthetic.objects import PHOTOGRAPHS, STAMPS, find_stamps


@pytest.fixture
def stamps(tmp_path):
    """Discs of one colour a class, six things each; some of what must not be taken is red."""
    folder = tmp_path / "stamps"
    rows, columns = np.mgrid[:40, :60]
    inside = ((rows - 20) / 15) ** 2 + ((columns - 30) / 25) ** 2 <= 1
    for label, places in enumerate(STAMPS.values()):
        for number in range(6):
            path = folder / places[number % len(places)] / "deep" / f"thing{number}.png"
            write(path, inside, (10, 20 + 25 * label, 200))
        write(folder / places[0] / "thing0-2.png", inside, (10, 20 + 25 * label, 200))
        write(folder / places[0] / "thing1_mirror.png", inside, (255, 0, 0))
        write(folder / places[0] / "cartoon" / "thing9.png", inside, (255, 0, 0))
    write(folder / "animals" / "mammals" / "hedgehog.png", inside, (255, 0, 0))
    write(folder / "town" / "house.png", inside, (255, 0, 0))
    return folder


def write(path, inside, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((*inside.shape, 4), np.uint8)
    image[inside] = (*colour, 255)
    Image.fromarray(image).save(path)


def test_what_is_taken_and_how_it_is_split(stamps):
    train, test = find_stamps(stamps, "train"), find_stamps(stamps, "test")
    names = {
        split: sorted(path.stem for path, label in found if label == 0)
        for split, found in (("train", train), ("test", test))
    }
    assert names == {"train": ["thing0", "thing0-2", "thing1", "thing3", "thing4"], "test": ["thing2", "thing5"]}
    assert len(train) == 8 * 5 and len(test) == 8 * 2
    assert {label for _, label in train} == {label for _, label in test} == set(range(8))
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])


def test_pictures_boxes_and_masks_agree(stamps, tmp_path, run_cli):
    arguments = ["--source", stamps, "--train", 6, "--test", 3, "--size", 96]
    code, out, err = run_cli("prepare-objects", *arguments, "--out", tmp_path / "made")
    assert code == 0, err
    assert "6 scenes to train and 3 to test" in out
    folder = tmp_path / "made"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.txt", "test", "test-masks", "test.json", "train", "train-masks", "train.json")
    ]
    classes = ("background", *STAMPS)
    for split, count in (("train", 6), ("test", 3)):
        boxes = CocoDetection(folder / f"{split}.json", folder / split, [], masks=True, test_mode=True)
        masks = ImageMaskFolder(folder / split, folder / f"{split}-masks", classes, [])
        assert len(boxes) == len(masks) == count and boxes.metainfo["classes"] == tuple(STAMPS)
        for index in range(count):
            sample = boxes[index]["data_samples"]
            assert sample["dropped"] == 0 and 1 <= len(sample["labels"]) <= 4
            painted = np.zeros((96, 96), np.int64)
            image = boxes[index]["inputs"].permute(1, 2, 0).numpy()
            for mask, label, box in zip(*(sample[key].numpy() for key in ("masks", "labels", "boxes")), strict=True):
                painted[mask] = label + 1
                rows, columns = np.nonzero(mask)
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.abs(box - tight).max() < 1e-3
                colour = np.median(image[mask], axis=0)
                assert np.abs(colour - (10, 20 + 25 * label, 200)).max() < 25
            assert np.array_equal(painted, masks[index]["data_samples"]["mask"].numpy())
            assert sample["original"]["area"].tolist() == sample["masks"].sum((1, 2)).tolist()


def test_it_is_a_function_of_the_seed_and_overwrites_nothing(stamps, tmp_path, run_cli):
    def content(name, *more):
        code, _, err = run_cli(
            *("prepare-objects", "--source", stamps, "--train", 2, "--test", 1, "--size", 64, "--out", name), *more
        )
        assert code == 0, err
        found = json.loads((tmp_path / name / "train.json").read_text())["annotations"]
        return found, (tmp_path / name / "train" / "000001.jpg").read_bytes()

    assert content("a") == content("b") != content("c", "--seed", 1)
    code, _, err = run_cli("prepare-objects", "--source", stamps, "--out", "a")
    assert code == 2 and "a exists already; name another folder, so that nothing is overwritten" in err


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--size", 8], "size must be at least 64 and counts at least 1, got size=8"),
        (None, ["--test", 0], "counts at least 1, got size=256, counts={'train': 4000, 'test': 0}"),
        (None, ["--source", "none"], "no stamps in none; on Debian `apt install tuxpaint-stamps-default`"),
        ("missing", [], "has 0 kinds of 'insect' (in animals/insects), at least 3 needed"),
        ("transparent", [], "thing0.png is transparent all over"),
        ("broken", [], "cannot read stamp"),
    ],
)
def test_wrong_input_leaves_nothing_behind(stamps, tmp_path, run_cli, change, arguments, message):
    if change == "missing":
        (stamps / "animals" / "insects").rename(tmp_path / "elsewhere")
    elif change == "transparent":
        write(stamps / "animals" / "birds" / "deep" / "thing0.png", np.zeros((5, 5), bool), (0, 0, 0))
    elif change == "broken":
        (stamps / "animals" / "birds" / "deep" / "thing0.png").write_bytes(b"\x89PNG\r\n")
    code, _, err = run_cli("prepare-objects", "--source", stamps, "--out", "made", *arguments)
    assert code == 2 and message in err
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".part-*"))
