"""Students of other families than their teachers: pairs, regressors and steps of both stages.

Maps guide tokens and tokens maps, with and without class tokens, channels first and last, at other
input sizes and normalisations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import timm
import torch
from helpers.small_nets import traced
from steps import distill_objective, hint_objective

from fitcompress.data.views import Batch
from fitcompress.errors import PlanError, TeacherError
from fitcompress.events import ignore
from fitcompress.models.model import make_model, save_model
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import Recipe, resolve_recipe
from fitcompress.student.planner import Planned, make_regressors, plan_run

CONVNEXT, DEIT, EFFICIENTNET = "convnext_atto", "deit_tiny_patch16_224", "efficientnet_b0"
MIXER, MOBILENET, RESNET = "mixer_s32_224", "mobilenetv3_small_100", "resnet18"
SWIN, VIT = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"

NUM_CLASSES = 10
OTHER_MEAN, OTHER_STD = (0.4, 0.3, 0.2), (0.3, 0.2, 0.1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher, a student, and their expected pair and regressor, derived by hand."""

    teacher: str
    student: str
    size: tuple[int, int] = (64, 64)
    """(height, width) of the teacher's images."""
    student_size: tuple[int, int] | None = None
    """Input size of the student if it differs: its file has this size."""
    form: str = "timm"
    """"timm", "folder" or "torchscript"."""
    hint: tuple[str, tuple[int, ...]]
    guided: tuple[str, tuple[int, ...]]
    target: tuple[int, ...]
    """The hint's shape without class tokens."""
    regressor: str


# The sizes are the images' over the strides: at 64, stride 8 leaves 8, stride 16 leaves 4, and a
# transformer of patch 16 has 4 x 4 tokens and the class token, the mixer of patch 32 has 2 x 2.
CASES = {
    "map to map": Case(
        teacher=RESNET,
        student=CONVNEXT,
        hint=("layer2.1", (128, 8, 8)),
        guided=("stages.1.blocks.1", (80, 8, 8)),
        target=(128, 8, 8),
        regressor="1x1 conv 80 -> 128",
    ),
    "larger map to map": Case(  # 96 / 16 = 6, and 6 - 4 + 1 = 3
        teacher=EFFICIENTNET,
        student=MOBILENET,
        student_size=(96, 96),
        form="folder",
        hint=("blocks.3.2", (80, 4, 4)),
        guided=("blocks.2.2", (40, 6, 6)),
        target=(80, 4, 4),
        regressor="3x3 conv 40 -> 80",
    ),
    "map to tokens": Case(  # 224 / 16 = 14, 14 x 14 = 196 and a class token
        teacher=VIT,
        student=RESNET,
        size=(224, 224),
        hint=("blocks.5", (197, 192)),
        guided=("layer3.0", (256, 14, 14)),
        target=(196, 192),
        regressor="1x1 conv 256 -> 192, flatten",
    ),
    "tokens to oblong map": Case(  # 4 x 6 tokens and a class token: 25 are no square here
        teacher=RESNET,
        student=DEIT,
        size=(64, 96),
        hint=("layer2.1", (128, 8, 12)),
        guided=("blocks.5", (25, 192)),
        target=(128, 8, 12),
        regressor="without 1 prefix tokens, fold to 4x6, 1x1 conv 192 -> 128, bilinear to 8x12",
    ),
    "tokens to tokens": Case(
        teacher=DEIT,
        student=VIT,
        hint=("blocks.5", (17, 192)),
        guided=("blocks.5", (17, 192)),
        target=(16, 192),
        regressor="without 1 prefix tokens, linear 192 -> 192",
    ),
    "oblong tokens to tokens with class": Case(  # 4 x 6 and one, from 2 x 3
        teacher=VIT,
        student=MIXER,
        size=(64, 96),
        hint=("blocks.5", (25, 192)),
        guided=("blocks.3", (6, 512)),
        target=(24, 192),
        regressor="fold to 2x3, 1x1 conv 512 -> 192, bilinear to 4x6, flatten",
    ),
    "tokens with class to tokens": Case(  # 4 - 2 + 1 = 3
        teacher=MIXER,
        student=DEIT,
        hint=("blocks.3", (4, 512)),
        guided=("blocks.5", (17, 192)),
        target=(4, 512),
        regressor="without 1 prefix tokens, fold to 4x4, 3x3 conv 192 -> 512, flatten",
    ),
    "map to last": Case(
        teacher=SWIN,
        student=EFFICIENTNET,
        hint=("layers.2.blocks.1", (4, 4, 384)),
        guided=("blocks.3.2", (80, 4, 4)),
        target=(4, 4, 384),
        regressor="1x1 conv 80 -> 384",
    ),
    "last to map": Case(
        teacher=MOBILENET,
        student=SWIN,
        hint=("blocks.2.2", (40, 4, 4)),
        guided=("layers.2.blocks.1", (4, 4, 384)),
        target=(40, 4, 4),
        regressor="1x1 conv 384 -> 40",
    ),
    "tokens to last": Case(
        teacher=SWIN,
        student=DEIT,
        hint=("layers.2.blocks.1", (4, 4, 384)),
        guided=("blocks.5", (17, 192)),
        target=(4, 4, 384),
        regressor="without 1 prefix tokens, fold to 4x4, 1x1 conv 192 -> 384",
    ),
    "last to tokens": Case(
        teacher=MIXER,
        student=SWIN,
        hint=("blocks.3", (4, 512)),
        guided=("layers.2.blocks.1", (4, 4, 384)),
        target=(4, 512),
        regressor="3x3 conv 384 -> 512, flatten",
    ),
    "more tokens to map": Case(  # 6 x 6 and a class token, and 6 - 4 + 1 = 3
        teacher=CONVNEXT,
        student=VIT,
        student_size=(96, 96),
        form="torchscript",
        hint=("stages.2.blocks.1", (160, 4, 4)),
        guided=("blocks.5", (37, 192)),
        target=(160, 4, 4),
        regressor="without 1 prefix tokens, fold to 6x6, 3x3 conv 192 -> 160",
    ),
}


