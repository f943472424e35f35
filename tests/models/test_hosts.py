"""The hosts themselves: contexts, extra tokens, heads, cross-layer state and losses of mixers."""

import pytest
import timm
import torch
from networks import create, settled
from torch import nn

from visionattn.catalog import Card
from visionattn.mixers import AveragePool, SoftmaxAttention, WindowAttention
from visionattn.models import STM, Columnar, Pyramid, vit
from visionattn.models.families.va_vit import checkpoint_filter_fn
from visionattn.models.layers import Block, Mlp, PatchConv, ResidualBranch
from visionattn.ops.losses import add_loss, collect_losses
from visionattn.testing.fixtures import relative_error

X = torch.randn(2, 3, 36, 30, generator=torch.Generator().manual_seed(0))


def columnar(mixers=None, **kwargs):
    def softmax(context, **dd):
        return {"attn": SoftmaxAttention(context.dim, num_heads=context.num_heads, **dd)}

    torch.manual_seed(0)
    return Columnar(
        16, **{"depth": 2, "num_heads": 2, "mixers": mixers or softmax, "patch_size": 8, "img_size": 32, **kwargs}
    ).eval()


class Balanced(nn.Module):
    """A mixer with a loss of its own."""

    has_losses = True

    def __init__(self, dim, **dd):
        super().__init__()
        self.linear = nn.Linear(dim, dim, **dd)

    def forward(self, x, losses=None):
        x = self.linear(x)
        add_loss("balance", x.square().mean(), losses)
        return x


class Remembering(nn.Module):
    """A mixer that adds what the one of the block before gave, as residual attention does."""

    cross_layer = True

    def __init__(self, dim, **dd):
        super().__init__()
        self.linear = nn.Linear(dim, dim, **dd)

    def forward(self, x, state):
        x = self.linear(x)
        x = x if state is None else x + state
        return x, x

    def forward_tokens(self, x, grid, prefix, state):
        return self.forward(x, state)


def mixing(cls):
    return lambda context, **dd: {"attn": cls(context.dim, **dd)}


def pyramid(cls):
    def block(context, **dd):
        branch = ResidualBranch(context.dim, cls(context.dim, **dd), **dd)
        return Block(attn=branch, mlp=ResidualBranch(context.dim, Mlp(context.dim, **dd), **dd))

    torch.manual_seed(0)
    stem = lambda in_chans, dim, **dd: PatchConv(in_chans, dim, kernel_size=4, stride=4, **dd)  # noqa: E731
    return Pyramid((8, 8), (2, 1), block=block, stem=stem, num_classes=5)


class TestPyramid:
    def test_contexts_tell_where_a_block_is(self):
        seen = []

        def block(context, **dd):
            seen.append(context)
            return Block(mlp=ResidualBranch(context.dim, Mlp(context.dim, **dd), **dd))

        stem = lambda in_chans, dim, **dd: PatchConv(in_chans, dim, kernel_size=4, stride=4, **dd)  # noqa: E731
        down = lambda dim, out, **dd: PatchConv(dim, out, kernel_size=2, stride=2, **dd)  # noqa: E731
        given = {"drop_path_rate": 0.2, "attn_drop_rate": 0.3, "proj_drop_rate": 0.4, "img_size": (64, 90)}
        model = Pyramid((8, 16), (2, 1), (1, 4), block=block, stem=stem, downsample=down, **given)
        assert [(c.stage, c.block, c.dim, c.num_heads, c.grid) for c in seen] == [
            (0, 0, 8, 1, (16, 23)),
            (0, 1, 8, 1, (16, 23)),
            (1, 0, 16, 4, (8, 12)),
        ]
        assert [c.drop_path for c in seen] == pytest.approx([0, 0.1, 0.2])
        assert seen[0].keywords == {"num_heads": 1, "attn_drop": 0.3, "proj_drop": 0.4}
        assert [info["reduction"] for info in model.feature_info] == [4, 8]

    @pytest.mark.parametrize("arguments", [((8,), (1, 1)), ((8, 16), (1, 0)), ((), ()), ((8, 16), (1, 1), (2,))])
    def test_bad_sizes(self, arguments):
        with pytest.raises(ValueError, match="must hold one number >= 1 for each stage, got dims="):
            Pyramid(*arguments, block=None, stem=None)

    def test_takes_a_card_of_ones_own(self):
        card = Card(name="mine", title="Mine", kind="mixer", factory=AveragePool, summary="", paper="none")
        model = STM(card, (8, 16), (1, 1), (1, 1), num_classes=3)
        assert model(torch.randn(2, 3, 33, 47)).shape == (2, 3)
        with pytest.raises(ValueError, match=r"unknown mixer 'convnet'; there are: .*boat, "):
            STM("convnet", (8, 16), (1, 1), (1, 1))


