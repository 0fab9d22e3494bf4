"""The training loop of every stage. Layer: training; knows no stage's meaning, only its objective.

One rule for randomness: the images of a step are a pure function of (seed, epoch, step), and
torch's generator is seeded before each step from (seed, stage, epoch, step). So no random state
needs saving, and a run that was stopped anywhere, or killed, ends with the same bits as an unbroken
one (same hardware, thread count and versions).

Losses are summed on the device, which is waited for by a few progress reports a second, and where
several processes ask each other whether to stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitcompress.data.loader import in_groups, make_loader
from fitcompress.data.views import Batch, Views
from fitcompress.errors import TrainingError
from fitcompress.events import Emit, EpochFinished, Notice, StageStarted, ignore
from fitcompress.modes import preserved_modes
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.training.checkpoint import (
    TrainState,
    all_finite,
    read_checkpoint,
    write_checkpoint,
)
from fitcompress.training.compile import compile_networks, uncompiled, uncompiled_in_the_end
from fitcompress.training.device import (
    preserved_random_state,
    resolve_device,
    resolve_layout,
    resolve_precision,
    start_accelerator,
    to_channels_last,
)
from fitcompress.training.distributed import ProcessGroup
from fitcompress.training.early_stopping import BestWeights
from fitcompress.training.ema import WeightAverage
from fitcompress.training.memory import in_memory, keep_freed_memory
from fitcompress.training.meter import ADVICE_DIVERGED, LossMeter
from fitcompress.training.optimizer import build_optimizer, set_learning_rate
from fitcompress.training.progress_reporter import ProgressReporter
from fitcompress.training.protocols import Objective, Scores
from fitcompress.training.scoring import add_scores, mean_scores
from fitcompress.training.signals import Interrupted, StopRequest, stop_on_signals
from fitcompress.training.stage_result import StageResult, epoch_record, last_events, result_of
from fitcompress.training.train_config import (
    Position,
    TrainConfig,
    check_held_out,
    check_settings,
    fit_steps,
    step_seed,
)

__all__ = ["train"]

_SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""Within an epoch; there is one at the end of every epoch anyway."""
_STEPS_BETWEEN_ASKING = 8
"""Whether another process was asked to stop."""


def train(
    objective: Objective,
    *,
    train_data: Views,
    held_out_data: Views | None,
    optim: OptimRecipe,
    epochs: int,
    batch_size: int,
    seed: int,
    checkpoint_path: Path,
    stage: str,
    device: str = "auto",
    precision: str = "auto",
    layout: str = "contiguous",
    compiles: bool = False,
    emit: Emit = ignore,
    resume: bool = False,
    num_workers: int = 0,
    accumulate: int = 1,
    auto_batch: bool = False,
    shards: bool = False,
    recipe_hash: str = "",
) -> StageResult:
    """Trains `objective.trained` in place, up to the last epoch, and returns what that cost.

    The objective is left on the device; its training flags and torch's random state come back.

    Args:
        train_data: incomplete last batches are left out; the order differs in each epoch.
        held_out_data: evaluated after each epoch; None or an empty set leaves that out.
        batch_size: of a process; capped so that an epoch has a step.
        accumulate: batches of each process in a step.
        auto_batch: halve the batch and double `accumulate` where memory runs out.
        shards: each process keeps a part of the networks.
        checkpoint_path: written after each epoch, every ten minutes, and on SIGINT or SIGTERM.
        layout: "contiguous", "channels-last" or "auto" (channels-last except on MPS), of what
            is trained.
        compiles: compile the networks; where that fails it is said, and they run as they are.
        stage: its name in events and messages; a part of the seed.
        resume: go on from `checkpoint_path` where it exists; a finished stage is only loaded.
        recipe_hash: whatever else the stage depends on; a checkpoint with another is refused.

    Raises:
        TrainingError: a loss or weight is not finite; a checkpoint cannot be written or resumed;
            memory ran out.
        DataError: there are no training images; or no held-out ones, where the best epoch counts.
        Interrupted: SIGINT or SIGTERM came; the checkpoint holds everything up to that step.
    """
    device = resolve_device(device)
    group = ProcessGroup(start_accelerator(device, resolve_precision(precision, device)), shards)
    check_held_out(stage, optim, len(held_out_data or ()))
    batch_size, steps = fit_steps(stage, len(train_data), batch_size, accumulate * group.num)
    config = TrainConfig(
        stage=stage,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        num_processes=group.num,
        steps_per_epoch=steps,
        seed=seed,
        optim=optim,
        recipe_hash=recipe_hash,
        num_workers=num_workers,
        checkpoint_path=checkpoint_path,
        auto_batch=auto_batch,
    )
    if device == "cpu":
        keep_freed_memory()
    with (
        stop_on_signals() as stop,
        preserved_random_state(device),
        preserved_modes(objective.modules()),
        uncompiled_in_the_end(objective),
    ):
        if resolve_layout(layout, device) == "channels-last":
            to_channels_last(objective.trained)

        def attempt(config: TrainConfig, resume: bool) -> StageResult:
            loop = _Loop(config, objective, group, train_data, held_out_data, stop, emit)
            if compiles:
                loop.compile()
            if resume:
                loop.restore()
            return loop.run()

        return in_memory(attempt, config, resume, emit)


