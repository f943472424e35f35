"""Finds the registered networks of a mechanism."""

from collections.abc import Iterable

import timm

from visionattn.catalog import Card, cards

__all__ = ["networks_of"]


def networks_of(chosen: Iterable[Card]) -> dict[str, list[str]]:
    """Names of the registered networks of each mechanism, matched by paper.

    Mechanisms of one paper that are in the names of some of its networks, as the letters of ELA, have these only.
    Baselines have timm's networks of their name.

    Args:
        chosen: Cards.

    Returns:
        Name of the mechanism -> its networks.
    """
    by_paper: dict[str, list[str]] = {}
    for name in timm.list_models("va_*"):
        cfg = timm.get_pretrained_cfg(name)
        papers = (cfg and cfg.paper_ids) or ()
        for paper in (papers,) if isinstance(papers, str) else papers:
            by_paper.setdefault(paper, []).append(name)
    found = {}
    for card in chosen:
        if card.kind == "baseline":
            found[card.name] = timm.list_models(f"{card.name}_*")
            continue
        networks = by_paper.get(card.paper, [])
        named = [name for name in networks if f"_{card.name}_" in f"{name}_"]
        others = [other for other in cards(card.kind) if other.paper == card.paper and other is not card]
        found[card.name] = named if others and named else networks
    return found
