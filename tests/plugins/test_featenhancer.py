"""FeatEnHancer against the official code's recorded pictures and gradients."""

import pytest
import torch
from torch.nn import functional as F

from visionattn.plugins import FeatEnHancer, ScaleAwareFusion
from visionattn.reference.featenhancer import naive_of
from visionattn.testing import contracts
from visionattn.testing.fixtures import check_module, load, normal, relative_error


@pytest.mark.parametrize("name", ["featenhancer_1x3x48x64_eval", "featenhancer_2x3x39x55_eval"])
def test_golden(name):
    golden = load(name)
    module = FeatEnHancer()
    module.load_state_dict(golden.state_dict)
    assert sum(p.numel() for p in module.parameters()) == golden.meta["params"]
    check_module(module, golden, 1e-5)


def test_golden_fusion():
    golden = load("featenhancer_fusion_1x24x23x19_eval")
    module = ScaleAwareFusion(24)
    module.load_state_dict({key.partition(".")[2]: value for key, value in golden.state_dict.items()})
    x = golden.input.requires_grad_()
    out = module(x, F.avg_pool2d(x, 7, 4))
    (out * normal(golden.meta["input_seed"] + 1, out.shape)).sum().backward()
    assert relative_error(out, golden.arrays["out_0"]) < 1e-5
    assert relative_error(x.grad, golden.arrays["grad_x"]) < 1e-5


SUBJECT = contracts.Subject("plugin", FeatEnHancer, formula=naive_of, width=3)
# Its corrections are the same for nearly equal pictures: changes in place and literal sizes have tests of their own.
CHECKS = [
    check
    for check in (*contracts.CHECKS["plugin"], *contracts.GRAPH_CHECKS["plugin"])
    if check not in (contracts.equals_its_literal_formula, contracts.converts_to_onnx)
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_promises(check):
    check(SUBJECT)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_equals_its_literal_formula(train):
    module = contracts.perturbed(FeatEnHancer()).double()
    x, results = torch.randn(2, 3, 19, 26, dtype=torch.float64), []
    for one in (module, naive_of(module)):
        leaf = x.clone().requires_grad_()
        out = one.train(train)(leaf)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaf)))
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) < 1e-9


def test_small_pictures_are_continued():
    module, x = contracts.perturbed(FeatEnHancer().eval()), torch.randn(1, 3, 9, 30)
    longer = F.pad(x, (0, 0, 0, 6), "replicate")
    torch.testing.assert_close(module(x), module(longer)[:, :, :9])


def test_exports_and_converts_for_any_picture():
    runtime = pytest.importorskip("onnxruntime", reason="ONNX parity needs the [test] extra")
    module, x = contracts.perturbed(FeatEnHancer().eval()), torch.randn(2, 3, 33, 47)
    sizes = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    other = torch.randn(3, 3, 40, 28)
    (out,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert relative_error(torch.from_numpy(out), module(other)) < 1e-5


def test_starts_with_the_picture_as_it_is():
    module, x = FeatEnHancer(zero_init=True), torch.randn(2, 3, 20, 31)
    assert torch.equal(module(x), x) and not torch.equal(FeatEnHancer()(x), x)
    module.reset_parameters()
    assert torch.equal(module(x), x)
    module(x).square().sum().backward()
    assert module.ue_conv9.weight.grad.count_nonzero()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FeatEnHancer(0), "in_channels must be at least 1, got 0"),
        (lambda: FeatEnHancer(num_heads=5), "num_heads must divide dim, got dim=24, num_heads=5"),
        (lambda: ScaleAwareFusion(9), "num_heads must divide dim, got dim=9, num_heads=8"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
