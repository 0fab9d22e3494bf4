"""Teachers of every kind, detected by content, and errors with advice."""

from __future__ import annotations

import pickle
import sys
import zipfile

import pytest
import safetensors.torch
import timm
import torch
from helpers.small_nets import (
    FixedBatch,
    Residual,
    export_to,
    quietly,
    reloaded,
    scripted,
    traced,
    trained_a_little,
)
from torch import nn

from fitcompress.errors import CaptureError, FitcompressError, RecipeError, TeacherError
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import run_program
from fitcompress.interface import InputSpec, Interface
from fitcompress.models.hub import hub_is_reachable, quiet_hub
from fitcompress.models.model import save_model
from fitcompress.models.open import open_teacher, source_kind, teacher_from_module
from fitcompress.models.weight_files import file_kind, read_weights, refuse_unsafe_export
from fitcompress.recipe.schema import TeacherRecipe

NAME = "test_resnet"
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def opened(source, emit=None, **options):
    recipe_fields = ("weights", "pretrained", "num_classes", "input_size", "mean", "std")
    settings = {"pretrained": False} | {
        key: options.pop(key) for key in (*recipe_fields, "class_map") if key in options
    }
    if "classes" in options:
        options["num_classes"] = options.pop("classes")
    recipe = TeacherRecipe(source=str(source), **settings)
    return open_teacher(recipe, emit=emit or (lambda _event: None), **options)


def failure(source, **options) -> FitcompressError:
    with pytest.raises(FitcompressError) as caught:
        opened(source, **options)
    return caught.value


# --- timm -----------------------------------------------------------------------------------


def test_a_timm_name_brings_its_own_interface():
    teacher = opened(NAME)
    config = timm.get_pretrained_cfg(NAME)
    assert teacher.interface.input.shape == tuple(config.input_size)
    assert teacher.interface.input.mean == tuple(config.mean)
    assert (teacher.kind, teacher.weights_from, teacher.num_classes) == ("timm", "random", 1000)
    assert teacher.can_resize_classes


def test_flags_win_over_the_model_s_own_configuration():
    teacher = opened(NAME, input_size=(1, 48, 40), mean=(0.3,), std=(0.2,))
    assert teacher.interface.input.shape == (1, 48, 40)
    assert (teacher.interface.input.mean, teacher.interface.input.std) == ((0.3,), (0.2,))
    assert teacher.program.tensors["conv1.0.weight"].shape[1] == 1


def test_the_input_size_follows_the_data_where_the_teacher_allows_it():
    assert opened(NAME, image_size=(32, 32)).interface.input.shape == (3, 32, 32)


def test_a_transformer_is_built_again_for_whole_patches_of_the_data():
    teacher = opened("test_vit", image_size=(30, 30), classes=4)
    assert teacher.interface.input.shape == (3, 32, 32) and teacher.num_classes == 4


def test_another_number_of_classes_gives_a_fresh_head():
    base, adapted = opened(NAME), opened(NAME, classes=7)
    assert adapted.num_classes == 7
    assert adapted.program.tensors["fc.weight"].shape[0] == 7
    same = [n for n in base.program.tensors if not n.startswith("fc.")]
    tensors = adapted.program.tensors
    assert all(torch.equal(base.program.tensors[n], tensors[n]) for n in same)


def test_the_seed_decides_the_random_weights_and_the_caller_s_generator_is_left_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, third = (opened(NAME, seed=seed).fingerprint for seed in (1, 1, 2))
    assert first == second != third
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plan_needs_no_weights():
    teacher = opened(NAME, meta=True)
    assert all(value.is_meta for value in teacher.program.tensors.values())
    assert teacher.num_classes == 1000


def test_an_unknown_name_comes_with_near_misses():
    error = failure("resnet5")
    assert error.code == "timm-model-unknown" and "'resnet50'" in error.advice


def test_an_unknown_tag_comes_with_near_misses():
    error = failure("resnet50.a1_in2k")
    assert error.code == "timm-weights-unknown" and "'resnet50.a1_in1k'" in error.advice


def test_unavailable_pretrained_weights_are_an_error_with_advice(capfd):
    error = failure(NAME, pretrained=True)
    assert error.code == "pretrained-unavailable"
    assert "--teacher-weights" in error.advice
    assert capfd.readouterr() == ("", "")