@dataclass(frozen=True)
class Opened:
    case: Case
    plan: Planned
    recipe: Recipe


@pytest.fixture(scope="module", params=CASES)
def opened(request, tmp_path_factory) -> Opened:
    """A pair with random weights, made once for the tests below."""
    case = CASES[request.param]
    torch.manual_seed(0)
    source = student_source(case, tmp_path_factory.mktemp("student"))
    recipe = recipe_of(case.teacher, source)
    teacher = open_teacher(recipe.teacher, image_size=case.size, num_classes=NUM_CLASSES)
    return Opened(case, plan_run(teacher, recipe, emit=ignore), recipe)


def recipe_of(teacher: str, student: str, **more: object) -> Recipe:
    settings = {
        "teacher.source": teacher,
        "teacher.pretrained": False,
        "student.source": student,
    }
    named = {name.replace("__", "."): value for name, value in more.items()}
    return resolve_recipe(settings={**settings, **named})


def student_source(case: Case, folder) -> str:
    if case.form == "folder":
        recipe = recipe_of(case.student, "")
        found = open_teacher(recipe.teacher, image_size=case.student_size, num_classes=NUM_CLASSES)
        images = replace(found.interface.images, mean=OTHER_MEAN, std=OTHER_STD)
        model = make_model(found.program, replace(found.interface, input=images))
        save_model(folder, model.program, {}, model.interface, model.blocks)
        return str(folder)
    if case.form == "torchscript":
        options = {"img_size": case.student_size, "num_classes": NUM_CLASSES}
        module = timm.create_model(case.student, **options).eval()
        path = folder / "student.pt"
        traced(module, torch.zeros(2, 3, *case.student_size)).save(str(path))
        return str(path)
    return case.student


