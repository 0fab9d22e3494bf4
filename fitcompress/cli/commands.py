"""The commands: parse, one call of the pipeline, one view of the console. Nothing is decided here.

The pipeline, and torch with it, is imported inside the commands: `--help` must not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fitcompress
from fitcompress.ablation.arms import ARMS, DEFAULT_ARMS, read_arms
from fitcompress.cli import console, flags
from fitcompress.cli.failures import resumable
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
    from fitcompress.report.ablation_facts import Ablation
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
    """The end of a command's help."""
    return "\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{text}[/cyan]" for text in commands)])


def _print_version(asked: bool) -> None:
    if asked:
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """A trained image model in, a much smaller one that does the same job out, with the evidence.

    A thinner and deeper student is built from the teacher, trained in two
    stages (hints, then distillation, after FitNets), checked and reported.
    """


Teacher = Annotated[
    str | None,
    typer.Option(
        help="timm name, TorchScript or .pt2 file, model folder, or package.module:factory.",
        rich_help_panel="Teacher",
    ),
]
Run = Annotated[
    Path | None,
    typer.Argument(help="The run directory; the newest under runs/ when left out."),
]
_TRAINING_RUN = (
    *(flags.TEACHER, flags.ADAPTING, flags.STUDENT, flags.HINTS),
    *(flags.DATA, flags.TRAINING, flags.MACHINE),
)
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]


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
    out: Annotated[
        Path | None, typer.Option(help="Run directory; a fresh one under runs/ by default.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in --out (or the newest); flags may only repeat it."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Build a thinner and deeper student from a teacher, train it, check it and report.

    Without --data the built-in images are used: a small sample of Fashion-MNIST.
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
def inspect(request: Request, teacher: Annotated[str, typer.Argument(metavar="TEACHER")]) -> None:
    """Show a teacher's layers in the order they run: shapes, share of depth, hint candidates."""
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
            "--pareto", help="Parameters, FLOPs and latency over several depths and widths instead."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With --pareto, a file for its picture (.svg, .png).")
    ] = None,
) -> None:
    """Show what the student would be, in seconds, without data or training."""
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
        str | None, typer.Option(help="timm name of the model to fine-tune, or module:factory.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Model folder; a fresh one under teachers/ by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out.")] = False,
    force: Force = False,
) -> None:
    """Fine-tune a timm model on images: a teacher for those who have none."""
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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder, or any teacher.")],
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
@takes(recipe=False)
def export(
    request: Request,
    run: Run = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="ONNX (the default).")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="ONNX in float16.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="ONNX in int8, calibrated on training images.")
    ] = False,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing", help="ONNX from uint8 images to probabilities, in one file."
        ),
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset; the exporter's own choice.")
    ] = None,
    safetensors: Annotated[bool, typer.Option("--safetensors", help="Weights alone.")] = False,
    torchscript: Annotated[bool, typer.Option("--torchscript", help="TorchScript.")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="torch.export program.")] = False,
    python: Annotated[
        bool, typer.Option("--python", help="Readable stand-alone model.py.")
    ] = False,
    force: Force = False,
) -> None:
    """Write the student in other formats, each checked against it on real images."""
    asked = {
        "onnx": onnx,
        "onnx-fp16": fp16,
        "onnx-int8": int8,
        "onnx-pixels": with_preprocessing,
        "safetensors": safetensors,
        "torchscript": torchscript,
        "pt2": pt2,
        "python": python,
    }
    formats = [name for name, is_asked in asked.items() if is_asked] or ["onnx"]
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
            metavar="[RUN]...", help="Run directory, the newest when left out; several to compare."
        ),
    ] = None,
    form: Annotated[
        console.ReportForm, typer.Option("--format", help="html is written to a file.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option(help="File to write to; for html RUN/report.html by default.")
    ] = None,
) -> None:
    """Compare student and teacher: accuracy, agreement, size, cost and speed; or several runs, or
    the arms of an ablation.
    """
    with request.progress():
        loaded: Report | Comparison | Ablation
        if runs and len(runs) > 1:
            loaded = fitcompress.load_comparison(runs)
        else:
            loaded = fitcompress.load_report(runs[0] if runs else None)
    console.show_report(loaded, form="json" if request.as_json else form, output=output)


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
            help=f"Ways: {', '.join(f'{each.name} ({each.meaning})' for each in ARMS.values())}",
            metavar="NAME,NAME...",
            show_default=",".join(DEFAULT_ARMS),
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="Your own: what it changes in ht; repeat it.", metavar="'NAME: KEY=VALUE, ...'"
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="What your own are held against; else ht.", metavar="NAME")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="So many for each arm.", show_default="5")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of all runs; a fresh one under runs/ by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in --out; arms and seeds come to those there.")
    ] = False,
    force: Force = False,
) -> None:
    """Ask what a student owes to its teacher: train it in several ways, over several seeds.

    Each arm changes one thing: no teacher, no hints, hints that know nothing.
    The report says what is shown, and what is not.
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
        raise TrainingError(
            f"failed runs: {len(done.failed)}, see the report", advice="--resume tries them again"
        )


@app.command(epilog=_examples("fitcompress demo", "fitcompress demo --out runs/first"))
@takes(recipe=False)
def demo(
    request: Request,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; a fresh one under runs/ by default.", show_default="runs/demo-N"
        ),
    ] = None,
) -> None:
    """The whole road on the built-in images, in a few minutes on a CPU."""
    run_path = out or fresh_path("demo", Path("runs"))
    with request.progress() as emit, resumable(run_path):
        made = fitcompress.demo(run_path, emit=emit)
    console.show_report(made, form=request.report_form)
