"""The kernels against autograd, one network at a time, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.native.library import Kernel, Optimizer, kernels
from trueoracle.native.lowering import CannotLowerError, lower
from trueoracle.native.program import Images, Program
from trueoracle.networks.lenet import lenet5, lenet5_mini
from trueoracle.networks.mlp import mlp

pytestmark = pytest.mark.skipif(not kernels(), reason="installed without the native kernels")

Shape = tuple[int, int, int]
Factory = Callable[[], nn.Module]


def chain(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


# Name: (network, shape of an image, classes). Between them every layer, odd sizes, strides,
# paddings, dilations, activations before and after every pooling, and layers of one filter.
NETWORKS: dict[str, tuple[Factory, Shape, int]] = {
    "lenet5-mini": (lambda: lenet5_mini(width=5), (1, 32, 32), 10),
    "lenet5-mini, one filter": (lambda: lenet5_mini(width=1, depth=8), (1, 32, 32), 10),
    "lenet5": (lenet5, (1, 32, 32), 10),
    "mlp": (lambda: mlp((1, 6, 7), 5, hidden=(9, 1, 4)), (1, 6, 7), 5),
    "strides, paddings, dilation": (
        lambda: chain(
            *(nn.Conv2d(3, 4, 3, padding=2, stride=2, bias=False), nn.SiLU()),
            *(nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 3, (3, 2), dilation=2, padding=(2, 1))),
            *(nn.ELU(0.7), nn.AvgPool2d(2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(3, 7), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Linear(7, 4)),
        ),
        (3, 17, 15),
        4,
    ),
    "one by one, and pooling first": (
        lambda: chain(
            *(nn.MaxPool2d(2), nn.ReLU6(), nn.Conv2d(2, 1, 1), nn.Tanh()),
            *(nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.GELU(), nn.Conv2d(1, 3, 1)),
            *(nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(24, 1), nn.Hardtanh(), nn.Linear(1, 3)),
        ),
        (2, 15, 16),
        3,
    ),
    "overlapping pools": (
        lambda: chain(
            *(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 1), nn.Conv2d(2, 3, 3, padding=1)),
            *(nn.AvgPool2d(3, 2, 1), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.GELU(), nn.MaxPool2d(3, 2)),
            *(nn.AdaptiveMaxPool2d((1, 1)), nn.Flatten(), nn.Linear(2, 2)),
        ),
        (1, 13, 14),
        2,
    ),
    "tall and narrow": (
        lambda: chain(
            *(nn.Conv2d(1, 3, (4, 1), stride=(3, 1)), nn.Sigmoid(), nn.Conv2d(3, 2, (2, 3))),
            *(nn.Tanh(), nn.Flatten(), nn.Linear(10, 3)),
        ),
        (1, 19, 3),
        3,
    ),
}


def samples(shape: Sequence[int], classes: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, *shape, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, classes, (count,), generator=generator)


def own(images: Tensor, labels: Tensor, lanes: int) -> Images:
    """The same images, but one copy for every lane."""
    return Images(
        images[..., None].expand(*images.shape, lanes).contiguous(),
        labels[:, None].expand(-1, lanes).contiguous(),
    )


def autograd(network: nn.Module, images: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    network.zero_grad()
    loss = functional.cross_entropy(network(images), labels, label_smoothing=smoothing)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_outputs_and_gradients_are_those_of_autograd(
    name: str, kernel: Kernel, shared: bool
) -> None:
    make, shape, classes = NETWORKS[name]
    torch.manual_seed(0)
    networks = [make().double() for _ in range(kernel.lanes(True) + 1)]  # the last lanes not full
    program = Program(lower(networks[0], shape), torch.float64, kernel)
    groups = [networks[: program.lanes], networks[program.lanes :]]
    images, labels = samples(shape, classes, 7)
    seen = Images(images, labels) if shared else own(images, labels, program.lanes)
    weights = [program.pack(group) for group in groups]
    outputs = program.outputs(weights, [seen] * 2)
    gradients = program.gradients(weights, [seen] * 2, label_smoothing=0.1)
    answers = program.evaluate(weights, [seen] * 2)
    for group, output, gradient, answer in zip(groups, outputs, gradients, answers, strict=True):
        losses, right = (found[0] for found in answer)
        for lane, network in enumerate(group):
            logits = network(images).detach()
            torch.testing.assert_close(output[:, :, lane], logits, rtol=1e-10, atol=1e-12)
            expected = autograd(network, images, labels, 0.1)
            torch.testing.assert_close(gradient[:, lane], expected, rtol=1e-9, atol=1e-13)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            torch.testing.assert_close(losses[lane], loss, rtol=1e-12, atol=0)
            assert right[lane] == (logits.argmax(1) == labels).sum()


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_images_are_judged_block_by_block_beside_all_of_them(kernel: Kernel, shared: bool) -> None:
    make, shape, classes = NETWORKS["lenet5-mini"]
    torch.manual_seed(0)
    networks = [make() for _ in range(kernel.lanes(False) + 1)]
    program = Program(lower(networks[0], shape), torch.float32, kernel)
    weights = [program.pack(networks[: program.lanes]), program.pack(networks[program.lanes :])]
    images, labels = samples(shape, classes, 23)
    images, blocks = images.float(), torch.arange(23) % 4

    def seen(some: Tensor) -> list[Images]:
        made = images[some].contiguous(), labels[some].contiguous()
        return [Images(*made) if shared else own(*made, program.lanes)] * 2

    plain = program.evaluate(weights, seen(torch.arange(23)))
    found = program.evaluate(weights, seen(torch.arange(23)), blocks)
    for block in range(4):
        alone = program.evaluate(weights, seen((blocks == block).nonzero()[:, 0]))
        for whole, (loss, right), (its, hits) in zip(plain, found, alone, strict=True):
            assert torch.equal(loss[0], whole[0][0])  # to the bit
            assert torch.equal(right[0], whole[1][0])
            torch.testing.assert_close(loss[1 + block], its[0], rtol=1e-6, atol=0)
            assert torch.equal(right[1 + block], hits[0])
    for wrong in (blocks[:-1], blocks - 1, blocks.int(), torch.stack([blocks, blocks], 1)[:, 0]):
        with pytest.raises(ValueError, match="blocks of another shape"):
            program.evaluate(weights, seen(torch.arange(23)), wrong)


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Sequential, Shape]:
    """A random chain of convolutions, activations and poolings that ends in 3 classes."""
    sizes = st.integers(1, 4)
    shape = (draw(sizes), draw(st.integers(5, 12)), draw(st.integers(5, 12)))
    pools = st.sampled_from(
        [nn.Identity(), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.MaxPool2d(2, 1)]
    )
    activations = st.sampled_from([nn.ReLU(), nn.Tanh(), nn.GELU(), nn.Identity(), nn.LeakyReLU()])
    torch.manual_seed(draw(st.integers(0, 1000)))
    layers: list[nn.Module] = []
    now: Sequence[int] = shape
    for _ in range(draw(st.integers(1, 3))):
        kernel = (draw(st.integers(1, min(3, now[1]))), draw(st.integers(1, min(3, now[2]))))
        stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
        layers += [nn.Conv2d(now[0], draw(st.integers(1, 6)), kernel, stride, padding)]
        layers += [draw(activations)]
        now = chain(*layers)(torch.zeros(1, *shape)).shape[1:]
        if min(now[1:]) >= 2:
            layers += [draw(pools), draw(activations)]
            now = chain(*layers)(torch.zeros(1, *shape)).shape[1:]
    return chain(*layers, nn.Flatten(), nn.Linear(now[0] * now[1] * now[2], 3)).double(), shape


@settings(max_examples=60, deadline=None)
@given(made=chains(), count=st.integers(1, 9))
def test_gradients_for_any_sizes(made: tuple[nn.Sequential, Shape], count: int) -> None:
    network, shape = made
    program = Program(lower(network, shape), torch.float64)
    images, labels = samples(shape, 3, count)
    (gradient,) = program.gradients([program.pack([network])], [Images(images, labels)])
    expected = autograd(network, images, labels, 0.0)
    torch.testing.assert_close(gradient[:, 0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_a_networks_numbers_do_not_depend_on_its_neighbours(kernel: Kernel) -> None:
    """Bit for bit: alone, in another lane, and beside a network of NaN."""
    torch.manual_seed(0)
    networks = [lenet5_mini(width=3) for _ in range(kernel.lanes(False))]
    broken = copy.deepcopy(networks[0])
    nn.init.constant_(broken.get_parameter("conv1.weight"), float("nan"))
    program = Program(lower(networks[0], (1, 32, 32)), kernel=kernel)
    images, labels = samples((1, 32, 32), 10, 20)
    seen = Images(images.float(), labels)

    def trained(members: Sequence[nn.Module]) -> Tensor:
        weights = program.pack(members)
        state = torch.zeros(1, *weights.shape)
        options = Optimizer(learning_rate=0.1, momentum=0.9)
        program.train([weights], [state], [seen], batch_size=8, optimizer=options, steps_before=0)
        return weights

    together = trained(networks)
    assert torch.equal(together[:, 1], trained([networks[1]])[:, 0])
    assert torch.equal(together[:, 1], trained([broken, networks[1]])[:, 1])
    assert trained([broken, networks[1]])[:, 0].isnan().any()


def test_numbers_do_not_depend_on_threads() -> None:
    torch.manual_seed(0)
    networks = [lenet5_mini(width=2) for _ in range(3)]
    program = Program(lower(networks[0], (1, 32, 32)))
    images, labels = samples((1, 32, 32), 10, 5)
    weights = [program.pack([network]) for network in networks]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(program.outputs(weights, [Images(images.float(), labels)] * 3))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


def test_weights_survive_packing() -> None:
    torch.manual_seed(0)
    networks = [lenet5_mini(width=2) for _ in range(3)]
    program = Program(lower(networks[0], (1, 32, 32)))
    others = [lenet5_mini(width=2) for _ in range(3)]
    program.unpack(program.pack(networks), others)
    for network, other in zip(networks, others, strict=True):
        for one, two in zip(network.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_what_does_not_fit_is_refused_before_it_reaches_the_kernels() -> None:
    network = lenet5_mini(width=2)
    program = Program(lower(network, (1, 32, 32)))
    weights = program.pack([network])
    images, labels = samples((1, 32, 32), 10, 4)
    for pixels, seen, numbers in (
        (images, labels, weights),  # double images
        (images.float()[:, :, :31], labels, weights),
        (images.float(), labels[:3], weights),
        (images.float(), labels, weights[:-1]),
        (images.float(), labels, weights.t()),
    ):
        with pytest.raises(ValueError, match="another shape"):
            program.evaluate([numbers], [Images(pixels, seen)])


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (
            chain(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Flatten()),
            "1 is a BatchNorm2d",
        ),
        (chain(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten()), "grouped"),
        (chain(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten()), "pads by zeros same"),
        (chain(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), "pads by circular"),
        (chain(nn.Conv2d(2, 2, 3)), "not flat"),
        (chain(nn.Conv2d(2, 2, 3), nn.Linear(6, 2)), "not flattened"),
        (chain(nn.Conv2d(3, 2, 3), nn.Flatten()), "does not fit 2 channels"),
        (chain(nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 2)), "Dropout"),
        (chain(nn.MaxPool2d(3, ceil_mode=True), nn.Flatten()), "MaxPool2d"),
        (chain(nn.AdaptiveAvgPool2d(3), nn.Flatten()), "AdaptiveAvgPool2d"),
        (chain(nn.Flatten(2)), "flattens other axes"),
        (chain(nn.Flatten()), "0 layers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_that_the_kernels_do_not_know(network: nn.Module, reason: str) -> None:
    with pytest.raises(CannotLowerError, match=reason):
        lower(network, (2, 8, 8))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x + self.conv(x), 1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.conv(self.conv(x)), 1)


class Called(nn.Module):
    """A forward of its own that calls functions: a chain all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fc = nn.Linear(27, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv(x)), 2)
        out: Tensor = self.fc(x.flatten(1))
        return out


