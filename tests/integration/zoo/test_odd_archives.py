"""Unusual archives, models other than of images, and the errors of unsupported teachers."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.other_nets import Branching, FixedView, Mlp, OnDevice, Recurrent, Text, TwoInputs
from helpers.other_teachers import recipe_of, stored
from helpers.small_nets import quietly, scripted, traced
from torch import Tensor, nn
from typer.testing import CliRunner

from fitcompress.cli.commands import app
from fitcompress.errors import CaptureError, ObstacleError, RecipeError, TeacherError
from fitcompress.events import ignore
from fitcompress.graph.capture.torchscript import capture_torchscript, load_torchscript
from fitcompress.graph.program import run_program
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import TensorSpec
from fitcompress.models.open import open_teacher, teacher_from_module
from fitcompress.models.teacher import Teacher
from fitcompress.student.planner import plan_run


def opened(path: Path, **settings: object) -> Teacher:
    named = {f"teacher.{name}": value for name, value in settings.items()}
    return open_teacher(recipe_of(path, named).teacher)


def archive(module: nn.Module, path: Path, *examples: Tensor) -> Path:
    """A traced archive, or a scripted one if there are no examples."""
    return stored(module.eval(), examples, "traced" if examples else "scripted", path)


# --- what an archive may hold -------------------------------------------------------------------


def saved_on_a_gpu(path: Path, target: Path) -> Path:
    """The archive as saved on a GPU: its code names that device."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith(".py"):
                content = content.replace(b'torch.device("cpu")', b'torch.device("cuda:0")')
            copy.writestr(entry, content)
    return target


@pytest.mark.parametrize("way", ["traced", "scripted"])
def test_an_archive_whose_code_names_a_gpu_runs_on_the_cpu(way, tmp_path):
    module = OnDevice().eval()
    x = torch.randn(3, 3, 8, 8)
    path = saved_on_a_gpu(stored(module, (x[:2],), way, tmp_path / "cpu.pt"), tmp_path / "gpu.pt")
    with zipfile.ZipFile(path) as file:
        assert any(b"cuda:0" in file.read(name) for name in file.namelist())
    if not torch.cuda.is_available():
        with quietly(), pytest.raises(RuntimeError, match=r"NVIDIA|CUDA"):
            torch.jit.load(str(path), map_location="cpu")(x)

    teacher = opened(path, input_size=(3, 8, 8))

    with torch.no_grad():
        torch.testing.assert_close(run_program(teacher.program, x)[0], module(x))
    assert "cuda" not in str(teacher.program.graph)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_an_archive_that_fixes_its_batch_and_its_size_by_a_view(batch_size, tmp_path):
    module = FixedView(batch_size).eval()
    path = archive(module, tmp_path / "fixed.pt", torch.randn(batch_size, 1, 6, 10))
    recipe = recipe_of(path, {"teacher.input_size": (1, 6, 10)})
    teacher = open_teacher(recipe.teacher)
    planned = plan_run(teacher, recipe, emit=ignore)

    x = torch.randn(2 * batch_size, 1, 6, 10)
    with torch.no_grad():
        expected = torch.cat([module(part) for part in x.split(batch_size)])
    torch.testing.assert_close(run_program(teacher.program, x)[0], expected)
    for size in (1, 3):
        assert (size, 4) in propagate_shapes(planned.student.program, size).values()


def test_a_size_that_the_view_does_not_allow_is_an_error_with_the_cause(tmp_path):
    path = archive(FixedView(1), tmp_path / "fixed.pt", torch.randn(1, 1, 6, 10))
    with pytest.raises(CaptureError, match=r"inputs of \(1, 8, 8\) float32: shape") as caught:
        opened(path, input_size=(1, 8, 8))
    assert "--input-size" in caught.value.advice


class FixedStates(nn.Module):
    """Starts its LSTM from states of a fixed batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states = torch.zeros(1, 2, 4)
        return self.lstm(x, (states, states))[0][:, -1]


def test_states_of_one_batch_size_are_never_run_with_another(tmp_path):
    """torch's LSTM would write out of bounds and crash the process."""
    module = FixedStates().eval()
    path = archive(module, tmp_path / "states.pt", torch.randn(2, 5, 4))
    teacher = opened(path, inputs=("5x4",))
    x = torch.randn(6, 5, 4)
    with torch.no_grad():
        expected = torch.cat([module(part) for part in x.split(2)])
    torch.testing.assert_close(run_program(teacher.program, x)[0], expected)


