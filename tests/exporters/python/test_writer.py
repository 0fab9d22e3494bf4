"""A program as a stand-alone module: the same bits, in readable code."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from helpers import small_nets
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs.random_graphs import STEPS, draw_program, random_inputs
from torch import Tensor, nn

from fitcompress.exporters.python.arguments import choose_arguments, literal
from fitcompress.exporters.python.code import Number
from fitcompress.exporters.python.members import Members
from fitcompress.exporters.python.simplify import simplify
from fitcompress.exporters.python.wrap import broken
from fitcompress.exporters.python.writer import ModuleSource, write_source
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program, program_from_json, program_to_json
from fitcompress.interface import InputSpec, Interface
from fitcompress.models.open import teacher_from_module
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import plan_student

INTERFACE = Interface(
    input=InputSpec(shape=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)),
    class_names=("cat", "dog"),
    origin={"teacher": "some net", "depth_mult": "2", "width_mult": "0.3", "fitcompress": "9.8"},
)
RUFF = [sys.executable, "-m", "ruff"]
FAMILIES = {
    "resnet50": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32}),
    "convnext_atto": (32, {}),
    "densenet121": (32, {}),
    "swin_tiny_patch4_window7_224": (112, {"img_size": 112}),
}
"""Input size, and the options with which the model takes it."""


# --- how a source is run and checked ------------------------------------------------------------


def loaded(source: ModuleSource, folder: Path) -> nn.Module:
    """The network of the emitted file, with the weights beside it."""
    write_files(source, folder)
    module = types.ModuleType("emitted")
    module.__file__ = str(folder / "model.py")
    exec(compile(source.text, module.__file__, "exec"), module.__dict__)
    return module.load()


def write_files(source: ModuleSource, folder: Path) -> None:
    (folder / "model.py").write_text(source.text, encoding="utf-8")
    tensors = {name: value.clone().contiguous() for name, value in source.tensors.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def examples(program: Program, batch_size: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch_size)
    return tuple(
        torch.randn((batch_size, *info.shape), generator=generator)
        if info.dtype.is_floating_point
        else torch.randint(0, 5, (batch_size, *info.shape), generator=generator)
        for info in program.inputs
    )


def equal_bits(program: Program, network: nn.Module) -> bool:
    """Whether the outputs of network and program are equal to the last bit, at two batch sizes."""
    expected = build_network(program)
    same = []
    for batch_size in (1, 3):
        inputs = examples(program, batch_size)
        with torch.no_grad():
            sides = [as_tuple(side(*inputs)) for side in (expected, network)]
        same.append(len(sides[0]) == len(sides[1]) and all(map(torch.equal, *sides)))
    return all(same)


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def ruff_faults(paths: Sequence[Path]) -> str:
    rules = ["--isolated", "--no-cache", "--line-length", "100"]
    commands = [
        [*RUFF, "check", *rules, "--select", "E,F,W,I,B", *map(str, paths)],
        [*RUFF, "format", "--check", *rules, *map(str, paths)],
    ]
    runs = [subprocess.run(one, capture_output=True, text=True, check=False) for one in commands]
    return "".join(run.stdout + run.stderr for run in runs if run.returncode)


def class_names(source: ModuleSource) -> list[str]:
    return re.findall(r"^class (\w+)", source.text, re.MULTILINE)


def shaken(program: Program) -> Program:
    """The program with noise on all weights, so that none is zero."""
    generator = torch.Generator().manual_seed(7)

    def shake(name: str, value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator) * 0.05
        return value + noise if name in program.trainable else value

    return replace(program, tensors={n: shake(n, v) for n, v in program.tensors.items()})


@functools.cache
def student(name: str) -> Program:
    """The student of a timm model, twice as deep and 0.3 times as wide."""
    size, options = FAMILIES[name]
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    spec = InputSpec(shape=(3, size, size), mean=(0.5,) * 3, std=(0.2,) * 3)
    plan = plan_student(teacher_from_module(model, spec).program, depth_mult=2, width_mult=0.3)
    return shaken(replace(plan.program, tensors=initial_tensors(plan, init="random", seed=0)))


@functools.cache
def emitted(name: str) -> ModuleSource:
    return write_source(student(name), INTERFACE)


def small(module: nn.Module, *inputs: Tensor) -> Program:
    """The program of a small module, shaken."""
    return shaken(capture_module(module.eval(), inputs))


# --- families -----------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("name", FAMILIES)
def test_the_emitted_module_computes_the_same_bits(name, tmp_path):
    assert equal_bits(student(name), loaded(emitted(name), tmp_path))


@pytest.mark.integration
@pytest.mark.parametrize("name", FAMILIES)
def test_the_names_are_those_of_the_state_dict(name, tmp_path):
    network = loaded(emitted(name), tmp_path)

    names = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    assert names == set(emitted(name).tensors)
    assert set(student(name).tensors) <= names
    assert {key for key, _ in network.named_parameters()} == student(name).trainable


def test_only_tables_of_copied_blocks_are_added():
    for name in FAMILIES:
        added = set(emitted(name).tensors) - set(student(name).tensors)
        endings = {key.rpartition(".")[2] for key in added}
        assert endings == ({"relative_position_index", "attn_mask"} if "swin" in name else set())


def test_files_pass_ruff(tmp_path):
    paths = []
    for name in FAMILIES:
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(emitted(name).text, encoding="utf-8")

    assert ruff_faults(paths) == ""


def test_blocks_are_written_once_and_looped_over():
    names = {name: class_names(emitted(name)) for name in FAMILIES}

    assert names["resnet50"] == ["LayerBlockWithDownsample", "LayerBlock", "Student"]
    assert names["vit_tiny_patch16_224"] == ["PatchEmbed", "Attn", "Mlp", "Block", "Student"]
    assert len(names["convnext_atto"]) == 6
    assert len(names["densenet121"]) == 6
    assert len(names["swin_tiny_patch4_window7_224"]) <= 15
    assert "*(LayerBlock(channels=80, hidden_channels=20) for _ in range(5))" in (
        emitted("resnet50").text
    )
    assert "self.blocks = nn.Sequential(*(Block() for _ in range(24)))" in (
        emitted("vit_tiny_patch16_224").text
    )
    assert "parts.append(denselayer(parts))" in emitted("densenet121").text


def test_forward_methods_read_as_written_by_hand():
    block = emitted("resnet50").text.split("class LayerBlock(")[1].split("\n\n\n")[0]
    assert block.split("Tensor:\n")[1].splitlines() == [
        "        y = functional.relu(self.bn1(self.conv1(x)))",
        "        y = functional.relu(self.bn2(self.conv2(y)))",
        "        return functional.relu(self.bn3(self.conv3(y)) + x)",
    ]
    assert not any("torch.ops" in emitted(name).text for name in FAMILIES)


@pytest.mark.integration
def test_nothing_but_torch_is_needed(tmp_path):
    write_files(emitted("vit_tiny_patch16_224"), tmp_path)
    program = (
        "import runpy, sys\n"
        "for name in ('fitcompress', 'timm', 'safetensors', 'torchvision', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "model.py")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert run.stderr == ""
    weights = student("vit_tiny_patch16_224")
    count = sum(weights.tensors[name].numel() for name in weights.trainable)
    assert run.stdout.splitlines() == [f"{count:,} parameters", "outputs (1, 1000)"]


@pytest.mark.integration
def test_the_text_is_the_same_every_time():
    program = student("densenet121")
    again = program_from_json(program_to_json(program), program.tensors)

    assert write_source(again, INTERFACE).text == emitted("densenet121").text


# --- networks of other kinds --------------------------------------------------------------------


class TwoOutputs(nn.Module):
    """Two inputs, one of them indices; two outputs; a tied weight; a mask and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 8)
        self.mix = nn.Linear(8, 8)
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, words: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(words)[:, self.order] + extra.unsqueeze(1)
        x = torch.where(self.mask[:, None], self.mix(x), x * self.scale)
        return nn.functional.linear(x, self.embed.weight), x.mean(1)


