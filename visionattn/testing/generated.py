"""Parts of a checkout's files that are generated from the cards.

The counts in README.md, the tables of docs/networks.md, the official codes in NOTICE.

The number of recorded fixtures in docs/promises.md is counted here, too.

    python -m visionattn.testing.generated

writes them anew, and the byte budgets of blocks that have none. Tests hold that nothing is stale.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import timm

import visionattn.models  # noqa: F401  (registers the networks)
from visionattn.catalog import Card, Kind, cards
from visionattn.utils.files import replacing
from visionattn.utils.marks import put_between

from . import byte_budgets
from .fixtures import FOLDER

__all__ = ["COMMAND", "contents_table", "mechanism_table", "network_table", "notice", "renew", "stale"]

COMMAND = "python -m visionattn.testing.generated"
ROOT = Path(__file__).parents[2]
_NOTICE = ("Official implementations of the mechanisms:", "(end of the official implementations)")


def mechanism_table(kind: Kind) -> str:
    """Markdown of the mechanisms of a kind: names, class and what it does, paper."""
    rows = ["| name | what it is | paper |", "|---|---|---|"]
    for group in _grouped(cards(kind), lambda card: (_class_name(card), card.summary)):
        names, first = " ".join(f"`{card.name}`" for card in group), group[0]
        name = _class_name(first)
        what = f"`{name}`: {first.summary}" if name else first.summary
        rows.append(f"| {names} | {what} | {_link(first.paper)} |")
    return "\n".join([*rows, ""])


def contents_table() -> str:
    """Markdown of what the package has and how many of each, for README."""
    fixtures = len(list(FOLDER.glob("*.npz")))
    manifest = json.loads((ROOT / "checkpoints" / "manifest.json").read_text(encoding="utf-8"))["checkpoints"]
    packaged = sum({"kind": "packaged"} in entry["sources"] for entry in manifest.values())
    count = {kind: sum(1 for _ in cards(kind)) for kind in ("plugin", "mixer")}
    networks = len(timm.list_models("va_*"))
    rows = [
        f"| [plug-ins](docs/networks.md) | {count['plugin']} blocks for feature maps, `(B, C, H, W)` of any size |",
        f"| [token mixers](docs/networks.md) | {count['mixer']} for transformers, `(B, H, W, C)` of any size |",
        f"| [networks](docs/networks.md) | {networks} in timm's registry: any size, `features_only`, compile, export |",
        f"| [weights](checkpoints/README.md) | {packaged} small ones travel with it; the authors' files load |",
        f"| [proof](docs/promises.md) | {fixtures} recorded results of official codes; contract tests of every block |",
        "| [three tasks](docs/start/three-tasks.md) | classification, [boxes, masks](docs/guides/dense.md) |",
        "| [training](docs/guides/fine-tune.md) | configs, bit-exact resume, [many GPUs](docs/guides/distributed.md), "
        "[large data](docs/guides/scale.md), [logging](docs/guides/logging.md) |",
        "| [export](docs/guides/export.md) | ONNX and pt2, compared with the network before they are kept |",
    ]
    return "\n".join(["| what | how much |", "|---|---|", *rows, ""])


def network_table() -> str:
    """Markdown of the networks that are a host with a plug-in, or a mixer in a size, and the size of their pictures."""
    plugins, mixers = ("|".join(card.name for card in cards(kind)) for kind in ("plugin", "mixer"))
    rows = ["| networks | pictures |", "|---|---|"]
    for family, pattern in (
        ("va", f"(.+)_({plugins})"),
        ("va_stm", f"({mixers})_(.+)"),
        ("va_vit", f"({mixers})_(.+)"),
    ):
        # First part of a name and the size of its pictures -> the second parts that it goes with.
        found: dict[tuple[str, str], list[str]] = {}
        for name in timm.list_models(f"{family}_*"):
            if match := re.fullmatch(f"{family}_{pattern}", name):
                cfg = timm.get_pretrained_cfg(name)
                side = cfg.input_size[-1] if cfg else 0
                size = "28 to 64 px" if side <= 64 else f"{side} px"
                found.setdefault((match[1], size), []).append(match[2])
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (first, size), second in found.items():
            groups.setdefault((size, tuple(second)), []).append(first)
        rows += [
            f"| `{family}_{_choice(heads)}_{_choice(tails)}` | {size} |" for (size, tails), heads in groups.items()
        ]
    return "\n".join([*rows, ""])


def notice() -> str:
    """Plain text: the names of mechanisms, their official code and its licence, a line for each repository."""
    lines = []
    for group in _grouped((card for card in cards() if card.code), lambda card: card.code):
        names = list(dict.fromkeys(card.title.partition(":")[0] for card in group))
        lines.append(f"  {', '.join(names)}\n      {group[0].code} ({group[0].license or 'no licence file'})\n")
    return "".join(sorted(lines, key=str.casefold))


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Files whose generated parts differ from the cards, and their correct content.

    Args:
        root: Folder of the checkout.

    Raises:
        ValueError: If a file lacks the lines between which its generated part goes.
    """
    wanted = {
        "README.md": {_marks("contents"): contents_table()},
        "docs/networks.md": {
            _marks("plugins"): mechanism_table("plugin"),
            _marks("mixers"): mechanism_table("mixer"),
            _marks("networks"): network_table(),
        },
        "NOTICE": {_NOTICE: notice()},
    }
    found = {}
    for name, parts in wanted.items():
        old = new = (root / name).read_text(encoding="utf-8")
        for (start, end), part in parts.items():
            new = put_between(new, start, end, part)
        if new != old:
            found[root / name] = new
    promises = root / "docs" / "promises.md"
    old = promises.read_text(encoding="utf-8")
    new = re.sub(r"\d+ recorded fixtures", f"{len(list(FOLDER.glob('*.npz')))} recorded fixtures", old)
    if new != old:
        found[promises] = new
    return found


def renew(root: Path = ROOT) -> list[str]:
    """Writes stale or missing parts, and returns what was written.

    Args:
        root: Folder of the checkout.
    """
    changed = stale(root)
    for path, text in changed.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    path = root / "tests" / byte_budgets.FILE.name
    budgets = byte_budgets.read(path)
    if missing := [name for name in byte_budgets.subjects() if name not in budgets]:
        byte_budgets.write({**budgets, **byte_budgets.measure(missing)}, path)
    return [path.name for path in changed] + [f"byte budget of {name}" for name in missing]


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: made by `{COMMAND}` -->", f"<!-- /{name} -->"


def _grouped(chosen: Iterable[Card], key: Callable[[Card], object]) -> Iterator[list[Card]]:
    """Cards with equal keys together, in the order in which the keys come."""
    groups: dict[object, list[Card]] = {}
    for card in chosen:
        groups.setdefault(key(card), []).append(card)
    yield from groups.values()


def _class_name(card: Card) -> str:
    factory = getattr(card.factory, "func", card.factory)
    return factory.__name__ if factory else ""


def _choice(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"


def _link(paper: str) -> str:
    number = paper.removeprefix("arXiv:")
    return paper if number == paper else f"[{number}](https://arxiv.org/abs/{number})"


def main() -> None:
    """Writes what README.md, docs/networks.md and NOTICE say of the cards, and missing byte budgets."""
    argparse.ArgumentParser(prog=COMMAND, description=main.__doc__).parse_args()
    print("\n".join(f"written: {name}" for name in renew()) or "nothing was stale")


if __name__ == "__main__":
    main()
