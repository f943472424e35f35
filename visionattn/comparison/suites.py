"""The comparisons whose tables are in docs/results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import timm

import visionattn.models  # noqa: F401  (registers the networks)

__all__ = ["MODEL", "SUITES", "Suite"]

# The setting of a config that names its network.
MODEL = "model.backbone.model_name"


@dataclass(frozen=True)
class Suite:
    """Networks that are trained with one recipe.

    Args:
        title: Heading of the report.
        groups: Names of configs, or of networks for `recipe`; the first of each group is the others' baseline. With a
            recipe, what is no network is a config of its own.
        seeds: Seeds of each.
        tag: What published weights of these runs are called: `<model>.<tag>`.
        remarks: Sentences that a reader of the table needs.
        options: Overrides of all configs.
        recipe: Name of the config that trains all networks; none if each has its own.
    """

    title: str
    groups: Sequence[Sequence[str]]
    seeds: Sequence[int] = (0, 1, 2)
    tag: str = "comparison"
    remarks: Sequence[str] = ()
    options: dict[str, Any] = field(default_factory=dict)
    recipe: str | None = None

    def config(self, name: str) -> tuple[str, dict[str, Any]]:
        """The config of an entry of `groups`, and its overrides."""
        if self.recipe is None or not timm.is_model(name):
            return name, self.options
        return self.recipe, {**self.options, MODEL: name}


# BiFormer, RAVLT, MoH-ViT and MANO in the common architecture.
_BACKBONES = tuple(f"va_stm_{mixer}_nano" for mixer in ("biformer", "rala", "moh", "mano"))
_WHO = (
    "The baseline mixes by average pooling, without attention. What is called `va_stm_*` shares one architecture. "
    "MambaOut is timm's own network, a quarter as wide as `mambaout_femto`; DHVT is the paper's with patches of 4 px, "
    "half as wide and deep.",
)

SUITES = {
    "fashion-mnist": Suite(
        "Comparison: does attention help a narrow network on Fashion-MNIST?",
        (("va_resnet10n", *timm.list_models("va_resnet10n_*")), ("va_resnet18n", *timm.list_models("va_resnet18n_*"))),
        recipe="resnet10n_128-3e_fashion-mnist",
        tag="fashion_mnist",
        remarks=(
            "Three passes over the 60,000 training images are a short training, and at 28 px the maps are small: "
            "nothing here says what attention does for larger networks, longer training or ImageNet.",
            "PKCAM lets the later blocks of a stage see the stages before, so it needs two blocks a stage: it is "
            "compared with its own host, `va_resnet18n`, not with `va_resnet10n`.",
            "SE and ECA are timm's. BAM stands after the first three stages, all others in every residual block.",
        ),
    ),
    "backbones-fashion-mnist": Suite(
        "Narrow networks of routing, rank, heads and multipoles on Fashion-MNIST",
        (("va_stm_pool_nano", "mambaout_128-3e_fashion-mnist", *_BACKBONES, "dhvt_128-3e_fashion-mnist"),),
        recipe="stm-swin-nano_128-3e_fashion-mnist",
        seeds=(0,),
        tag="fashion_mnist",
        remarks=(
            "One seed of three passes over the training images shows that they train, not which is best.",
            *_WHO,
        ),
    ),
    "backbones-digits": Suite(
        "Narrow networks of routing, rank, heads and multipoles on the digits of scikit-learn",
        (
            (
                *("va_stm_pool_nano", "mambaout_64-15e_digits", *_BACKBONES),
                *("biformer_64-15e_digits", "mano_64-15e_digits", "dhvt_64-15e_digits"),
            ),
        ),
        recipe="stm-swin-nano_64-15e_digits",
        seeds=(0,),
        tag="digits",
        remarks=(
            "One seed and 359 test images, 0.28 % each, show that they train, not which is best.",
            *_WHO,
            "`va_biformer_tiny` and `va_mano_tiny` are the papers' own networks, narrow and less deep.",
        ),
    ),
    "mixers": Suite(
        "Token mixers in one architecture, on the digits of scikit-learn",
        (
            (
                "va_stm_pool_nano",
                "mambaout_64-15e_digits",
                *timm.list_models("va_stm_*_nano", exclude_filters="va_stm_pool_nano"),
            ),
        ),
        recipe="stm-swin-nano_64-15e_digits",
        seeds=(0, 1, 2),
        tag="digits",
        remarks=(
            "359 test images do not allow a ranking: each is 0.28 %. The table shows that all mixers train, and their "
            "cost. The baseline mixes by average pooling, without attention.",
            "MambaOut is timm's own network, not the common architecture: gated convolutions of 7x7, a quarter as wide "
            "as `mambaout_femto`.",
        ),
        options={"train_cfg.max_epochs": 6},
    ),
    "smoke": Suite(
        "Smoke test of the comparison",
        (("resnet10n_64-15e_digits", "resnet10n-cbam_64-15e_digits"),),
        seeds=(0, 1),
        tag="smoke",
        remarks=("Two epochs on small data: the numbers mean nothing.",),
        options={"train_cfg.max_epochs": 2},
    ),
}
