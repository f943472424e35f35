"""The diagnostics from training to the report: repeatable, resumable, honest about what is unfinished."""

import csv
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch

from visionattn.comparison.diagnostics import dry_run, run_diagnostics, train_again
from visionattn.comparison.diagnostics.looking import look, pointing
from visionattn.comparison.diagnostics.plots import draw_heat_map, draw_profile, draw_profiles
from visionattn.comparison.diagnostics.recipe import RECIPES, Effort
from visionattn.comparison.diagnostics.records import Record, export, load_records, restore
from visionattn.comparison.diagnostics.report import collect_hits, power_plan, summary
from visionattn.comparison.diagnostics.rows import choose_rows, first_of, list_rows
from visionattn.comparison.diagnostics.suite import train_row
from visionattn.comparison.diagnostics.training import evaluate, fit, load_scenes
from visionattn.comparison.diagnostics.verdicts import Verdict, export_verdicts
from visionattn.data.synthetic.diagnostics import TASKS, Scenes

SMOKE = RECIPES["smoke"]
FACTS = {"settings": "s", "source": "digits", "revision": "r", "versions": "v", "machine": "m"}


def record(row="cnn/cbam", task="clutter", seed=0, right=7, scenes=11, **facts):
    hits = np.arange(scenes) < right
    return Record(row, task, "clutter", seed, hits, 1.5, 0.25, 0.125, {**FACTS, **facts})


def rows_named(*names):
    return [row for row in list_rows(every_mixer=True) if row.name in names]


def test_baselines_stand_first_and_every_plug_in_follows():
    rows = list_rows()
    names = [row.name for row in rows]
    count = sum(row.baseline for row in rows)
    assert all(row.baseline for row in rows[:count]) and len(set(names)) == len(names)
    assert {"cnn/plain", "cnn/se", "pyramid/pool", "columnar/deconstructed", "pyramid/gated_conv"} <= set(names[:count])
    assert sum(row.host == "cnn" and not row.baseline for row in rows) >= 17
    assert sum(row.host != "cnn" and not row.baseline for row in rows) >= 16
    assert set(rows) <= set(list_rows(every_mixer=True))


def test_rows_are_chosen_by_mechanism_with_their_baseline():
    assert [row.name for row in choose_rows(["cbam", "swin"])] == [
        "cnn/plain",
        "pyramid/pool",
        "cnn/cbam",
        "pyramid/swin",
    ]
    with pytest.raises(ValueError, match="no row 'cbma'"):
        choose_rows(["cbma"])


@pytest.mark.parametrize("scale", ["small", "large"])
def test_a_dry_run_builds_every_row(scale):
    text = dry_run(scale, tasks=["pointer"])
    assert all(row.name in text for row in list_rows())
    efforts = [RECIPES[scale].effort(row.host, "pointer") for row in list_rows()]
    assert f"{sum(effort.seeds for effort in efforts):,} trainings" in text
    assert all(f"{effort.steps:,}" in text for effort in efforts)


@pytest.mark.parametrize("name", ["cnn/ela_t", "pyramid/swin", "columnar/dual_attention"])
def test_a_second_training_gives_the_same(name, tmp_path):
    (row,) = rows_named(name)
    first = train_row(row, "clutter", 5, SMOKE, "digits", tmp_path / "a")
    again = train_row(row, "clutter", 5, SMOKE, "digits", tmp_path / "b")
    assert [r.task for r in first] == ["clutter", "shift", "corruption", "far shift"]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.hits, other.hits)
        assert one.facts == other.facts and one.facts["source"] == "digits"
    kept = load_records(tmp_path / "a" / "records", lambda record: True)
    assert kept.keys() == {r.key for r in first}
    assert all(r.facts["settings"] == SMOKE.digest("digits", row.host, r.task) for r in kept.values())


def test_settings_tell_trainings_apart_and_nothing_else_does():
    def digest(source="digits", host="cnn", task="shift", **changes):
        return replace(SMOKE, **changes).digest(source, host, task)

    def efforts(host, task, effort):
        return {"efforts": {**SMOKE.efforts, host: {**SMOKE.efforts[host], task: effort}}}

    others = [digest("digits+fashion"), digest(host="pyramid"), digest(task="clutter"), digest(batch=5)]
    others.append(digest(**efforts("cnn", "clutter", Effort(5, 2))))  # the task that *shift* tests the networks of
    assert len({digest(), *others}) == 6
    assert digest(**efforts("cnn", "clutter", Effort(4, 2, test=7))) == digest(test=7) != digest()
    for changes in (efforts("cnn", "pointer", Effort(5, 2)), efforts("pyramid", "clutter", Effort(5, 2))):
        assert digest(**changes) == digest()
    more = {"seeds": (7,), "tasks": ("clutter", "shift"), **efforts("cnn", "clutter", Effort(4, 20))}
    assert digest(**more) == digest()


