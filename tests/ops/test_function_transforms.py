"""Every operation under `torch.func` and forward-mode differentiation, and every plug-in."""

from functools import cache

import pytest
import torch
from torch.autograd import forward_ad

from visionattn import ops
from visionattn.plugins import list_plugins, resolve_plugin

DOUBLE = torch.float64
# Large enough for the pass by hand of nested gates.
SIZE = (8, 96, 96)
CONV = torch.nn.Conv1d(8, 8, 3, padding=1, groups=2, dtype=DOUBLE)
POOLS = [(kind, axis) for axis in (1, 2, 3) for kind in ("max", "mean")]


@cache  # drawn before anything is mapped: vmap knows no random numbers
def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=DOUBLE)


def qkv_of(x):
    """`(B, N, 3, heads, d)` from a map `(B, C, H, W)`."""
    return torch.stack((x, x.sin(), x.cos()), dim=1).flatten(3).permute(0, 3, 1, 2).unflatten(3, (2, -1))


def spatial(pools):
    return (pools[:, :1].sin() + pools[:, 1:]).sigmoid()


def strips(rows, columns):
    return rows.sigmoid().unsqueeze(3), columns.sigmoid().unsqueeze(2)


def tokens(x):
    return x.flatten(2).mT


def heads_of(x):
    """Queries, keys and values `(B, heads, N, d)`."""
    return qkv_of(x).permute(2, 0, 3, 1, 4).unbind(0)


def gates_of(x):
    """Numbers from 0 to 1 for each of the queries, keys and values."""
    return heads_of(x)[1].sigmoid()


