"""Scores of detectors and segmentors against pycocotools and scikit-learn, in one process and in two."""

import contextlib
import io
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, recall_score

from visionattn.data import CocoDetection
from visionattn.engine import TorchMetrics

CLASSES = ("ant", "cow", "zebra", "unicorn")
NAMES = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")


def scenes(count=12, seed=0, side=220):
    """Pictures with boxes and elliptic masks of all sizes, a third of them crowds, and predictions near some."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        n = 0 if number == 3 else int(rng.integers(1, 7))
        corner, size = rng.integers(0, side // 3, (n, 2)), rng.integers(4, 2 * side // 3, (n, 2))
        target = describe(np.hstack([corner, corner + size]), rng.integers(0, 3, n), side)
        target["iscrowd"] = torch.from_numpy(rng.random(n) < 0.3)
        target["area"] = target["masks"].sum((1, 2)).double()
        m = 0 if number == 5 else n
        boxes = target["boxes"][:m].numpy() + rng.integers(-6, 7, (m, 4))
        extra = np.array([[10, 10, 60, 90], [100, 20, 130, 50]])
        boxes = np.vstack([boxes, extra]) if number != 5 else boxes
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = np.append(np.where(rng.random(m) < 0.8, target["labels"][:m], 2), [0, 1] if number != 5 else [])
        preds = describe(boxes.clip(0, side), labels, side)
        preds["scores"] = torch.from_numpy(rng.random(len(boxes)).astype(np.float32))
        samples.append({"preds": preds, "target": target})
    return samples


def describe(boxes, labels, side):
    rows, columns = np.mgrid[:side, :side]
    masks = np.zeros((len(boxes), side, side), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        across, down = (right - left) / 2, (bottom - top) / 2
        mask[:] = ((columns + 0.5 - left - across) / across) ** 2 + ((rows + 0.5 - top - down) / down) ** 2 <= 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64).reshape(-1),
        "masks": torch.from_numpy(masks),
    }


def reference(samples, kind):
    """What pycocotools says: the six numbers, and the average precision of each class that occurs."""
    from pycocotools import mask as coding
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def encode(mask):
        return coding.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    def annotation(image_id, part, i):
        left, top, right, bottom = part["boxes"][i].tolist()
        record = {"image_id": image_id, "category_id": int(part["labels"][i]) + 1}
        return record | {"bbox": [left, top, right - left, bottom - top], "segmentation": encode(part["masks"][i])}

    truth, found = COCO(), []
    truth.dataset = {
        "images": [{"id": i, "height": 220, "width": 220} for i in range(len(samples))],
        "categories": [{"id": number} for number in range(1, len(CLASSES) + 1)],
        "annotations": [],
    }
    for image_id, sample in enumerate(samples):
        target, preds = sample["target"], sample["preds"]
        for i in range(len(target["labels"])):
            more = {"id": len(truth.dataset["annotations"]) + 1, "area": float(target["area"][i])}
            more["iscrowd"] = int(target["iscrowd"][i])
            truth.dataset["annotations"].append(annotation(image_id, target, i) | more)
        for i in range(len(preds["labels"])):
            record = annotation(image_id, preds, i) | {"score": float(preds["scores"][i])}
            found.append({k: v for k, v in record.items() if k != ("bbox" if kind == "segm" else "segmentation")})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    curves = evaluation.eval["precision"][..., 0, -1]
    by_class = [curve[curve > -1] for curve in np.moveaxis(curves, 2, 0)]
    return evaluation.stats[:6], {name: c.mean() for name, c in zip(CLASSES, by_class, strict=True) if c.size}


def evaluate(config, samples, count=None, batch=5):
    metric = TorchMetrics({"x": config})
    metric.dataset_meta = {"classes": CLASSES}
    for start in range(0, len(samples), batch):
        metric.process(None, samples[start : start + batch])
    return metric.evaluate(count or len(samples)), metric


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_detection_equals_pycocotools(kind, seed):
    samples = scenes(seed=seed)
    values, _ = evaluate({"type": "DetectionScores", "iou_type": kind}, samples)
    expected, by_class = reference(samples, kind)
    assert [values[f"x/{name}"] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert 0.05 < values["x/map"] < 0.95 and len({round(values[f"x/{name}"], 6) for name in NAMES}) == 6
    assert {name: values[f"x/ap/{name}"] for name in by_class} == pytest.approx(by_class, abs=1e-6)
    assert "x/ap/unicorn" not in values  # neither there nor predicted


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_coco_file_is_scored_as_pycocotools_scores_it(tmp_path, kind):
    """Crowds, gaps in class ids and boxes outside go from the file through data set and metric unchanged."""
    from pycocotools import mask as coding
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids, samples = (3, 7, 90), scenes(8, seed=4)
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in ids]}
    found = []
    for image_id, sample in enumerate(samples):
        Image.new("RGB", (220, 220)).save(tmp_path / f"{image_id}.png")
        content["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": 220, "width": 220})
        for part, records in ((sample["target"], content["annotations"]), (sample["preds"], found)):
            for i, (left, top, right, bottom) in enumerate(part["boxes"].tolist()):
                runs = coding.encode(np.asfortranarray(part["masks"][i].numpy().astype(np.uint8)))
                record = {"image_id": image_id, "category_id": ids[part["labels"][i]]}
                record["segmentation"] = {"size": [220, 220], "counts": runs["counts"].decode()}
                if "scores" in part:
                    record["score"] = float(part["scores"][i])
                else:
                    left -= 60 * (i == 1)  # out of the picture
                    record |= {"id": len(records) + 1, "iscrowd": int(part["iscrowd"][i]), "area": 7.5 * (i + 1) ** 5}
                records.append(record | ({"bbox": [left, top, right - left, bottom - top]}))
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = CocoDetection(tmp_path / "a.json", tmp_path, [], masks=True, test_mode=True)
    pairs = [
        {"preds": samples[i]["preds"], "target": dataset[i]["data_samples"]["original"]} for i in range(len(dataset))
    ]
    values, _ = evaluate({"type": "DetectionScores", "iou_type": kind}, pairs)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "a.json")
        wrong_key = "bbox" if kind == "segm" else "segmentation"
        results = truth.loadRes([{key: value for key, value in r.items() if key != wrong_key} for r in found])
        evaluation = COCOeval(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert [values[f"x/{name}"] for name in NAMES] == pytest.approx(evaluation.stats[:6].tolist(), abs=1e-6)
    assert len({*evaluation.stats[:6]}) == 6


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_predictions_score_one(kind):
    samples = scenes()
    for sample in samples:
        kept = ~sample["target"]["iscrowd"]
        sample["preds"] = {key: sample["target"][key][kept] for key in ("boxes", "labels", "masks")}
        sample["preds"]["scores"] = torch.ones(int(kept.sum()))
    values, _ = evaluate({"type": "DetectionScores", "iou_type": kind}, samples)
    expected, _ = reference(samples, kind)
    assert [values[f"x/{name}"] for name in NAMES] == pytest.approx([1] * 6)
    assert expected == pytest.approx([1] * 6)


def test_areas_are_the_annotated_ones():
    """A large box of few pixels is a small object if its annotation says so."""
    target = describe([[0, 0, 100, 100]], [0], 220) | {"iscrowd": torch.tensor([False]), "area": torch.tensor([50.0])}
    preds = describe([[0, 0, 100, 100]], [0], 220) | {"scores": torch.tensor([0.5])}
    values, _ = evaluate({"type": "DetectionScores"}, [{"preds": preds, "target": target}])
    assert values["x/map_small"] == 1 and math.isnan(values["x/map_large"])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_nothing_found_and_nothing_to_find(kind):
    empty = describe(np.zeros((0, 4)), [], 220)
    sample = {"preds": empty | {"scores": torch.zeros(0)}, "target": scenes(1)[0]["target"]}
    sample["target"]["iscrowd"][:] = False
    config = {"type": "DetectionScores", "iou_type": kind}
    assert evaluate(config, [sample])[0]["x/map"] == 0
    found = {"preds": scenes(1)[0]["preds"], "target": empty | {"iscrowd": torch.zeros(0), "area": torch.zeros(0)}}
    assert math.isnan(evaluate(config, [found])[0]["x/map"])
    values, metric = evaluate(config, [{"preds": sample["preds"], "target": found["target"]}])
    assert math.isnan(values["x/map"]) and metric.metrics["x"].precision.shape == (10, 101, 0)


def test_each_kind_is_evaluated_once(monkeypatch):
    """Scores of masks evaluate no boxes, and no data set is built twice."""
    from faster_coco_eval import COCO, COCOeval_faster

    kinds, indexed = [], []
    evaluate_, index = COCOeval_faster.evaluate, COCO.createIndex
    monkeypatch.setattr(COCOeval_faster, "evaluate", lambda self: (kinds.append(self.params.iouType), evaluate_(self)))
    monkeypatch.setattr(COCO, "createIndex", lambda self: (indexed.append(len(self.dataset["images"])), index(self)))
    samples, metric = scenes(), TorchMetrics({k: {"type": "DetectionScores", "iou_type": k} for k in ("bbox", "segm")})
    metric.process(None, samples)
    assert not metric.results[0]["segm"]["detection_box"] and not metric.results[0]["bbox"]["detection_mask"]
    values = metric.evaluate(len(samples))
    assert kinds == ["bbox", "segm"] and indexed == [len(samples)] * 4
    for kind in kinds:
        assert values[f"{kind}/map"] == pytest.approx(reference(samples, kind)[0][0], abs=1e-6)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_classes_without_objects_and_pictures_without_detections(kind):
    samples = scenes(9)
    for sample in samples[::3]:
        sample["preds"] = {key: value[:0] for key, value in sample["preds"].items()}
    samples[1]["preds"]["labels"][:1] = 3  # a unicorn, which no picture shows
    samples[2]["target"]["iscrowd"][:] = True
    values, metric = evaluate({"type": "DetectionScores", "iou_type": kind}, samples)
    expected, by_class = reference(samples, kind)
    assert [values[f"x/{name}"] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert {name: values[f"x/ap/{name}"] for name in by_class} == pytest.approx(by_class, abs=1e-6)
    assert math.isnan(values["x/ap/unicorn"]) and metric.metrics["x"].classes == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_objects_without_an_area_have_that_of_their_shape(kind):
    samples = scenes(6)
    config = {"type": "DetectionScores", "iou_type": kind}
    for sample in samples:
        target = sample["target"]
        corners, pixels = target["boxes"], target["masks"].sum((1, 2))
        target["area"] = (corners[:, 2:] - corners[:, :2]).prod(1) if kind == "bbox" else pixels
    known, _ = evaluate(config, samples)
    for sample in samples:
        del sample["target"]["area"]
    assert known["x/map_small"] != known["x/map_medium"]
    assert evaluate(config, samples)[0] == pytest.approx(known, nan_ok=True)


def test_curves_are_there_after_the_evaluation():
    _, metric = evaluate({"type": "DetectionScores"}, scenes())
    scores = metric.metrics["x"]
    assert scores.precision.shape == (10, 101, 3) and scores.classes == [0, 1, 2]


def masks(count=6, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        shape = (20 + number, 30)
        target = torch.from_numpy(rng.integers(0, 3, shape).astype(np.uint8))
        preds = torch.where(torch.from_numpy(rng.random(shape) < 0.7), target, 1)
        target[:2] = 255
        samples.append({"preds": preds, "target": target})
    return samples


SEGMENTATION = {"type": "SegmentationScores", "num_classes": 4}


def test_segmentation_equals_scikit_learn():
    samples = masks()
    values, metric = evaluate(SEGMENTATION, samples)
    target, preds = (torch.cat([sample[key].flatten() for sample in samples]).numpy() for key in ("target", "preds"))
    target, preds = target[target != 255], preds[target != 255]
    for name, function in (("iou", jaccard_score), ("acc", recall_score), ("dice", f1_score)):
        expected = function(target, preds, average=None)
        assert [values[f"x/{name}/{label}"] for label in CLASSES[:3]] == pytest.approx(expected, abs=1e-6)
        assert values[f"x/m{name}"] == pytest.approx(expected.mean(), abs=1e-6)
        assert f"x/{name}/unicorn" not in values  # it does not occur, and does not count
    assert values["x/accuracy"] == pytest.approx((target == preds).mean(), abs=1e-6)
    assert metric.metrics["x"].confusion.sum() == len(target)


def test_perfect_masks_score_one():
    samples = [{"preds": sample["target"], "target": sample["target"]} for sample in masks()]
    for sample in samples:
        sample["preds"] = sample["preds"].where(sample["target"] != 255, 3)
    values, _ = evaluate(SEGMENTATION, samples)
    assert values["x/miou"] == values["x/macc"] == values["x/mdice"] == values["x/accuracy"] == 1


def test_all_of_the_masks_may_be_ignored():
    sample = {"preds": torch.zeros(5, 5, dtype=torch.int64), "target": torch.full((5, 5), 255)}
    assert math.isnan(evaluate(SEGMENTATION, [sample])[0]["x/miou"])
    values, _ = evaluate(SEGMENTATION, [sample, *masks()])
    assert values == evaluate(SEGMENTATION, masks())[0]


@pytest.mark.parametrize("preds, target", [(3, 0), (0, 3), (5, 5)])
def test_segmentation_refuses_classes_it_does_not_know(preds, target):
    sample = {"preds": torch.full((2, 2), preds, dtype=torch.uint8), "target": torch.full((2, 2), target)}
    with pytest.raises(ValueError, match=r"holds class [35], but num_classes of SegmentationScores is 3"):
        evaluate({"type": "SegmentationScores", "num_classes": 3}, [sample])


def test_wrong_masks_and_arguments():
    with pytest.raises(ValueError, match=r"prediction of \(5, 5\) pixels for a mask of \(5, 6\)"):
        evaluate(SEGMENTATION, [{"preds": torch.zeros(5, 5), "target": torch.zeros(5, 6)}])
    with pytest.raises(ValueError, match=r"metric 'x': SegmentationScores.*num_classes must be at least 2, got 1"):
        TorchMetrics({"x": {"type": "SegmentationScores", "num_classes": 1}})
    with pytest.raises(ValueError, match=r"metric 'x': DetectionScores.*iou_type"):
        TorchMetrics({"x": {"type": "DetectionScores", "iou_type": "boxes"}})
    with pytest.raises(ValueError, match=r"metric 'x': DetectionScores.*average"):
        TorchMetrics({"x": {"type": "DetectionScores", "average": "micro"}})


def test_what_is_kept_does_not_grow_with_the_pictures():
    def kept(config, sample):
        metric = TorchMetrics({"x": config})
        metric.process(None, [sample])
        return len(pickle.dumps(metric.results))

    small, large = ({"preds": torch.ones(s, s).long(), "target": torch.ones(s, s).byte()} for s in (50, 1000))
    assert kept(SEGMENTATION, large) == kept(SEGMENTATION, small) < 3000
    sample = scenes(1)[0]
    assert kept({"type": "DetectionScores", "iou_type": "segm"}, sample) < sample["preds"]["masks"].numel() / 4


TWO = """
import json, sys
sys.path[:0] = {path!r}
import torch.distributed as dist
from test_scores import evaluate, masks, scenes, SEGMENTATION
dist.init_process_group("gloo")
rank = dist.get_rank()
results = []
for samples, config in ((scenes(7), dict(type="DetectionScores", iou_type="segm")), (masks(5), SEGMENTATION)):
    mine = (samples + samples[:1])[rank::2]  # the sampler repeats the first to have as many for each
    results.append(evaluate(config, mine, len(samples), batch=2)[0])
if rank == 0:
    print("RESULT", json.dumps(results))
dist.destroy_process_group()
"""


def test_two_processes_count_each_picture_once(tmp_path):
    from pathlib import Path

    path = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    (tmp_path / "two.py").write_text(TWO.format(path=path))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(tmp_path / "two.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    two = json.loads(line.removeprefix("RESULT"))
    one = [
        evaluate({"type": "DetectionScores", "iou_type": "segm"}, scenes(7))[0],
        evaluate(SEGMENTATION, masks(5))[0],
    ]
    assert two == one
