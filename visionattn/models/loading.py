"""Loads weights into a network, all except the head if the number of classes differs."""

from dataclasses import dataclass

from torch import nn

from visionattn.utils.state_dict import StateDict, name_some

from .builder import check_state_dict

__all__ = ["LoadReport", "load_fitting", "other_outputs"]


@dataclass(frozen=True)
class LoadReport:
    """A report of what was loaded.

    Args:
        loaded: Number of entries that were loaded.
        new: Entries of the network that were not, because the classes are others; they are as they were before.
    """

    loaded: int
    new: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.new:
            return f"all {self.loaded} entries are loaded"
        return f"{self.loaded} entries are loaded; new, for other classes: {name_some(self.new, 12)}"


def other_outputs(model: nn.Module, state_dict: StateDict) -> tuple[str, ...]:
    """Entries that differ in their first dimension only, such as those that depend on the number of classes."""
    own = model.state_dict()
    return tuple(
        key
        for key, value in state_dict.items()
        if key in own and value.shape[:1] != own[key].shape[:1] and value.shape[1:] == own[key].shape[1:]
    )


def load_fitting(model: nn.Module, state_dict: StateDict, other_classes: bool = False) -> LoadReport:
    """Loads weights that must match; only batch normalisation counters may be missing.

    Args:
        model: The network or task.
        state_dict: Its weights.
        other_classes: Whether the network may have other classes: `other_outputs` are left as they are.

    Raises:
        ValueError: If anything else is missing, unknown or of another shape; then nothing is loaded.
    """
    own = model.state_dict()
    new = other_outputs(model, state_dict) if other_classes else ()
    fitting = {key: value for key, value in state_dict.items() if key not in new}
    check_state_dict({**fitting, **{key: own[key] for key in new}}, model)
    model.load_state_dict(fitting, strict=False)
    return LoadReport(len(fitting), new)