def test_a_host_may_have_more_test_scenes(tmp_path):
    efforts = {**SMOKE.efforts, "pyramid": {"": Effort(1, 1), "count": Effort(1, 1, test=130)}}
    recipe = replace(SMOKE, efforts=efforts)
    for row, task, scenes in (
        ("pyramid/pool", "count", 130),
        ("pyramid/pool", "pointer", 120),
        ("cnn/se", "count", 120),
    ):
        (one,) = train_row(rows_named(row)[0], task, 0, recipe, "digits", tmp_path)
        assert len(one.hits) == scenes
    assert "with 120 test scenes a task, but 130 of count in pyramid." in power_text(recipe)


def power_text(recipe):
    hits = {"count": {name: np.ones((2, 130), bool) for name in ("pyramid/pool", "pyramid/softmax")}}
    return "\n".join(power_plan(hits, rows_named("pyramid/pool", "pyramid/softmax"), recipe))


def test_a_table_is_restored_as_it_was(tmp_path):
    look = np.arange(12, dtype=np.uint8).reshape(3, 4)
    records = [replace(record(), look=look), record(seed=1, right=3), record("cnn/plain", right=0, scenes=20)]
    export(records, tmp_path / "d.csv")
    lines = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert [line["row"] for line in lines] == ["cnn/cbam", "cnn/cbam", "cnn/plain"]
    assert lines[0]["accuracy"] == "0.6364" and lines[0]["revision"] == "r"
    assert restore(tmp_path / "d.csv", tmp_path / "records", lambda record: True) == 3
    assert restore(tmp_path / "d.csv", tmp_path / "records", lambda record: True) == 0
    found = load_records(tmp_path / "records", lambda record: record.facts["settings"] == "s")
    for one in records:
        assert np.array_equal(found[one.key].hits, one.hits) and found[one.key].facts == one.facts
    assert np.array_equal(found[records[0].key].look, look) and found[records[1].key].look is None
    assert load_records(tmp_path / "records", lambda record: False) == {}


def test_a_table_of_other_settings_replaces_nothing(tmp_path):
    """The table of an earlier run lies beside the report, and the folder has a new result of the same row."""
    export([record()], tmp_path / "d.csv")
    record(right=3, settings="new").save(tmp_path / "records")
    assert restore(tmp_path / "d.csv", tmp_path / "records", lambda one: one.facts["settings"] == "new") == 0
    (kept,) = load_records(tmp_path / "records", lambda one: True).values()
    assert kept.hits.sum() == 3


def test_a_table_of_other_results_is_refused(tmp_path):
    export([record()], tmp_path / "d.csv")
    text = (tmp_path / "d.csv").read_text().replace("0.6364", "0.7000")
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(ValueError, match="do not belong together"):
        restore(tmp_path / "d.csv", tmp_path / "records", lambda record: True)


def test_seeds_after_a_gap_do_not_count():
    recipe = replace(SMOKE, seeds=(0, 1, 2), tasks=("clutter",))
    hits = collect_hits([record(), record(seed=2), record("cnn/plain"), record("cnn/plain", seed=1)], recipe)
    assert {row: len(own) for row, own in hits["clutter"].items()} == {"cnn/cbam": 1, "cnn/plain": 2}


def test_a_run_goes_on_and_says_that_it_is_unfinished(tmp_path, capsys):
    options = {"scale": "smoke", "rows": ["cbam"], "tasks": ["pointer"], "jobs": 1, "source": "digits"}
    with pytest.raises(ValueError, match="nothing is finished"):
        run_diagnostics(tmp_path / "d.md", tmp_path / "runs", minutes=0, **options)
    text = run_diagnostics(tmp_path / "d.md", tmp_path / "runs", seeds=[0], **options)
    assert "Complete: 2 rows, 1 tasks, 1 seeds" in text
    capsys.readouterr()
    # Only the report and the files of numbers were kept.
    for picture in tmp_path.glob("d-*.png"):
        picture.unlink()
    text = run_diagnostics(tmp_path / "d.md", tmp_path / "elsewhere", minutes=0, **options)
    printed = capsys.readouterr().out
    assert "took 2 results" in printed and "2 of 4 trainings are finished" in printed
    assert "**Unfinished: 2 of 4 results.**" in text and "better than plain" not in text
    assert (
        (tmp_path / "d-which.md").is_file()
        and (tmp_path / "d-looks.png").is_file()
        and (tmp_path / "d-heat-map.png").stat().st_size > 5_000
    )
    text = run_diagnostics(tmp_path / "d.md", tmp_path / "runs", **{**options, "jobs": 2})
    assert "Complete: 2 rows, 1 tasks, 2 seeds" in text
    assert "nothing has learnt this task" in text or "than plain" in text