class SharedTable(nn.Module):
    """A table of the network that each block reads, and blocks that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(8))
        self.blocks = nn.ModuleList([Gated() for _ in range(3)])
        self.last = Gated()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.table)
        return self.last(self.last(x, self.table), self.table)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x * table)))


class Odd(nn.Module):
    """Names that are not identifiers, calls without a Python function, float64 and float16."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("1st", nn.Linear(6, 6))
        self.parts = nn.ModuleDict({"1x1": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
        self.weights = nn.ParameterList([torch.randn(6), torch.randn(6)])
        self.register_buffer("small", torch.randn(6).half())
        self.exact = nn.Linear(6, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, "1st")(x) * self.weights[0] + self.weights[1]
        x = torch.special.entr(self.parts["1x1"](x).abs()) - self.parts["b"](x)
        x = x.clamp(-float("inf"), 1e30) * self.small.float()
        return self.exact(x.double())[:, 1:-1:2]


SMALL = {
    "two outputs": lambda: small(TwoOutputs(), torch.randint(0, 5, (2, 4)), torch.randn(2, 8)),
    "shared table": lambda: small(SharedTable(), torch.randn(2, 8)),
    "odd names": lambda: small(Odd(), torch.randn(2, 6)),
    "a sequence alone": lambda: small(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)),
        torch.randn(2, 3, 8, 8),
    ),
    "positions": lambda: small(small_nets.Tokens(), torch.randn(2, 3, 8, 8)),
    "nothing learnt": lambda: small(nn.Softmax(-1), torch.randn(2, 4)),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_of_other_kinds_compute_the_same_bits(name, tmp_path):
    program = SMALL[name]()
    source = write_source(program, Interface())
    network = loaded(source, tmp_path)

    assert equal_bits(program, network)
    assert set(source.tensors) == set(program.tensors)
    assert {key for key, _ in network.named_parameters()} >= program.trainable
    assert ruff_faults([tmp_path / "model.py"]) == ""


@pytest.mark.integration
@given(st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 10**6)), max_size=7))
@settings(max_examples=80)
def test_random_programs_of_all_operations_compute_the_same_bits(plan):
    program, _ = draw_program(plan)
    source = write_source(program, Interface())
    space: dict[str, object] = {"__file__": "model.py", "__name__": "emitted"}
    exec(source.text, space)
    network = space["build"]().eval()
    network.load_state_dict(source.tensors)

    expected = build_network(program)
    for batch_size in (1, 3):
        inputs = random_inputs(program, batch_size)
        with torch.no_grad():
            sides = [as_tuple(side(*inputs)) for side in (expected, network)]
        for one, other in zip(*sides, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("way", ["traced", "scripted", "frozen"])
def test_archives_give_modules_too(way, tmp_path):
    from fitcompress.models.open import open_teacher
    from fitcompress.recipe.schema import TeacherRecipe

    network = small_nets.trained_a_little(small_nets.Residual())
    example = torch.randn(2, 3, 16, 16)
    make = getattr(small_nets, way)
    archive = make(network) if way == "scripted" else make(network, example)
    path = tmp_path / "net.pt"
    small_nets.reloaded(archive, path)
    teacher = open_teacher(TeacherRecipe(source=str(path), input_size=(3, 16, 16)))
    plan = plan_student(teacher.program, depth_mult=2, width_mult=0.5)
    program = shaken(replace(plan.program, tensors=initial_tensors(plan, init="random", seed=0)))

    source = write_source(program, teacher.interface)

    assert equal_bits(program, loaded(source, tmp_path))
    assert ruff_faults([tmp_path / "model.py"]) == ""
    assert str(tmp_path) not in source.text


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["positions", "a sequence alone"])
def test_the_activation_of_the_interface_is_applied_last(activation, name, tmp_path):
    program = SMALL[name]()
    network = loaded(write_source(program, Interface(activation=activation)), tmp_path)

    inputs = examples(program, 2)
    with torch.no_grad():
        scores = build_network(program)(*inputs)
        expected = scores.sigmoid() if activation == "sigmoid" else getattr(scores, activation)(-1)
        assert torch.equal(network(*inputs), expected)


