"""What every plug-in and every mixer promises, for each variant of each card."""

import pytest

from visionattn import catalog
from visionattn.testing import contracts

KINDS = ("plugin", "mixer")


def promises():
    """Each check of each variant.

    Of what computes alike (the letters of ELA, windows with or without a shift) the first variant of the first card
    goes through all checks of graphs, its other variants are exported only, and the rest is slow.
    """
    seen = set()
    for card in (card for kind in KINDS for card in catalog.cards(kind) if card.standalone):
        cls = getattr(card.constructor, "func", card.constructor)
        forward = (cls.forward, getattr(cls, "forward_tokens", None))
        for number, (name, subject) in enumerate(contracts.subjects(card)):
            graphs = contracts.GRAPH_CHECKS[card.kind]
            quick = 0 if forward in seen else 1 if number else len(graphs)
            for check in (*contracts.CHECKS[card.kind], *graphs[:quick]):
                yield pytest.param(subject, check, id=f"{name}-{check.__name__}")
            for check in (*graphs[quick:], *contracts.SLOW_GRAPH_CHECKS[card.kind]):
                yield pytest.param(subject, check, id=f"{name}-{check.__name__}", marks=pytest.mark.slow)
        seen.add(forward)


@pytest.mark.parametrize(("subject", "check"), [*promises()])
def test_keeps_its_promise(subject, check):
    if check is contracts.converts_to_onnx:
        pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    check(subject)
