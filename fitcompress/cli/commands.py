"""The commands: parse flags, call one public function, print its result.

The functions, and torch with them, are imported when a command runs, so that `--help` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fitcompress
from fitcompress.ablation.arms import ARMS, DEFAULT_ARMS, read_arms
from fitcompress.cli import console, flags
from fitcompress.cli.failures import resumable, show_failure
from fitcompress.cli.flags import with_default
from fitcompress.cli.request import (
    Request,
    ablation_recipe,
    fresh_path,
    run_recipe,
    takes,
    training_recipe,
)
from fitcompress.errors import TrainingError

if TYPE_CHECKING:
    from fitcompress.report.ablation_report import Ablation
    from fitcompress.report.comparison import Comparison
    from fitcompress.report.run_report import Report

__all__ = ["app"]

app = typer.Typer(
    name="fitcompress",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _examples(*commands: str) -> str:
    """Example commands, for the end of a help text."""
    return "\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{text}[/cyan]" for text in commands)])


def _print_version(value: bool) -> None:
    if value:
        console.show_text(f"fitcompress {fitcompress.__version__}")
        raise typer.Exit


@app.callback(
    epilog=_examples(
        "fitcompress demo",
        "fitcompress distill --teacher resnet50 --depth-mult 2 --width-mult 0.3",
        "fitcompress export --onnx",
        "fitcompress report",
    )
)
def _fitcompress(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Compress a trained image model into a much smaller one, and compare the two.

    A thinner, deeper student is derived from the teacher, trained in two stages
    (hint training and knowledge distillation, as in FitNets) and evaluated.
    """


_SOURCES = "timm name, TorchScript or .pt2 file, model folder, or package.module:factory"
Teacher = Annotated[
    str | None, typer.Option(help=f"Teacher: {_SOURCES}.", rich_help_panel="Teacher")
]
Run = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help=with_default("Run directory.", "the newest under runs/")),
]
RunOut = Annotated[
    Path | None, typer.Option(help=with_default("Run directory.", "a new one under runs/"))
]
_TRAINING_RUN = (
    *(flags.TEACHER, flags.ADAPTING, flags.STUDENT, flags.HINTS),
    *(flags.DATA, flags.TRAINING, flags.MACHINE),
)
Force = Annotated[bool, typer.Option("--force", help="Replace existing results.")]


@app.command(
    epilog=_examples(
        "fitcompress distill --teacher resnet50 --depth-mult 2 --width-mult 0.3",
        "fitcompress distill --teacher model.pt --data ./images --out runs/small",
        "fitcompress distill --teacher resnet18 --preset hinton --set stage2.tau=3",
        "fitcompress distill --resume --out runs/small",
    )
)
@takes(*_TRAINING_RUN)
def distill(
    request: Request,
    teacher: Teacher = None,
    out: RunOut = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out, or the newest run. Other flags must match its"
            " settings.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Distill a teacher into a thinner, deeper student, and report the result.

    Without --data, the built-in images are used: a small sample of Fashion-MNIST.
    """
    recipe, run_path = run_recipe(request, teacher=teacher, out=out, resume=resume)
    with request.progress() as emit, resumable(run_path):
        report = fitcompress.distill(recipe, resume=resume, force=force, emit=emit)
    console.show_report(report, form=request.report_form)


@app.command(
    epilog=_examples(
        "fitcompress inspect resnet18 --no-pretrained",
        "fitcompress inspect model.pt --input-size 32 --json",
    )
)
@takes(flags.TEACHER)
def inspect(
    request: Request,
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help=f"Teacher: {_SOURCES}.")],
) -> None:
    """List a teacher's layers in execution order: shapes, relative depth, hint candidates."""
    recipe = request.recipe(teacher__source=teacher)
    with request.progress() as emit:
        layers = fitcompress.inspect(recipe, emit=emit)
    console.show_layers(layers, as_json=request.as_json)


@app.command(
    epilog=_examples(
        "fitcompress plan --teacher resnet50 --depth-mult 2 --width-mult 0.3",
        "fitcompress plan --teacher resnet50 --target-params 10%",
        "fitcompress plan --teacher vgg11 --no-pretrained --json",
    )
)
@takes(flags.TEACHER, flags.STUDENT, flags.HINTS)
def plan(
    request: Request,
    teacher: Teacher = None,
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto",
            help="Compare students of several depths and widths by parameters, FLOPs and latency"
            " instead.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Save the comparison of --pareto as a plot (.svg or .png).")
    ] = None,
) -> None:
    """Show the planned student, its size and its hints in seconds, without data or training."""
    recipe = request.recipe_of_teacher(teacher)
    with request.progress() as emit:
        if pareto:
            rows = fitcompress.plan_frontier(recipe, emit=emit)
        else:
            planned = fitcompress.plan(recipe, emit=emit)
    if pareto:
        console.show_frontier(rows, plot, as_json=request.as_json)
    else:
        console.show_plan(planned, as_json=request.as_json)


