"""`key=value` on the command line."""

import argparse
import shlex

import pytest

from visionattn.cli._common import command_line
from visionattn.cli._values import StoreSettings, format_setting, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1e-3", -0.001),
        (".5", 0.5),
        ("True", True),
        ("false", False),
        ("None", None),
        ("a b", "a b"),
        ("1.2.3", "1.2.3"),
        ("20240101_1", "20240101_1"),
        ("1,2", [1, 2]),
        ("[1,2]", [1, 2]),
        ("[]", []),
        ("(1,)", (1,)),
        ("[(0,1),[a,b]]", [(0, 1), ["a", "b"]]),
        ("'1,2'", "1,2"),
        ('"true"', "true"),
        ("data/holiday (1).jpg", "data/holiday (1).jpg"),
        ("holiday (1.jpg", "holiday (1.jpg"),
        ("va_x.tag", "va_x.tag"),
        ("", ""),
    ],
)
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)
    # What is printed to be pasted means the same.
    (printed,) = shlex.split(shlex.quote(format_setting("k", value)))
    again = parse_value(printed.removeprefix("k="))
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize("text", ["[1,2", "[1,(2]", "(a"])
def test_brackets_that_do_not_match(text):
    with pytest.raises(ValueError, match="brackets do not match"):
        parse_value(text)


def test_settings_add_up_and_need_a_value(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", nargs="+", action=StoreSettings, default={})
    assert parser.parse_args(["--set", "a=1", "b.c=x=y", "--set", "d="]).set == {"a": 1, "b.c": "x=y", "d": ""}
    assert parser.parse_args([]).set == {}
    for wrong in ("novalue", "=3", "a=[1"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--set", wrong])
        assert "--set" in capsys.readouterr().err


def test_command_lines_can_be_pasted():
    text = command_line("test", "my config.py", "a.pth", model=None, amp=True, cfg_options={"a": [1, "x y"], "b": None})
    assert shlex.split(text)[:5] == ["visionattn", "test", "my config.py", "a.pth", "--amp"]
    assert shlex.split(text)[5:] == ["--cfg-options", "a=[1,x y]", "b=None"]
    assert command_line("configs", cfg_options={}, fresh=False) == "visionattn configs"
