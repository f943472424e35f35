"""The documentation site: pages that follow from the cards, code on pages, the strict build."""

import csv
import json
import posixpath
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from visionattn.catalog import cards, module_of
from visionattn.models.mechanisms import networks_of
from visionattn.testing import evidence, flow, pages, pictures
from visionattn.testing.api_pages import api_pages
from visionattn.testing.browser import find_browser, open_page

ROOT = Path(__file__).parents[1]
CARDS = list(cards())
# Words of drawings -> PyTorch's operations that they are; a softmax may be written out.
WORDS = {
    "softmax": {"_softmax", "exp", "_scaled_dot_product_flash_attention_for_cpu"},
    "sigmoid": {"sigmoid", "sigmoid_"},
    "conv": {"convolution"},
}
# Pages whose Python runs as it is printed, each in a folder of its own; names of files make a block part of a config.
GUIDES = [
    "faq.md",
    *(f"guides/{path.name}" for path in (ROOT / "docs" / "guides").glob("*.md")),
]
BLOCKS = [
    pytest.param(page, block, id=f"{page.removesuffix('.md')}-{number}")
    for page in sorted(GUIDES)
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_code_of_guides_runs(page, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if block.startswith("# config.py"):
        from visionattn.engine import load_config

        Path("config.py").write_text(block)
        config = load_config("config.py")
        assert config.model.get("attach", {}).get("plugin") in {None, *(card.name for card in cards("plugin"))}
        assert config.train_dataloader
        return
    exec(compile(block, page, "exec"), {})
    assert "print(" not in block or capsys.readouterr().out.strip()


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.kind}-{card.name}")
def test_code_of_mechanisms_runs(card, capsys):
    shown = pages.usage(card, networks_of([card])[card.name])
    assert shown, "nothing shows how to use it"
    for code in shown.values():
        names = {}
        # Nothing is computed, so that whole networks are cheap.
        with torch.device("meta"):
            exec(compile(code, card.name, "exec"), names)
        if "y" in names:
            width = 3 if card.kind == "frontend" else 96
            shapes = {"mixer": (2, 28, 28, 96), "head": (2, 96)}
            assert names["y"].shape == shapes.get(card.kind, (2, width, 28, 28))
        if "print(" in code:
            assert capsys.readouterr().out.count("\n") > 1


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.kind}-{card.name}")
def test_drawing_shows_what_the_card_says(card):
    tree = ElementTree.fromstring(pages.drawing(card))
    words = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]
    drawn = list(flow.steps(flow.parse_flow(card.flow)))
    assert len(words) == sum(step.text != "." for step in drawn) + 2
    left, top, width, height = map(float, tree.get("viewBox").split())
    for path in tree.iter("{http://www.w3.org/2000/svg}path"):
        numbers = [float(number) for number in re.findall(r"-?\d+\.\d", path.get("d"))]
        assert all(left <= x <= width for x in numbers[::2]) and all(top <= y <= height for y in numbers[1::2])
    assert "currentColor" in tree.get("stroke"), "drawings take the colour of the page, dark or light"
    # Inputs besides the map are those that the card names.
    assert {step.label for step in drawn if step.text[0] == "<"} == set(card.further_inputs)
    if card.standalone and card.kind != "head":
        ends = {"plugin": "x (B, C, H, W)", "mixer": "x (B, H, W, C)", "frontend": "x (B, 3, H, W)"}
        assert (words[0], words[-1]) == (ends[card.kind], "y, same shape")