@app.command(
    epilog=_examples(
        "fitcompress train --model resnet18 --data ./images --out teachers/r18",
        "fitcompress distill --teacher teachers/r18 --data ./images",
    )
)
@takes(flags.TEACHER, flags.FINE_TUNING, flags.DATA, flags.MACHINE)
def train(
    request: Request,
    model: Annotated[
        str | None,
        typer.Option(help="Model to fine-tune: timm name or package.module:factory."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=with_default("Model folder.", "a new one under teachers/"))
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the training in --out. Other flags must match its settings.",
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Fine-tune a timm model to use as a teacher."""
    recipe, folder = training_recipe(request, model=model, out=out, resume=resume, force=force)
    with request.progress() as emit, resumable(folder, "train"):
        trained = fitcompress.train_teacher(recipe.teacher.source, recipe, resume=resume, emit=emit)
    console.show_model_folder(trained, as_json=request.as_json)


@app.command(
    name="eval",
    epilog=_examples(
        "fitcompress eval runs/small/student --data ./images",
        "fitcompress eval model.pt --data ./images --input-size 32 --json",
    ),
)
@takes(flags.TEACHER, flags.DATA, flags.MACHINE)
def evaluate(
    request: Request,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"Model: ONNX file, {_SOURCES}."),
    ],
) -> None:
    """Measure a model's accuracy on the evaluation split of a data set."""
    recipe = request.recipe(teacher__source=model)
    with request.progress() as emit:
        measured = fitcompress.evaluate(model, recipe, emit=emit)
    console.show_eval(measured, as_json=request.as_json)


@app.command(
    epilog=_examples(
        "fitcompress export --onnx", "fitcompress export runs/small --onnx --int8 --safetensors"
    )
)
@takes(recipe=False, formats=flags.FORMATS)
def export(
    request: Request,
    run: Run = None,
    opset: Annotated[
        int | None,
        typer.Option(help=with_default("ONNX opset version.", "the exporter's own")),
    ] = None,
    force: Force = False,
) -> None:
    """Export a run's student, and check each file against it on real images."""
    formats = list(request.formats) or ["onnx"]
    with request.progress() as emit:
        exports = fitcompress.export(run, formats, opset=opset, force=force, emit=emit)
    console.show_exports(exports, as_json=request.as_json)


@app.command(
    epilog=_examples(
        "fitcompress report",
        "fitcompress report runs/small --format html --output small.html",
        "fitcompress report runs/first runs/second runs/third",
    )
)
@takes(recipe=False)
def report(
    request: Request,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help=with_default(
                "Directory of a run or an ablation, or of each run to compare.",
                "the newest under runs/",
            ),
        ),
    ] = None,
    form: Annotated[
        console.ReportForm,
        typer.Option("--format", help=with_default("Output format.", "text"), show_default=False),
    ] = "text",
    output: Annotated[
        Path | None,
        typer.Option(
            help=with_default("Output file.", "stdout; for html, report.html in the run directory")
        ),
    ] = None,
) -> None:
    """Report on a run: accuracy, agreement, size, cost and speed of student and teacher.

    Several runs are compared; an ablation is reported arm by arm.
    """
    with request.progress():
        loaded: Report | Comparison | Ablation
        if runs and len(runs) > 1:
            loaded = fitcompress.load_comparison(runs)
        else:
            loaded = fitcompress.load_report(runs[0] if runs else None)
    console.show_report(loaded, form="json" if request.as_json else form, output=output)


_ARMS = ", ".join(f"{arm.name} ({arm.meaning})" for arm in ARMS.values())


@app.command(
    epilog=_examples(
        "fitcompress ablate --teacher resnet18 --data ./images --seeds 5",
        "fitcompress ablate --teacher model.pt --arms bp,kd,ht,joint --out runs/why",
        "fitcompress ablate --teacher resnet18 --arms kd,ht --arm 'hot: stage2.tau=8'",
        "fitcompress ablate --resume --out runs/why --seeds 7",
    )
)
@takes(*(group.without("--init", "--baseline", "--shard") for group in _TRAINING_RUN))
def ablate(
    request: Request,
    teacher: Teacher = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help=with_default(f"Arms, comma-separated: {_ARMS}.", ",".join(DEFAULT_ARMS)),
            metavar="NAME,NAME...",
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="Custom arm: the ht arm with these settings changed. Repeat for more.",
            metavar="'NAME: KEY=VALUE, ...'",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help=with_default("Arm to compare custom arms with.", "ht"), metavar="NAME"),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help=with_default("Seeds per arm.", 5))
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=with_default("Directory for all runs.", "a new one under runs/")),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the ablation in --out, and add arms and seeds if given."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Run an ablation: train the student with and without parts of the teacher's supervision.

    Each arm changes one thing, such as no teacher, no hints, or random hints, and is
    trained with several seeds. The report tests which differences are significant.
    """
    recipe, root = ablation_recipe(request, teacher=teacher, out=out, resume=resume)
    named = arms.split(",") if arms else () if resume else DEFAULT_ARMS
    chosen = read_arms(named, arm or (), against) if named or arm or against else None
    first = recipe.run.seed
    with request.progress() as emit, resumable(root, "ablate"):
        done = fitcompress.ablate(
            recipe,
            arms=chosen,
            seeds=range(first, first + seeds) if seeds else None,
            resume=resume,
            force=force,
            emit=emit,
        )
    console.show_report(done, form=request.report_form)
    if done.failed:
        raise typer.Exit(show_failure(_runs_failed(len(done.failed))))  # stdout has the report


def _runs_failed(count: int) -> TrainingError:
    return TrainingError(
        f"running the ablation: {count} of the runs failed",
        code="runs-failed",
        advice="See the report for the reasons. Retry the failed runs with --resume.",
        runs=count,
    )


@app.command(epilog=_examples("fitcompress demo", "fitcompress demo --out runs/first"))
@takes(recipe=False)
def demo(
    request: Request,
    out: RunOut = None,
) -> None:
    """Run the full pipeline on the built-in images, in a few minutes on a CPU."""
    run_path = out or fresh_path("demo", Path("runs"))
    with request.progress() as emit, resumable(run_path):
        made = fitcompress.demo(run_path, emit=emit)
    console.show_report(made, form=request.report_form)
