"""What is saved, when, and what is kept: files of a run that counts iterations, and of its best weights."""

import pytest
from engine.small import small_runner

from visionattn.utils.files import read_checkpoint

METRIC = {"scores": {"top1": {"type": "MulticlassAccuracy", "num_classes": 10, "average": "micro"}}}


@pytest.fixture
def run(tiny_config, tmp_path):
    """Runs six iterations, evaluating after the third and the last; gives the folder."""

    def go(**hook):
        small_runner(
            tiny_config,
            tmp_path,
            train_cfg={"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 6, "val_interval": 3},
            default_hooks__checkpoint={"type": "AtomicCheckpointHook", "by_epoch": False, "save_best": None, **hook},
            param_scheduler=[],
            custom_hooks=[],
            val_evaluator=METRIC,
        ).train()
        return tmp_path

    return go


def saved(folder):
    return sorted(path.name for path in folder.glob("*.pth"))


def test_every_iteration_is_saved_whether_evaluated_or_not(run):
    folder = run(interval=1, max_keep_ckpts=-1)
    assert saved(folder) == [f"iter_{n}.pth" for n in range(1, 7)]
    for number in range(1, 7):
        meta = read_checkpoint(folder / f"iter_{number}.pth")["meta"]
        assert (meta["iter"], meta["epoch"]) == (number, 0), "where a resumed run goes on"


@pytest.mark.parametrize(("keep", "steps"), [(1, [6]), (2, [4, 6])])
def test_the_newest_are_kept(run, keep, steps):
    folder = run(interval=2, max_keep_ckpts=keep)
    assert saved(folder) == [f"iter_{step}.pth" for step in steps]
    assert (folder / "last_checkpoint").read_text() == "iter_6.pth"


def test_best_weights_are_weights_alone(run):
    folder = run(interval=3, save_best="top1")
    assert saved(folder) == ["best_top1.pth", "iter_3.pth", "iter_6.pth"]
    run_of, best = (read_checkpoint(folder / name) for name in ("iter_6.pth", "best_top1.pth"))
    assert run_of["optimizer"]["state"] and not {"optimizer", "param_schedulers"} & best.keys()
    assert best["state_dict"].keys() == run_of["state_dict"].keys() and best["meta"]["iter"] in (3, 6)
