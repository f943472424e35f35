"""Help costs nothing, teaches by examples that work, and comes from one file a command."""

import argparse
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import visionattn
from visionattn import cli

ROOT = Path(__file__).parents[2]
COMMANDS = {path.stem.replace("_", "-") for path in Path(cli.__file__).parent.glob("[!_]*.py")}


def run(*command, **environment):
    """A process of its own, with compiled modules kept as in any installation."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = inherited | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["configs"]])
def test_help_needs_no_torch(arguments):
    done = run(sys.executable, "-X", "importtime", "-m", "visionattn.cli", *arguments)
    assert done.returncode == 0 and done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "visionattn.cli" in imported and not imported & {"torch", "timm", "mmengine", "numpy", "rich"}


def test_help_is_quick():
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(sys.executable, "-m", "visionattn.cli", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.5


def test_installed_command_sets_up_threads_before_torch_is_loaded(tmp_path):
    """What pip writes as `bin/visionattn`, with a look at what is there when a command begins."""
    script = tmp_path / "visionattn"
    script.write_text(
        "import os, sys\n"
        "from visionattn.cli import cost, main\n"
        "assert 'torch' not in sys.modules\n"
        "def look(options):\n"
        "    import timm, visionattn\n"
        "    print(os.environ['OMP_WAIT_POLICY'], timm.is_model('va_resnet10n_cbam'), visionattn.attach.__name__)\n"
        "cost.run = look\n"
        "sys.argv = ['visionattn', 'cost']\n"
        "main()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["PASSIVE", "True", "attach"], done.stderr


def test_import_registers_everywhere_else(tmp_path):
    """Also in a program whose arguments look like ours, and in its worker processes."""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, timm\n"
        "import visionattn\n"
        "def registered(name): return timm.is_model(name)\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(timm.is_model('va_resnet10n_cbam'), *pool.map(registered, ['va_resnet10n_cbam']))\n"
    )
    done = run(sys.executable, program, "-m", "visionattn.cli")
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_every_command_is_a_file_with_a_text_and_examples(run_cli):
    code, out, _ = run_cli("--help")
    assert code == 0 and "visionattn train quickstart" in out and "OMP_NUM_THREADS" in out
    shown = {line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "}
    assert shown == COMMANDS
    for name in COMMANDS:
        code, out, _ = run_cli(name, "--help")
        assert code == 0 and "examples:\n  visionattn " in out, name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_are_understood(name):
    parser = cli._parser()
    for example in cli._commands()[name].EXAMPLES:
        options = parser.parse_args([name, *shlex.split(example, comments=True)])
        assert isinstance(options, argparse.Namespace) and options.command is cli._commands()[name]


def test_tools_are_the_commands():
    tools = {path.stem.replace("_", "-"): path.read_text() for path in (ROOT / "tools").glob("*.py")}
    for own in ("mutate", "mutants", "nearest-tests", "reached"):  # works on the package itself
        del tools[own]
    for name, text in tools.items():
        assert name in COMMANDS and f'main("{name}")' in text


def test_version(run_cli):
    assert run_cli("--version")[:2] == (0, f"visionattn {visionattn.__version__}\n")