def test_graphs_that_are_no_chains_are_refused() -> None:
    with pytest.raises(CannotLowerError, match="no chain of layers at add"):
        lower(Residual(), (2, 8, 8))
    with pytest.raises(CannotLowerError, match="not read exactly once"):
        lower(Twice(), (2, 8, 8))
    frozen = lenet5_mini()
    frozen.get_parameter("fc1.bias").requires_grad_(False)
    with pytest.raises(CannotLowerError, match=r"fc1\.bias does not train"):
        lower(frozen, (1, 32, 32))


def test_a_forward_of_ones_own_is_a_chain_too() -> None:
    network = Called().double()
    program = Program(lower(network, (2, 8, 8)), torch.float64)
    images, labels = samples((2, 8, 8), 2, 3)
    (outputs,) = program.outputs([program.pack([network])], [Images(images, labels)])
    torch.testing.assert_close(outputs[:, :, 0], network(images).detach())


class OnlyInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        if self.training:
            x = functional.dropout(x, 0.5)
        return self.fc(x)  # type: ignore[no-any-return]


def test_what_a_network_does_beside_its_layers_is_noticed() -> None:
    hooked = chain(nn.Flatten(), nn.Linear(128, 2))
    hooked[1].register_forward_hook(lambda module, given, out: out * 3)
    with pytest.raises(CannotLowerError, match="1 has hooks, or a forward of its own"):
        lower(hooked, (2, 8, 8))
    for mode in (True, False):
        with pytest.raises(CannotLowerError, match="other things in training"):
            lower(OnlyInTraining().train(mode), (2, 8, 8))
    flat = Called()
    flat.forward = lambda x: flat.fc(x.flatten())  # type: ignore[method-assign]
    with pytest.raises(CannotLowerError):
        lower(flat, (2, 8, 8))
    with pytest.raises(CannotLowerError, match=r"images are \[4, 6\]"):
        lower(chain(nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(12, 2)), (4, 6))