class TestColumnar:
    def test_extra_tokens_come_first_and_are_seen(self):
        model = columnar(num_registers=2, num_prompts=3, class_token=True)
        tokens = model.forward_features(X)
        assert tokens.shape == (2, 6 + 5 * 4, 16)  # 36 x 30 px are 5 x 4 patches of 8 px
        given = torch.cat([model.cls_token, model.reg_token, model.prompt_token], 1).expand(2, -1, -1)
        assert torch.equal(model.start(X).x[:, :6], given)
        assert model.no_weight_decay() == {"cls_token", "reg_token", "prompt_token", "position.weight"}
        for name in ("cls_token", "reg_token", "prompt_token"):
            changed = columnar(num_registers=2, num_prompts=3, class_token=True)
            nn.init.normal_(getattr(changed, name))
            assert not torch.allclose(changed(X), model(X)), name

    def test_head_reads_the_class_token_or_the_patches(self):
        model = columnar(global_pool="token", num_registers=1, num_classes=7)
        tokens = model.forward_features(X)
        torch.testing.assert_close(model(X), model.head.fc(tokens[:, 0]))
        model.reset_classifier(5, "avg")
        torch.testing.assert_close(model(X), model.head.fc(tokens[:, 2:].mean(1)))
        model.reset_classifier(5, "max")
        torch.testing.assert_close(model(X), model.head.fc(tokens[:, 2:].amax(1)))
        model.reset_classifier(5, "token")
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, 0])
        model.reset_classifier(0, "")
        assert torch.equal(model(X), tokens)

    def test_features_are_maps_of_the_patches(self):
        model = columnar(global_pool="token")
        _, maps = model.forward_intermediates(X, norm=True)
        torch.testing.assert_close(maps[-1].flatten(2).mT, model.forward_features(X)[:, 1:])
        (map_nhwc,) = model.forward_intermediates(X, indices=1, output_fmt="NHWC", intermediates_only=True)
        (map_nchw,) = model.forward_intermediates(X, indices=1, intermediates_only=True)
        assert torch.equal(map_nhwc.permute(0, 3, 1, 2), map_nchw) and map_nchw.shape == (2, 16, 5, 4)
        with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NHWC', got 'NLC'"):
            model.forward_intermediates(X, output_fmt="NLC")

    def test_contexts_tell_where_a_block_is(self):
        seen = []

        def softmax(context, **dd):
            seen.append(context)
            return {"attn": SoftmaxAttention(context.dim, **context.keywords, **dd)}

        rates = {"drop_path_rate": 0.2, "attn_drop_rate": 0.3, "proj_drop_rate": 0.4}
        model = columnar(softmax, depth=3, img_size=(64, 90), **rates)
        assert [(c.stage, c.block, c.dim, c.num_heads, c.grid) for c in seen] == [
            (0, i, 16, 2, (8, 12)) for i in range(3)
        ]
        assert [c.drop_path for c in seen] == pytest.approx([0, 0.1, 0.2])
        assert [block.mlp.drop_path.drop_prob for block in model.blocks[1:]] == pytest.approx([0.1, 0.2])
        assert (model.blocks[0].attn.fn.attn_drop.p, model.blocks[0].mlp.fn.drop.p) == (0.3, 0.4)

    def test_mixers_of_maps_take_no_extra_tokens(self):
        def windows(context, **dd):
            return {"attn": WindowAttention(context.dim, num_heads=2, window_size=3, **dd)}

        assert columnar(windows)(X).shape == (2, 1000)
        with pytest.raises(ValueError, match="WindowAttention mixes maps only and has no place for 1 extra tokens"):
            columnar(windows, global_pool="token")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"depth": 0}, "depth must be at least 1, got 0"),
            ({"num_registers": -1}, "num_registers must be at least 0, got -1"),
            ({"global_pool": "token", "class_token": False}, "global_pool='token' needs a class token"),
            ({"num_heads": 3}, "num_heads must divide dim, got dim=16, num_heads=3"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            columnar(**arguments)
        with pytest.raises(ValueError, match="needs a class token: build the network with class_token=True"):
            columnar().reset_classifier(3, "token")

    @pytest.mark.parametrize("prefix", [{}, {"global_pool": "token"}], ids=["map", "tokens"])
    def test_state_goes_from_block_to_block(self, prefix):
        model = columnar(mixing(Remembering), depth=3, **prefix)
        blocks = []
        hooks = [
            block.register_forward_hook(lambda module, args, out: blocks.append((args[2], out[1])))
            for block in model.blocks
        ]
        expected = model(X)
        (first, one), (second, two), (third, _) = blocks
        assert first == {} and second is one and third is two
        for hook in hooks:
            hook.remove()
        x, grid = torch.randn(1, 4 + len(prefix), 16), (2, 2)
        state = {"attn": torch.ones_like(x if prefix else x.unflatten(1, grid))}
        assert not torch.allclose(model.blocks[1](x, grid, state)[0], model.blocks[1](x, grid, {})[0])
        model.train()
        model.set_grad_checkpointing()
        torch.testing.assert_close(model(X), expected)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.inference_mode():
            torch.testing.assert_close(compiled(X), expected)

    @pytest.mark.parametrize(
        ("theirs", "arguments"),
        [
            ("deit_tiny_patch16_224", {"global_pool": "token"}),
            ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False}),
        ],
    )
    def test_equals_timms(self, theirs, arguments, tmp_path):
        torch.manual_seed(0)
        shape = {"img_size": (64, 96), "depth": 2}
        model = timm.create_model(theirs, **shape, **arguments).eval()
        torch.save(model.state_dict(), tmp_path / "timm.pth")
        arguments = {key: value for key, value in arguments.items() if key != "fc_norm"}
        loaded = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "timm.pth")}}
        ours = timm.create_model("va_vit_softmax_tiny", **shape, **arguments, **loaded).eval()
        x = torch.randn(2, 3, 64, 96)
        with torch.inference_mode():
            assert relative_error(ours(x), model(x)) < 1e-5
        native = ours.state_dict()
        assert checkpoint_filter_fn(native, ours).keys() == native.keys()

    def test_loads_what_was_saved_when_its_stages_had_a_block_each(self, tmp_path):
        for name in ("va_lkca_vit_mini", "va_flatten_deit_tiny"):
            model = settled(name, depth=2, img_size=64)
            old = {}
            for key, value in model.state_dict().items():
                if "flatten" in name:
                    key = key.replace("stem.conv.", "stem.patches.conv.").replace(
                        "position.weight", "stem.position.weight"
                    )
                block = key.split(".")
                old[f"stages.{block[1]}.blocks.0.{'.'.join(block[2:])}" if block[0] == "blocks" else key] = value
            torch.save(old, tmp_path / "old.pth")
            overlay = {"file": str(tmp_path / "old.pth")}
            again = create(name, depth=2, img_size=64, pretrained=True, pretrained_cfg_overlay=overlay).eval()
            assert torch.equal(again(X), model(X))


