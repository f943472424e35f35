"""Reading configs, overriding their settings, and schedules that follow the length of a run."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from visionattn.engine import load_config
from visionattn.engine.config_reader import read_config
from visionattn.engine.overrides import apply_overrides
from visionattn.engine.schedule import stretch_schedule, without_tiny_warmups
from visionattn.utils.resources import config_dir


@pytest.mark.parametrize(
    "name",
    [
        "classification/flatten-swin-base-384_1024-30e_imagenet",
        "classification/mobilenetv2-triplet_96-400e_imagenet",
        "detection/mask-rcnn_efficientnet-lite0_8-12e_stamps",
        "detection/mask-rcnn_resnet10n-cbam_8-4e_digit-scenes",
        "segmentation/fpn_twins-svt-small_16-80k_ade20k",
        "segmentation/upernet_resnet10n-cbam_8-5e_digit-scenes",
    ],
)
def test_reads_as_mmengine_does(name):
    path = config_dir() / f"{name}.py"
    assert read_config(path)._cfg_dict == Config.fromfile(path)._cfg_dict


def test_mmengine_s_templates_and_both_of_its_styles(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_ROOT", "/data")
    (tmp_path / "base.py").write_text("a = dict(b=[1, dict(c=2)], d=3)\n")
    (tmp_path / "c.py").write_text(
        "import math\n_base_ = './base.py'\nname = '{{ fileBasenameNoExtension }}'\nroot = '{{$MY_ROOT:/x}}/y'\n"
        "size = {{'$MY_SIZE:3'}}\ncopy = {{_base_.a.b}}\nlast = _base_.a.b[-1]\na = dict(d=math.floor(4.5))\n"
    )
    config = read_config(tmp_path / "c.py")
    assert (config.name, config.root, config.size) == ("c", "/data/y", 3)
    assert config["copy"] == [1, {"c": 2}] and config.last == {"c": 2} and config.a == {"b": [1, {"c": 2}], "d": 4}
    assert "math" not in config
    (tmp_path / "lazy.py").write_text("from torch.optim import SGD\noptimizer = dict(type=SGD, lr=1)\n")
    assert read_config(tmp_path / "lazy.py").optimizer.type is torch.optim.SGD


def test_a_dict_used_twice_replaces_twice(tmp_path):
    (tmp_path / "base.py").write_text("a = dict(x=1)\nb = dict(x=1)\n")
    (tmp_path / "c.py").write_text("_base_ = ['base.py']\na = dict(_delete_=True, y=2)\nb = a\n")
    config = read_config(tmp_path / "c.py")
    assert config.a == config.b == {"y": 2}


def config(**sections):
    return Config({"train_cfg": {"by_epoch": True, "max_epochs": 10}, **sections})


def test_overrides_reach_lists_and_replace_dicts():
    found = config(
        param_scheduler=[{"type": "MultiStepLR", "milestones": [3, 6]}],
        model={"type": "X", "loss": {"a": 1}, "head": {"a": 1}},
    )
    apply_overrides(
        found,
        {
            "param_scheduler.0.milestones.1": 7,
            "model.loss.b": 2,
            "model.loss._delete_": True,
            "train_dataloader": {"batch_size": 4},
            "train_cfg": {"max_epochs": 5},
            "model.head": {"_delete_": True, "b": 1},
        },
    )
    assert found.model.head == {"b": 1}
    assert found.param_scheduler[0].milestones == [3, 7] and found.model.loss == {"b": 2}
    assert found.train_dataloader == {"batch_size": 4} and found.train_cfg == {"by_epoch": True, "max_epochs": 5}


def test_variables_of_a_file_are_refused_where_they_were_copied():
    found = config(
        data_root="data/x",
        mine={"for": "a hook of mine"},
        train_dataloader={"dataset": {"type": "X", "ann_file": "data/x/a.json", "root": "data/x"}},
    )
    message = "set train_dataloader.dataset.ann_file, train_dataloader.dataset.root instead"
    with pytest.raises(ValueError, match=message):
        apply_overrides(found, {"data_root": "data/y"})
    apply_overrides(found, {"mine.for": "another"})
    assert found.mine == {"for": "another"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_cfg.max_epochs": "1o"}, "train_cfg.max_epochs must be a number"),
        ({"train_cfg.by_epoch": "ture"}, "train_cfg.by_epoch must be true or false"),
        ({"train_cfg.max_epochs.x": 1, "train_cfg.max_epochs": 2}, "cannot set train_cfg.max_epochs.x"),
        ({"model": 3, "model.x": 1}, "cannot set model.x: model is 3"),
        ({"custom_hoks": 1}, "nothing reads custom_hoks; did you mean custom_hooks"),
        ({"optim_wrapper.acumulative_counts": 2}, "did you mean accumulative_counts"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        apply_overrides(config(optim_wrapper={"optimizer": {"type": "SGD"}}), settings)


def test_words_may_take_the_place_of_numbers():
    found = config(optim_wrapper={"type": "AmpOptimWrapper", "loss_scale": 512.0})
    apply_overrides(found, {"optim_wrapper.loss_scale": "dynamic", "randomness.seed": None})
    assert found.optim_wrapper.loss_scale == "dynamic"


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"type": "MultiStepLR", "milestones": [30, 60, 90]}, {"milestones": [3, 6, 9]}),
        ({"type": "LinearLR", "end": 5, "convert_to_iter_based": True}, {"end": 0.5}),
        ({"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 500}, {"begin": 0, "end": 50}),
        ({"type": "PolyLR", "by_epoch": False, "begin": 1500, "end": 160000}, {"begin": 150, "end": 16000}),
        ({"type": "StepLR", "step_size": 3}, {"step_size": 1}),
        ({"type": "ExponentialLR", "gamma": 0.9}, {"gamma": 0.9}),
    ],
)
def test_schedules_shrink_with_the_run(scheduler, expected):
    for given in (scheduler, [scheduler]):
        found = config(param_scheduler=given, custom_hooks=[{"type": "EMAHook", "begin_epoch": 20}])
        stretch_schedule(found, 0.1)
        result = found.param_scheduler if isinstance(given, dict) else found.param_scheduler[0]
        assert {key: result[key] for key in expected} == expected
        assert found.custom_hooks[0].begin_epoch == 2


def test_load_config_stretches_what_is_not_given_itself():
    name = "mask-rcnn_resnet50-cbam_16-12e_coco"
    assert load_config(name, {"train_cfg.max_epochs": 6}).param_scheduler[1].milestones == [4, 6]
    assert load_config(name, {"train_cfg.max_epochs": 24}).param_scheduler[1].milestones == [16, 22]
    given = {"train_cfg.max_epochs": 6, "param_scheduler.1.milestones": [5]}
    assert load_config(name, given).param_scheduler[1].milestones == [5]
    short = load_config("fpn_twins-svt-small_16-80k_ade20k", {"train_cfg.max_iters": 100})
    assert short.param_scheduler.end == 100


@pytest.mark.parametrize("steps", [1, 2, 5, 22])
def test_no_warm_up_leaves_the_rate_where_it_begins(steps):
    """A linear warm-up of a single step ends before it has raised the rate."""
    short = load_config("quickstart", {"train_cfg.max_epochs": 1})
    weight = torch.nn.Parameter(torch.zeros(1))
    wrapper = OptimWrapper(torch.optim.SGD([weight], lr=1.0))
    rates = []
    schedulers = [
        PARAM_SCHEDULERS.build({"end": 1, **scheduler}, default_args={"optimizer": wrapper, "epoch_length": steps})
        for scheduler in without_tiny_warmups(short.param_scheduler, steps)
    ]
    for _ in range(steps):
        rates.append(wrapper.optimizer.param_groups[0]["lr"])
        for scheduler in schedulers:
            scheduler.step()
    assert max(rates) > 0.9
