"""The demonstration of clicks: what a click is, that it alone tells digits apart, and what is written."""

import torch

from visionattn.comparison.clicks import VARIANTS, ClickSegmenter, _click, evaluate, main, scenes


def test_clicks_are_put_where_they_are_asked_for():
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(2, 4, 4, dtype=torch.bool)
    target[0, 1:3, 1:3] = True
    where = torch.stack((target[0], torch.zeros(4, 4, dtype=torch.bool)))
    first = _click(torch.zeros(2, 4, 4), target, where, generator)
    assert first[0].sum() == 1 and (first[0] > 0)[target[0]].sum() == 1
    assert not first[1].any()  # no place to click at
    second = _click(first, target, ~target, generator)
    assert (second[0] == -1).sum() == 1 and second[0].abs().sum() == 2 and second[1].sum() == -1


def test_scenes_are_fixed_and_hold_what_is_asked_for():
    images, target = scenes("test", 4, 3)
    assert images.shape == (4, 3, 40, 40) and target.shape == (4, 20, 20) and target.flatten(1).sum(1).min() >= 8
    assert torch.equal(images, scenes.__wrapped__("test", 4, 3)[0])


def test_clicks_reach_the_result_through_known_values_only():
    torch.manual_seed(0)
    images, target = scenes("test", 2, 0)
    clicks = _click(torch.zeros(target.shape), target, target, torch.Generator().manual_seed(0))
    for variant, options in VARIANTS.items():
        model = ClickSegmenter(**options)
        same = torch.equal(model(images, clicks), model(images, -clicks))
        assert same == (variant == "clicks left out")
        with torch.no_grad():  # whatever is said to be the digit: all of the picture
            model.head[-1].bias.fill_(100.0)
        share = 100 * target.float().mean((1, 2)).mean().item()
        torch.testing.assert_close(evaluate(model, (images, target), 2, torch.Generator()), [share, share])


def test_writes_a_table_and_a_picture(tmp_path, capsys):
    sizes = ("--steps", "2", "--scenes", "4", "--tests", "2", "--clicks", "2")
    main(["--seeds", "0", "1", *sizes, "--out", str(tmp_path / "clicks.md")])
    text = (tmp_path / "clicks.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "clicks.png").stat().st_size > 1000
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| clicks | 1 | 2 | after the last, each seed |"
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == list(VARIANTS)
