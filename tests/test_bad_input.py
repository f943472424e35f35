"""Whatever is wrong with the input, one clear error says what and where, and nothing half-written stays behind."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import visionattn
from visionattn.checkpoints import packaged_path, read_weights
from visionattn.data import Digits, FashionMNIST, ImageFolder, Pipeline
from visionattn.utils.files import read_checkpoint, replacing

NAME = "va_resnet10n_cbam"


@pytest.fixture
def weights():
    return timm.create_model(NAME).state_dict()


@pytest.fixture
def pictures(tmp_path):
    """Two classes with two pictures each."""
    folder = tmp_path / "pictures"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(str(folder / label / f"{number}.png"), np.full((40, 30, 3), 60 * number, np.uint8))
    return folder


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def create(path):
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": str(path)})


class TestWeights:
    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.pth"):
            create(tmp_path / "nothing.pth")

    def test_missing_extra_and_misshapen_keys(self, weights, tmp_path):
        del weights["layer1.0.conv1.weight"]
        weights["layer9.weight"] = torch.zeros(1)
        weights["bn1.weight"] = torch.zeros(3)
        torch.save(weights, tmp_path / "w.pth")
        with pytest.raises(ValueError) as caught:
            create(tmp_path / "w.pth")
        for part in (
            "missing: layer1.0.conv1.weight",
            "not in the model: layer9.weight",
            "bn1.weight is (3,), the model has (16,)",
        ):
            assert part in str(caught.value)

    def test_missing_keys_are_found_where_the_head_is_adapted(self, weights, tmp_path):
        """timm loads without strictness then, and would keep silent."""
        del weights["layer1.0.conv1.weight"]
        torch.save(weights, tmp_path / "w.pth")
        overlay = {"file": str(tmp_path / "w.pth")}
        with pytest.raises(ValueError, match=r"missing: layer1\.0\.conv1\.weight"):
            timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)

    @pytest.mark.parametrize("ending", ["pth", "safetensors"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
    def test_truncated(self, weights, tmp_path, ending, share):
        path = tmp_path / f"w.{ending}"
        (torch.save if ending == "pth" else save_file)(weights, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ValueError, match=r"w\.\w+ is (truncated|empty)"):
            create(path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused(self, tmp_path, capsys, zipped):
        path = tmp_path / "evil.pth"
        torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"evil\.pth was refused: it holds (builtins\.)?print, which"):
            create(path)
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
        with pytest.raises(ValueError, match=r"evil\.pth (was refused|is truncated or no checkpoint)"):
            read_checkpoint(path)
        assert "code ran" not in capsys.readouterr().out

    def test_wrong_hash(self, tmp_path):
        packaged = packaged_path(f"{NAME}.digits")
        changed = tmp_path / packaged.name
        content = bytearray(packaged.read_bytes())
        content[-1] ^= 1
        changed.write_bytes(content)
        with pytest.raises(ValueError, match=r"its name says sha256 \w{8}, its content has"):
            create(changed)

    def test_no_weights_inside(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pth")
        with pytest.raises(ValueError, match="holds a list, not a dict of weights"):
            read_checkpoint(tmp_path / "list.pth")
        torch.save({"epoch": 3}, tmp_path / "dict.pth")
        with pytest.raises(ValueError, match="holds no flat weights: epoch is no tensor"):
            read_weights(tmp_path / "dict.pth")

    def test_unknown_packaged_checkpoint(self):
        with pytest.raises(ValueError, match=r"no packaged checkpoint 'x\.y'; there are: .*va_resnet10n_cbam\.digits"):
            packaged_path("x.y")


class TestData:
    def test_unreadable_picture(self, pictures):
        (pictures / "cat" / "0.png").write_bytes(b"not a picture")
        (pictures / "cat" / "1.png").write_bytes(b"")
        dataset = ImageFolder(pictures, [])
        with pytest.raises(ValueError, match=r"cannot read image .*cat/0\.png: it is truncated or in no format"):
            dataset[0]
        with pytest.raises(ValueError, match=r"cannot read image .*cat/1\.png: the file is empty"):
            dataset[1]

    def test_empty(self, tmp_path):
        (tmp_path / "empty" / "cat").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"ImageFolder: no images in .*empty: looked for \.bmp"):
            ImageFolder(tmp_path / "empty", [])
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
            ImageFolder(tmp_path / "nowhere", [])
        with pytest.raises(ValueError, match=r"no images in .*empty: looked for .* in the sub-folders dog"):
            ImageFolder(tmp_path / "empty", [], classes=["dog"])

    def test_label_out_of_range(self, pictures):
        (pictures / "list.txt").write_text("cat/0.png 0\ndog/1.png 2\n")
        with pytest.raises(
            ValueError, match=r"1 labels in .*list\.txt are out of range 0\.\.1; the first is 2 at .*dog/1"
        ):
            ImageFolder(pictures, [], classes=["cat", "dog"], ann_file=pictures / "list.txt")
        (pictures / "list.txt").write_text("cat/0.png 0\ndog/1.png\n")
        with pytest.raises(ValueError, match=r"list\.txt, line 2: expected 'path number', got 'dog/1\.png'"):
            ImageFolder(pictures, [], ann_file=pictures / "list.txt")

    def test_splits_and_transforms(self):
        with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
            Digits("val", [])
        with pytest.raises(ValueError, match=r"got 'HorizontalFlop'; did you mean HorizontalFlip"):
            Pipeline([{"type": "HorizontalFlop"}])
        with pytest.raises(ValueError, match="transform HorizontalFlip takes no chance here; it takes p"):
            Pipeline([{"type": "HorizontalFlip", "chance": 1}])
        with pytest.raises(ValueError, match="cannot build transform RandomCrop"):
            Pipeline([{"type": "RandomCrop", "height": -1, "width": 3}])

    def test_idx_files(self, tmp_path, monkeypatch):
        from visionattn.data import fashion_mnist

        monkeypatch.setattr(fashion_mnist, "_SYSTEM_FOLDER", tmp_path / "none")
        with pytest.raises(FileNotFoundError, match=f"no Fashion-MNIST files in {tmp_path}"):
            FashionMNIST("test", [], tmp_path, download=False)
        images, labels = (tmp_path / f"t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
        labels.write_bytes(bytes((0, 0, 8, 1)) + (2).to_bytes(4, "big") + bytes((1, 77)))
        images.write_bytes(bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28)) + bytes(9))
        with pytest.raises(ValueError, match=r"images-idx3-ubyte is truncated: 1568 bytes of data expected, 9 found"):
            FashionMNIST("test", [], tmp_path)
        images.write_bytes(bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28)) + bytes(1568))
        with pytest.raises(ValueError, match=r"labels in .* are out of range 0\.\.9; the first is 77 at image 1"):
            FashionMNIST("test", [], tmp_path)
        images.write_bytes(b"hello")
        with pytest.raises(ValueError, match="is no idx file of 3-dimensional bytes"):
            FashionMNIST("test", [], tmp_path)


def left_behind(folder):
    return [str(path) for path in folder.rglob("*") if ".part-" in path.name]


class TestCommands:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["train", "quickstrat"],
                "no config 'quickstrat', neither as a file nor among the packaged ones; did you mean",
            ),
            (
                ["train", "quickstart", "--cfg-options", "model.backbone.model_name=va_resnet"],
                "unknown model 'va_resnet'",
            ),
            (
                ["train", "quickstart", "--cfg-options", "model.backbone.plugin=cbma"],
                "unknown plug-in 'cbma'; there are: ",
            ),
            (
                ["train", "quickstart", "--cfg-options", "model.backbone.num_classes=5"],
                "Digits has 10 classes, but the model",
            ),
            (
                ["train", "quickstart", "--cfg-options", "model.loss.type=Hinge"],
                "loss type must be one of CrossEntropyLoss",
            ),
            (
                ["train", "quickstart", "--cfg-options", "train_cfg.max_epochs=1", "param_scheduler.0.end=3"],
                "LinearLR in param_scheduler reaches to",
            ),
            (
                ["train", "quickstart", "--cfg-options", "train_dataloader.dataset.split=val"],
                "split must be 'train' or",
            ),
            (
                ["train", "quickstart-detection", "--cfg-options", "model.detector.type=YOLO"],
                "detector type must be one of RetinaNet, FCOS, FasterRCNN, MaskRCNN, got 'YOLO'",
            ),
            (
                ["train", "quickstart-detection", "--cfg-options", "model.num_classes=5"],
                "SyntheticDigits has 10 classes, but the model's num_classes is only 5",
            ),
            (
                ["train", "quickstart-segmentation", "--cfg-options", "model.decoder.type=PSPNet"],
                "decoder type must be one of UPerNet, FPN, Unet, DeepLabV3Plus, Segformer, got 'PSPNet'",
            ),
            (["train", "quickstart", "--resume", "nowhere.pth"], "no checkpoint at nowhere.pth"),
            (["test", "quickstart", "nowhere.pth"], "no checkpoint at nowhere.pth"),
            (["test", "quickstart", "va_resnet10n_cbam.nope"], "no checkpoint 'va_resnet10n_cbam.nope'"),
            (["predict", "nowhere", "--model", "va_resnet10n_cbam.digits"], "no file or folder nowhere"),
            (["predict", ".", "--model", "va_resnet10n_cbam.digits"], "no images in ."),
            (["predict", ".", "--config", "quickstart"], "--config needs --checkpoint"),
            (
                ["predict", ".", "--model", "va_resnet10n_cbam.digits", "--score", "2"],
                "--score must lie in 0..1, got 2",
            ),
            (
                ["predict", ".", "--model", "va_resnet10n_cbam.digits", "--topk", "0"],
                "--topk must be at least 1, got 0",
            ),
        ],
        ids=lambda value: value.split(",")[0][:30] if isinstance(value, str) else " ".join(value[:2]),
    )
    def test_one_line_and_exit_code_2(self, run_cli, arguments, message):
        code, _, err = run_cli(*arguments)
        assert code == 2
        lines = [line for line in err.splitlines() if line.startswith("visionattn: error: ")]
        assert len(lines) == 1 and message in lines[0], err
        assert "Traceback" not in err

    def test_bad_picture_among_training_data(self, run_cli, pictures, tmp_path):
        """Also when it is a worker process that finds it."""
        (pictures / "dog" / "1.png").write_bytes(b"x")
        options = [
            "train_dataloader.dataset.type=ImageFolder",
            f"train_dataloader.dataset.data_root={pictures}",
            "train_dataloader.num_workers=1",
            "train_dataloader.drop_last=False",
        ]
        config = tmp_path / "c.py"
        config.write_text(
            "_base_ = ['" + str(visionattn.utils.resources.config_dir() / "classification/quickstart.py") + "']\n"
            "train_dataloader = dict(dataset=dict(_delete_=True, type='ImageFolder', data_root='', "
            "pipeline=[dict(type='Resize', height=32, width=32)]))\n"
            f"val_dataloader = dict(dataset=dict(_delete_=True, type='ImageFolder', data_root={str(pictures)!r}, "
            "pipeline=[dict(type='Resize', height=32, width=32)]))\n"
        )
        code, _, err = run_cli("train", config, "--cfg-options", *options)
        assert code == 2 and "visionattn: error: " in err and "dog/1.png: it is truncated" in err

    def test_a_finished_run_is_not_overwritten(self, run_cli, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "last_checkpoint").write_text("epoch_1.pth")
        code, _, err = run_cli("train", "quickstart", "--work-dir", "run")
        assert code == 2 and "run holds a run: --resume continues it, --fresh backs it up" in err

    def test_predictions_are_not_overwritten(self, run_cli, pictures, tmp_path):
        (tmp_path / "out").mkdir()
        code, _, err = run_cli("predict", pictures, "--model", f"{NAME}.digits", "--out", "out")
        assert code == 2 and "--out out exists already; name another folder" in err

    def test_publish_needs_a_name_with_a_tag(self, run_cli, tmp_path):
        shutil.copy(packaged_path(f"{NAME}.digits"), tmp_path / "w.safetensors")
        code, _, err = run_cli(
            "publish", "quickstart", "w.safetensors", "--name", NAME, "--license", "mit", "--out", "out"
        )
        assert code == 2 and "name must be <registered model>.<tag>" in err
        assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk full"), replacing(path) as temporary:
        temporary.write_text(json.dumps("half"))
        raise RuntimeError("disk full")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
