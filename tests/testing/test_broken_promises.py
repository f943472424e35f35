"""Each check of a contract fails for a module that breaks its promise."""

import pytest
import torch
from torch import nn

from visionattn.testing import contracts
from visionattn.testing.contracts import Subject


class Good(nn.Module):
    """A gate of each channel, with a normalisation so that training differs; for both kinds of maps."""

    official_keys = ()
    mean, channels = (2, 3), 1

    def __init__(self, width, *, device=None, dtype=None):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def reset_parameters(self):
        nn.init.ones_(self.gate)

    def factor(self, x):
        pooled = x.mean(self.mean, keepdim=True)
        return (pooled * self.gate.view([-1 if axis == self.channels else 1 for axis in range(4)])).sigmoid()

    def forward(self, x):
        return x * self.factor(x)


class GoodMixer(Good):
    mean, channels = (1, 2), 3


def good_formula(module):
    return module


class ForgetsSmallMaps(Good):
    def forward(self, x):
        return super().forward(x) if x.shape[2] > 1 else super().forward(x) / 0


class ChangesItsInput(Good):
    def forward(self, x):
        with torch.no_grad():
            x.mul_(2)
        return super().forward(x)


class LeavesAParameterOut(Good):
    def __init__(self, width, **dd):
        super().__init__(width, **dd)
        self.unused = nn.Parameter(torch.ones(1, **dd))

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.ones_(self.unused)


class Remembers(Good):
    last = 0.0

    def forward(self, x):
        out = super().forward(x) + self.last
        self.last = 0.1 * float(x.detach().sum()) if torch.compiler.is_compiling() is False else 0.0
        return out


class MixesImages(Good):
    def forward(self, x):
        return x * (self.factor(x) + x[:1].mean(self.mean, keepdim=True))


class LosesTheLayout(Good):
    def forward(self, x):
        return super().forward(x).contiguous()


class NeedsContiguous(Good):
    def forward(self, x):
        return x.view(-1).view(x.shape) * self.factor(x)


class ReturnsWhatItKeeps(Good):
    def forward(self, x):
        return super().forward(x).sigmoid()  # its gradient is made of its result


class MixesDtypes(Good):
    def forward(self, x):
        mixed = torch.einsum("bchw,cd->bdhw", x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
        return torch.lerp(x, mixed, self.factor(x))  # under autocast the product is in half precision, x is not


class ForgetsTheDtype(Good):
    def forward(self, x):
        return super().forward(x.float())


class IsBuiltOnTheCPU(Good):
    def __init__(self, width, **dd):
        super().__init__(width)


class TakesAnything(Good):
    def __init__(self, width, **kwargs):
        kwargs.pop("nonsense", None)
        super().__init__(width, **kwargs)


class StartsHalfWay(Good):
    def __init__(self, width, *, device=None, dtype=None):
        super().__init__(width, device=device, dtype=dtype)
        self.shift = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x):
        return super().forward(x) + self.shift


class HasAWrongGradient(Good):
    def forward(self, x):
        return x * self.factor(x).detach() + 0 * self.gate.sum()


class BranchesOnData(Good):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


BROKEN = {
    contracts.keeps_the_shape_of_any_map: (ForgetsSmallMaps, ChangesItsInput),
    contracts.gives_every_parameter_a_gradient: (LeavesAParameterOut,),
    contracts.keeps_nothing_between_calls: (Remembers,),
    contracts.images_of_a_batch_do_not_see_each_other: (MixesImages,),
    contracts.takes_any_layout: (LosesTheLayout, NeedsContiguous),
    contracts.allows_changing_its_result_in_place: (ReturnsWhatItKeeps,),
    contracts.gives_the_dtype_it_gets: (ForgetsTheDtype,),
    contracts.works_under_autocast: (MixesDtypes,),
    contracts.is_built_on_meta_with_a_dtype: (IsBuiltOnTheCPU,),
    contracts.refuses_unknown_keywords: (TakesAnything,),
    contracts.can_start_again: (StartsHalfWay,),
    contracts.has_right_gradients: (HasAWrongGradient,),
    contracts.exports_with_dynamic_shapes: (BranchesOnData,),
    contracts.compiles_as_one_graph: (BranchesOnData,),
}


def test_a_good_module_passes():
    for check in contracts.CHECKS["plugin"]:
        check(Subject("plugin", Good, formula=good_formula, width=6))
    contracts.check_all(Subject("mixer", GoodMixer, formula=good_formula, width=6))


@pytest.mark.parametrize(
    ("check", "cls"), [(check, cls) for check, classes in BROKEN.items() for cls in classes], ids=lambda x: x.__name__
)
def test_a_broken_promise_is_found(check, cls):
    with pytest.raises(Exception):  # noqa: B017  (what breaks may raise anything)
        check(Subject("plugin", cls, width=6))


def test_a_wrong_formula_is_found():
    with pytest.raises(AssertionError, match="output, train=False"):
        contracts.equals_its_literal_formula(Subject("plugin", Good, width=6, formula=lambda module: nn.Identity()))


def test_every_quick_check_is_broken_here():
    left = {check for checks in contracts.CHECKS.values() for check in checks} - BROKEN.keys()
    assert left == {contracts.equals_its_literal_formula}
