"""The public names, which are imported on first use, and `load`."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fitcompress
from fitcompress.models.model import save_model
from fitcompress.recipe.recipe import recipe_to_toml


@pytest.mark.parametrize("name", fitcompress.__all__)
def test_every_public_name_is_there(name):
    assert getattr(fitcompress, name) is not None


def test_the_names_are_sorted_and_shown():
    assert fitcompress.__all__ == sorted(fitcompress.__all__)
    assert dir(fitcompress) == fitcompress.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fitcompress' has no attribute 'distil'"):
        _ = fitcompress.distil


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, fitcompress\n"
        "fitcompress.Recipe, fitcompress.FitcompressError\n"
        "assert not {'torch', 'timm', 'rich', 'typer'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_no_public_name_is_also_a_module():
    """Importing a module binds its name in the package, over the function of that name."""
    names = {module.name for module in pkgutil.iter_modules(fitcompress.__path__)}

    assert names & set(fitcompress.__all__) == set()


def test_public_functions_stay_functions_after_every_module_was_imported():
    for module in pkgutil.walk_packages(fitcompress.__path__, "fitcompress."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    functions = [name for name in fitcompress.__all__ if name.islower() and name[0] != "_"]
    assert [name for name in functions if not callable(getattr(fitcompress, name))] == []


def test_the_version_is_that_of_the_distribution():
    assert importlib.metadata.version("fitcompress") == fitcompress.__version__


def test_an_installed_package_is_the_one_that_is_tested():
    """Otherwise the tests would check the source tree, which has files that a wheel may lack."""
    origin = importlib.metadata.distribution("fitcompress").read_text("direct_url.json")
    if origin is None or json.loads(origin).get("dir_info", {}).get("editable"):
        pytest.skip("an editable installation is the source tree")

    source = Path(__file__).parent.parent
    assert not Path(fitcompress.__file__).is_relative_to(source / "fitcompress")


@pytest.fixture
def run_with_a_student(tmp_path):
    """A run directory that holds a student: one linear layer on images of one channel."""
    spec = fitcompress.InputSpec(shape=(1, 4, 4), mean=(0.5,), std=(0.25,))
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    teacher = fitcompress.teacher_from_module(module, spec, class_names=("a", "b", "c"))
    save_model(tmp_path / "student", teacher.program, {}, teacher.interface)
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(fitcompress.Recipe()))
    return tmp_path, module, spec


@pytest.mark.parametrize("part", ["", "student"], ids=["run", "folder"])
def test_load_returns_the_network_and_its_interface(run_with_a_student, part):
    run, module, spec = run_with_a_student

    network = fitcompress.load(run / part)

    images = torch.randn(2, 1, 4, 4)
    assert torch.equal(network(images), module(images))
    assert not network.training
    assert network.interface.input == spec
    assert network.interface.class_names == ("a", "b", "c")


def test_load_of_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(fitcompress.FitcompressError) as caught:
        fitcompress.load(tmp_path)
    assert caught.value.code == "model-file-missing"


@pytest.mark.parametrize("name, dim", [("test_resnet", 4), ("test_vit", 3)])
def test_a_loaded_network_works_with_timms_tools(name, dim, tmp_path):
    import timm

    from fitcompress.models.open import open_teacher
    from fitcompress.recipe.recipe import resolve_recipe
    from fitcompress.recipe.schema import TeacherRecipe
    from fitcompress.student.planner import plan_run

    opened = open_teacher(TeacherRecipe(source=name, pretrained=False), emit=lambda event: None)
    recipe = resolve_recipe(settings={"teacher.source": name})
    student = plan_run(opened, recipe, emit=lambda event: None).student
    save_model(tmp_path / "m", student.program, {}, student.interface, student.blocks)

    network = fitcompress.load(tmp_path / "m")

    config = timm.data.resolve_data_config({}, model=network)
    spec = network.interface.images
    expected = {"input_size": spec.shape, "mean": spec.mean, "std": spec.std}
    assert {key: config[key] for key in expected} == expected
    assert config["crop_pct"] == spec.crop_pct
    assert network.num_classes == 1000
    images = torch.randn(2, *spec.shape)
    with torch.no_grad():
        features, logits = network.forward_features(images), network(images)
        again = network(images)
    assert features.dim() == dim and features.shape[0] == 2 and logits.shape == (2, 1000)
    assert torch.equal(logits, again)
    assert not any("forward_features" in key for key in network.state_dict())
    # the head reads them: pooled features, or the first token, through the last linear map
    head = list(network.named_parameters())[-2][1]
    assert head.shape[0] == 1000
