"""`visionattn zoo`."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visionattn.catalog import Card

SUMMARY = "list the attention mechanisms, with their papers, what they cost and the networks that they are in"
EXAMPLES = (
    "",
    "window --kind mixer",
    "1807.06521          # by the number of a paper",
    "simam               # all about one",
)
# As few as these are described in full.
_FEW = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("text", nargs="?", default="", help="only what has this in its name, description or paper")
    kinds = ("plugin", "mixer", "head", "method", "tool", "baseline")
    parser.add_argument("--kind", choices=kinds, help="only this kind")


def run(options: argparse.Namespace) -> None:
    """Lists mechanisms."""
    from rich.console import Console
    from rich.table import Table

    from visionattn import catalog
    from visionattn.models.mechanisms import networks_of

    found = catalog.find(options.text, options.kind)
    if not found:
        known = ", ".join(card.name for card in catalog.cards(options.kind)) or "none of this kind"
        raise ValueError(f"no mechanism has {options.text!r} in its name, description or paper; there are: {known}")
    networks = networks_of(found)
    table = Table("name", "kind", "what it does", "cost", "paper", "networks")
    for card in found:
        count = str(len(networks[card.name]))
        table.add_row(card.name, card.kind, f"{card.title}: {card.summary}", card.cost, card.paper, count)
    # In a file or a pipe there is room for whole lines.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print("cost: growth with the number of positions N; w keys a query, keys' map reduced r times a side")
    for card in found if len(found) <= _FEW else ():
        console.print(f"\n{_details(card, networks[card.name])}", highlight=False, markup=False)


def _details(card: "Card", networks: list[str]) -> str:
    """The details of a mechanism, line by line."""
    room = "plugins" if card.kind == "plugin" else "mixers"
    lines = [f"{card.title} ({card.paper})", f"  place     {card.placement}"]
    if card.code:
        lines.append(f"  code      {card.code} ({card.license or 'states no licence'})")
    if card.factory is not None:
        cls = getattr(card.factory, "func", card.factory)
        lines.append(f"  class     visionattn.{room}.{cls.__name__}")
    if card.kind == "plugin" and card.standalone:
        lines.append(f'  use       visionattn.attach(model, "{card.name}")')
    return "\n".join([*lines, *(f"  network   {name}" for name in networks)])