def test_random_weights_replace_pretrained_ones_with_a_notice_if_allowed():
    notices = []
    teacher = opened(NAME, pretrained=True, allow_random=True, emit=notices.append)
    assert teacher.weights_from == "random"
    assert [notice.code for notice in notices] == ["random-weights-used"]


def test_quiet_hub_is_offline_without_a_connection_and_restores_its_settings(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not hub_is_reachable(timeout_s=0.1)
    with quiet_hub():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


# --- weights --------------------------------------------------------------------------------


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return trained_a_little(timm.create_model(NAME, num_classes=6)).state_dict()


WRAPPERS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best_prec1": 0.5, "epoch": 3},
    "model_state": lambda state: {"model_state": state, "optimizer": {"lr": 0.1}},
    "module": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "compiled": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_state_dict_is_read_whatever_it_is_wrapped_in(wrapper, state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(WRAPPERS[wrapper](state), path)
    teacher = opened(NAME, weights=str(path), num_classes=6, image_size=(32, 32))
    assert teacher.weights_from == "file"
    assert all(torch.equal(v, state[k]) for k, v in teacher.program.tensors.items())


def test_safetensors_and_old_files_are_read_whatever_their_name(state, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors", _use_new_zipfile_serialization=False)
    assert file_kind(tmp_path / "a.pth") == "safetensors"
    assert set(read_weights(tmp_path / "a.pth")) == set(state)
    assert set(read_weights(tmp_path / "b.safetensors")) == set(state)


def test_weights_that_do_not_fit_are_named(state, tmp_path):
    state["extra.weight"] = torch.zeros(1)
    del state["conv1.0.weight"]
    torch.save(state, tmp_path / "w.pth")
    error = failure(NAME, weights=str(tmp_path / "w.pth"))
    assert error.code == "weights-mismatch"
    assert error.facts["missing"] == ["conv1.0.weight"]
    assert error.facts["unexpected"] == ["extra.weight"]
    assert "fc.weight (expected (1000, 96), got (6, 96))" in error.facts["reshaped"]
    assert "conv1.0.weight" in error.message and "extra.weight" in error.message


def test_weights_under_foreign_names_are_taken_in_order_with_a_notice(state, tmp_path):
    torch.save({f"layer_{i}": v for i, v in enumerate(state.values())}, tmp_path / "w.pth")
    notices = []
    teacher = opened(NAME, weights=str(tmp_path / "w.pth"), num_classes=6, emit=notices.append)
    assert torch.equal(teacher.program.tensors["fc.weight"], state["fc.weight"])
    assert notices[0].code == "weights-matched-by-order"


# --- files ----------------------------------------------------------------------------------


@pytest.fixture
def module() -> nn.Module:
    return trained_a_little(Residual())


def written(kind: str, module: nn.Module, path):
    example = torch.randn(2, 3, 32, 32)
    if kind == "pt2":
        return export_to(path, module, example)
    archive = traced(module, example) if kind == "traced" else scripted(module)
    reloaded(archive, path)
    return path


@pytest.mark.parametrize("kind", ["traced", "scripted", "pt2"])
def test_archives_are_recognized_by_their_content(kind, module, tmp_path):
    path = written(kind, module, tmp_path / "model.bin")
    notices = []
    teacher = opened(path, image_size=(32, 32), emit=notices.append)
    assert teacher.kind == source_kind(str(path)) == ("pt2" if kind == "pt2" else "torchscript")
    assert teacher.weights_from == "archive" and not teacher.can_resize_classes
    assert teacher.interface.input.shape == (3, 32, 32) and teacher.num_classes == 5
    assert "normalization-assumed" in [notice.code for notice in notices]
    with torch.no_grad():
        torch.testing.assert_close(
            build_network(teacher.program)(X), module(X), rtol=1e-6, atol=1e-6
        )


def test_no_notice_if_the_normalization_is_given(module, tmp_path):
    path = written("pt2", module, tmp_path / "m.pt2")
    notices = []
    opened(path, mean=(0.5,) * 3, std=(0.5,) * 3, emit=notices.append)
    assert not notices


def test_an_archive_is_tried_at_common_sizes_and_the_choice_is_told(tmp_path):
    path = tmp_path / "m.pt"
    reloaded(traced(FixedSide(28).eval(), torch.randn(2, 3, 28, 28)), path)
    notices = []
    teacher = opened(path, emit=notices.append)
    assert teacher.interface.input.shape == (3, 28, 28)
    assert "input-size-assumed" in [notice.code for notice in notices]


class FixedSide(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * side * side, 5)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize("activation", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_an_activation_at_the_end_is_taken_off_and_named(activation, module, tmp_path):
    path = written("traced", nn.Sequential(module, activation).eval(), tmp_path / "m.pt")
    teacher = opened(path, image_size=(32, 32))
    assert teacher.interface.activation in ("softmax", "log_softmax", "sigmoid")
    with torch.no_grad():
        logits = run_program(teacher.program, X)[0]
        torch.testing.assert_close(logits, module(X), rtol=1e-6, atol=1e-6)


def test_our_own_model_folder_is_a_teacher(module, tmp_path):
    interface = Interface(
        input=InputSpec(shape=(3, 32, 32), mean=(0.1,) * 3, std=(0.2,) * 3),
        class_names=tuple("abcde"),
    )
    save_model(tmp_path, capture_module(module, (torch.randn(2, 3, 32, 32),)), module, interface)
    teacher = opened(tmp_path)
    assert teacher.kind == "folder" and teacher.interface == interface


def test_a_teacher_of_a_fixed_class_count_is_refused_for_other_data(module, tmp_path):
    error = failure(written("pt2", module, tmp_path / "m.pt2"), classes=9)
    assert error.code == "teacher-head-fixed"
    assert (error.facts["expected"], error.facts["got"]) == (9, 5)


def test_a_static_export_gets_a_dynamic_batch(tmp_path):
    path = export_to(
        tmp_path / "m.pt2", FixedBatch(2).eval(), torch.randn(2, 3, 8, 8), dynamic=False
    )
    program = opened(path).program
    assert run_program(program, torch.randn(5, 3, 8, 8))[0].shape == (5, 5)


@pytest.mark.parametrize("kind", ["traced", "pt2"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_archive_is_an_error(kind, share, module, tmp_path):
    path = written(kind, module, tmp_path / "m.pt")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert failure(path).code == "file-truncated"


def test_a_flipped_byte_is_found(module, tmp_path):
    path = written("pt2", module, tmp_path / "m.pt2")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    assert failure(path).code == "file-truncated"


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a pickle was run",))


def test_a_pickled_module_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    error = failure(tmp_path / "m.pt")
    assert error.code == "pickle-refused" and "torch.jit.trace" in error.advice


def test_nothing_in_a_pickle_is_run(tmp_path):
    torch.save({"state_dict": _Bomb()}, tmp_path / "m.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(_Bomb()))
    assert failure(tmp_path / "m.pth").code == "pickle-refused"
    assert failure(tmp_path / "old.pth").code == "pickle-refused"


def test_a_file_of_weights_is_not_a_teacher(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    error = failure(tmp_path / "w.pt")
    assert error.code == "weights-without-model" and "--teacher-weights" in error.advice


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("models/none.pt", "no-such-file"),
        ("none.pth", "no-such-file"),
        ("owner/name", "no-such-file"),
        (".", "model-folder-foreign"),
    ],
)
def test_a_path_without_a_teacher_is_an_error(source, code, in_empty_folder):
    assert failure(source).code == code


def test_a_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"hello world, not a model at all")
    assert failure(tmp_path / "m.onnx").code == "model-format-unknown"


def test_weights_beside_an_archive_make_no_sense(module, tmp_path):
    path = written("pt2", module, tmp_path / "m.pt2")
    error = failure(path, weights="w.pth")
    assert isinstance(error, RecipeError) and error.code == "weights-not-applicable"


# --- what a .pt2 may hold -------------------------------------------------------------------


def rewritten(path, target, change):
    """A copy of a zip archive; `change` maps each (name, content) to another, or to None."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            result = change(name, old.read(name))
            if result is not None:
                new.writestr(*result)
    return target


def replaced(part, old, new):
    def change(name, content):
        return name, content.replace(old, new) if part in name else content

    return change


ATTACKS = {
    "custom object": lambda n, c: (n.replace("byteorder", "data/constants/custom_obj_0"), c),
    "opaque object": lambda n, c: (n.replace("byteorder", "data/constants/opaque_obj_0"), c),
    "pickled weight": replaced("weights_config", b'"use_pickle": false', b'"use_pickle": true'),
    "example inputs": lambda n, c: (n, pickle.dumps(_Bomb()) if "sample_inputs" in n else c),
    "size expression": replaced("models/", b"Symbol('", b"exec('"),
    "hidden name": replaced("models/", b"Symbol(", b"().__class__("),
    "foreign call": replaced("models/", b"torch.ops.aten.relu", b"torch.ops.evil.relu"),
    "torch function": replaced("models/", b"torch.ops.aten.conv2d.default", b"torch.hub.load"),
    "native code": lambda n, c: (n.replace("byteorder", "data/aotinductor/model.so"), c),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_exported_program_that_could_run_code_is_refused(attack, module, tmp_path):
    path = written("pt2", module, tmp_path / "m.pt2")
    refuse_unsafe_export(path)
    harmed = rewritten(path, tmp_path / "harmed.pt2", ATTACKS[attack])
    with pytest.raises(TeacherError) as caught:
        refuse_unsafe_export(harmed)
    assert caught.value.code == "export-unsafe"


# --- factories and modules ------------------------------------------------------------------


@pytest.fixture
def factory_folder(in_empty_folder):
    (in_empty_folder / "mynets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make(num_classes=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(6, num_classes))\n"
        "def fixed():\n    return make()\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    raise ValueError('no such width')\n"
    )
    yield in_empty_folder
    sys.modules.pop("mynets", None)


def test_a_factory_in_the_current_folder_is_a_teacher(factory_folder):
    teacher = opened("mynets:make", image_size=(16, 16))
    assert (teacher.kind, teacher.num_classes, teacher.weights_from) == ("factory", 4, "factory")
    assert teacher.can_resize_classes


def test_a_factory_takes_weights_and_another_head(factory_folder):
    opened("mynets:make", image_size=(16, 16))
    state = sys.modules["mynets"].make().state_dict()
    torch.save(state, "w.pth")
    teacher = opened("mynets:make", weights="w.pth", classes=9, image_size=(16, 16))
    assert teacher.weights_from == "file" and teacher.num_classes == 9
    assert torch.equal(teacher.program.tensors["0.weight"], state["0.weight"])


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("mynets:nothing", "factory-missing"),
        ("mynetz:make", "factory-import-failed"),
        ("mynets:wrong", "factory-result-type"),
        ("mynets:broken", "factory-failed"),
    ],
)
def test_a_factory_that_fails_is_an_error(source, code, factory_folder):
    error = failure(source)
    assert (error.code, error.facts["source"]) == (code, source)


def test_the_error_of_a_factory_is_quoted(factory_folder):
    assert "no such width" in failure("mynets:broken").message


def test_a_factory_without_num_classes_keeps_its_head(factory_folder):
    assert failure("mynets:fixed", classes=9).code == "teacher-head-fixed"


def test_a_module_in_memory_is_a_teacher(module):
    spec = InputSpec(shape=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    teacher = teacher_from_module(module, spec, class_names=tuple("abcde"))
    assert teacher.num_classes == 5 and teacher.name == "Residual"
    with torch.no_grad():
        assert torch.equal(run_program(teacher.program, X)[0], module(X))


def test_a_module_that_does_not_fit_its_inputs_is_an_error():
    spec = InputSpec(shape=(3, 16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    with quietly(), pytest.raises(CaptureError):
        teacher_from_module(nn.Linear(3, 3), spec)


# --- settings -------------------------------------------------------------------------------


def test_class_names_come_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n\nemu\n", encoding="utf-8")
    names = opened(NAME, class_map=str(tmp_path / "names.txt")).interface.class_names
    assert names == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"mean": (0.5,)}, "normalization-invalid"),
        ({"std": (1.0,)}, "normalization-invalid"),
        ({"std": (0.0, 1.0, 1.0)}, "setting-out-of-bounds"),
        ({"class_map": "none.txt"}, "class-map-unreadable"),
    ],
)
def test_inconsistent_settings_are_errors(settings, code):
    error = failure(NAME, **settings)
    assert isinstance(error, RecipeError) and error.code == code
