"""What is compared with what: the bake-offs whose tables are in docs/results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """Networks that are trained by one recipe.

    Args:
        title: Heading of the report.
        groups: Names of configs; the first of each group is the baseline of the others in it.
        seeds: Seeds of each.
        tag: What published weights of these runs are called: `<model>.<tag>`.
        remarks: Sentences that a reader of the table needs.
        options: Overrides of all configs.
    """

    title: str
    groups: Sequence[Sequence[str]]
    seeds: Sequence[int] = (0, 1, 2)
    tag: str = "comparison"
    remarks: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)


def _fashion_mnist(network: str) -> str:
    return f"{network}_128-3e_fashion-mnist"


def _digits(network: str) -> str:
    return f"{network}_64-15e_digits"


_PLUGINS = ("se", "eca", "cbam", "bam", "triplet", "ela-t", "ela-b", "ela-s", "ela-l", "ulsam", "coord", "bmta")
_MIXERS = ("pool", "convnext", "lkca", "swin", "halonet", "twins", "davit", "boat", "flatten", "pvt")

SUITES = {
    "fashion-mnist": Suite(
        "Bake-off: does attention help a narrow network on Fashion-MNIST?",
        (
            tuple(map(_fashion_mnist, ("resnet10n", *(f"resnet10n-{plugin}" for plugin in _PLUGINS)))),
            tuple(map(_fashion_mnist, ("resnet18n", "resnet18n-pkcam"))),
        ),
        tag="fashion_mnist",
        remarks=(
            "Three passes over the 60,000 training images are a short training, and at 28 px the maps are small: "
            "nothing here says what attention does for larger networks, longer training or ImageNet.",
            "PKCAM lets the later blocks of a stage see the stages before, so it needs two blocks a stage: it is "
            "compared with its own host, `va_resnet18n`, not with `va_resnet10n`.",
            "SE and ECA are timm's. BAM stands after the first three stages, all others in every residual block.",
        ),
    ),
    "mixers": Suite(
        "Token mixers in one architecture, on the digits of scikit-learn",
        (tuple(_digits(f"stm-{mixer}-nano") for mixer in _MIXERS),),
        seeds=(0, 1, 2),
        tag="digits",
        remarks=(
            "359 test images tell no ranking: one of them is 0.28 %. The table shows that all mixers train, and what "
            "they cost. The baseline mixes by average pooling, without attention.",
        ),
        options={"train_cfg.max_epochs": 6},
    ),
    "smoke": Suite(
        "Smoke test of the bake-off",
        (tuple(map(_digits, ("resnet10n", "resnet10n-cbam"))),),
        seeds=(0, 1),
        tag="smoke",
        remarks=("Two epochs on small data: the numbers mean nothing.",),
        options={"train_cfg.max_epochs": 2},
    ),
}
