"""`visionattn configs`, names of configs, and other networks in them."""

import pytest
import timm
from mmengine.registry import MODELS

from visionattn.engine import load_config
from visionattn.utils.config_files import describe, find_config, list_configs, variants
from visionattn.utils.resources import config_dir

# One name for every kind of variant; README, docs and tests print many of them.
VARIANTS = [
    "resnet10n-ela-b_128-3e_fashion-mnist",
    "resnet18n_128-3e_fashion-mnist",
    "resnet10n_64-15e_digits",
    "stm-pool-nano_64-15e_digits",
    "lkca-vit-mini_64-15e_digits",
    "stm-pvt-micro_1024-300e_imagenet",
    "stm-pvt-tiny_1024-300e_imagenet",
    "twins-svt-large_1024-300e_imagenet",
    "davit-base_1024-300e_imagenet",
    "ravlt-base_1024-300e_imagenet",
    "moh-vit-base-50_1024-300e_imagenet",
    "stm-rala-nano_128-3e_fashion-mnist",
    "flatten-swin-base_1024-300e_imagenet",
    "flatten-pvtv2-b4_1024-300e_imagenet",
    "boat-cswin-small_2048-300e_imagenet",
    "resnet18-triplet_256-100e_imagenet",
    "fcos_resnet18-ela-l_8-12e_stamps",
]


def test_list_says_what_each_is_for(run_cli):
    code, out, _ = run_cli("configs")
    assert code == 0
    for name in list_configs():
        path = config_dir() / f"{name}.py"
        text = describe(path)
        assert path.stem in out and text in out and 20 < len(text) < 200, name
    assert "va_stm_*_nano" in out and "--model NETWORK" in out


def test_show_prints_all_that_a_config_inherits(run_cli, tmp_path):
    code, out, _ = run_cli("configs", "--show", "stm-pool-nano_64-15e_digits")
    assert code == 0 and "_base_" not in out and "va_stm_pool_nano" in out
    (tmp_path / "shown.py").write_text(out)
    shown = load_config(tmp_path / "shown.py")._cfg_dict
    assert shown == load_config("stm-pool-nano_64-15e_digits")._cfg_dict


@pytest.mark.parametrize("name", ["quickstart", "fcos_resnet10n-cbam_8-4e_digit-scenes", *VARIANTS])
def test_copies_mean_the_same_elsewhere(run_cli, tmp_path, name):
    code, out, _ = run_cli("configs", "--copy", name, "mine/config.py")
    assert code == 0 and "visionattn train mine/config.py" in out
    copied = load_config(tmp_path / "mine" / "config.py")
    copied.model.backbone.pretrained = wanted = load_config(name).model.backbone.get("pretrained")
    original = load_config(name)
    original.model.backbone.pretrained = wanted
    assert copied._cfg_dict == original._cfg_dict


def test_copies_overwrite_nothing(run_cli, tmp_path):
    assert run_cli("configs", "--copy", "quickstart")[0] == 0
    text = (tmp_path / "quickstart.py").read_text()
    code, _, err = run_cli("configs", "--copy", "quickstart")
    assert code == 2 and "quickstart.py exists already" in err and (tmp_path / "quickstart.py").read_text() == text
    code, _, err = run_cli("configs", "--copy", "quickstart", "a.txt")
    assert code == 2 and "must end in .py" in err
    code, _, err = run_cli("configs", "--copy", "quickstart.py", "b.py")
    assert code == 2 and "only packaged configs are copied" in err


def test_packaged_configs_are_inherited_by_name(tmp_path):
    path = tmp_path / "mine.py"
    for base in ("visionattn::classification/quickstart", "visionattn::quickstart", "visionattn::quickstart.py"):
        path.write_text(f"_base_ = ['{base}']\ntrain_cfg = dict(max_epochs=2)\n")
        config = load_config(path)
        assert config.model == load_config("quickstart").model and config.train_cfg.max_epochs == 2
    assert load_config("visionattn::quickstart").model == config.model
    path.write_text("_base_ = 'visionattn::quikstart'\n")
    with pytest.raises(FileNotFoundError, match="did you mean quickstart"):
        load_config(path)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_of_variants_mean_recipe_and_network(name):
    file = find_config(name)
    assert file.path.stem != name and timm.is_model(file.network)
    by_name, by_option = load_config(name), load_config(file.path, model=file.network)
    assert by_name._cfg_dict == by_option._cfg_dict and by_name.model.backbone.model_name == file.network
    assert by_name.filename.endswith(f"/{name}.py"), "work folders are named so"


def test_names_mean_one_recipe_and_patterns_fit_a_network():
    """Every network among a recipe's variants, in the place of the network in the recipe's name."""
    found = 0
    for config in list_configs():
        path = config_dir() / f"{config}.py"
        *method, _, batch, data = path.stem.split("_") if variants(path) else ("", "", "")
        for pattern in variants(path):
            networks = [name for name in timm.list_models(pattern) if name.startswith("va_")]
            assert networks, f"{config}: {pattern} fits no network"
            for network in networks[:3]:
                name = "_".join([*method, network[3:].replace("_", "-"), batch, data])
                assert find_config(name).path in (path, path.parent / f"{name}.py")
                found += 1
    assert found > 50


def test_a_network_that_is_not_registered_is_no_variant(run_cli):
    code, _, err = run_cli("train", "stm-pol-nano_64-15e_digits")
    assert code == 2 and "no network 'va_stm_pol_nano'; did you mean va_stm_pool_nano" in err


def test_model_takes_the_place_and_what_it_cannot_use_goes():
    original = load_config("quickstart-detection").model.backbone
    assert {"strides", "pretrained"} <= set(original)
    scratch = load_config("quickstart-detection", model="va_davit_tiny").model
    assert scratch.backbone == {"model_name": "va_davit_tiny"}
    coco = load_config("mask-rcnn_resnet50-cbam_16-12e_coco")
    assert (coco.model.frozen_stages, coco.model.norm_eval) == (1, True)
    coco = load_config("mask-rcnn_resnet50-cbam_16-12e_coco", model="va_resnet50_bam")
    assert (coco.model.frozen_stages, coco.model.norm_eval) == (0, False), "nothing is frozen that has not been trained"
    config = load_config("quickstart", model="resnet18.a1_in1k")
    assert config.model.backbone == {"model_name": "resnet18.a1_in1k", "num_classes": 10, "pretrained": True}
    assert config.data_preprocessor.mean == pytest.approx([123.675, 116.28, 103.53])
    assert config.filename.endswith("/quickstart-resnet18.a1_in1k.py")
    assert load_config("quickstart", model="hf-hub:me/mine").filename.endswith("/quickstart-hf-hub-me-mine.py")


@pytest.mark.parametrize("model", ["va_stm_pvt_nano", "va_davit_tiny", "resnet18"])
@pytest.mark.parametrize(
    "recipe", ["quickstart", "resnet10n_128-3e_fashion-mnist", "twins-svt-small_1024-300e_imagenet"]
)
def test_any_network_goes_into_any_recipe(recipe, model):
    import torch

    config = load_config(recipe, model=model)
    with torch.device("meta"):
        assert MODELS.build(config.model).num_classes == config.model.backbone.num_classes


def test_other_formats_are_refused(run_cli, tmp_path):
    for name in ("c.yaml", "c.json"):
        (tmp_path / name).write_text("{}")
        code, _, err = run_cli("train", name)
        assert code == 2 and "a config is a Python file (.py), which is code" in err
