"""What mkdocs does besides Markdown: pages out of the code, pages and sections out of the checkout's other files."""

import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from visionattn.testing.api_pages import api_pages  # noqa: E402  (of this checkout)
from visionattn.testing.notebooks import example_page, scripts  # noqa: E402
from visionattn.testing.pages import mechanism_pages  # noqa: E402

# Files of the checkout outside docs that are pages of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "checkpoints/README.md": "weights.md",
    "examples/README.md": "examples/index.md",
}
# Scripts and the notebooks beside them; one page shows both.
EXAMPLES = {
    f"examples/{path.stem}{ending}": f"examples/{path.stem}.md" for path in scripts() for ending in (".py", ".ipynb")
}
# Trainings of the diagnostics, a line each.
DIAGNOSTICS = ROOT / "docs" / "results" / "diagnostics.csv"
_INCLUDE = re.compile(r"^<!-- include: (\S+?)(?: # (.+?))? -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config):
    examples = {page: example_page(ROOT / source) for source, page in EXAMPLES.items() if source.endswith(".py")}
    config["made"] = {**mechanism_pages(profile), **api_pages(), **examples}
    sections = {"Mechanisms": [], "API": [], "Examples": ["examples/index.md"]}
    names = {"mechanisms": "Mechanisms", "api": "API", "examples": "Examples"}
    for path, text in config["made"].items():
        title = text.partition("\n")[0].removeprefix("# ")
        sections[names[path.partition("/")[0]]].append({title: path})
    kinds = {}
    for entry in sections["Mechanisms"][1:]:
        kinds.setdefault(next(iter(entry.values())).split("/")[1], []).append(entry)
    sections["Mechanisms"] = [sections["Mechanisms"][0], *({kind.capitalize(): found} for kind, found in kinds.items())]
    config.nav = [{name: sections.get(name, part)} for entry in config.nav for name, part in entry.items()]
    return config


def profile(name):
    """The results of a mechanism in the diagnostics as SVG, if there are any."""
    if not DIAGNOSTICS.is_file():
        return None
    from visionattn.comparison.diagnostics.plots import draw_profile

    return draw_profile(DIAGNOSTICS, name)


def on_files(files, config):
    from mkdocs.structure.files import File

    for path, text in config["made"].items():
        files.append(File.generated(config, path, content=text))
    for source, path in PAGES.items():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    path = page.file.src_uri
    source = next((name for name, made in PAGES.items() if made == path), f"docs/{path}")
    if path not in config["made"]:
        markdown = rebased(markdown, source, path, files)
    return _INCLUDE.sub(lambda found: rebased(section(*found.groups()), found[1], path, files), markdown)


def section(name, heading):
    """A file of the checkout, or what stands under one of its headings; what stands in front of them for `lead`."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if heading is None:
        return text
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    found = {"lead": parts[0].partition("\n")[2], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    if heading not in found:
        raise KeyError(f"{name} has no section {heading!r}; it has: {', '.join(found)}")
    return found[heading].strip()


def rebased(text, source, path, files):
    """Links of a file of the checkout, as they are from a page of the site; those that lead out of it become text."""

    def link(found):
        mark, words, target, anchor = found[1], found[2], found[3], found[4] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        at = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = PAGES.get(at) or EXAMPLES.get(at) or (at.removeprefix("docs/") if at.startswith("docs/") else None)
        if inside is None or files.get_file_from_path(inside) is None:
            return words if words.startswith("`") else f"{words} (`{at}`)"
        return f"{mark}[{words}]({posixpath.relpath(inside, posixpath.dirname(path) or '.')}{anchor})"

    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(_FENCE.split(text)))