# Of a map (B, 8, H, W); what is not the map is made of it or constant.
OPS = {
    "axis_pools": lambda x: ops.axis_pools(x, POOLS),
    "axis_attention": lambda x: ops.axis_attention(x, (("mean", 3), ("mean", 2)), ((3,), (2,)), strips),
    "axis_gate": lambda x: ops.axis_gate(x, x.mean(1, True), x.mean((2, 3), True), residual=x, relu=True),
    "cross_gate": lambda x: ops.cross_gate(x, x.mean((2, 3), True), x.mean(1, True), "product"),
    "nested_gate": lambda x: ops.nested_gate(*ops.map_pools(x)[:2], spatial),
    "nested_attention": lambda x: ops.nested_attention(x, lambda a, b: a.sin() * b, spatial, x.cos(), relu=True),
    "score_gate": lambda x: ops.score_gate(x, torch.sin, lambda x: x.mean(1, True), "sum"),
    "map_pools": lambda x: ops.map_pools(x)[1:],
    "plane_conv": lambda x: ops.plane_conv(x, numbers(1, 8, 3, 3)),
    "strip_conv": lambda x: ops.strip_conv(x.mean(3), CONV),
    "channel_moments": ops.channel_moments,
    "subspace_scores": lambda x: ops.subspace_scores(x, numbers(8), numbers(8).cos(), numbers(2, 4)),
    "residual_gate": lambda x: ops.residual_gate(x, x[:, :2].sigmoid()),
    "subspace_attention": lambda x: ops.subspace_attention(
        x, lambda mean, var: (mean, var, numbers(2, 4)), torch.sigmoid, 2, True
    ),
    "large_kernel_conv": lambda x: ops.large_kernel_conv(x.permute(0, 2, 3, 1), numbers(8, 1, 11, 11), backend="conv"),
    "projected_channel_attention": lambda x: ops.projected_channel_attention(
        tokens(x), numbers(24, 8), None, numbers(8, 8), None, num_heads=2, scale=0.01
    ),
    "channel_attention": lambda x: ops.channel_attention(qkv_of(x).flatten(2), num_heads=2, scale=0.01),
    "focused_attention": lambda x: ops.focused_attention(
        tokens(x), tokens(x).sin(), tokens(x).cos(), numbers(8), num_heads=2,
        convolution=(numbers(8, 1, 3, 3), numbers(8)), grid=x.shape[2:],
    ),
    "stripe_attention": lambda x: ops.stripe_attention(
        qkv_of(x).flatten(3).unflatten(1, x.shape[2:]), numbers(8, 1, 3, 3), num_heads=2, stripe=(None, 2)
    ),
    "window_attention": lambda x: ops.window_attention(
        x.permute(0, 2, 3, 1), lambda t: torch.cat((t, t.sin(), t.cos()), -1), lambda t: t, num_heads=2, window=(3, 4),
        shift=(1, 2), bias=numbers(2, 12, 12),
    ),
    "halo_attention": lambda x: ops.halo_attention(
        *qkv_of(x).unflatten(1, x.shape[2:]).unbind(3), numbers(7, 4), numbers(7, 4), block_size=2, halo_size=1
    ),
    "block_sparse_attention": lambda x: ops.block_sparse_attention(
        qkv_of(x), ops.Windows(tuple(x.shape[2:]), (3, 4)), pad_kv=numbers(2, 2, 4)
    ),
    "cluster_attention": lambda x: ops.cluster_attention(
        qkv_of(x), ops.balanced_bisection(qkv_of(x)[:, :, 0].transpose(1, 2), cluster_size=10), overlap=3
    ),
    "rank_augmented_attention": lambda x: ops.rank_augmented_attention(
        tokens(x), tokens(x).sin(), tokens(x).cos(), *ops.rotation_tables((5, 6), 4, like=x), num_heads=2
    ),
    "routed_attention": lambda x: ops.routed_attention(
        qkv_of(x)[:, :24].flatten(2).unflatten(1, (4, 6)), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]]).expand(
            len(x), -1, -1), num_heads=2, region=(2, 3), scale=0.4, convolution=(numbers(8, 1, 3, 3), numbers(8))
    ),
    "routed_self_attention": lambda x: ops.routed_self_attention(
        qkv_of(x)[:, :24, 0].flatten(2).unflatten(1, (4, 6)), lambda tokens: tokens @ numbers(8, 24), num_heads=2,
        region=(2, 3), topk=1, scale=0.4,
    ),
    "summed_attention": lambda x: ops.summed_attention(*heads_of(x), scale=0.5),
    "masked_attention": lambda x: ops.masked_attention(*heads_of(x), torch.ones(len(x), 2, 30, 30).tril().bool()),
    "polynomial_attention": lambda x: ops.polynomial_attention(*(t * 0.1 for t in heads_of(x)), (1.0, 1.0, 0.5)),
    "relational_attention": lambda x: ops.relational_attention(*heads_of(x), *heads_of(x)[:2], activation="tanh"),
    "mixture_attention": lambda x: ops.mixture_attention(*heads_of(x), 0.5, 0.1, key_iters=1),
    "gated_scan": lambda x: ops.gated_scan(*heads_of(x), gates_of(x), chunk=8),
    "linear_recurrence": lambda x: ops.linear_recurrence(gates_of(x), heads_of(x)[0]),
    "bidirectional_wkv": lambda x: ops.bidirectional_wkv(
        tokens(x), tokens(x).sin(), numbers(8).sigmoid(), numbers(8).cos()
    ),
    "cross_scan": lambda x: ops.cross_scan(x.permute(0, 2, 3, 1), 4),
    "recomputed": lambda x: ops.recomputed(lambda a, b: a * b.sin(), x, x.cos()),
}  # fmt: skip
LARGE = {"nested_gate", "map_pools"}


def operand(name, copies=2):
    return numbers(copies, 2, *(SIZE if name in LARGE else (8, 5, 6)))


def total(function):
    """One number that all results have part in."""

    def run(x):
        out = function(x)
        return sum((part * part.detach().cos()).sum() for part in (out if isinstance(out, tuple) else (out,)))

    return run