def test_a_branch_drops_whole_samples():
    torch.manual_seed(0)
    branch = ResidualBranch(8, Mlp(8), drop_path=0.5, layer_scale=0.1)
    x = torch.randn(64, 2, 3, 8)
    given = branch.eval()(x)
    torch.testing.assert_close(given, x + 0.1 * branch.fn(branch.norm(x)))
    y = branch.train()(x)
    kept = (y - x).flatten(1).any(1)
    assert 16 < kept.sum() < 48
    torch.testing.assert_close(y[kept], (x + 2 * (given - x))[kept])


@pytest.mark.parametrize(
    "build", [pyramid, lambda cls: columnar(mixing(cls), num_classes=5)], ids=["pyramid", "columnar"]
)
class TestLosses:
    def run(self, model, call=None):
        with collect_losses() as losses:
            out = (model if call is None else call)(X)
        (out.sum() + sum(losses["balance"])).backward()
        return out, losses, [p.grad for p in model.parameters()]

    def test_every_block_reports_once(self, build):
        model = build(Balanced).train()
        out, losses, grads = self.run(model)
        assert list(losses) == ["balance"] and len(losses["balance"]) == sum(
            "attn.fn.linear.weight" in n for n, _ in model.named_parameters()
        )
        again = build(Balanced).train()
        again.set_grad_checkpointing()
        torch.testing.assert_close(self.run(again), (out, losses, grads))

    def test_checkpointed_networks_compile_to_one_graph(self, build):
        model = build(Balanced).train()
        expected = self.run(model)
        again = build(Balanced).train()
        again.set_grad_checkpointing()
        compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(self.run(again, compiled), expected)

    def test_undisturbed_without_a_collector(self, build):
        model = build(Balanced)
        assert model(X).shape == (2, 5)
        program = torch.export.export(model, (X,))
        torch.testing.assert_close(program.module()(X), model(X))


def test_vit_takes_a_card_of_ones_own():
    card = Card(name="mine", title="Mine", kind="mixer", factory=AveragePool, summary="", paper="none")
    assert vit(card, 16, depth=1, patch_size=8)(X).shape == (2, 1000)
    with pytest.raises(ValueError, match="unknown mixer 'soft'; there are: "):
        vit("soft", 16)
