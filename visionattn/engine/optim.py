"""timm's optimisers and parameter groups, for mmengine."""

from collections.abc import Iterable
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

__all__ = ["TimmOptimWrapperConstructor", "TimmOptimizer"]


@OPTIMIZERS.register_module()
def TimmOptimizer(params: Iterable[Any], opt: str, **kwargs: Any) -> Optimizer:
    """Any optimiser of timm's factory: `optimizer=dict(type='TimmOptimizer', opt='lamb', lr=5e-3)`."""
    return create_optimizer_v2(params, opt=opt, **kwargs)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmOptimWrapperConstructor:
    """Groups parameters as timm's training does: no weight decay on biases, scales and what the network exempts, and
    rates that shrink towards the input. Parameters outside `model.backbone` get the full rate.

    Args:
        optim_wrapper_cfg: As in mmengine.
        paramwise_cfg: `layer_decay`: factor a block from the head down to the stem, at most 1; by default all blocks
            learn alike.

    Raises:
        ValueError: If `layer_decay` is out of range or another key is given.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        paramwise = dict(paramwise_cfg or {})
        self.layer_decay = paramwise.pop("layer_decay", None)
        if paramwise:
            raise ValueError(f"paramwise_cfg knows only layer_decay, got {', '.join(paramwise)}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop("optimizer"))

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the optimiser over the groups of a model, and its wrapper."""
        inner: Any = model.module if is_model_wrapper(model) else model
        optimizer = OPTIMIZERS.build(self.optimizer, default_args={"params": self._groups(inner)})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper, "optimizer": optimizer})

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        decay = self.optimizer.get("weight_decay", 0.0)
        backbone: Any = model.backbone
        exempt = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
        if self.layer_decay is None:
            groups = param_groups_weight_decay(backbone, decay, no_weight_decay_list=exempt)
        else:
            groups = param_groups_layer_decay(
                backbone, decay, no_weight_decay_list=exempt, layer_decay=self.layer_decay
            )
        inside = {id(parameter) for parameter in backbone.parameters()}
        rest = nn.ParameterList([p for p in model.parameters() if id(p) not in inside])
        groups += [group for group in param_groups_weight_decay(rest, decay) if group["params"]]
        # mmengine's schedules scale each group's own rate, so it is set here.
        return [{**_without_scale(group), "lr": self.optimizer["lr"] * group.get("lr_scale", 1.0)} for group in groups]


def _without_scale(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "lr_scale"}