def test_a_dropout_is_active_in_training_only(tmp_path):
    program = small(nn.Sequential(nn.Linear(50, 50), nn.Dropout(0.5)), torch.randn(2, 50))
    network = loaded(write_source(program, Interface()), tmp_path)

    x = torch.randn(4, 50)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def test_frozen_weights_stay_frozen(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].requires_grad_(False)
    program = small(module, torch.randn(2, 4))
    fixed = replace(program, trainable=frozenset({"1.weight", "1.bias"}))
    network = loaded(write_source(fixed, Interface()), tmp_path)

    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]


def test_a_tied_weight_stays_one_parameter(tmp_path):
    program = SMALL["two outputs"]()
    network = loaded(write_source(program, Interface()), tmp_path)

    assert [name for name, _ in network.named_parameters()].count("embed.weight") == 1
    with torch.no_grad():
        network.embed.weight.zero_()
    scores, _ = network(*examples(program, 2))
    assert not scores.any()


def test_repeated_blocks_with_a_second_input_are_looped_over():
    text = write_source(SMALL["shared table"](), Interface()).text

    assert "for block in self.blocks:\n            x = block(x, self.table)" in text
    assert text.count("self.up = nn.Linear(8, 16)") == 2  # of the blocks, and of the last one


# --- what the file says -------------------------------------------------------------------------