# --- the twelve pairs --------------------------------------------------------------------------


def test_the_middle_of_one_family_is_paired_with_the_middle_of_another(opened):
    case = opened.case
    (pair,) = opened.plan.pairs

    assert (pair.hint.name, pair.hint.shape) == case.hint
    assert (pair.guided.name, pair.guided.shape) == case.guided
    assert pair.hint.depth_share == pytest.approx(0.5, abs=0.1)
    assert pair.guided.depth_share == pytest.approx(0.5, abs=0.2)
    assert pair.guided.depth_share == pytest.approx(pair.hint.depth_share, abs=0.2)


def test_the_regressor_leads_to_the_shape_of_the_hint(opened):
    case = opened.case
    (pair,) = opened.plan.pairs
    ((regressor, words),) = make_regressors(opened.plan.pairs, opened.recipe.hints)

    answer = regressor(torch.randn(2, *pair.guided.shape))
    target = regressor.target(torch.randn(2, *pair.hint.shape))

    assert answer.shape == target.shape == (2, *case.target)
    assert words == case.regressor
    assert opened.plan.summary.pairs[0].regressor == words


def test_each_network_has_its_own_size_and_normalisation(opened):
    case = opened.case
    teacher, student = (m.interface.images for m in (opened.plan.teacher, opened.plan.student))

    assert teacher.shape[1:] == case.size
    assert student.shape[1:] == (case.student_size or case.size)
    assert (teacher.mean, teacher.std) == normalisation(case.teacher)
    if case.form == "timm":
        assert (student.mean, student.std) == normalisation(case.student)
    elif case.form == "folder":
        assert (student.mean, student.std) == (OTHER_MEAN, OTHER_STD)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = timm.get_pretrained_cfg(name)
    return config.mean, config.std


def test_both_stages_take_steps_and_their_losses_fall(opened):
    student, batch = opened.plan.student.network, some_batch(opened.plan)

    hints = hint_objective(opened.plan, opened.recipe, batch)
    take_steps(hints, batch, torch.optim.AdamW(hints.trained.parameters(), lr=1e-3))
    distilled = distill_objective(opened.plan, opened.recipe)
    # Two untrained networks agree so well that the large steps of AdamW lead away at first.
    take_steps(distilled, batch, torch.optim.SGD(distilled.trained.parameters(), lr=1e-3))

    trained, whole = (set(net.parameters()) for net in (distilled.trained, student))
    assert trained == whole


def some_batch(plan: Planned) -> Batch:
    """Two images of the larger of both sizes, as in a run."""
    shape = max(model.interface.images.shape for model in (plan.teacher, plan.student))
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    return Batch(images, torch.arange(2), torch.arange(2))


def take_steps(objective, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """Takes some steps on one batch: the loss falls, gradients of the first step are finite."""
    objective.train()
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = objective.losses(batch, 0.0)["loss"]
        losses.append(loss)
        if step < 3:
            loss.backward()
            optimizer.step()
        if step == 0:
            check_finite(dict(objective.trained.named_parameters()))
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0], losses


def check_finite(parameters: dict[str, torch.nn.Parameter]) -> None:
    assert parameters
    for name, parameter in parameters.items():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), name


# --- sizes -------------------------------------------------------------------------------------

FIXED_SIZE = """
import torch

class Fixed(torch.nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 16, stride=16)
        self.block = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.head = torch.nn.Linear(4 * 14 * 14, num_classes)

    def forward(self, x):
        return self.head(self.block(self.stem(x).relu()).relu().flatten(1))
"""


def planned_shapes(recipe: Recipe, size: tuple[int, int]) -> tuple[Planned, tuple, tuple]:
    """The plan on shapes alone, and the images that teacher and student take."""
    teacher = open_teacher(recipe.teacher, image_size=size, num_classes=NUM_CLASSES, meta=True)
    plan = plan_run(teacher, recipe, emit=ignore, meta=True)
    return plan, plan.teacher.interface.images.shape, plan.student.interface.images.shape