@pytest.mark.parametrize("make", [traced, lambda module, _: scripted(module)], ids=["t", "s"])
def test_recurrent_calls_are_for_training_so_that_a_gpu_gives_gradients(make):
    module = Recurrent().eval()
    program = capture_torchscript(make(module, torch.randn(2, 10, 6)), (10, 6))
    (call,) = (n for n in program.graph.nodes if n.target is torch.ops.aten.lstm.input)
    dropout, is_for_training = call.args[5:7]
    assert (dropout, is_for_training) == (0.0, True)


# --- what stands in the way ---------------------------------------------------------------------


class Reading(nn.Module):
    """Control flow or shapes that depend on the values of the input."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(4, 4), way
        self.register_buffer("limit", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.way == "written":
            notes = torch.zeros(4)
            notes[0].copy_(x[0, 0])
            return y * float(notes.sum())
        if self.way == "number":
            return y * float(x.max())
        if self.way == "rows":
            return y + x[x[:, 0] > 0].sum()
        if self.way == "places":
            return y + torch.nonzero(x).sum()
        return y if bool(self.limit > 0) else x


OBSTACLES = {
    "branch": (Branching, "'aten.item.default' in `if bool(x.sum() > 0):`"),
    "number": (lambda: Reading("number"), "'aten.item.default' in `return y * float(x.max())`"),
    "written": (lambda: Reading("written"), "'aten.item.default' in `return y * float(notes"),
    "rows": (lambda: Reading("rows"), "'aten.index.Tensor' in `return y + x[x[:, 0] > 0]"),
    "places": (lambda: Reading("places"), "'aten.nonzero.default' in `return y + torch.nonzero"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_control_flow_that_depends_on_values_is_refused_with_its_place(name, tmp_path):
    make, place = OBSTACLES[name]
    path = archive(make(), tmp_path / "teacher.pt")
    with pytest.raises(ObstacleError, match=re.escape(place)) as caught:
        opened(path, inputs=("4",))
    assert "the same operations for every input" in caught.value.advice


def test_a_branch_on_the_archives_own_tensors_is_allowed(tmp_path):
    module = Reading("own")
    teacher = opened(archive(module, tmp_path / "teacher.pt"), inputs=("4",))
    x = torch.randn(3, 4)
    torch.testing.assert_close(run_program(teacher.program, x)[0], module(x).detach())


@pytest.mark.parametrize(
    ("module", "place"),
    [
        (
            Branching(),
            "what it computes depends on the values of its input ('aten.is_nonzero.default' in `if",
        ),
        (Reading("number"), "what it computes depends on the values of its input"),
        (Reading("places"), "'aten.nonzero.default'"),
    ],
    ids=["branch", "number", "places"],
)
def test_a_module_in_memory_is_refused_as_its_archive_is(module, place, capfd):
    with pytest.raises(ObstacleError, match=re.escape(place)):
        teacher_from_module(module, [TensorSpec(shape=(4,))])
    assert capfd.readouterr() == ("", "")


def quantized(kind: str) -> nn.Module:
    """torch's eager quantization of the weights only or of everything."""
    from torch.ao import quantization

    if kind == "weights":
        kinds = {nn.Linear}
        return quantization.quantize_dynamic(Mlp().eval(), kinds, dtype=torch.qint8)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), quantization.DeQuantStub(), nn.Flatten()
    module = nn.Sequential(quantization.QuantStub(), *layers).eval()
    module.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(module)
    prepared(torch.randn(2, 3, 8, 8))
    return quantization.convert(prepared)


@pytest.mark.parametrize(
    ("kind", "settings", "call"),
    [
        ("weights", {"inputs": ("20",)}, "quantized.linear_dynamic"),
        ("all", {"input_size": (3, 8, 8)}, "aten.quantize_per_tensor"),
    ],
)
def test_a_quantized_archive_is_refused_by_its_call(kind, settings, call, tmp_path):
    with quietly():
        path = archive(quantized(kind), tmp_path / "quantized.pt")
    with pytest.raises(ObstacleError, match=call) as caught:
        opened(path, **settings)
    assert "float model" in caught.value.advice