class Names(TorchDispatchMode):
    """Notes which of PyTorch's operations run."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "card", [card for card in CARDS if card.standalone and card.reference], ids=lambda card: f"{card.kind}-{card.name}"
)
def test_drawing_names_what_the_formula_computes(card):
    """A drawing with a softmax, a sigmoid or a convolution is of a formula that runs one."""
    channels = 3 if card.kind == "frontend" else 24
    module = card.constructor(channels, **next(iter(card.cases.values()))).eval()
    side = 16 if card.kind == "frontend" else 8  # the grid that cases name
    shape = {"mixer": (2, side, side, channels), "head": (2, side * side, channels)}.get(
        card.kind, (2, channels, side, side)
    )
    naive = import_module(f"visionattn.reference.{card.reference}").naive_of(module).eval()
    with torch.no_grad(), Names() as run:
        naive(torch.randn(shape))
    for word, names in WORDS.items():
        assert word not in card.flow or run.seen & names, f"the flow says {word}; the formula runs {sorted(run.seen)}"


def test_flow_is_read_and_refused():
    found = [step.text for step in flow.steps(flow.parse_flow("(. | mean -> sigmoid) -> * -> (<b> | {w}) -> +"))]
    assert found == [".", "mean", "sigmoid", "*", "<b>", "{w}", "+"]
    svg = flow.draw_flow("(. | <b>) -> *", "A & B", "x", "y")
    assert "A &amp; B" in svg and svg.count("<circle") == 1 and svg.count("stroke-dasharray") == 1
    for text, message in {
        "": "a step is empty at the end",
        "a -> ": "a step is empty at the end",
        "(a | ) -> b": r"empty before '\)'",
        "(a | b": "a bracket is not closed",
        "(a) -> b": "one branch needs no brackets",
        "a ) b": r"'\)' has nothing",
    }.items():
        with pytest.raises(ValueError, match=message):
            flow.parse_flow(text)


class Config(dict):
    """What hooks see of mkdocs' config."""

    nav: list


@pytest.fixture(scope="module")
def site():
    """The hooks of the build, which run without mkdocs, the navigation that they fill and the pages that they make."""
    spec = spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    config = Config()
    config.nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    hooks.on_config(config)
    return hooks, config


@pytest.fixture(scope="module")
def made(site):
    return {path: text for path, text in site[1]["made"].items() if path.startswith("mechanisms/")}


def leaves(nav):
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, list):
            yield from leaves(entry)
        else:
            yield from leaves(entry.values())


def anchors(markdown):
    """Of headings, as mkdocs makes them, and of what a page marks by hand."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\]\(.*?\)", "", heading)).strip().lower())
    yield from re.findall(r'id="([^"]+)"', text)


def test_navigation_and_links_lead_somewhere(site):
    """What the strict build would find, without it: pages of the navigation, sections put in, links, anchors."""
    hooks, config = site
    docs = ROOT / "docs"
    sources = {str(path.relative_to(docs)): path.read_text() for path in docs.rglob("*.md")}
    sources |= {page: (ROOT / source).read_text() for source, page in hooks.PAGES.items()} | config["made"]
    files = SimpleNamespace(get_file_from_path=sources.get)
    pages = {}
    for path, text in sources.items():
        page = SimpleNamespace(file=SimpleNamespace(src_uri=path))
        pages[path] = hooks.on_page_markdown(text, page, config, files)
    listed = list(leaves(config.nav))
    assert len(listed) == len(set(listed)) and set(listed) == set(pages), set(listed) ^ set(pages)
    checked = 0
    for path, text in pages.items():
        assert "<!-- include:" not in text, path
        bare = re.sub(r"^ *```.*?^ *```$|`[^`]*`(?!\])", "", text, flags=re.DOTALL | re.MULTILINE)
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", bare):
            if re.match(r"[a-z]+:", target):
                continue
            at = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path
            assert at in pages or (docs / at).is_file(), f"{path} links to {target}"
            checked += 1
            if anchor and at.startswith("api/"):
                module = anchor.rpartition(".")[0]
                assert f"::: {module}\n" in pages[at] or f"::: {anchor}\n" in pages[at], f"{path}: {target}#{anchor}"
            elif anchor:
                assert anchor in set(anchors(pages[at])), f"{path} links to {target}#{anchor}"
    assert checked > 100


def test_every_block_of_python_is_run_somewhere():
    """Pages with code are those whose code this file runs, and those that other files run.

    tests/test_printed_commands.py walks through all of docs/start.
    """
    docs = ROOT / "docs"
    shown = {str(path.relative_to(docs)) for path in docs.rglob("*.md") if "```python" in path.read_text()}
    shown -= {path for path in shown if path.startswith("start/")}
    assert shown - set(GUIDES) == {"attach.md", "extending.md"}
    others = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py") if path.name != "test_site.py"]
    assert all(any(page in text for text in others) for page in ("attach.md", "extending.md"))


def test_newcomers_walk(tmp_path, monkeypatch, capsys):
    """The code of README, which is the site's first page, from top to bottom in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 3 and "EfficientLocalAttention" in str(names["model"].attached)
    assert "LinearAttention" in capsys.readouterr().out
    assert names["heat"].shape == (1, 14, 14) and names["logits"].shape == (1, 1000)


