"""MambaOut: gated convolutions, a baseline without attention (CVPR 2025, arXiv 2405.07992): timm's own, not made again.

Official code: https://github.com/yuweihao/MambaOut (Apache-2.0).

timm has its networks with their weights, `timm.list_models("mambaout_*")`, and they train, publish and predict here as
any of timm's. Comparisons have a narrow one of its class as a baseline (`mambaout_64-15e_digits`).

Golden: none; there is no code of ours to compare.
"""

from visionattn.catalog import Card

__all__: list[str] = []

CARD = Card(
    name="mambaout",
    title="MambaOut: gated convolutions in place of state spaces",
    kind="baseline",
    factory=None,
    summary="timm's own networks without attention or state spaces, to compare token mixers with",
    paper="arXiv:2405.07992",
    code="https://github.com/yuweihao/MambaOut",
    license="Apache-2.0",
    placement="in every block in place of attention and MLP, in timm's networks `mambaout_*`",
    avoid="where far positions have to be compared by what is there: it mixes by a 7 x 7 depthwise convolution alone",
    cost="N",
    flow="(norm -> linear -> (GELU | part: 7x7 depthwise conv) -> * -> linear | .) -> +",
)