class _Loop:
    """One session of a stage: the parts that a step touches, and where it stands."""

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        group: ProcessGroup,
        train_data: Views,
        held_out_data: Views | None,
        stop: StopRequest,
        emit: Emit,
    ) -> None:
        self.config = config
        self.group, self.accelerator = group, group.accelerator
        self.train_data, self.held_out_data = train_data, held_out_data
        self.stop, self.emit = stop, emit
        self.device: torch.device = self.accelerator.device
        self.given = objective
        self.objective, self.losses = group.joined(objective)
        self.average = WeightAverage(self.objective.trained, config.optim.ema)
        self.optimizer = build_optimizer(self.objective.trained, config.optim)
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)
        self.best = BestWeights(self.objective.trained, config.optim.patience)
        parts = self.optimizer, self.average, self.best, self.accelerator.scaler
        self.state = TrainState(self.objective.trained, *parts)
        self.position = Position()
        self.meter = LossMeter(self.device)
        self.history: list[dict[str, Any]] = []

    def compile(self) -> None:
        """Compiles the networks, with a trial on the first images."""
        batch = self._on_device(self.train_data.batch(range(self.config.batch_size)))
        with self.accelerator.autocast():
            said = compile_networks(self.objective, batch)
        self.emit(Notice(topic="training", message=f"{self.config.stage}: {said}"))

    def run(self) -> StageResult:
        config = self.config
        started = {"num_epochs": config.epochs, "num_steps_per_epoch": config.steps_per_epoch}
        first = self.position.epoch
        self.emit(StageStarted(stage=config.stage, first_epoch=first, **started))
        self.reporter = ProgressReporter(
            config.stage,
            self.emit,
            num_steps=config.num_steps,
            first_step=self._num_steps_done,
            batch_size=config.images_per_step,
        )
        if config.auto_batch and not config.checkpoint_path.exists():
            self._save()  # what smaller batches would go on from
        while not self._is_over:
            self._run_epoch()
        self.average.settle()
        self.best.settle()
        self.group.broadcast_buffers(self.objective.trained)
        self.group.restore_given(self.objective, self.given)
        result = result_of(self.config, self.position, self.history)
        for event in last_events(result, config.num_workers):
            self.emit(event)
        if any(self.group.all_gather(self.stop.is_set)):  # the stage is whole, the run is not
            raise Interrupted(config.stage, config.checkpoint_path)
        return result

    def restore(self) -> None:
        """Goes on from the checkpoint where there is one; TrainingError if it is of another run."""
        if not self.config.checkpoint_path.exists():
            return
        content = read_checkpoint(self.config.checkpoint_path)
        check_settings(self.config, content["settings"])
        try:
            self.state.restore(content)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"resuming {self.config.stage}: '{self.config.checkpoint_path}'"
                " holds another network",
                advice="Resume with the recipe that the run directory holds.",
            ) from error
        self.position = Position(**content["position"])
        self.meter.restore(content["meter"])
        self.history = content["history"]

    def _run_epoch(self) -> None:
        self._train_steps()
        self.meter.check(self.config.stage, self.position.epoch + 1)
        held_out = self._evaluate()
        losses = self.group.means(self.meter.means())
        record = epoch_record(self.config, self.position, losses, held_out)
        self.history.append(record)
        self.best.look(self.history, lambda: self.average.state() or self.state.weights())
        self.position = Position(
            epoch=record["epoch"],
            seconds=self.position.seconds + self.position.epoch_seconds,
            waiting_seconds=self.position.waiting_seconds,
        )
        self.meter = LossMeter(self.device)
        self._save()
        self.emit(EpochFinished(stage=self.config.stage, **record))

    def _train_steps(self) -> None:
        """The steps of the epoch that are still to do."""
        config, position = self.config, self.position
        self.objective.train()
        self.train_data.set_epoch(position.epoch)
        self.train_data.move_to(self.device)
        loader = make_loader(
            self.train_data,
            config.batch_size,
            shuffle_seed=config.seed,
            epoch=position.epoch,
            num_workers=config.num_workers,
            start_batch=position.step * config.batches_per_step,
            drop_last=config.batches_per_step,
            share=(self.group.index, self.group.num),
            pin_memory=self.device.type == "cuda",
        )
        lap = last_save = time.monotonic()
        for batches in in_groups(self._waited_for(loader), config.accumulate):
            self._stop_if_asked()
            self._step(batches)
            self._watch()
            now = time.monotonic()
            position.epoch_seconds += now - lap
            if now - last_save > _SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                last_save = now = time.monotonic()
            lap = now
        self.meter.means()  # waits for the device, which the clock must see
        position.epoch_seconds += time.monotonic() - lap

    def _waited_for(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with a clock on how long each was not there yet."""
        batches = iter(loader)
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.position.waiting_seconds += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def _step(self, batches: Sequence[Batch]) -> None:
        config = self.config
        rate = set_learning_rate(
            self.optimizer,
            config.optim,
            step=self._num_steps_done,
            num_steps=config.num_steps,
            steps_per_epoch=config.steps_per_epoch,
        )
        self.stepper.zero_grad()
        parts = [self._accumulate(batch, place) for place, batch in enumerate(batches)]
        if config.optim.grad_clip is not None:
            parameters = self.objective.trained.parameters()
            self.accelerator.clip_grad_norm_(parameters, config.optim.grad_clip)
        self.stepper.step()
        losses = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self.meter.add({**losses, "lr": rate}, self.position.step + 1)
        self.position.step += 1
        self.average.update(self._num_steps_done)

    def _accumulate(self, batch: Batch, place: int) -> dict[str, Tensor | float]:
        """Adds the gradients of one micro-batch, the `place`-th of this process in the step."""
        config, position, group = self.config, self.position, self.group
        number = position.step * config.batches_per_step + place * group.num + group.index
        torch.manual_seed(step_seed(config.seed, config.stage, position.epoch, number))
        progress = self._num_steps_done / max(config.num_steps - 1, 1)
        is_last = place == config.accumulate - 1
        with nullcontext() if is_last else group.without_averaging(self.objective, self.losses):
            with self.accelerator.autocast():
                losses = self.losses(self._on_device(batch), progress)
            self.accelerator.backward(losses["loss"] / config.accumulate)
        return {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in losses.items()
        }

    def _watch(self) -> None:
        """Reports now and then; looks for a loss that is not finite wherever that is free."""
        epoch, step = self.position.epoch + 1, self.position.step
        has_waited = self.reporter.report(
            self.meter, epoch=epoch, step=step, num_steps_done=self._num_steps_done
        )
        if has_waited or self.device.type == "cpu":
            self.meter.check(self.config.stage, epoch)

    def _evaluate(self) -> dict[str, float]:
        """Scores on the held-out images."""
        if self.held_out_data is None or len(self.held_out_data) == 0:
            return {}
        self.objective.train(False)
        self.held_out_data.move_to(self.device)
        size, workers = self.config.batch_size, self.config.num_workers
        loader = make_loader(self.held_out_data, size, num_workers=workers, share=self.group.share)
        with self.average.shown():
            self.group.broadcast_buffers(self.objective.trained)
            return mean_scores(add_scores(map(self._scores, loader)), self.group)

    def _scores(self, batch: Batch) -> Scores:
        if self.group.num == 1:  # several have other numbers of batches and cannot agree here
            self._stop_if_asked()
        with torch.no_grad(), self.accelerator.autocast(), uncompiled():
            return self.objective.evaluate(self._on_device(batch))

    def _stop_if_asked(self) -> None:
        """Several processes must stop after the same step."""
        is_moment = self.group.num == 1 or self.position.step % _STEPS_BETWEEN_ASKING == 0
        if is_moment and any(self.group.all_gather(self.stop.is_set)):
            self._save()
            raise Interrupted(self.config.stage, self.config.checkpoint_path)

    def _save(self) -> None:
        """Writes the checkpoint, unless what it would hold has diverged."""
        self.meter.check(self.config.stage, self.position.epoch + 1)
        learnt = self.state.state()
        if not all_finite(learnt["trained"]):
            raise TrainingError(
                f"training {self.config.stage}: a weight is not finite (NaN or infinite) after"
                f" {self._num_steps_done} steps",
                advice=ADVICE_DIVERGED,
            )
        if not self.group.is_first:
            return
        content = {
            "settings": self.config.settings,
            "position": asdict(self.position),
            "finished": self._is_over,
            "history": self.history,
            "meter": self.meter.state(),
            **learnt,
        }
        write_checkpoint(self.config.checkpoint_path, content)

    def _on_device(self, batch: Batch) -> Batch:
        return batch.to(self.device, non_blocking=True)

    @property
    def _is_over(self) -> bool:
        return self.position.epoch == self.config.epochs or self.best.is_over(self.history)

    @property
    def _num_steps_done(self) -> int:
        return self.position.epoch * self.config.steps_per_epoch + self.position.step