def test_every_mechanism_has_a_page_and_a_row(made):
    assert len(made) == len(CARDS) + 1
    index = made["mechanisms/index.md"]
    for card in CARDS:
        text = made[pages.path_of(card)]
        assert text.startswith(f"# {card.title}\n") and card.summary in text
        assert {"## Use", "## Cost", "## Proof"} <= set(text.splitlines()) and '<svg class="flow"' in text
        assert index.count(f"[`{card.name}`]({card.kind}s/{card.name}.md)") == 1
        assert ("## Formula" in text) == (card.reference is not None)


def test_every_page_says_when_not_to_use_it(made):
    for card in CARDS:
        section = made[pages.path_of(card)].partition("## When not to use it\n")[2].partition("\n## ")[0]
        assert f"Not {card.avoid}." in section
        assert ("starts with new weights" in section) == (
            card.kind == "mixer" and card.factory is not None and not card.keeps_weights
        )
        assert all(f"needs more than a map: {name}" in section for name in card.further_inputs[:1])


def test_measured_rows_are_those_of_the_records(made):
    results = ROOT / "docs" / "results"
    growth = json.loads((results / "growth.json").read_text())["rows"]
    for row in growth:
        if row["mode"] == "fwd" and "ratio" in row:
            page = made[f"mechanisms/mixers/{row['name']}.md"]
            milliseconds = f"{1e3 * row['seconds']['p50']:.3g}"
            assert (
                f"| {row['tokens']:,} | {milliseconds} | {row['ratio']['p50']:.2f} | {row['peak'] / 1e6:.3g} |" in page
            )
            if row["ratio"]["p50"] < 0.9:
                assert "Slower than softmax attention" in page, row["name"]
    networks = {name: card for card in CARDS for name in networks_of([card])[card.name]}
    compared = [row for path in results.glob("comparison*.csv") for row in csv.DictReader(path.open())]
    for row in compared:
        if row["baseline"] and row["network"] in networks:
            said = f"`{row['network']}` scored {100 * float(row['difference']):+.1f} points from `{row['baseline']}`"
            assert said in made[pages.path_of(networks[row["network"]])]
    windows = [row for row in json.loads((results / "cpu.json").read_text())["rows"] if row["suite"] == "windows"]
    first = next(row for row in windows if row["mode"] == "f+b")["contenders"]["7x7 windows"]["ratio"]["p50"]
    assert f"{first:.2f} times as fast as 7x7 windows" in made["mechanisms/mixers/flatten.md"]
    assert "kept for the backward pass" in made["mechanisms/plugins/cbam.md"]


