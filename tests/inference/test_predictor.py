"""Predictors: every kind of input, batches, names of classes, and where the weights come from."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from visionattn.checkpoints import packaged_path, read_weights
from visionattn.engine import load_config
from visionattn.inference import Classification, Detection, Network, Picture, Predictor, Segmentation
from visionattn.inference.network import _imagenet_names, _trimmed

NAME = "va_resnet10n_cbam.digits"


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()


class TestInputs:
    def test_every_kind_gives_the_same_prediction(self, classifier, noise, tmp_path):
        image = noise(40, 40)
        Image.fromarray(image).save(tmp_path / "a.png")
        inputs = [tmp_path / "a.png", image, Image.fromarray(image), png(image)]
        results = list(classifier(inputs))
        assert all(isinstance(result, Classification) for result in results)
        assert len({(result.labels, result.scores) for result in results}) == 1
        assert results[0].name == str(tmp_path / "a.png") and results[1].name == "image-1"

    def test_results_come_as_soon_as_they_are_known(self, classifier, noise):
        given = []

        def pictures():
            for number in range(5):
                given.append(number)
                yield noise(8, 8, number)

        results = classifier(pictures(), batch_size=2)
        next(results)
        assert given == [0, 1]
        assert len(list(results)) == 4

    def test_each_task_has_its_result(self, detector, segmentor, scene):
        (found,) = detector(scene)
        assert isinstance(found, Detection) and len(found.boxes) > 1 and found.boxes.max() <= 128
        assert "6" in found.summary() and found.draw().shape[1] == 480
        (parts,) = segmentor(scene)
        assert isinstance(parts, Segmentation) and parts.mask.shape == (128, 128)
        assert parts.summary().startswith("background ")

    def test_wrong_arguments(self, classifier):
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            classifier("a.png", batch_size=0)
        for arguments, message in (
            ({"topk": 0}, "topk must be at least 1"),
            ({"score": 2}, r"score must lie in 0\.\.1"),
        ):
            with pytest.raises(ValueError, match=message):
                Predictor(NAME, **arguments)


class TestBatches:
    @pytest.mark.parametrize("kind", ["classifier", "detector", "segmentor"])
    def test_a_result_does_not_depend_on_the_other_pictures(self, kind, request, noise, scene):
        predictor = request.getfixturevalue(kind)
        pictures = [scene, noise(40, 60, 1), scene[:100], scene]
        alone = [next(predictor(picture)).record() for picture in pictures]
        together = [result.record() for result in predictor(pictures, batch_size=4)]
        assert str(alone) == str(together) or np.allclose(*(_numbers(r) for r in (alone, together)), atol=1e-3)

    def test_also_where_the_pipeline_does_not_resize(self, noise):
        config = load_config("quickstart")
        config.test_dataloader.dataset.pipeline = []
        predictor = Predictor(config, packaged_path(NAME))
        pictures = [noise(20, 20), noise(40, 60, 1)]
        alone = [next(predictor(picture)).scores for picture in pictures]
        together = [result.scores for result in predictor(pictures, batch_size=2)]
        np.testing.assert_allclose(alone, together, atol=1e-4)


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return np.concatenate([_numbers(part) for part in value]) if value else np.zeros(0)
    return np.array([value] if isinstance(value, (int, float)) else [], float)


class TestBrokenPictures:
    def test_the_others_go_on(self, classifier, noise):
        faults = []
        inputs = [noise(8, 8), b"broken", noise(8, 8, 1), "missing.png"]
        results = list(classifier(inputs, batch_size=4, on_error=lambda name, error: faults.append((name, str(error)))))
        assert [result.name for result in results] == ["image-0", "image-2"]
        assert [name for name, _ in faults] == ["image-1", "missing.png"]
        assert "it is truncated or in no format" in faults[0][1] and "no image at missing.png" in faults[1][1]

    def test_without_anybody_to_tell_the_first_one_ends_it(self, classifier, noise):
        results = classifier([noise(8, 8), b"broken", noise(8, 8, 1)])
        assert next(results).name == "image-0"
        with pytest.raises(ValueError, match="cannot read image image-1"):
            next(results)

    @pytest.mark.parametrize("fault", ["raises", "not finite"])
    def test_pictures_that_the_network_cannot_take(self, fault, classifier, noise):
        predictor = Predictor.__new__(Predictor)
        predictor.topk, predictor.score = 3, 0.5

        def predict(samples):
            dark = [bool(sample["inputs"].float().mean() < 100) for sample in samples]
            if fault == "raises" and any(dark):
                raise RuntimeError("kernel size can't be greater than\nthe input")
            scores = torch.stack(list(classifier.network.predict(samples)))
            return torch.where(torch.tensor(dark)[:, None], float("nan"), scores)

        known = classifier.network
        predictor.network = Network(known.task, known.classes, known.prepare, predict)
        faults = []
        inputs = [np.full((8, 8, 3), value, np.uint8) for value in (250, 3, 240)]
        results = list(predictor(inputs, batch_size=3, on_error=lambda name, error: faults.append(str(error))))
        assert [result.name for result in results] == ["image-0", "image-2"]
        assert len(faults) == 1 and faults[0].startswith("cannot predict image-1: ") and "\n" not in faults[0]
        with pytest.raises(ValueError, match="cannot predict image-1"):
            list(predictor(inputs, batch_size=3))


class TestThresholds:
    def test_score_leaves_out_what_is_below_it(self, scene):
        counts = []
        for score in (0.0, 0.3, 0.75, 1.0):
            (found,) = Predictor("va_resnet10n_cbam.digit_scenes_fcos", score=score)(scene)
            assert (found.scores >= score).all()
            counts.append(len(found.scores))
        assert counts[0] > counts[1] > counts[2] > counts[3] == 0

    def test_topk(self, noise):
        for topk, count in ((1, 1), (4, 4), (99, 10)):
            (result,) = Predictor(NAME, topk=topk)(noise(8, 8))
            assert len(result.labels) == len(result.scores) == count
            assert list(result.scores) == sorted(result.scores, reverse=True)


class TestClasses:
    @pytest.mark.parametrize("count", [3, 12])
    def test_another_number_of_names_than_outputs(self, count, noise):
        names = tuple(f"class {n}" for n in range(count))
        with pytest.warns(UserWarning, match=f"the network has 10 outputs, but there are {count} class names"):
            predictor = Predictor("quickstart", packaged_path(NAME), classes=names, topk=10)
        (result,) = predictor(noise(8, 8))
        expected = {f"class {n}" if n < count else str(n) for n in range(10)}
        assert set(result.labels) == expected

    def test_names_of_imagenet_only_for_weights_of_imagenet(self):
        model = timm.create_model("resnet18", device="meta")
        model.pretrained_cfg = {"tag": "a1_in1k"}
        assert _imagenet_names(model)[0].startswith("tench")
        model.pretrained_cfg = {"tag": "my_photos"}
        assert _imagenet_names(model) is None


class TestWeights:
    @pytest.fixture
    def other(self, tmp_path):
        """A training checkpoint of the same network with five classes, of which it always tells the last."""
        weights = {f"backbone.{key}": value for key, value in read_weights(packaged_path(NAME)).items()}
        for key in ("backbone.fc.weight", "backbone.fc.bias"):
            weights[key] = weights[key][:5].clone()
        weights["backbone.fc.bias"][4] = 1000.0
        path = tmp_path / "mine.pth"
        meta = {"dataset_meta": {"classes": ("ant", "bee", "cow", "dog", "elk")}}
        torch.save({"state_dict": weights, "meta": meta}, path)
        return path

    @pytest.mark.parametrize("name", [NAME, "va_resnet10n_cbam"])
    def test_a_file_takes_the_place_of_the_published_ones(self, name, other, noise):
        (result,) = Predictor(name, other)(noise(40, 40))
        assert result.labels[0] == "elk" and result.scores[0] == pytest.approx(1) and len(result.labels) == 5

    def test_a_file_that_does_not_fit_is_refused(self, other):
        with pytest.raises(ValueError, match=r"mine\.pth does not fit va_resnet10n_triplet: .*not in the model"):
            Predictor("va_resnet10n_triplet", other)
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.pth"):
            Predictor(NAME, "nowhere.pth")
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.pth"):
            Predictor("va_resnet10n_cbam.digit_scenes_fcos", "nowhere.pth")

    def test_a_module_is_used_as_its_configuration_says(self, noise):
        module = timm.create_model(NAME, pretrained=True).eval()
        (result,) = Predictor(module, topk=3)(noise(40, 60))
        prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
        with torch.inference_mode():
            expected = module(prepare(Image.fromarray(noise(40, 60)))[None]).softmax(-1)[0].topk(3)
        assert result.numbers == tuple(expected.indices.tolist()) and result.labels == tuple(map(str, result.numbers))
        np.testing.assert_allclose(result.scores, expected.values, rtol=1e-5)
        with pytest.raises(ValueError, match="checkpoint must be left out"):
            Predictor(module, "a.pth")

    def test_a_published_file(self, classifier, noise):
        (result,) = Predictor(packaged_path(NAME), topk=3)(noise(40, 40))
        (expected,) = classifier(noise(40, 40))
        assert (result.labels, result.scores) == (expected.labels, expected.scores)
        (same,) = Predictor("va_resnet10n_cbam", packaged_path(NAME), topk=3)(noise(40, 40))
        assert (same.labels, same.scores) == (expected.labels, expected.scores)
        with pytest.raises(ValueError, match="holds weights of va_resnet10n_cbam, not of va_resnet10n_triplet"):
            Predictor("va_resnet10n_triplet", packaged_path(NAME))

    def test_a_training_checkpoint_alone(self, other):
        with pytest.raises(ValueError, match=r"mine\.pth does not say which network it is of: give the network's name"):
            Predictor(other)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("va_resnet10n_cban", "no network 'va_resnet10n_cban'; did you mean va_resnet10n_cbam"),
            (
                "va_resnet10n_cbam.digitz",
                "cannot load va_resnet10n_cbam.digitz|no checkpoint 'va_resnet10n_cbam.digitz'",
            ),
            ("va_stm_pool_micro", "no published weights of va_stm_pool_micro: give a checkpoint"),
            ("quickstart", "a config needs a checkpoint"),
        ],
    )
    def test_what_cannot_be_loaded(self, model, message):
        with pytest.raises(ValueError, match=message):
            Predictor(model)

    def test_devices(self):
        with pytest.raises(ValueError, match="device 'gpu' cannot be used: "):
            Predictor(NAME, device="gpu")
        if not torch.cuda.is_available():
            with pytest.raises(ValueError, match="device 'cuda' cannot be used: "):
                Predictor(NAME, device="cuda")

    def test_without_a_pipeline(self):
        config = load_config("quickstart")
        config.test_dataloader = None
        with pytest.raises(ValueError, match="has no pipeline to prepare a picture by"):
            Predictor(config, packaged_path(NAME))


class TestNarrowPictures:
    @pytest.mark.parametrize("shape", [(2000, 1), (1, 20_000)])
    def test_are_predicted(self, shape, classifier, detector, segmentor):
        image = np.zeros((*shape, 3), np.uint8)
        for predictor in (classifier, *((detector, segmentor) if max(shape) == 2000 else ())):
            (result,) = predictor(image)
            assert result.draw().nbytes < 30e6

    def test_are_trimmed_where_enlarging_them_takes_gigabytes(self):
        classifier = Predictor(timm.create_model(NAME, pretrained=True))
        image = np.zeros((100_000, 1, 3), np.uint8)
        image[49_000:51_000] = 255
        with pytest.warns(UserWarning, match=r"image-0 is 1x100000 pixels, too narrow .* the 1x32768 pixels in its"):
            (result,) = classifier(image)
        (middle,) = classifier(image[40_000:60_000])
        np.testing.assert_allclose(result.scores, middle.scores, rtol=1e-4)
        assert _trimmed(image, "a", None) is image
        wide = np.zeros((4000, 6000, 3), np.uint8)
        assert _trimmed(wide, "a", 256) is wide


def test_old_pictures_are_not_kept(classifier, noise):
    """A result keeps where its picture comes from, not its pixels."""
    reads = []
    picture = Picture("a", lambda: reads.append(1) or noise(8, 8))
    (result,) = classifier([picture])
    assert len(reads) == 1
    result.draw()
    assert len(reads) == 2