def test_the_docstring_says_where_the_network_comes_from():
    doc = emitted("resnet50").text.split('"""')[1].replace("\n", " ")

    for words in (
        "distilled from some net",
        "fitcompress 9.8",
        "depth is 2 times",
        "width 0.3 times",
        "(N, 3, 32, 32)",
        "mean (0.5, 0.4, 0.3)",
        "std (0.2, 0.2, 0.1)",
        "2 classes",
    ):
        assert words in doc
    assert 'CLASS_NAMES = ("cat", "dog")' in emitted("resnet50").text


def test_names_from_outside_cannot_become_code(tmp_path):
    origin = {"teacher": '/home/me/x"""; import os\\', "fitcompress": "1"}
    names = ('a"b', "it's", "new\nline", "naïve", "{0}", "\\")
    interface = replace(INTERFACE, origin=origin, class_names=names)
    source = write_source(SMALL["positions"](), interface)

    loaded(source, tmp_path)
    space: dict[str, object] = {"__file__": str(tmp_path / "model.py"), "__name__": "emitted"}
    exec(source.text, space)
    assert space["CLASS_NAMES"] == names
    assert "os" not in space and "/home" not in source.text
    assert ruff_faults([tmp_path / "model.py"]) == ""


# --- the checks can fail ------------------------------------------------------------------------


def test_another_number_in_the_text_is_seen(tmp_path):
    source = emitted("resnet50")
    wrong = replace(source, text=source.text.replace("bn3(self.conv3(y)) + x", "conv3(y) + x"))
    assert wrong.text != source.text
    assert not equal_bits(student("resnet50"), loaded(wrong, tmp_path))


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_of_another_network_are_refused(change, tmp_path):
    source = emitted("vit_tiny_patch16_224")
    tensors = dict(source.tensors)
    if change == "missing":
        del tensors["blocks.3.norm1.weight"]
    else:
        tensors["blocks.99.weight"] = torch.zeros(1)

    with pytest.raises(RuntimeError, match=change.capitalize()):
        loaded(replace(source, tensors=tensors), tmp_path)


