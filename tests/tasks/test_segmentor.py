"""The segmentors: losses against plain PyTorch, ignored pixels, windows, mirrored pictures, any sizes."""

import pytest
import torch
from dense import segmentation_batch
from torch.nn.functional import cross_entropy

import visionattn  # noqa: F401
from visionattn.tasks import Segmentor
from visionattn.tasks._windows import SlidingWindows
from visionattn.tasks.segmentor import _most_probable

NAME = "va_resnet10n_cbam"
SMALL = {"type": "FPN", "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
CE, DICE, LOVASZ = {"type": "CrossEntropyLoss"}, {"type": "DiceLoss"}, {"type": "LovaszLoss"}


def build(**kwargs):
    torch.manual_seed(0)
    return Segmentor(**{"backbone": {"model_name": NAME}, "decoder": SMALL, "num_classes": 5, **kwargs})


def fake(model, logits):
    """Lets a model give these logits."""
    model._logits = lambda x: [logits[..., : x.shape[-2], : x.shape[-1]]]
    return model


@pytest.mark.parametrize("classes", [2, 16, 37])
def test_classes_are_enlarged_a_few_at_a_time(classes):
    scores = torch.randn(classes, 5, 7, generator=torch.Generator().manual_seed(0)) - 3
    whole = torch.nn.functional.interpolate(scores[None], (23, 31), mode="bilinear")[0].argmax(0)
    assert torch.equal(_most_probable(scores, (23, 31)), whole)


class TestLosses:
    def test_cross_entropy_over_pictures_of_unequal_sizes(self):
        inputs, samples = segmentation_batch([(64, 51), (45, 64)])
        samples[0]["mask"][10:20] = 255
        logits = torch.randn(2, 5, 64, 64)
        pixels = torch.cat([logits[0, :, :64, :51].flatten(1), logits[1, :, :45, :64].flatten(1)], 1).T
        target = torch.cat([sample["mask"].flatten() for sample in samples])
        weights = [1.0, 2.0, 0.5, 1.0, 3.0]
        for class_weights in (None, weights):
            config = {**CE, "loss_weight": 2.0, "class_weights": class_weights, "label_smoothing": 0.1}
            value = fake(build(losses=[config]), logits)(inputs, samples, "loss")["loss_ce"]
            weight = None if class_weights is None else torch.tensor(class_weights)
            reference = cross_entropy(pixels, target, weight, ignore_index=255, label_smoothing=0.1)
            torch.testing.assert_close(value, 2 * reference)

    def test_perfect_and_opposite_masks(self):
        inputs, samples = segmentation_batch([(32, 32)])
        truth = torch.nn.functional.one_hot(samples[0]["mask"], 5).permute(2, 0, 1)[None].float()
        losses = [CE, DICE, LOVASZ]
        for logits, expected in ((100 * truth, 0.0), (-100 * truth, 1.0)):
            values = fake(build(losses=losses), logits)(inputs, samples, "loss")
            assert list(values) == ["loss_ce", "loss_dice", "loss_lovasz"]
            for name in ("loss_dice", "loss_lovasz"):
                assert values[name].item() == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("loss", [CE, DICE, LOVASZ], ids=lambda loss: loss["type"])
    def test_ignored_pixels_do_not_matter(self, loss):
        inputs, samples = segmentation_batch([(32, 32)])
        samples[0]["mask"][:, 10:] = 255
        logits = torch.randn(1, 5, 32, 32)
        values = []
        for noise in (0, 7):
            logits[..., 10:] += noise * torch.randn(1, 5, 32, 22)
            (value,) = fake(build(losses=[loss]), logits)(inputs, samples, "loss").values()
            values.append(value)
        torch.testing.assert_close(*values)

    def test_nothing_known_at_all(self):
        model = build(losses=[CE, DICE, LOVASZ], auxiliary={}).train()
        inputs, samples = segmentation_batch([(64, 51), (45, 64)])
        for sample in samples:
            sample["mask"].fill_(255)
        total = sum(model(inputs, samples, "loss").values())
        total.backward()
        assert total == 0
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())

    def test_stride_takes_every_pixel_in_turn(self):
        inputs, samples = segmentation_batch([(32, 48)])
        logits = torch.randn(1, 5, 32, 48, requires_grad=True)
        everywhere = fake(build(), logits)(inputs, samples, "loss")["loss_ce"]
        model = fake(build(loss_stride=2), logits)
        values, seen = {}, {}
        for _ in range(40):
            value = model(inputs, samples, "loss")["loss_ce"]
            rows, columns = torch.autograd.grad(value, logits)[0][0, 0].nonzero().unbind(1)
            start = rows.min().item(), columns.min().item()
            values[start], seen[start] = value, len(rows)
        assert seen == {(row, column): 16 * 24 for row in range(2) for column in range(2)}
        torch.testing.assert_close(sum(values.values()) / 4, everywhere)

    def test_auxiliary_head_is_for_training_only(self):
        model = build(auxiliary={"loss_weight": 0.5})
        inputs, samples = segmentation_batch([(64, 64)])
        assert set(model.train()(inputs, samples, "loss")) == {"loss_ce", "aux_loss_ce"}
        assert len(model.eval()._logits(inputs)) == 1
        assert model.auxiliary[0].in_channels == model.backbone.channels[2] == 64  # the third stage


