"""MobileNetV1 and V2 with a plug-in at the end of blocks, on hidden maps, or instead of whole layers.

Where the plug-ins go in V2: coordinate attention (arXiv 2103.02907, https://github.com/houqb/CoordAttention, MIT,
mbv2_ca.py) and ELA (arXiv 2403.01123, https://github.com/Xuwei86/ELA_Code, no licence file): on the hidden maps of the
expanding blocks; triplet attention (arXiv 2010.03045, https://github.com/landskape-ai/triplet-attention, MIT): after
the last normalisation of a block, before the addition; ULSAM (arXiv 2006.15102, https://github.com/Nandan91/ULSAM, no
licence file), in V1 too: the code holds the block only, its layers follow from the published parameter and FLOP counts,
which leave open which of several equal layers it is. All other places are our choice.

Differs from the official code in: any input size instead of 224 px only; ReLU6 and the start of V2's codes in V1 too.

Golden: tests/golden/coordatt_mobilenetv2_*.npz and ulsam_mobilenetv2_*.npz (logits and the means of the stages; the
latter of torchvision's network with the official block in it).
"""

from typing import Any

from torch import nn

from visionattn.catalog import cards
from visionattn.plugins.ulsam import ULSAM

from ..builder import StateDict
from ..hosts.mobilenet import HOSTS, MobileNet, mobilenet_cfg, to_native
from ..registry import Network, card_source, register_family


def _ulsam(where: str, *layers: int) -> dict[str, Any]:
    return {"where": where, "layers": layers}


_V1_HIDDEN: dict[str, Any] = {"where": "hidden"}
# The first block of V2 does not expand its map.
_V2_HIDDEN: dict[str, Any] = {"where": "hidden", "layers": range(3, 19), "drop_rate": 0.1}
_ELA = {"v1_100": _V1_HIDDEN, "v2_100": _V2_HIDDEN}
# Where a plug-in has a place of its own: plug-in -> host, and a suffix where a host has several -> arguments. Layers
# count from the stem, which is 1.
_OWN: dict[str, dict[str, dict[str, Any]]] = {
    "coord": {
        "v1_100": _V1_HIDDEN,
        **{host: {**_V2_HIDDEN, "init_plugins": True} for host in ("v2_050", "v2_075", "v2_100")},
    },
    **dict.fromkeys(("ela_t", "ela_b", "ela_s", "ela_l"), _ELA),
    "triplet": {"v1_100": {"init_plugins": True}, "v2_100": {"init_plugins": True, "drop_rate": 0.25}},
    "ulsam": {
        **dict.fromkeys(("v1_050", "v1_075", "v1_100"), _ulsam("instead", 12)),
        "v1_100 i11": _ulsam("after", 11),
        "v1_100 i12": _ulsam("after", 12),
        "v1_100 i13": _ulsam("after", 13),
        "v2_100": _ulsam("instead", 14, 17),
        "v2_100 i17": _ulsam("after", 17),
        "v2_100 r14": _ulsam("instead", 14),
        "v2_100 r17": _ulsam("instead", 17),
        "v2_100 r11_14": _ulsam("instead", 11, 14),
        "v2_100 r16_17": _ulsam("instead", 16, 17),
        "v2_100 r13_14_16_17": _ulsam("instead", 13, 14, 16, 17),
    },
}
# All others stand at the end of every block.
_COMMON: dict[str, dict[str, Any]] = {"v1_100": {}, "v2_100": {}}
_WHERE = {"hidden": "on the hidden maps of", "after": "after", "instead": "in place of", None: "at the end of"}


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps checkpoints in torchvision's and the plug-in authors' formats to our keys; our own and timm's pass through.

    Args:
        state_dict: Flat weights, without prefixes.
        model: The network they are for.
    """
    return to_native(ULSAM.merge_subspaces(state_dict), model)


def _network(host: str, plugin: str, source: tuple[str, str], **arguments: Any) -> Network:
    layers = arguments.get("layers")
    which = f"layer {', '.join(map(str, layers))}" if isinstance(layers, tuple) else "the blocks"
    return Network(
        f"{host} with {plugin} {_WHERE[arguments.get('where')]} {which}.",
        MobileNet,
        {**HOSTS[host], "plugin": plugin, **arguments},
        mobilenet_cfg(*source),
        {"out_indices": (1, 2, 3, 4), "feature_cls": "getter"},
    )


register_family(
    __name__,
    {
        "_".join(("va", f"mobilenet{host.split()[0]}", card.name, *host.split()[1:])): _network(
            f"mobilenet{host.split()[0]}", card.name, card_source(card), **arguments
        )
        for card in cards("plugin")
        if "mobilenet" in card.hosts
        for host, arguments in _OWN.get(card.name, _COMMON).items()
    },
    checkpoint_filter_fn,
)