def test_a_student_that_runs_only_at_its_own_size_does_so(in_empty_folder):
    (in_empty_folder / "fixed_size.py").write_text(FIXED_SIZE)

    plan, teacher, student = planned_shapes(recipe_of("test_resnet", "fixed_size:Fixed"), (64, 64))

    assert (teacher, student) == ((3, 64, 64), (3, 224, 224))
    (pair,) = plan.pairs
    assert (pair.hint.shape[1:], pair.guided.shape[1:]) == ((8, 8), (14, 14))
    assert plan.summary.pairs[0].regressor.startswith("7x7 conv")  # 14 - 8 + 1


def test_a_timm_student_that_cannot_be_built_at_the_teachers_size_keeps_its_own():
    """72 is 9 patches of 8, which this model cannot halve; its own size is 224."""
    _, teacher, student = planned_shapes(recipe_of("test_resnet", "twins_svt_small"), (72, 72))

    assert (teacher, student) == ((3, 72, 72), (3, 224, 224))


def test_the_student_takes_the_size_requested_for_the_teacher_if_it_runs_at_it():
    asked = {"teacher__input_size": (1, 28, 28)}

    _, teacher, same = planned_shapes(
        recipe_of("test_resnet", "test_efficientnet", **asked), (28, 28)
    )
    _, _, patches = planned_shapes(recipe_of("test_resnet", "test_vit", **asked), (28, 28))

    assert teacher == same == (1, 28, 28)
    assert patches == (3, 32, 32), "28 are no whole patches of 16, so it sees 32"


def test_registers_before_oblong_tokens_have_no_place_in_the_grid():
    """A class token, 4 registers and 4 x 6 places; the mixer's patches are twice as large."""
    plan, *_ = planned_shapes(recipe_of(MIXER, "vit_small_patch16_dinov3"), (64, 96))

    (pair,) = plan.pairs
    assert (pair.hint.shape, pair.hint_grid) == ((6, 512), (2, 3))
    assert (pair.guided.shape, pair.guided_grid) == ((29, 384), (4, 6))
    words = "without 5 prefix tokens, fold to 4x6, 3x4 conv 384 -> 512, flatten"
    assert plan.summary.pairs[0].regressor == words


# --- names -------------------------------------------------------------------------------------


def test_named_layers_of_both_families_are_taken_as_they_are():
    named = {"hints__hint": ("blocks.3",), "hints__guided": ("layer3.0.conv1",)}

    plan, *_ = planned_shapes(recipe_of("test_vit", "test_resnet", **named), (64, 64))

    (pair,) = plan.pairs
    assert (pair.hint.name, pair.guided.name) == ("blocks.3", "layer3.0.conv1")
    assert plan.summary.pairs[0].regressor.endswith("flatten")


@pytest.mark.parametrize(
    ("student", "code"),
    [
        ("resnet19", "timm-model-unknown"),
        ("nowhere.pt", "no-such-file"),
        ("no_such_module:net", "factory-import-failed"),
    ],
)
def test_a_student_that_cannot_be_opened_is_not_called_a_teacher(student, code):
    with pytest.raises(TeacherError) as caught:
        planned_shapes(recipe_of("test_resnet", student), (32, 32))

    assert caught.value.code == code
    assert caught.value.message.startswith(f"opening student '{student}': ")
    assert "teacher" not in caught.value.message


def test_a_vector_cannot_guide_a_map():
    named = {"hints__guided": ("fc",), "hints__hint": ("blocks.1",)}

    with pytest.raises(PlanError) as caught:
        planned_shapes(recipe_of("test_vit", "test_resnet", **named), (64, 64))
    assert caught.value.code == "guided-without-positions"
