"""Products of float32 tensors as three bfloat16 products: against float64, and in a network."""

from __future__ import annotations

import pytest
import timm
import torch

import transpike
from transpike import products

aten = torch.ops.aten
SHAPES = [((7, 33), (33, 5)), ((2, 3, 7, 32), (2, 3, 32, 5)), ((2, 3, 7, 197), (197, 5)), ((2, 3, 7, 9), (3, 9, 5))]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("left", "right"), SHAPES, ids=str)
def test_the_error_is_that_of_sixteen_bits(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """What is left out, l_x l_w and the rounding of l, is at most 3 x 2^-18 |x| |w| for each term."""
    a, b = randn(*left), randn(*right, seed=1)
    found, exact = products.matmul(a, b), a.double() @ b.double()
    assert found.dtype == torch.float32 and found.shape == exact.shape
    magnitude = a.abs().double() @ b.abs().double()
    assert ((found - exact).abs() <= 2.0**-16 * magnitude).all()
    rounded = (a.bfloat16() @ b.bfloat16()).double()
    assert (found - exact).abs().max() < (rounded - exact).abs().max() / 100


def test_what_sixteen_bits_hold_is_exact() -> None:
    """Spikes times weights of 16 bits, whose sums float32 holds: nothing is lost."""
    spikes = torch.exp2(torch.randint(-2, 1, (20, 64)).float()) * torch.randint(-1, 2, (20, 64))
    weights = torch.randint(-(2**15), 2**15, (64, 10)).float()
    assert torch.equal(products.matmul(spikes, weights), (spikes.double() @ weights.double()).float())


@pytest.mark.parametrize(
    ("operator", "args", "kwargs"),
    [
        (aten.linear.default, (randn(2, 5, 13), randn(7, 13), randn(7)), {}),
        (aten.linear.default, (randn(13), randn(7, 13)), {}),
        (aten.addmm.default, (randn(5), randn(4, 13), randn(13, 5)), {"beta": 0.5, "alpha": 2}),
        (aten.mm.default, (randn(4, 13), randn(13, 5)), {}),
        (aten.bmm.default, (randn(3, 4, 13), randn(3, 13, 5)), {}),
        (aten.baddbmm.default, (randn(3, 4, 5), randn(3, 4, 13), randn(3, 13, 5)), {"beta": 0.5, "alpha": 2}),
        (aten.matmul.default, (randn(4, 13), randn(13)), {}),
        (aten.matmul.default, (randn(3, 1, 4, 13), randn(2, 13, 5)), {}),
    ],
)
def test_every_operator_is_its_own(operator: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, float]) -> None:
    with products.three_products():
        found = products.applied()(operator, args, kwargs)
    torch.testing.assert_close(found, operator(*args, **kwargs), rtol=1e-4, atol=1e-4)  # type: ignore[operator]


def test_all_operators_are_tried() -> None:
    tried = test_every_operator_is_its_own.pytestmark[0].args[1]
    assert {case[0] for case in tried} == set(products.PRODUCTS)


def test_float64_stays_as_it_is() -> None:
    a, b = randn(3, 4).double(), randn(4, 5).double()
    with products.three_products():
        assert torch.equal(products.applied()(aten.mm.default, (a, b), {}), a @ b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shapes", [((5, 7, 16), (5, 16, 9)), ((2, 3, 197, 64), (2, 3, 64, 197)), ((3, 4), (4, 5))])
def test_a_scaled_product_is_the_product_scaled(shapes: tuple, dtype: torch.dtype) -> None:
    a, b = randn(*shapes[0]).to(dtype), randn(*shapes[1], seed=1).to(dtype)
    assert torch.equal(products.scaled(a, b, 0.125), torch.matmul(a, b) * 0.125)
    turned = b.mT.contiguous().mT
    assert torch.equal(products.scaled(a, turned, 4.0), torch.matmul(a, turned) * 4.0)


@pytest.mark.parametrize(("width", "found"), [(64, 2), (96, 0)])
def test_scales_of_attention_go_into_its_products(width: int, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 16 have a scale of 1/4; heads of 24 none that leaves the bits alone."""
    torch.manual_seed(0)
    options = {"img_size": 32, "depth": 2, "num_classes": 10, "embed_dim": width, "num_heads": 4}
    source = timm.create_model("vit_tiny_patch16_224", **options).eval()
    x = randn(8, 3, 32, 32)
    snn = transpike.convert(source, [x], "ecmt")
    assert len(snn.program.scaled) == found
    taken, scaled = [], products.scaled
    monkeypatch.setattr(products, "scaled", lambda *args: taken.append(args[2]) or scaled(*args))
    fast = snn.simulate(x, 3, count=False).outputs
    assert taken == [0.25] * found
    assert torch.equal(fast, snn.simulate(x, 3).outputs), "counting keeps every node as it is"


@pytest.mark.parametrize("mode", ["folded", "streaming"])
def test_a_network_is_nearer_to_float32_than_in_bfloat16(mode: str) -> None:
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    x = randn(8, 3, 32, 32)
    snn = transpike.convert(source, [x], "ecmt")

    def outputs(precision: str) -> torch.Tensor:
        return snn.simulate(x, 3, mode=mode, precision=precision).outputs

    exact = outputs("float32")
    apart = {precision: float((outputs(precision) - exact).abs().mean()) for precision in ("bfloat16", "bfloat16x3")}
    assert 0 < apart["bfloat16x3"] < apart["bfloat16"] / 3
    assert outputs("bfloat16x3").dtype == torch.float32