class WithLoss(nn.Module):
    """Returns scores and one number for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.layer(x)
        return {"scores": scores, "loss": scores.mean()}


@pytest.mark.parametrize("way", ["scripted", "pt2", "module"])
def test_an_output_without_rows_is_refused(way, tmp_path):
    module, x = WithLoss().eval(), torch.randn(2, 4)
    with pytest.raises(CaptureError, match=r"one row (a|per) sample"):
        if way == "module":
            teacher_from_module(module, [TensorSpec(shape=(4,))])
        else:
            path = stored(module, (x,), way, tmp_path / "teacher.pt")
            opened(path, inputs=("4",))


# --- inputs other than images --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "examples"),
    [
        (Mlp(), (torch.randn(2, 20),)),
        (nn.Linear(224, 5), (torch.randn(2, 224),)),  # runs on images of this size, meaninglessly
        (Text(), (torch.randint(0, 2, (2, 12)),)),
        (TwoInputs(), (torch.randn(2, 3, 16, 16), torch.randn(2, 7))),
    ],
    ids=["mlp", "rows", "text", "two inputs"],
)
def test_an_archive_of_another_model_comes_with_advice_on_inputs(module, examples, tmp_path):
    path = archive(module, tmp_path / "teacher.pt", *examples)
    with pytest.raises(CaptureError) as caught:
        opened(path)
    assert "--input 1x16000 or --input 128:int64" in caught.value.advice


def test_wrong_inputs_are_named_with_the_cause(tmp_path):
    path = archive(TwoInputs(), tmp_path / "two.pt", torch.randn(2, 3, 16, 16), torch.randn(2, 7))
    with pytest.raises(CaptureError, match=r"of \(3, 16, 16\) float32: .* argument 'table'"):
        opened(path, inputs=("3x16x16",))
    with pytest.raises(CaptureError, match=r"\(3, 16, 16\) float32 and \(8,\) int64: "):
        opened(path, inputs=("3x16x16", "8:int64"))


def test_a_pt2_describes_its_inputs(tmp_path):
    path = stored(Text().eval(), (torch.randint(0, 2, (2, 12)),), "pt2", tmp_path / "text.pt2")
    assert opened(path, inputs=("12:int64",)).interface == opened(path).interface
    with pytest.raises(RecipeError) as caught:
        opened(path, inputs=("12",))
    assert caught.value.code == "inputs-mismatch"
    assert (caught.value.facts["expected"], caught.value.facts["got"]) == (
        ["12:int64"],
        ["12:float32"],
    )


def test_inputs_do_not_apply_to_a_timm_name():
    with pytest.raises(RecipeError) as caught:
        opened(Path("test_resnet"), inputs=("3x32x32",))
    assert caught.value.code == "inputs-not-applicable"


# --- on the command line ------------------------------------------------------------------------


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="fitcompress")


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("archives") / "two.pt"
    return archive(TwoInputs(), path, torch.randn(2, 3, 16, 16), torch.randn(2, 7))


def test_inspect_and_plan_take_several_inputs(two_inputs):
    flags = ["--input", "3x16x16", "--input", "7", "--json"]
    layers = json.loads(run("inspect", two_inputs, *flags).stdout)
    assert {"conv1", "table", "mix", "head"} <= {layer["name"] for layer in layers}
    plan = json.loads(run("plan", "--teacher", two_inputs, *flags).stdout)
    assert plan["student"]["params"] < plan["teacher"]["params"] / 2
    assert plan["pairs"][0]["hint_shape"] == [32]


def test_a_factory_takes_other_inputs_too():
    result = run("plan", "--teacher", "helpers.other_nets:Text", "--input", "12:int64", "--json")
    assert json.loads(result.stdout)["teacher"]["depth"] == 9


def test_distill_refuses_a_teacher_without_images_in_one_line(two_inputs, in_empty_folder):
    result = run(
        *("distill", "--teacher", two_inputs, "--input", "3x16x16", "--input", "7"),
        *("--out", "run", "--quiet"),
    )
    assert result.exit_code == 3 and result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: distilling") and "3x16x16:float32 and 7:float32" in error
    assert "fitcompress plan" in hint


def test_the_images_of_a_network_without_any_are_an_error(two_inputs):
    interface = opened(two_inputs, inputs=("3x16x16", "7")).interface
    with pytest.raises(TeacherError) as caught:
        _ = interface.images
    assert caught.value.code == "images-required"
    assert caught.value.facts == {"inputs": ["3x16x16:float32", "7:float32"]}


def test_load_torchscript_leaves_other_archives_to_torch(tmp_path):
    path = archive(Mlp(), tmp_path / "mlp.pt", torch.randn(2, 20))
    assert set(load_torchscript(path).state_dict()) == set(Mlp().state_dict())