def test_mechanisms_are_shown_on_the_photograph(made):
    """Each but those that need more than a photograph; maps say something, and come of networks that have learnt."""
    with np.load(pictures.MAPS, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        maps = {name: file[name] for name in file.files if name != "about"}
    expected = {card for card in CARDS if card.kind != "baseline" and (not card.further_inputs or card.name == "pkcam")}
    assert about["mechanisms"].keys() == {f"{card.kind}/{card.name}" for card in expected}
    assert about["place"] == [*pictures.PLACE]
    for card in CARDS:
        section = made[pages.path_of(card)].partition("## On a photograph\n")[2].partition("\n## ")[0]
        assert bool(section) == (card in expected), card.name
        if section:
            facts = about["mechanisms"][f"{card.kind}/{card.name}"]
            assert section.count("<figure>") == 1 + len(facts["maps"]) and "CC0" in section
            assert facts["accuracy"] > 0.5, f"{card.name} has learnt nothing; chance is 1 of 13"
    assert len(maps) == sum(len(facts["maps"]) for facts in about["mechanisms"].values())
    assert all(np.isfinite(found).all() and max(found.shape) <= 24 for found in maps.values())
    ranges = {name: (float(found.min()), float(found.max())) for name, found in maps.items()}
    flat = [name for name, (low, high) in ranges.items() if high - low <= 1e-5 * high]
    assert len(flat) <= 2, f"these say nothing: {flat}"
    assert pictures.MAPS.stat().st_size < 500_000


def test_profiles_come_of_the_diagnostics(tmp_path, monkeypatch, site):
    drawn = pages.mechanism_pages(lambda name: "<svg>its profile</svg>" if name == "cbam" else None)
    assert "## Diagnostics profile" in drawn["mechanisms/plugins/cbam.md"] and "its profile" not in str(
        {path: text for path, text in drawn.items() if not path.endswith("/cbam.md")}
    )
    monkeypatch.setattr(site[0], "DIAGNOSTICS", tmp_path / "none.csv")
    assert site[0].profile("cbam") is None


def test_costs_are_those_of_the_networks(made):
    import timm

    text = made["mechanisms/plugins/cbam.md"]
    for name in ("va_resnet50_cbam", "resnet50"):
        count = sum(parameter.numel() for parameter in timm.create_model(name, device="meta").parameters())
        assert re.search(rf"`{name}`.* \| {count:,} \| 4,\d\d\d\.\d\d \|", text)


def test_fixtures_are_those_that_the_docstring_names():
    found = {card.name: evidence.fixtures_of(card) for card in CARDS}
    assert "davit_chanattn_module_2x196x64_eval" in found["davit_channels"]
    assert "davit_channelblock_module_1x17x10x48_eval" not in found["davit_channels"]
    assert not found["simam"] and "boat_swin_fsla_module_1x196x64_eval" in found["boat"]
    for card in CARDS:
        golden = re.search(r"^Golden: (\S+)", module_of(card).__doc__, re.MULTILINE)
        assert golden, f"the docstring of {card.name} says nothing of recorded results"
        assert bool(found[card.name]) == golden[1].startswith("tests/"), card.name


def test_kernels_are_found_through_operations():
    found = {card.name: evidence.has_kernels(card) for card in CARDS}
    assert found["cbam"] and found["swin"] and found["twins"] and found["boat"]
    assert not found["simam"] and not found["pool"] and not found["convnext"]


def test_api_pages_cover_all_packages():
    made = api_pages()
    packages = {path.parent.name for path in (ROOT / "visionattn").glob("*/__init__.py")} - {"cli", "utils"}
    assert set(made) == {"api/visionattn.md", *(f"api/{name}.md" for name in packages)}
    assert "::: visionattn.ops.use_backend\n" in made["api/ops.md"]
    assert "::: visionattn.plugins.cbam\n" in made["api/plugins.md"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site as it is built, strictly."""
    pytest.importorskip("material", reason="needs pip install '.[docs]'")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING -" not in done.stdout + done.stderr, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_network(folder):
    built = {path: path.read_text() for path in folder.rglob("*.html")}
    assert len(built) > len(CARDS) + 30
    for path, text in built.items():
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preload|icon)[^>]*href=\"?(https?:[^\s\">]+)", text)
        assert not loaded, f"{path.name} loads {loaded}"
        assert "<!-- include:" not in text, path.name
    # Links to files and to places in them; 404.html is served from anywhere.
    for path, text in built.items():
        body = re.sub(r"<(pre|code).*?</\1>", "", text, flags=re.DOTALL)
        for target, _, anchor in (link.partition("#") for link in re.findall(r"<a[^>]*\shref=\"?([^\s\">]+)", body)):
            if re.match(r"[a-z]+:", target) or path.name == "404.html":
                continue
            page = (path.parent / target).resolve() if target else path
            assert page.exists(), f"{path.relative_to(folder)} links to {target}"
            if anchor and page in built:
                assert f'id="{anchor}"' in built[page], f"{path.relative_to(folder)} links to {target}#{anchor}"


# One page of each sort.
LOOKED_AT = (
    *("index.html", "start/ten-minutes.html", "faq.html", "mechanisms/index.html", "mechanisms/plugins/cbam.html"),
    *("mechanisms/mixers/swin.html", "results/comparison.html", "results/growth.html", "api/plugins.html"),
)
# The least contrast of a text in the page's body with what is behind it, and the text; code has colours of its own.
CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = (top, below) => {
    const alpha = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((at) => alpha * top[at] + (1 - alpha) * below[at]);
  };
  const behind = (element) => {
    const own = numbers(getComputedStyle(element).backgroundColor);
    if (own.length < 4 || own[3] === 1) return own;
    return over(own, element.parentElement ? behind(element.parentElement) : [255, 255, 255]);
  };
  const light = (colour) => {
    const parts = colour.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  let least = [21, ""];
  for (const element of document.querySelectorAll("article :is(p, li, td, th, h1, h2, h3, figcaption, a, svg text)")) {
    if (!element.textContent.trim() || element.matches(".headerlink, .md-content__button, .doc-symbol")) continue;
    if (!element.getClientRects().length) continue;
    const ground = behind(element.closest("svg")?.parentElement ?? element);
    const style = getComputedStyle(element);
    const drawn = element.matches("svg text") ? style.fill : style.color;
    const both = [light(over(numbers(drawn), ground)), light(ground)].sort((a, b) => b - a);
    const ratio = (both[0] + 0.05) / (both[1] + 0.05);
    if (ratio < least[0]) least = [ratio, `${element.tagName}: ${element.textContent.trim().slice(0, 60)}`];
  }
  return least;
})()
"""


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="needs Chromium or Chrome")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_the_window_and_can_be_read(folder, width, scheme):
    with open_page(folder / "index.html", size=(width, 900)) as tab:
        # Pages keep the scheme that they found first.
        tab.call("Page.addScriptToEvaluateOnNewDocument", source="try { localStorage.clear() } catch {}")
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for page in LOOKED_AT:
            tab.go((folder / page).as_uri())
            tab.wait(f"document.body.dataset.mdColorScheme === '{'slate' if scheme == 'dark' else 'default'}'")
            assert tab.evaluate("document.scrollingElement.scrollWidth") <= width, f"{page} is wider than the window"
            contrast, text = tab.evaluate(CONTRAST)
            assert contrast >= 4.5, f"{page}: {text} has a contrast of {contrast:.1f}"
            broken = tab.evaluate("[...document.images].filter((i) => !i.naturalWidth).map((i) => i.src.slice(0, 80))")
            assert not broken, f"{page}: {broken}"
        assert not tab.errors and all(address.startswith("file:") for address in tab.addresses)


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="needs Chromium or Chrome")
def test_filters_and_search_work_from_a_folder(folder):
    with open_page(folder / "mechanisms" / "index.html") as tab:
        shown = "[...document.querySelectorAll('.mechanisms tbody tr')].filter((row) => !row.hidden)"
        tab.wait("document.querySelector('.mechanism-filters select')")
        assert tab.evaluate(f"{shown}.length") == len(CARDS)
        for number, value in ((0, "mixer"), (2, "yes")):
            tab.evaluate(
                f"(() => {{ const s = document.querySelectorAll('.mechanism-filters select')[{number}]; "
                f"s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()"
            )
        names = {card.name for card in CARDS if card.kind == "mixer" and card.keeps_weights}
        assert set(tab.evaluate(f"{shown}.map((row) => row.cells[0].textContent.trim())")) == names
        tab.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
        for letter in "cbam":
            tab.press(letter)
        tab.wait("document.querySelector('.md-search-result__item a')")
        links = tab.evaluate("[...document.querySelectorAll('.md-search-result__item a')].map((a) => a.href)")
        assert any("mechanisms/plugins/cbam.html" in link for link in links)
        assert not tab.errors and all(address.startswith("file:") for address in tab.addresses)