def check(function, x):
    """`x` holds copies of the input side by side."""
    # The results and gradients that plain calls give, where the passes by hand run.
    expected = [function(part) for part in x]
    leaves = [part.clone().requires_grad_() for part in x]
    grads = torch.stack([torch.autograd.grad(total(function)(leaf), leaf)[0] for leaf in leaves])
    mapped = torch.vmap(function)(x)
    if not isinstance(mapped, tuple):
        mapped, expected = (mapped,), [(part,) for part in expected]
    for at, part in enumerate(mapped):
        torch.testing.assert_close(part, torch.stack([result[at] for result in expected]))
    torch.testing.assert_close(torch.func.grad(total(function))(x[0]), grads[0])
    torch.testing.assert_close(torch.vmap(torch.func.grad(total(function)))(x), grads)
    tangent = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view_as(x[0])
    value, forward = torch.func.jvp(total(function), (x[0],), (tangent,))
    torch.testing.assert_close(value, total(function)(x[0]))
    torch.testing.assert_close(forward, (grads[0] * tangent).sum())
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(total(function)(forward_ad.make_dual(x[0], tangent)))
    torch.testing.assert_close(out.tangent, forward)


@pytest.mark.parametrize("name", OPS)
def test_operations(name):
    check(OPS[name], operand(name))


@pytest.mark.parametrize("name", OPS)
def test_gradients_that_others_share_are_left_alone(name):
    """An addition hands the same gradient to both of its sides, so that an operation may not write to it."""
    function = ops.map_pools if name == "map_pools" else OPS[name]
    x = operand(name)[0].clone().requires_grad_()
    parts = function(x.detach())
    parts = parts if isinstance(parts, tuple) else (parts,)
    leaves = [torch.zeros_like(part, requires_grad=True) for part in parts]
    # Made before the operation runs, so that its gradient is computed first.
    others = [leaf * 1 for leaf in leaves]
    results = function(x)
    weights = [numbers(*part.shape) for part in parts]
    sums = zip(results if isinstance(results, tuple) else (results,), others, weights, strict=True)
    sum(((result + other) * weight).sum() for result, other, weight in sums).backward()
    for leaf, weight in zip(leaves, weights, strict=True):
        torch.testing.assert_close(leaf.grad, weight, rtol=0, atol=0)


def test_every_operation_is_here():
    others = {"axis_pools", "memory_format", "merge_windows", "partition_windows", "relative_position_bias", "explain"}
    others |= {"interpolate_kernel", "toeplitz_matrix", "focused_features", "max_first", "nhwc_conv", "use_backend"}
    others |= {"prefer_moments", "prefer_subspace_scores", "attention", "balanced_bisection", "Windows"}
    # What makes masks, routes and tables, or is made of plain operators alone.
    others |= {"BlockMap", "Blocks", "Packing", "hilbert_order", "pack_tokens", "pair_mask", "route_blocks"}
    others |= {"region_pairs", "route_regions", "rotation_tables", "rotate_pairs", "widened", "ema_kernel"}
    others |= {"cross_merge", "nhwc_upconv", "project_apart"}
    others |= {"memory_scan", "moving_average", "mixture_weights", "packed_attention"}
    assert set(ops.__all__) - others <= OPS.keys()


@pytest.mark.parametrize("name", list_plugins())
def test_plugins(name):
    torch.manual_seed(0)
    block = resolve_plugin(name)(16).eval().double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.rand_like(parameter), alpha=0.2)
    check(block, numbers(2, 2, 16, 6, 5))


@pytest.mark.parametrize(
    "name", ["cross_gate", "axis_attention", "subspace_scores", "residual_gate", "channel_moments"]
)
def test_batched_gradients_of_plain_calls(name):
    x = operand(name)[0].clone().requires_grad_()
    out = OPS[name](x)
    out = out[-1] if isinstance(out, tuple) else out
    weights = numbers(3, *out.shape)
    batched = torch.vmap(lambda weight: torch.autograd.grad(out, x, weight, retain_graph=True)[0])(weights)
    single = torch.stack([torch.autograd.grad(out, x, weight, retain_graph=True)[0] for weight in weights])
    torch.testing.assert_close(batched, single)


@pytest.mark.parametrize(
    "name",
    ["subspace_scores", "residual_gate", "channel_moments", "large_kernel_conv", "plane_conv", "halo_attention"],
)
def test_second_derivatives(name):
    x = numbers(1, 8, 4, 3).clone().requires_grad_()
    assert torch.autograd.gradgradcheck(OPS[name], (x,), fast_mode=True)