class TestInference:
    @pytest.mark.parametrize("flip", [False, True])
    def test_one_window_is_the_whole_picture(self, flip):
        inputs, _ = segmentation_batch([(45, 51)])
        whole, slid = (build(inference={"crop": crop, "flip": flip}).eval() for crop in (None, (64, 64)))
        with torch.inference_mode():
            assert torch.equal(*(m.predictor(m.forward, inputs) for m in (whole, slid)))

    @pytest.mark.parametrize(("crop", "stride"), [((16, 20), (11, 7)), ((45, 1), (45, 1)), ((64, 30), None)])
    def test_windows_cover_everything_once_where_the_network_sees_single_pixels(self, crop, stride):
        x = torch.randn(2, 3, 45, 51)
        torch.testing.assert_close(SlidingWindows(crop, stride)(lambda x: 2 * x, x), 2 * x)

    def test_windows_see_no_more_than_they_hold(self):
        seen = []
        SlidingWindows((16, 20), (11, 7))(lambda x: seen.append(x.shape[-2:]) or x, torch.randn(1, 3, 45, 51))
        assert set(seen) == {(16, 20)} and len(seen) == 4 * 6

    def test_mirrored_pictures_have_mirrored_predictions(self):
        model = build(inference={"flip": True}).eval()
        inputs, _ = segmentation_batch([(64, 45)])
        with torch.inference_mode():
            scores, mirrored = (model.predictor(model.forward, x) for x in (inputs, inputs.flip(-1)))
        torch.testing.assert_close(mirrored, scores.flip(-1))
        torch.testing.assert_close(scores.sum(1), torch.ones(1, 64, 45))

    def test_a_picture_is_predicted_the_same_alone_and_in_a_batch(self):
        model = build().eval()
        inputs, samples = segmentation_batch([(64, 51), (45, 64)])
        with torch.inference_mode():
            both = model(inputs, samples, "predict")
            alone = model(inputs[1:, :, :45], samples[1:], "predict")
        assert torch.equal(both[1]["preds"], alone[0]["preds"]) and both[0]["preds"].shape == (64, 51)

    def test_labels_of_the_untouched_picture(self):
        model = build().eval()
        inputs, samples = segmentation_batch([(32, 48)])
        mask = torch.zeros(70, 90, dtype=torch.uint8)
        with torch.inference_mode():
            (result,) = model(inputs, [{**samples[0], "original_mask": mask}], "predict")
            (sized,) = model(inputs, [{**samples[0], "original_size": (70, 90)}], "predict")
        assert result["target"] is mask and result["preds"].dtype == torch.uint8
        assert result["preds"].shape == (70, 90) and torch.equal(sized["preds"], result["preds"])


def test_channels_last_changes_the_layout_alone():
    inputs, samples = segmentation_batch([(64, 51), (45, 64)])
    plain, other = build().train(), build(channels_last=True).train()
    maps = []
    other.backbone.register_forward_hook(lambda module, inputs, out: maps.extend(out))
    losses = []
    for model in (other, plain):
        torch.manual_seed(1)  # the decoder drops maps out
        losses.append(model(inputs, samples, "loss")["loss_ce"])
    assert maps and all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["va_resnet18_cbam", "resnet18", NAME])