def test_arguments_as_pytorch_takes_them() -> None:
    network = chain(
        *(nn.Conv2d(2, 3, (3,), padding=(1,)), nn.MaxPool2d((2,))),  # type: ignore[arg-type]
        *(nn.AdaptiveAvgPool2d([2, 2]), nn.Flatten(), nn.Linear(12, 2)),  # type: ignore[arg-type]
    )
    with pytest.raises(CannotLowerError, match="unusual arguments"):
        lower(network, (2, 8, 8))
    with pytest.raises(CannotLowerError, match="larger than its image"):
        lower(chain(nn.MaxPool2d(9), nn.Flatten()), (2, 8, 8))


def test_losses_of_confident_networks_keep_their_digits() -> None:
    """In single precision, beside large logits, as PyTorch does."""
    network = chain(nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.eye(3))
    program = Program(lower(network, (3,)))
    rows = torch.tensor([[30.0, 18, 0], [300, 289, 0], [3000, 2992, 0]])
    for row in rows.split(1):
        seen = Images(row.contiguous(), torch.zeros(1, dtype=torch.int64))
        ((loss, _),) = program.evaluate([program.pack([network])], [seen])
        expected = functional.cross_entropy(row.double(), seen.labels)
        assert float(loss[0, 0]) == pytest.approx(float(expected), rel=1e-5)


def test_labels_that_no_output_stands_for_are_refused() -> None:
    network = lenet5_mini(width=2)
    program = Program(lower(network, (1, 32, 32)))
    images, labels = samples((1, 32, 32), 10, 4)
    for wrong in (-1, 10):
        labels[2] = wrong
        with pytest.raises(ValueError, match="labels must be 0 to 9"):
            program.evaluate([program.pack([network])], [Images(images.float(), labels)])
