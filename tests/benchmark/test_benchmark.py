"""The benchmark: equality before speed, the stopwatch, contenders, records, tables."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from visionattn.benchmark import Case, Unequal, compare, load, make_plan, measure, run, suite_cases, update_page
from visionattn.benchmark.cases import (
    frontend_cases,
    mixer_cases,
    network_cases,
    plugin_cases,
    resnet_cases,
    window_cases,
)
from visionattn.benchmark.contenders import PlainOps, literal, with_baseline_blocks
from visionattn.benchmark.report import COMMAND, crossings, format_record, headlines, page_block
from visionattn.benchmark.rows import CompileBudget
from visionattn.benchmark.timing import cpu_clock, cuda_clock, measure_ceilings, quantiles, take_turns
from visionattn.catalog import cards, get
from visionattn.plugins import CBAM, list_plugins
from visionattn.reference.triplet import NaiveTripletAttention
from visionattn.testing.contracts import perturbed

ROOT = Path(__file__).parents[2]
QUICK = ["--shapes", "2x32x5x4", "--seconds", "0.001", "--compile-seconds", "0"]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr("visionattn.benchmark.rows.MIN_ROUNDS", 3)


def row_of(case, mode, **kwargs):
    options = {"device": "cpu", "seconds": 0.0, "ceilings": {}, "budget": CompileBudget(0.0)}
    return measure(case, mode, **(options | kwargs))


class Scale(nn.Module):
    def __init__(self, channels, factor=2.0, slope=0.0, learning=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.factor, self.slope, self.learning = factor, slope, learning

    def forward(self, x):
        # Neither adds anything to the value: `slope` changes the gradient of the input, `learning` of the weight.
        weight = self.weight * self.learning + self.weight.detach() * (1 - self.learning)
        return self.factor * weight * x + self.slope * (x - x.detach())


def case(shape=(2, 3, 4, 5), **kwargs):
    def baseline(ours):
        theirs = Scale(shape[1], **kwargs)
        theirs.load_state_dict(ours.state_dict())
        return theirs

    return Case("plugins", "scale", shape, lambda: Scale(shape[1]), {"another": baseline})


@pytest.mark.parametrize(
    ("mode", "wrong"),
    [
        ("fwd", {"factor": 2.001}),
        ("f+b", {"factor": 2.001}),
        ("f+b", {"slope": 0.01}),
        ("f+b", {"learning": 0.999}),
        ("fwd", {"factor": float("nan")}),
    ],
)
def test_unequal_contenders_are_refused(mode, wrong):
    with pytest.raises(Unequal, match=r"ours and another of scale 2x3x4x5 .* differ by .*nothing was timed"):
        row_of(case(**wrong), mode)


def test_unequal_contenders_may_be_wanted():
    row = row_of(replace(case(factor=3.0), unequal=frozenset({"another"})), "fwd")
    assert "error" not in row["contenders"]["ours"] and row["contenders"]["another"]["ratio"]["p50"] > 0


def test_half_precision_is_checked_in_float32_and_as_it_is():
    one = replace(case(), dtype=torch.bfloat16)
    assert row_of(one, "f+b")["contenders"]["ours"]["error"] < 1e-6
    with pytest.raises(Unequal, match="in float32, more than 1e-04"):
        row_of(replace(case(factor=2.001), dtype=torch.bfloat16), "fwd")

    class Coarse(Scale):
        def forward(self, x):
            return super().forward(x) * (1.0 if x.dtype == torch.float32 else 1.2)

    coarse = replace(one, baselines={"coarse": lambda ours: Coarse(3)})
    with pytest.raises(Unequal, match="in bfloat16, more than 5e-02"):
        row_of(coarse, "fwd")
    assert row_of(replace(coarse, exact_only=True), "fwd")["rounds"] >= 3


def test_a_row_holds_times_memory_and_operators():
    row = row_of(case((2, 3, 4, 5)), "f+b", seconds=0.001)
    ours, theirs = row["contenders"]["ours"], row["contenders"]["another"]
    assert row["reference"] == "another" and row["rounds"] >= 3
    assert ours["ratio"] == {"p10": 1.0, "p50": 1.0, "p90": 1.0}
    assert theirs["ratio"]["p10"] <= theirs["ratio"]["p50"] <= theirs["ratio"]["p90"]
    assert ours["kept"] == theirs["kept"] > 0 and ours["operators"] == theirs["operators"] > 5


class Ticker:
    """A clock that each call of a step moves on by as much as the step says."""

    def __init__(self):
        self.now = 0.0

    def __call__(self, run):
        before = self.now
        run()
        return self.now - before

    def step(self, seconds, log=None):
        def run(number):
            self.now += seconds
            if log is not None:
                log.append((seconds, number))

        return run


def test_turns_rotate_and_end_in_time():
    ticker, log = Ticker(), []
    rounds = take_turns([ticker.step(s, log) for s in (1.0, 2.0, 3.0)], ticker, seconds=10.0, min_rounds=2)
    assert rounds == [[1.0, 2.0, 3.0]] * 5  # 5 rounds of 6 seconds are 10 for each of 3
    assert [s for s, _ in log[:9]] == [1.0, 2.0, 3.0, 2.0, 3.0, 1.0, 3.0, 1.0, 2.0]
    assert [number for s, number in log if s == 2.0] == list(range(5))  # each counts its own calls
    assert len(take_turns([ticker.step(1.0)], ticker, seconds=0.0, min_rounds=4)) == 4


def test_bursts_are_long_enough_and_give_the_time_of_one_call():
    ticker, log = Ticker(), []
    steps = [ticker.step(0.25, log), ticker.step(8.0)]
    rounds = take_turns(steps, ticker, seconds=0.0, min_rounds=3, burst=1.0)
    assert rounds == [[0.25, 8.0]] * 3
    # Two calls to see how long one takes, then five in each round.
    assert [number for _, number in log] == list(range(2 + 3 * 5))


def test_clocks(monkeypatch):
    assert 0 < cpu_clock(lambda: sum(range(10000))) < 10

    class Event:
        marks = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.marks += 1
            self.at = Event.marks

        def synchronize(self):
            self.done = True

        def elapsed_time(self, end):
            assert end.done
            return 5.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert cuda_clock(lambda: None) == 0.005


def test_ceilings():
    found = measure_ceilings("cpu", [torch.float32])
    assert found.keys() == {"copy", "scale", "product float32"} and min(found.values()) > 1e8
    assert quantiles([1.0, 2.0, 3.0]) == {"p10": 1.2, "p50": 2.0, "p90": 2.8}


def test_share_of_the_floor():
    (one,) = plugin_cases(["coord"], [(2, 512, 32, 32)], ["NHWC"], modes=("f+b",))
    ceilings = {"copy": 1e9, "product float32": 1e20}
    row = row_of(one, "f+b", ceilings=ceilings)
    size = 4 * 2 * 512 * 32 * 32
    assert row["floor"] == {
        "forward": pytest.approx(3 * size / 1e9, 1e-3),
        "backward": pytest.approx(4 * size / 1e9, 1e-3),
    }
    ours = row["contenders"]["ours"]
    assert ours["floor_share"] == pytest.approx(7 * size / 1e9 / ours["seconds"]["p50"], 0.01)
    small = replace(one, shape=(2, 512, 8, 8))
    assert "floor" not in row_of(small, "f+b", ceilings=ceilings)  # stays in caches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plugins_equal_their_baselines(dtype):
    names = [card.name for card in cards("plugin") if card.reference]
    assert {*list_plugins()} | {"acat", "sentence"} == {*names}
    pictures = frontend_cases([(1, 3, 18, 17)], dtype=dtype)
    assert {one.name for one in pictures} == {card.name for card in cards("frontend")}
    for one in (*plugin_cases(names, [(2, 32, 6, 5)], ["NHWC"], dtype=dtype), *pictures):
        for mode in one.modes:
            assert row_of(one, mode)["contenders"]["ours"]["error"] < (1e-5 if dtype == torch.float32 else 5e-2)
    assert "timm" in next(iter(plugin_cases(["cbam"], [(2, 32, 6, 5)], ["NCHW"]))).baselines


def test_fightingcv_takes_our_weights_where_it_is_installed(monkeypatch):
    class Theirs(NaiveTripletAttention):
        """Stands for the package, whose parameters have one more level in their names."""

        def __init__(self, no_spatial):
            super().__init__(1, no_spatial=no_spatial)

        def load_state_dict(self, state_dict):
            assert "cw.conv.conv.weight" in state_dict and "hw.conv.bn.running_mean" in state_dict
            super().load_state_dict({key.replace(".conv.", ".", 1): value for key, value in state_dict.items()})

    module = ModuleType("fightingcv_attention.attention.TripletAttention")
    module.TripletAttention = Theirs
    monkeypatch.setitem(sys.modules, "fightingcv_attention", ModuleType("fightingcv_attention"))
    monkeypatch.setitem(sys.modules, "fightingcv_attention.attention", ModuleType("fightingcv_attention.attention"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (one,) = plugin_cases(["triplet"], [(2, 32, 6, 5)], ["NCHW"])
    assert row_of(one, "f+b")["contenders"]["fightingcv"]["error"] < 1e-5
    monkeypatch.setitem(sys.modules, module.__name__, None)
    (one,) = plugin_cases(["triplet"], [(2, 32, 6, 5)], ["NCHW"])
    assert "fightingcv" not in one.baselines and "not installed" in one.notes["fightingcv"]
    (one,) = plugin_cases(["cbam"], [(2, 32, 6, 5)], ["NCHW"])
    assert "another function" in one.notes["fightingcv"]


def test_mixers_equal_their_baselines():
    cases = mixer_cases(shapes=[(2, 14, 14, 64)])
    expected = {card.name for card in cards("mixer") if card.reference}
    pairs = {"bidaf", "cross_bridge", "mvas", "paraformer"}
    assert {c.name for c in cases} >= expected | pairs
    assert {next(iter(c.baselines)) for c in cases} == {"timm", "official"}
    for one in cases:
        for mode in one.modes:
            row = row_of(one, mode)
            assert row["contenders"]["ours"]["error"] < 1e-4, str(one)
            assert ("SDPA" in row["contenders"]) == (one.name not in pairs)
            assert "error" not in row["contenders"].get("SDPA", {})
    assert row_of(window_cases(((1, 14),))[0], "fwd")["contenders"]["7x7 windows"]["ratio"]["p50"] > 0


def test_networks_equal_timms():
    one = next(c for c in network_cases(size=32, batch=1) if c.name == "va_davit_tiny")
    row = row_of(one, "f+b")
    assert row["contenders"]["ours"]["error"] < 1e-4 and row["contenders"]["ours"]["kept"] > 0


def test_networks_get_literal_blocks():
    network = timm.create_model("va_resnet10n_cbam").double().eval()
    for module in network.modules():
        if isinstance(module, CBAM):
            perturbed(module)
    official = with_baseline_blocks(literal(get("plugin", "cbam")), CBAM)(network)
    assert not any(isinstance(m, CBAM) for m in official.modules()) and any(
        isinstance(m, CBAM) for m in network.modules()
    )
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(official.double().eval()(x), network(x), rtol=1e-9, atol=1e-9)
    assert [c.name for c in resnet_cases(["cbam", "coord"])] == ["va_resnet50_cbam", "va_resnet50_coord"]


def test_ours_without_kernels():
    from visionattn.ops import _dispatch

    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(_dispatch._default)
            return x

    PlainOps(Spy())(torch.zeros(1))
    assert seen == ["torch"] and _dispatch._default == "auto"


class OnCPU(TorchFunctionMode):
    """What is meant for a GPU stays here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = tuple(self.here(value) for value in args)
        return func(*args, **{name: self.here(value) for name, value in (kwargs or {}).items()})

    @staticmethod
    def here(value):
        is_gpu = value == "cuda" if isinstance(value, str) else isinstance(value, torch.device) and value.type == "cuda"
        return "cpu" if is_gpu else value


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Lets the steps that a GPU takes run without one: the order of things, not their numbers."""
    generator = torch.Generator
    properties = SimpleNamespace(L2_cache_size=10_000, name="GPU", total_memory=1, major=9, minor=0)
    monkeypatch.setattr(torch, "Generator", lambda device: generator("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    profile = SimpleNamespace(
        events=lambda: [
            SimpleNamespace(name="kernel", device_type=torch.autograd.DeviceType.CUDA),
            SimpleNamespace(name="Memcpy DtoD", device_type=torch.autograd.DeviceType.CUDA),
            SimpleNamespace(name="aten::add", device_type=torch.autograd.DeviceType.CPU),
        ]
    )
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: nullcontext(profile))
    monkeypatch.setattr("visionattn.benchmark.rows.clock_of", lambda device: cpu_clock)
    monkeypatch.setattr("visionattn.benchmark.runs.measure_ceilings", lambda *args: {"copy": 1e9})
    with OnCPU():
        yield


def test_steps_of_a_gpu_run(pretended_gpu, tmp_path):
    half = {"dtype": torch.bfloat16}
    (network,) = resnet_cases(["coord"], size=32, batch=3, check_batch=2, **half)
    cases = [
        *plugin_cases(["coord"], [(2, 32, 6, 5)], ["NHWC"], modes=("f+b",), **half),
        *window_cases(((2, 14),), **half),
        replace(
            network,
            build=lambda: timm.create_model("va_resnet10n_coord"),
            baselines=network.baselines | {"none": lambda ours: timm.create_model("va_resnet10n")},
        ),
    ]
    plan = make_plan("gpu", "cuda", cases, seconds=0.0, limit=1000.0, compilers=0.0)
    record = run(plan, tmp_path / "gpu.json")
    assert [row.get("refused") for row in record["rows"]] == [None] * 4
    assert record["device"]["l2"] == 10_000 and record["versions"]["triton"]
    plugin, *_, network = record["rows"]
    assert plugin["contenders"].keys() >= {"ours", "torch", "official", "timm"}
    assert plugin["contenders"]["ours"]["peak"] == 2000 and plugin["contenders"]["ours"]["operators"] == 1
    assert plugin["contenders"]["torch"]["error"] <= plugin["contenders"]["ours"]["error"] < 5e-2
    assert network["contenders"].keys() == {"ours", "torch", "official", "none"}
    text = format_record(record)
    assert "# Speed on GPU" in text and "one thread" not in text and "## Networks" not in text


def test_suites_are_made_of_the_cards():
    cases = [*suite_cases("gpu", "cuda"), *suite_cases("cpu", "cpu")]
    assert {c.name for c in cases if c.suite == "plugins"} == {*list_plugins(), "acat", "sentence"}
    assert {c.name for c in cases if c.suite == "frontends"} == {"featenhancer"}
    assert {"twins_local", "davit_channels", "boat", "cswin", "halonet"} <= {
        c.name for c in cases if c.suite == "mixers"
    }
    sides_of = {"swin": {14}, "lkca": {14}, "mta": {28, 14}, "biformer": {56, 28, 14}, "flatten": {56, 28, 14}}
    for name, sides in sides_of.items():
        assert {c.shape[1] for c in cases if c.name == name} == sides  # formulas by position, and of all pairs
    boat = next(c for c in cases if c.name == "boat")
    assert boat.exact_only and boat.floor == get("mixer", "boat").floor and boat.shape[1:] == (56, 56, 128)
    every = suite_cases("cpu", "cpu")
    assert all(("ours" in case.compiled) == (case.suite not in ("networks", "resnet50")) for case in every)
    official = [c for c in every if "official" in c.compiled]
    assert {c.name for c in official} <= {c.name for c in cases if c.suite == "plugins"}
    assert {(c.shape, c.layout) for c in official} == {((8, 256, 56, 56), "NCHW")}
    gpu = {c.name for c in suite_cases("gpu", "cuda") if c.suite in ("plugins", "resnet50")}
    assert {"ela_b", "va_resnet50_ela_b"} <= gpu and "ela_l" not in gpu  # one of each paper


def test_mixers_and_maps_of_ones_choice():
    shapes = [(2, 56, 56, 64), (1, 14, 14, 256)]
    cases = suite_cases("mixers", "cpu", mixers=["biformer", "mano"], shapes=shapes)
    assert [(c.name, c.shape) for c in cases] == [(name, shape) for shape in shapes for name in ("biformer", "mano")]
    modules = [case.build() for case in cases]
    assert [(m.num_heads, m.topk) for m in modules[::2]] == [(2, 1), (8, 16)] and modules[1].window_size == 7
    assert [c.name for c in suite_cases("mixers", "cpu", mixers=["bidaf", "mvas"], shapes=shapes[:1])] == [
        "bidaf",
        "mvas",
    ]
    with pytest.raises(ValueError, match=r"unknown mixer 'biforme'; there are: .*biformer"):
        suite_cases("mixers", "cpu", mixers=["biforme"])
    with pytest.raises(ValueError, match="'mvpa_series' needs more than a map"):
        suite_cases("mixers", "cpu", mixers=["mvpa_series"])


@pytest.mark.parametrize("name", ["biformer", "rala", "moh", "dhvt", "mano"])
def test_rows_of_routed_and_pooled_mixers(name):
    """Against their literal forms, on a map too small to say anything of speed."""
    (one,) = mixer_cases([name], [(1, 14, 14, 64)])
    row = row_of(one, "f+b")
    assert row["reference"] == "official" and row["contenders"]["ours"]["error"] < 1e-4


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((0.8, 0.9, 0.97), "no crossing point, 7x7 windows are still the faster at N = 3136"),
        ((0.8, 1.1, 1.2), "crossing point at N = 784, from which on 7x7 windows are the slower"),
        ((1.1, 0.9, 1.0), "crossing point at N = 3136, from which on 7x7 windows are the slower"),
        ((1.1, 1.2, 1.3), "no crossing point, 7x7 windows are the slower from N = 196 on"),
    ],
)
def test_says_where_linear_attention_overtakes_windows(ratios, verdict):
    rows = [
        {
            "mode": "f+b",
            "shape": [1, side, side, 96],
            "reference": "7x7 windows",
            "contenders": {"7x7 windows": {"ratio": {"p50": ratio}}},
        }
        for side, ratio in zip((14, 28, 56), ratios, strict=True)
    ]
    assert crossings(rows[::-1]) == [f"- training, N = 196, 784, 3136: {verdict}."]


def fake_row(one, mode, baselines, ratio=3.0, kept=0.5):
    quantile = {"p10": 0.9 * ratio, "p50": ratio, "p90": 1.1 * ratio}
    facts = {"seconds": quantile, "ratio": quantile, "kept": 100, "operators": 9, "floor_share": 0.65}
    contenders = {"ours": facts | {"kept": int(100 * kept)}, **{name: facts for name in baselines}}
    row = {"suite": one.suite, "name": one.name, "shape": list(one.shape), "layout": one.layout, "mode": mode}
    row |= {"dtype": str(one.dtype).removeprefix("torch."), "reference": next(iter(one.baselines)), "rounds": 7}
    noise = {"p10": 0.8, "p50": 1.0, "p90": 1.25}
    return row | {"notes": {}, "noise": noise, "floor": {"forward": 1.0, "backward": 1.0}, "contenders": contenders}


def fake_record(ratio=3.0, names=("cbam", "triplet", "ulsam")):
    cases = plugin_cases(names, [(8, 256, 56, 56)], ["NCHW", "NHWC"])
    rows = [fake_row(c, mode, list(c.baselines), ratio) for c in cases for mode in c.modes]
    versions = {"torch": "2.11"}
    facts = {"schema": 2, "suite": "plugins", "device": {"kind": "cpu", "name": "CPU"}, "versions": versions}
    return facts | {"revision": "x", "rows": rows}


def test_command_writes_record_tables_and_pictures(run_cli, tmp_path):
    threads = torch.get_num_threads()
    code, out, _ = run_cli("benchmark", "--plugins", "coord", "ulsam", *QUICK, "--json", "speed.json")
    assert code == 0 and torch.get_num_threads() == threads
    assert "plan: 8 rows, " in out and "[8/8, " in out and "ulsam 2x32x5x4 NHWC f+b: " in out
    record = load(tmp_path / "speed.json")
    assert record["schema"] == 2 and record["versions"]["torch"] == torch.__version__ and record["revision"]
    assert record["device"]["name"] and record["ceilings"]["copy"] > 0
    table = (tmp_path / "speed.md").read_text()
    assert table in out and "coord, compiled: the time for compilers was spent" in table
    for row in record["rows"]:
        ratio = row["contenders"]["official"]["ratio"]
        assert row["rounds"] >= 3 and f"{ratio['p50']:.2f} ({ratio['p10']:.2f}-{ratio['p90']:.2f})" in table
    assert (tmp_path / "speed-plugins.png").stat().st_size < 100_000


def test_loaded_runs_have_another_process_copy_meanwhile(run_cli, tmp_path, monkeypatch):
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    def watched(*args, **kwargs):
        assert any(process.poll() is None for process in started), "the other process has ended"
        return measure(*args, **kwargs)

    monkeypatch.setattr("visionattn.benchmark.timing.subprocess.Popen", Watched)
    monkeypatch.setattr("visionattn.benchmark.runs.measure", watched)
    code, out, _ = run_cli("benchmark", "--plugins", "coord", *QUICK, "--loaded", "--json", "loaded.json")
    assert code == 0 and "Another process copied memory all the time" in out
    assert load(tmp_path / "loaded.json")["loaded"] and all(process.poll() is not None for process in started)
    code, _, err = run_cli("benchmark", "--plugins", "coord", *QUICK, "--update", "--json", "loaded.json")
    assert code == 2 and "a record of loaded True can't be extended with loaded False" in err


def test_a_page_shows_the_lower_of_quiet_and_loaded():
    quiet = fake_record(3.0)
    loaded = fake_record(2.0, ("cbam",)) | {"loaded": True}
    text = page_block([quiet, loaded])
    assert page_block([loaded, quiet]) == text and "lower" not in page_block([quiet])
    assert "the lower of a quiet and a loaded machine where both were measured:" in text
    assert "| cbam | official | 8x256x56x56 | 2.00, 2.00 | 2.00, 2.00 |" in text
    assert "| triplet | official | 8x256x56x56 | 3.00, 3.00 | 3.00, 3.00 |" in text


def test_command_compares_and_fails_on_regressions(run_cli, tmp_path):
    slow, fast = fake_record(2.0), fake_record(3.0)
    for name, record in (("slow.json", slow), ("fast.json", fast)):
        (tmp_path / name).write_text(json.dumps(record))
    assert [ratio for _, ratio, _ in compare(fast, slow)] == [1.5] * 12
    code, out, _ = run_cli("benchmark", "--from", "slow.json", "--compare", "fast.json", "--fail-below", "0.9")
    assert code == 1 and out.count("REGRESSION") == 12 and "12 rows in both records, 12 regressed" in out
    assert "  0.67x (noise 0.80-1.25)  cbam 8x256x56x56 NCHW fwd  REGRESSION" in out
    code, out, _ = run_cli("benchmark", "--from", "slow.json", "--compare", "fast.json")
    assert code == 0 and out.count("slower than noise") == 12
    code, out, _ = run_cli("benchmark", "--from", "fast.json", "--compare", "fast.json", "--fail-below", "0.9")
    assert code == 0 and "12 rows in both records, 0 regressed" in out


def test_gates_are_compared_with_the_condition_they_get():
    for one in plugin_cases(["acat", "sentence"], [(2, 32, 6, 5)], ["NCHW"]):
        ours = one.build()
        theirs = one.baselines["official"](ours)
        x = torch.randn(one.shape)
        before = theirs(x)
        torch.testing.assert_close(ours(x), before)
        ours.condition += torch.rand(ours.condition.shape)
        assert torch.equal(theirs(x), before) and not torch.allclose(ours(x), before)


def test_command_updates_rows_of_a_record(run_cli, tmp_path):
    run_cli("benchmark", "--plugins", "coord", "ulsam", *QUICK, "--json", "speed.json")
    old = load(tmp_path / "speed.json")
    (tmp_path / "speed.json").write_text(json.dumps(old | {"revision": "earlier"}))
    code, out, _ = run_cli("benchmark", "--plugins", "ulsam", "acat", *QUICK, "--json", "speed.json", "--update")
    new = load(tmp_path / "speed.json")
    names = [row["name"] for row in new["rows"]]
    assert code == 0 and names == ["coord"] * 4 + ["ulsam"] * 4 + ["acat"] * 4
    assert new["rows"][:4] == old["rows"][:4] and new["revision"] == "earlier"
    assert all("revision" not in row for row in new["rows"][:4])
    assert all(row["revision"] == old["revision"] for row in new["rows"][4:])
    assert [a == b for a, b in zip(new["rows"][4:8], old["rows"][4:], strict=True)] == [False] * 4
    assert "revision earlier." in out and f"At revision {old['revision']}: ulsam, acat." in out
    (tmp_path / "speed.json").write_text(json.dumps(old | {"versions": {"torch": "1.0"}}))
    code, _, err = run_cli("benchmark", "--plugins", "coord", *QUICK, "--json", "speed.json", "--update")
    assert code == 2 and "a record of versions {'torch': '1.0'} can't be extended with versions" in err
    assert load(tmp_path / "speed.json")["rows"] == old["rows"]


def test_refused_rows_do_not_stop_the_others(run_cli, tmp_path, monkeypatch):
    from visionattn.benchmark import contenders

    monkeypatch.setattr(contenders, "_timm_coord", lambda ours: nn.Identity())
    code, out, _ = run_cli("benchmark", "--plugins", "coord", "ela_t", *QUICK, "--json", "speed.json")
    rows = load(tmp_path / "speed.json")["rows"]
    assert [("refused" in row) for row in rows] == [True] * 4 + [False] * 4
    assert "4 rows were refused" in code and "REFUSED: timm and official of coord" in out
    assert "timm and official of coord" in (tmp_path / "speed.md").read_text()


def test_a_contender_that_fails_costs_its_row_alone(run_cli, tmp_path, monkeypatch):
    from visionattn.benchmark import contenders

    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("no kernel")

    monkeypatch.setattr(contenders, "_timm_coord", lambda ours: Broken())
    run_cli("benchmark", "--plugins", "coord", "ela_t", "--layouts", "NHWC", *QUICK, "--json", "speed.json")
    rows = load(tmp_path / "speed.json")["rows"]
    assert [row.get("refused") for row in rows] == ["KeyError: 'no kernel'"] * 2 + [None] * 2


def test_a_compiler_that_fails_is_noted(monkeypatch):
    def fail(module, dynamic):
        def forward(x):
            raise RuntimeError("no compiler")

        module.forward = forward
        return module

    monkeypatch.setattr(torch, "compile", fail)
    row = row_of(replace(case(), compiled=("ours", "another")), "fwd", budget=CompileBudget(10.0))
    failed = "failed: RuntimeError: no compiler"
    assert row["notes"] == {"compiled": failed, "another compiled": failed}
    assert row["contenders"].keys() == {"ours", "another"}


def test_compiled_contenders_are_checked(monkeypatch):
    def doubled(module, dynamic):
        return Scale(3, factor=2.0 * module.factor)

    monkeypatch.setattr(torch, "compile", doubled)
    with pytest.raises(Unequal, match="compiled and another of scale"):
        row_of(replace(case(), compiled=("ours",)), "fwd", budget=CompileBudget(10.0))


@pytest.mark.parametrize("name", ["triplet", "ulsam"])
def test_compiled_plugins_are_about_as_fast(name):
    """Compiled training steps of two plug-ins, whose gradients compilers once made two to three times as slow."""
    (one,) = plugin_cases([name], [(4, 64, 56, 56)], ["NCHW"], modes=("f+b",), compiled=("ours",))
    row = row_of(one, "f+b", seconds=0.1, budget=CompileBudget(1000.0))
    assert row["contenders"]["compiled"]["ratio"]["p50"] < 1.6


def test_a_limit_of_time_leaves_rows_out(run_cli, tmp_path):
    code, _, _ = run_cli("benchmark", "--plugins", "coord", *QUICK, "--json", "speed.json", "--limit", "1e-9")
    record = load(tmp_path / "speed.json")
    assert code == 0 and not record["rows"] and len(record["left_out"]) == 4
    assert "coord 2x32x5x4 NCHW fwd: no time was left" in (tmp_path / "speed.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plugins", "cbamm", "--json", "a.json"], "unknown plug-in 'cbamm'"),
        (["--shapes", "8x256x56", "--json", "a.json"], "--shapes must be like 8x256x56x56"),
        (["--json", "a.json", "--from", "b.json"], "either --json"),
        (["--update"], "--update needs --json"),
        (["--loaded", "--suite", "growth"], "--loaded is for runs of contenders in turns"),
        (["--json", "nowhere.json", "--update"], "nowhere.json"),
        (["--from", "nowhere.json"], "nowhere.json"),
        (["--json", "a.json", "--compare", "nowhere.json"], "nowhere.json"),
        (["--json", "a.json", "--suite", "mixers", "--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_arguments(run_cli, tmp_path, options, message):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = run_cli("benchmark", *QUICK, *options)
    assert code == 2 and message in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[1]", "is not a record"), ('{"schema": 3, "rows": []}', "has schema 3")],
)
def test_damaged_records_are_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=f"bad.json {message}"):
        load(tmp_path / "bad.json")


def test_committed_tables_are_made_of_the_committed_records():
    paths = [path for path in sorted((ROOT / "docs" / "results").glob("*.json")) if '"rows"' in path.read_text()]
    records = [load(path) for path in paths]
    stale = f"is stale: run `{COMMAND}`"
    for path, record in zip(paths, records, strict=True):
        assert path.with_suffix(".md").read_text().startswith(format_record(record)), f"{path.stem}.md {stale}"
    page = (ROOT / "docs" / "results" / "overview.md").read_text()
    assert update_page(page, records) == page, f"overview.md {stale}"
    with pytest.raises(ValueError, match="the text must have the lines"):
        update_page("no marks", records)


def test_headlines_are_the_first_shape():
    rows = [
        {"suite": "s", "name": n, "reference": "r", "shape": [s], "dtype": "d"}
        for n, s in (("a", 2), ("a", 1), ("b", 1))
    ]
    assert [(row["name"], row["shape"]) for row in headlines(rows)] == [("a", [2]), ("b", [1])]