def test_wrong_choices_are_named():
    with pytest.raises(ValueError, match="no task 'pointr'"):
        dry_run("small", tasks=["pointr"])
    with pytest.raises(ValueError, match="name that too"):
        dry_run("small", tasks=["corruption"])


def test_a_map_on_the_evidence_points_at_it():
    (scenes,) = TASKS["pointer"].make("test", 20)
    model = rows_named("cnn/simam")[0].build(SMOKE, 10)
    maps = look(model, scenes, 20)
    score, chance = pointing(maps, scenes)
    assert 0 <= score <= 1 and 0 < chance < 0.3
    # The scene's own evidence as a map points at it always, its opposite never.
    evidence = torch.from_numpy(scenes.evidence).float()
    assert (pointing(evidence, scenes)[0], pointing(1 - evidence, scenes)[0]) == (1, 0)
    plain = look(first_of("cnn").build(SMOKE, 10), scenes, 20)
    assert plain is None and np.isnan(pointing(plain, scenes)[0])


def test_rounding_is_no_map():
    """This gate is the same everywhere at its start, but for the last digit."""
    torch.manual_seed(0)
    model = rows_named("cnn/lam")[0].build(RECIPES["small"], 10)
    for scenes in TASKS["shift"].make("test", 4):
        assert not look(model, scenes, 4).any()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["clutter", "pointer", "neighbour"])
