"""Folders of results: complete whatever ends the run, never mixed, and readable by others' tools."""

import contextlib
import csv
import errno
import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from visionattn.inference import Network, Predictor, predict_to_folder, read_records
from visionattn.inference.folder import new_folder
from visionattn.inference.tables import write_tables


def rows(folder, name="predictions.csv"):
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder):
    return sorted(path.name for path in folder.glob("*.png"))


@contextlib.contextmanager
def full_disk(most_bytes):
    """No file may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class TestWhatIsWritten:
    def test_classification(self, classifier, folder, tmp_path):
        report = predict_to_folder(classifier, folder, tmp_path / "out")
        assert report.count == 3 and report.folder == tmp_path / "out"
        table = rows(report.folder)
        assert [Path(row["image"]).name for row in table] == ["a.png", "photo [edited].png", "猫é.png"]
        assert list(table[0]) == ["image", *(f"{w}_{k}" for k in (1, 2, 3) for w in ("label", "score"))]
        assert pictures(report.folder) == ["00000_a.png", "00001_photo [edited].png", "00002_猫é.png"]
        records = list(read_records(report.folder))
        assert [record["id"] for record in records] == [0, 1, 2]
        for row, record in zip(table, records, strict=True):
            assert row["label_1"] == record["classes"][0]["label"] == str(record["classes"][0]["class"])
            assert float(row["score_1"]) == record["classes"][0]["score"]

    def test_detections_are_coco_s(self, detector, scene, tmp_path):
        (found,) = detector(scene)
        folder = predict_to_folder(detector, [scene, scene[:100]], tmp_path / "out").folder
        truth = COCO(str(folder / "coco.json"))
        results = truth.loadRes(str(folder / "predictions.json"))
        assert [truth.imgs[n]["height"] for n in (0, 1)] == [128, 100]
        annotations = results.loadAnns(results.getAnnIds(imgIds=[0]))
        names = [truth.cats[annotation["category_id"]]["name"] for annotation in annotations]
        assert names == [detector.network.classes[label] for label in found.labels]
        assert 0 not in truth.cats and [row["label"] for row in rows(folder)][: len(names)] == names
        for annotation, box in zip(annotations, found.boxes, strict=True):
            np.testing.assert_allclose(annotation["bbox"], [*box[:2], *(box[2:] - box[:2])], atol=0.01)

    def test_category_ids_of_the_training_data_and_masks(self, tmp_path):
        mask = np.zeros((4, 5), bool)
        mask[1:3, 2:] = True
        import torch

        def predict(samples):
            return [
                {
                    "boxes": torch.tensor([[2.0, 1, 5, 3]]),
                    "labels": torch.tensor([1]),
                    "scores": torch.tensor([0.75]),
                    "masks": torch.from_numpy(mask)[None],
                }
            ] * len(samples)

        predictor = Predictor.__new__(Predictor)
        predictor.topk, predictor.score = 5, 0.5
        predictor.network = Network("detection", ("ant", "猫"), _as_it_is, predict, class_ids=(7, 90))
        folder = predict_to_folder(predictor, np.zeros((4, 5, 3), np.uint8), tmp_path / "out").folder
        truth = COCO(str(folder / "coco.json"))
        (annotation,) = truth.loadRes(str(folder / "predictions.json")).anns.values()
        assert annotation["category_id"] == 90 and truth.cats[90]["name"] == "猫"
        assert np.array_equal(truth.annToMask(annotation), mask)

    def test_nothing_found_is_a_result(self, scene, tmp_path):
        strict = Predictor("va_resnet10n_cbam.digit_scenes_fcos", score=1.0)
        folder = predict_to_folder(strict, scene, tmp_path / "out").folder
        assert json.loads((folder / "predictions.json").read_text()) == [] and rows(folder) == []
        assert len(json.loads((folder / "coco.json").read_text())["images"]) == 1

    def test_masks_have_a_palette_and_names_beside_them(self, segmentor, scene, tmp_path):
        (found,) = segmentor(scene)
        folder = predict_to_folder(segmentor, [scene], tmp_path / "out").folder
        with Image.open(folder / "00000_image-0_classes.png") as stored:
            assert stored.mode == "P" and np.array_equal(np.asarray(stored), found.mask)
            shown = np.asarray(stored.convert("RGB"))
        table = rows(folder, "classes.csv")
        assert [row["name"] for row in table] == list(segmentor.network.classes)
        for number in np.unique(found.mask):
            colour = [int(table[number][part]) for part in ("red", "green", "blue")]
            assert (shown[found.mask == number] == colour).all() and (number == 0 or sum(colour) > 100)
        assert sum(float(row["share"]) for row in rows(folder)) == pytest.approx(1, abs=1e-4)

    def test_tables_only(self, segmentor, scene, tmp_path):
        folder = predict_to_folder(segmentor, [scene], tmp_path / "out", pictures=False).folder
        assert pictures(folder) == [] and rows(folder)


def _as_it_is(image, name):
    import torch

    return {"inputs": torch.from_numpy(image).permute(2, 0, 1), "size": image.shape[:2]}


class TestNothingIsLost:
    def test_broken_pictures_are_skipped_and_listed(self, classifier, folder, tmp_path):
        told = []
        report = predict_to_folder(
            classifier, folder, tmp_path / "out", batch_size=4, on_skip=lambda *what: told.append(what)
        )
        assert report.count == 3 and told == list(report.skipped)
        ((name, reason),) = report.skipped
        assert name.endswith("broken.jpg") and "it is truncated or in no format" in reason
        assert rows(report.folder, "skipped.csv") == [{"image": name, "reason": reason}]

    def test_strict_stops_and_keeps_what_was_finished(self, classifier, folder, tmp_path):
        with pytest.raises(ValueError, match=r"cannot read image .*broken\.jpg"):
            predict_to_folder(classifier, folder, tmp_path / "out", strict=True)
        assert len(rows(tmp_path / "out")) == 1

    def test_nothing_readable_leaves_nothing(self, classifier, tmp_path):
        with pytest.raises(ValueError, match="none of 2 pictures could be predicted; the first: cannot read image"):
            predict_to_folder(classifier, [b"x", b"y"], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_ctrl_c(self, classifier, noise, tmp_path):
        def inputs():
            yield noise(8, 8)
            yield noise(8, 8, 1)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match=r"2 pictures are finished in .*out"):
            predict_to_folder(classifier, inputs(), tmp_path / "out")
        assert len(rows(tmp_path / "out")) == len(pictures(tmp_path / "out")) == 2

    def test_a_kill_leaves_records_from_which_the_tables_can_be_made(self, classifier, noise, tmp_path):
        """Each line is on the disk before the next picture; a last one may be cut short."""
        seen = []

        def note(result):
            seen.append(len(list(read_records(tmp_path / "out"))))

        predict_to_folder(classifier, [noise(8, 8), noise(8, 8, 1)], tmp_path / "out", on_result=note)
        assert seen == [1, 2]
        (tmp_path / "out" / "predictions.csv").unlink()
        with (tmp_path / "out" / "predictions.jsonl").open("a") as file:
            file.write('{"id": 2, "image": "im')
        write_tables(tmp_path / "out", "classification", classifier.network.classes)
        assert len(rows(tmp_path / "out")) == 2

    def test_a_full_disk(self, classifier, noise, tmp_path):
        inputs = [np.zeros((64, 64, 3), np.uint8), noise(300, 300)]
        with (
            full_disk(20_000),
            pytest.raises(OSError, match=r"results of image-1: File too large; 1 pictures are finished in .*out"),
        ):
            predict_to_folder(classifier, inputs, tmp_path / "out")
        assert pictures(tmp_path / "out") == ["00000_image-0.png"] and len(rows(tmp_path / "out")) == 1
        Image.open(tmp_path / "out" / "00000_image-0.png").load()
        assert not list((tmp_path / "out").glob(".part-*"))

    def test_a_disk_that_is_full_for_the_tables_too(self, classifier, tmp_path):
        with full_disk(100), pytest.raises(OSError, match="File too large"):
            predict_to_folder(classifier, np.zeros((64, 64, 3), np.uint8), tmp_path / "out")


class TestFolders:
    def test_runs_never_mix(self, classifier, noise, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folders = [predict_to_folder(classifier, noise(8, 8)).folder.name for _ in range(3)]
        assert folders == ["predictions", "predictions-2", "predictions-3"]
        with pytest.raises(ValueError, match="predictions exists already: name another folder"):
            predict_to_folder(classifier, noise(8, 8), "predictions")
        (tmp_path / "file").touch()
        with pytest.raises(ValueError, match="file exists already"):
            new_folder("file")

    def test_earlier_results_are_not_taken_for_pictures(self, classifier, folder):
        for name in ("predictions", "again"):
            report = predict_to_folder(classifier, folder, folder / name)
            assert report.count == 3 and len(report.skipped) == 1

    @pytest.mark.parametrize("name", ["x" * 250, "a:b?*", "猫" * 80, "https://example.org/a/b.png?size=3&x=猫"])
    def test_unusual_names(self, name, classifier, noise, tmp_path):
        from visionattn.inference import Picture

        folder = predict_to_folder(classifier, [Picture(name, lambda: noise(8, 8))], tmp_path / "out").folder
        assert len(pictures(folder)) == 1 and rows(folder)[0]["image"] == name

    def test_the_error_names_what_cannot_be_written(self, classifier, noise, tmp_path, monkeypatch):
        def fail(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match=r"^cannot write the results of image-0: No space left on device; 0 pictures"):
            predict_to_folder(classifier, noise(8, 8), tmp_path / "out")
        assert not (tmp_path / "out").exists()