def test_decoders_get_the_maps_they_think_they_get(name):
    """The `tu-` encoders of the library would take those of strides 2, 4, 8 and 16 of a va_resnet18."""
    encoder = build(backbone={"model_name": name}, decoder={"type": "UPerNet"}).network.encoder
    maps = encoder(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == encoder.out_channels == [0, 0, *encoder.maps.channels]
    first = encoder.maps.strides[0]
    assert [64 // m.shape[-1] for m in maps[2:]] == [first, 2 * first, 4 * first, 8 * first]
    unet = build(backbone={"model_name": name}, decoder={"type": "Unet"})
    assert unet.network.encoder.out_channels[0] == 0 and unet(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 64, 64)


@pytest.mark.parametrize("stride", [None, 16])
def test_deeplab_with_and_without_dilation(stride):
    backbone = {"model_name": "va_resnet18_cbam", **({"output_stride": stride} if stride else {})}
    model = build(backbone=backbone, decoder={"type": "DeepLabV3Plus", "decoder_channels": 16}).eval()
    assert model.network.decoder.up.scale_factor == (8 if stride is None else 4)
    assert model(torch.zeros(1, 3, 65, 70)).shape == (1, 5, 65, 70)


def test_frozen_and_norm_eval():
    model = build(frozen_stages=1, norm_eval=True).train()
    before = {key: value.clone() for key, value in model.backbone.named_buffers()}
    inputs, samples = segmentation_batch([(64, 64), (64, 64)])
    sum(model(inputs, samples, "loss").values()).backward()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.named_buffers())
    assert [p.grad is None for p in model.backbone.parameters()].count(True) > 0
    assert model.backbone.network.conv1[0].weight.grad is None


def test_library_registry_stays_as_it_was():
    import segmentation_models_pytorch as smp

    before = set(smp.encoders.encoders)
    build()
    with pytest.raises(ValueError, match="cannot build decoder UPerNet"):
        build(decoder={"type": "UPerNet", "decoder_channels": "many"})
    assert set(smp.encoders.encoders) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": {"type": "PSP"}}, "decoder type must be one of UPerNet, FPN, Unet, DeepLabV3Plus, Segformer, got"),
        ({"decoder": {"type": "FPN", "channels": 3}}, "FPN takes no channels here; it takes decoder_dropout, "),
        ({"backbone": {"model_name": NAME, "output_stride": 16}}, "FPN needs four maps, each half as large"),
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"losses": [{"type": "Hinge"}]}, "loss type must be one of CrossEntropyLoss, .*, got 'Hinge'"),
        ({"loss_stride": 0}, "loss_stride must be at least 1, got 0"),
        ({"num_classes": "5"}, "num_classes must be a whole number, got '5'"),
        ({"losses": CE}, r"losses must be a list of dicts, got \{'type': 'CrossEntropyLoss'\}"),
        ({"losses": ["CrossEntropyLoss"]}, "losses must be a list of dicts, got 'CrossEntropyLoss' in it"),
        ({"auxiliary": True}, "auxiliary must be a dict, got True"),
        ({"loss_stride": 1.5}, r"loss_stride must be a whole number, got 1\.5"),
        ({"backbone": NAME}, "backbone must be a dict, got 'va_resnet10n_cbam'"),
        ({"losses": []}, "losses must name at least one loss"),
        (
            {"losses": [{**DICE, "sharpness": 1}]},
            "loss DiceLoss takes no sharpness here; it takes eps, log_loss, smooth",
        ),
        ({"auxiliary": {"weight": 1}}, "auxiliary head FCNHead takes no weight here"),
        ({"inference": {"stride": (2, 2)}}, "inference.stride needs inference.crop"),
        ({"inference": {"crop": (4, 4), "stride": (5, 4)}}, "0 < stride <= crop"),
        ({"inference": {"crop": 8.5}}, r"inference.crop must be \(height, width\) or one number for both, got 8.5"),
        ({"inference": {"crop": (8, 8, 8)}}, r"inference.crop must be \(height, width\) .* got \(8, 8, 8\)"),
        ({"losses": [{**CE, "class_weights": [1, 2]}]}, "class_weights needs one for each of the 5 classes, got 2"),
        ({"losses": [CE, CE]}, "two losses are called 'ce': give one another name"),
        (
            {"backbone": {"model_name": NAME, "widht": 3}},
            "model.backbone: va_resnet10n_cbam has no setting 'widht'",
        ),
        ({"start_from": {"file": "x"}}, "start_from takes checkpoint and new_head, got file"),
        ({"inference": {"window": 3}}, "inference takes crop, stride and flip, got window"),
    ],
    ids=str,
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be 'tensor', 'loss' or 'predict', got 'los'"):
        build()(*segmentation_batch([(32, 32)]), "los")