def test_ruff_finds_what_is_wrong(tmp_path):
    (tmp_path / "model.py").write_text("import os\nx  = 1\n")
    faults = ruff_faults([tmp_path / "model.py"])
    assert "F401" in faults and "reformatted" in faults


# --- parts --------------------------------------------------------------------------------------


def test_lines_are_broken_where_ruff_breaks_them(tmp_path):
    lines = [
        f"x = call({', '.join(['argument'] * 9)}, last)",
        f"x = call({', '.join(['argument'] * 30)})",
        f"x = call([{', '.join(['argument'] * 20)}], dim=1)",
        f"x = call(*({'Name' * 10}(argument={'b' * 30}) for _ in range(12)), other)",
        f"x = [{'Name' * 10}(argument={'b' * 30}, other=other) for other in range(12)]",
        f'x = call("({"," * 60}", {"b" * 40})',
        f"x = call(*(call(a, b) for a, b in zip({'c' * 40}, {'d' * 40}, strict=True)))",
        f"x = call(for_each={'e' * 40}, other=(call({'f' * 20}), call({'g' * 20})), last=1)",
        f"x = [call({'f' * 40}), call({'g' * 40})]",
    ]
    text = "".join(f"{line}\n" for long in lines for line in broken(long))
    (tmp_path / "model.py").write_text(text)

    assert max(map(len, text.splitlines())) <= 100
    assert "would be reformatted" not in ruff_faults([tmp_path / "model.py"])


def test_equal_numbers_become_one_argument_and_multiples_follow():
    numbers = [
        Number((8, 16), "fc1.in_features"),
        Number((32, 64), "fc1.out_features"),
        Number((3, 3), "conv.kernel_size"),
        Number((32, 64), "fc2.in_features"),
        Number((8, 16), "fc2.out_features"),
        Number((1, 2), "conv.stride", keyword="stride", default=1),
        Number((1, 1), "pool.stride", keyword="stride", default=1),
    ]
    arguments, choices = choose_arguments(numbers)

    spelled = [choice.spelled(number) for choice, number in zip(choices, numbers, strict=True)]
    assert [argument.name for argument in arguments] == ["features", "stride"]
    assert spelled == [
        *("features", "4 * features", "3", "4 * features", "features"),
        *(", stride=stride", ""),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.1, "0.1"),
        (1e-05, "1e-5"),
        (1e22, "1e22"),
        (float("-inf"), 'float("-inf")'),
        ((7,), "(7,)"),
        ((1, 2), "(1, 2)"),
        ((1, 2, 3), "range(1, 4)"),
        ((9, 6, 3), "range(9, 0, -3)"),
        ((1, 2, 4), "(1, 2, 4)"),
    ],
)
def test_literals_evaluate_to_their_numbers(value, text):
    assert literal(value) == text
    read = eval(text)
    assert (tuple(read) if isinstance(value, tuple) else read) == value


def test_members_are_accessed_by_the_kind_of_their_holder():
    members = Members([("a.0.fc", False), ("a.1", False), ("b.x1", False), ("b.7", False)])

    reached = [members.access(path) for path in ("a.0.fc", "a.1", "b.x1", "b.7")]
    assert reached == ["self.a[0].fc", "self.a[1]", 'self.b["x1"]', 'self.b["7"]']


def test_a_simplified_program_computes_the_same_with_fewer_calls():
    class Wordy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.pad(x, (0, 0, 0, 0)).permute(0, 2, 1).contiguous()
            return x.reshape(-1, 3, 2, 4).reshape(-1, 24) * 2

    program = capture_module(Wordy(), (torch.randn(2, 4, 6),))
    plain = simplify(program)

    operations = [str(node.target) for node in plain.graph.nodes if node.op == "call_function"]
    assert operations == ["aten.permute.default", "aten.reshape.default", "aten.mul.Tensor"]
    assert equal_bits(program, build_network(plain))
