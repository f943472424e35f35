"""What kernels are launched for: nothing that depends on the size of a picture, known to a compiler or not."""

import os

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_map_only

pytest.importorskip("triton", reason="without Triton there are no kernels")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted here, not launched", allow_module_level=True)

from launches import Call, constants, launches

from visionattn.ops.triton import _axis_launch, block_sparse, subspace
from visionattn.ops.triton.focused_attention import focused_linear_attention
from visionattn.ops.triton.halo_attention import halo_forward

CHANNELS = 32


def pools(height, width, layout):
    x = torch.ones(2, CHANNELS, height, width).to(memory_format=layout)
    return _axis_launch.axis_pool, (x, None, [4, 2, 1], [4, 2, 1])


def gate(height, width, layout):
    x = torch.ones(2, CHANNELS, height, width).to(memory_format=layout)
    gates = [torch.ones(2, CHANNELS, 1, 1), torch.ones(2, 1, height, width)]
    return _axis_launch.axis_gate_backward, (x, None, x, gates, "product", False, False, True, False)


def moments(height, width, layout):
    return subspace.image_moments, (torch.ones(2, CHANNELS, height, width).to(memory_format=layout),)


def scores(height, width, layout):
    x, numbers = torch.ones(2, CHANNELS, height, width).to(memory_format=layout), torch.ones(CHANNELS)
    grad, weight = torch.ones(2, 4, height, width), torch.ones(4, CHANNELS // 4)
    return subspace.group_scores_backward, (grad, x, numbers, numbers, weight, None, None, None, None, True, True)


def windows(height, width, layout):
    qkv = torch.ones(2, height * width, 3, 1, CHANNELS)
    sizes = [height, width, 7, 7, 3, 3]
    return block_sparse.block_sparse_forward, (qkv, None, None, torch.ones(1, 49, 49), None, sizes, 0, 1.0, False)


def halos(height, width, layout):
    q, table = torch.ones(2, height, width, 1, CHANNELS), torch.ones(25, CHANNELS)
    return halo_forward, (q, q, q, table, table, 7, 3)


def clusters(height, width, layout):
    tokens = height * width
    size = next(-(-tokens // 2**n) for n in range(20) if -(-tokens // 2**n) <= 49)
    order = torch.arange(-(-tokens // size) * size).view(1, 1, -1, size)
    qkv = torch.ones(2, tokens, 3, 1, CHANNELS)
    return block_sparse.block_sparse_forward, (qkv, order, None, None, None, [], 0, 1.0, True)


def focused(height, width, layout):
    q, numbers = torch.ones(2, height * width, CHANNELS), torch.ones(CHANNELS)
    return focused_linear_attention, (q, q, q, None, numbers, torch.ones(CHANNELS, 1, 5, 5), numbers, width, 1, 3)


OPERATORS = [pools, gate, moments, scores, windows, halos, clusters, focused]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_pictures_of_many_sizes_share_their_kernels(operator, layout):
    # Stages of detectors' pictures, whose sides are multiples of 32 pixels.
    compiled = set()
    for height, width in ((120, 160), (152, 200), (168, 248), (200, 328)):
        op, args = operator(height, width, LAYOUTS[layout])
        for launch in launches(Call("", op, tree_map_only(torch.Tensor, lambda t: t.to("meta"), args))):
            compiled.add((launch.kernel.__name__, tuple(constants(launch).items())))
    kernels = {name for name, _ in compiled}
    # Two where a side's power of 2 differs, or the power of 2 that divides it.
    assert len(compiled) <= 2 * len(kernels), compiled


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_sizes_that_a_compiler_does_not_know(operator, layout):
    shapes = ShapeEnv()
    mode = FakeTensorMode(shape_env=shapes)

    def unknown(tensor):
        sizes = [DimDynamic.DYNAMIC if size in (20, 36, 720, 2) else DimDynamic.STATIC for size in tensor.shape]
        return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    op, args = operator(20, 36, LAYOUTS[layout])
    with mode:
        args = tree_map_only(torch.Tensor, unknown, args)
        recorded = launches(Call("", op, args))
    assert recorded
    for launch in recorded:
        # What a kernel is compiled for is known, and what it is told of sizes is not.
        assert all(type(v) in (int, bool, str) for v in constants(launch).values()), constants(launch)
        told = [*launch.args, *launch.kwargs.values(), *launch.grid]
        assert any(isinstance(value, torch.SymInt) for value in told)
    assert len(shapes.guards) < 60


def test_large_maps_fit_the_grid():
    # A map of a detector's stem: 65,535 programs are the limit of all axes but the first.
    x = torch.empty(1, 256, 800, 1344, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).unflatten(3, (4, -1)).flatten(1, 2)
    gates = [torch.empty(1, 800 * 1344, 4, 1, device="meta", dtype=torch.bfloat16)]
    (launch,) = launches(Call("", _axis_launch.axis_gate, (rows, gates, None, "product", True, False, False)))
    assert len(launch.grid) == 1 and launch.grid[0] > 65_535