def test_shuffled_labels_leave_a_network_at_chance(task, tmp_path):
    recipe = replace(RECIPES["small"], train=6_000, test=2_000)
    (scenes,) = load_scenes(TASKS[task], "train", "cnn", recipe, "digits", tmp_path)
    (test,) = load_scenes(TASKS[task], "test", "cnn", recipe, "digits", tmp_path)
    torch.manual_seed(0)
    labels = np.random.default_rng(0).permutation(scenes.labels)
    model = first_of("cnn").build(recipe, TASKS[task].classes)
    fit(model, Scenes(scenes.images, labels, scenes.evidence, scenes.places), recipe, 200, recipe.rates["cnn"], seed=0)
    assert evaluate(model, test, recipe).mean() == pytest.approx(TASKS[task].chance, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pointer", "neighbour"])
def test_average_pooling_fails_where_places_matter(task, tmp_path):
    """The null brings in what is in the scene but not where, and so at best reads the objects and picks one."""
    shares = {
        name: train_row(rows_named(name)[0], task, 0, RECIPES["small"], "digits", tmp_path)[0].hits.mean()
        for name in ("columnar/average_pooling", "cnn/plain")
    }
    assert shares["columnar/average_pooling"] < shares["cnn/plain"] - 0.08
    assert shares["columnar/average_pooling"] < TASKS[task].shortcut + 0.06


def verdict(difference, half, seeds=3):
    return Verdict(difference, half, 0.1, seeds, 3)


VERDICTS = {
    "pointer": {
        "cnn/cbam": verdict(0.1, 0.02),
        "cnn/coord": verdict(-0.2, 0.03),
        "cnn/bam": verdict(0.01, 0.04),
        "pyramid/swin": verdict(0.3, np.inf, 1),
    },
    "count": {
        "cnn/cbam": verdict(0.0, 0.02),
        "cnn/coord": verdict(0.01, 0.03),
        "cnn/bam": verdict(0.0, 0.1),
        "pyramid/swin": verdict(0.0, np.inf, 1),
    },
}


def test_the_page_names_winners_and_losers():
    rows = rows_named("cnn/plain", "pyramid/pool", *VERDICTS["pointer"])
    text = "\n".join(summary(VERDICTS, rows))
    assert "| cnn/cbam | pointer (+10.0) |  | 1 of 2 |" in text
    assert "| cnn/coord |  | pointer (-20.0) | 1 of 2 |" in text
    assert "worse at nothing: cnn/cbam." in text and "better at nothing: cnn/coord." in text
    assert "at any task: cnn/bam." in text
    # One seed says nothing, whatever its difference.
    assert "swin" not in text


def test_a_task_that_is_left_out_in_a_host_is_not_waited_for():
    verdicts = {
        "pointer": {"cnn/cbam": verdict(0.1, 0.02), "pyramid/swin": verdict(-0.3, 0.1)},
        "long way": {"cnn/cbam": verdict(0.0, 0.01)},
    }
    text = "\n".join(summary(verdicts, rows_named("cnn/plain", "pyramid/pool", *verdicts["pointer"])))
    assert "| cnn/cbam | pointer (+10.0) |  | 1 of 2 |" in text
    assert "| pyramid/swin |  | pointer (-30.0) | 0 of 1 |" in text


def test_the_plan_counts_the_tasks_that_tell_a_small_difference():
    """Rows that agree need two seeds; no number will do where every second scene is answered differently."""
    rng, recipe = np.random.default_rng(0), replace(SMOKE, tasks=("pointer", "count"), seeds=(0, 1, 2), test=5_000)
    rows = rows_named("cnn/plain", "cnn/cbam", "cnn/coord")
    steady = {row.name: rng.random((3, 5_000)) < 0.99 for row in rows}
    unsteady = {name: rng.random((3, 5_000)) < [[0.4], [0.6], [0.8]] for name in steady}
    unsteady["cnn/plain"] = steady["cnn/plain"]
    lines = power_plan({"pointer": unsteady, "count": steady}, rows, recipe)
    assert "- cnn: 1.5 points are told at 1 of 2 tasks: count." in lines
    (_, _, _, spread, _, seeds, _), (*_, needed, here) = (line.strip("| ").split(" | ") for line in lines[2:4])
    assert float(spread) == pytest.approx(20, abs=3) and seeds == "no number"
    assert (needed, here) == ("2", "3")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("verdicts", [VERDICTS, {"pointer": {}}], ids=["rows", "baselines alone"])
def test_pictures_are_drawn_of_whatever_is_finished(verdicts, tmp_path):
    rows = rows_named("cnn/plain", "pyramid/pool", *VERDICTS["pointer"])
    for draw, empty in ((draw_heat_map, False), (draw_profiles, not verdicts["pointer"])):
        draw(rows, verdicts, tmp_path / f"{draw.__name__}.png")
        picture = cv2.imread(str(tmp_path / f"{draw.__name__}.png"))
        assert (picture.std() < 1) == empty  # baselines have no profile


def test_a_profile_shows_what_is_told_apart(tmp_path):
    baselines = {name: f"{name.split('/')[0]}/plain" for name in VERDICTS["pointer"]}
    export_verdicts(VERDICTS, baselines, tmp_path / "d-verdicts.csv")
    root = ElementTree.fromstring(draw_profile(tmp_path / "d.csv", "cbam"))
    space = {"": "http://www.w3.org/2000/svg"}
    words = [text.text for text in root.findall("text", space)]
    assert words[:2] == ["pointer", "+10.0 ± 2.0: better"] and words[-1] == "points more than cnn/plain"
    pointer, count = root.findall("rect", space)
    assert float(pointer.get("width")) > 50 and float(count.get("width")) == 0
    assert pointer.get("fill") != count.get("fill") == "currentColor"
    # Without an interval, of no row, and without a report there is nothing to show.
    assert draw_profile(tmp_path / "d.csv", "swin") is None and draw_profile(tmp_path / "d.csv", "lam") is None
    assert draw_profile(tmp_path / "e.csv", "cbam") is None


def test_a_second_training_of_finished_rows_is_compared(tmp_path):
    options = {"scale": "smoke", "rows": ["cbam"], "tasks": ["clutter", "shift"], "source": "digits"}
    run_diagnostics(tmp_path / "d.md", tmp_path / "runs", seeds=[0], jobs=1, **options)
    text = train_again(tmp_path / "d.md", tmp_path / "runs", 2, **options)
    assert text.endswith("2 of 2 trainings gave the same answer to every test scene")
    assert text.count("shift") == 2
    path = next((tmp_path / "runs" / "smoke" / "records").glob("cnn-cbam.shift*"))
    kept = dict(np.load(path))
    np.savez(path, bits=~kept["bits"], line=kept["line"])
    assert "\n1 of 2 trainings" in train_again(tmp_path / "d.md", tmp_path / "runs", 2, **options)
    with pytest.raises(ValueError, match="3 rows were to be trained again, but only 2 are finished"):
        train_again(tmp_path / "d.md", tmp_path / "runs", 3, **options)
