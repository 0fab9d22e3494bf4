"""The training loop of every stage; sees only the stage's objective.

Random numbers: the images of a step are a pure function of (seed, epoch, step), and torch's
generator is seeded before each micro-batch from (seed, stage, epoch, number). So checkpoints store
no random state, and a run that was interrupted or killed at any point ends bit-identical to an
uninterrupted one (same hardware, thread count and versions).

Losses are summed on the device. Only progress reports, a few per second, and the agreement of
several processes to stop wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fitcompress.data.loader import in_groups, make_loader
from fitcompress.data.views import Batch, Views
from fitcompress.errors import TrainingError
from fitcompress.events import Emit, EpochFinished, Notice, StageStarted, ignore
from fitcompress.modes import preserved_modes
from fitcompress.training.checkpoint import (
    TrainState,
    all_finite,
    read_checkpoint,
    write_checkpoint,
)
from fitcompress.training.compiled import compile_networks, uncompiled, uncompiled_in_the_end
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
    BatchPlan,
    Position,
    Runtime,
    TrainConfig,
    check_settings,
    plan_batches,
    settings_of,
    step_seed,
)

__all__ = ["train"]

_SECONDS_BETWEEN_CHECKPOINTS = 600.0
"""Within an epoch; there is one at the end of every epoch anyway."""
_STEPS_BETWEEN_STOP_CHECKS = 8
"""With several processes, which communicate to find out whether one of them must stop."""


def train(
    objective: Objective,
    data: tuple[Views, Views | None],
    config: TrainConfig,
    runtime: Runtime,
    *,
    emit: Emit = ignore,
    resume: bool = False,
) -> StageResult:
    """Trains `objective.trained` in place for the configured epochs.

    The objective stays on the device; its training flags and torch's random state are restored.

    Args:
        data: training views and held-out views. Training views are reordered in every epoch, and
            an incomplete last batch is dropped. Held-out views, if any, are evaluated after every
            epoch.
        resume: continue from `config.checkpoint_path` if it exists; a finished stage is only
            loaded.

    Raises:
        TrainingError: a loss or weight is not finite; a checkpoint cannot be written or resumed;
            out of memory.
        DataError: there are too few training images, or early stopping has no held-out images.
        Interrupted: SIGINT or SIGTERM; the checkpoint contains all finished steps.
    """
    train_data, held_out_data = data
    device = resolve_device(runtime.device)
    accelerator = start_accelerator(device, resolve_precision(runtime.precision, device))
    group = ProcessGroup(accelerator, runtime.shard)
    plan = plan_batches(
        config,
        num_train=len(train_data),
        num_held_out=len(held_out_data or ()),
        num_processes=group.world_size,
    )
    if device == "cpu":
        keep_freed_memory()
    with (
        stop_on_signals() as stop,
        preserved_random_state(device),
        preserved_modes(objective.modules()),
        uncompiled_in_the_end(objective),
    ):
        if resolve_layout(runtime.layout, device) == "channels-last":
            to_channels_last(objective.trained)

        def attempt(plan: BatchPlan, resume: bool) -> StageResult:
            loop = _Loop(objective, data, config, plan, runtime, group, stop, emit)
            if runtime.compile:
                loop.compile()
            if resume:
                loop.restore()
            return loop.run()

        return in_memory(attempt, config, plan, resume=resume, emit=emit)


class _Loop:
    """The loop over epochs and steps, and the state that it changes."""

    def __init__(
        self,
        objective: Objective,
        data: tuple[Views, Views | None],
        config: TrainConfig,
        plan: BatchPlan,
        runtime: Runtime,
        group: ProcessGroup,
        stop: StopRequest,
        emit: Emit,
    ) -> None:
        self.train_data, self.held_out_data = data
        self.config, self.plan, self.num_workers = config, plan, runtime.num_workers
        self.group, self.accelerator = group, group.accelerator
        self.stop, self.emit = stop, emit
        self.device: torch.device = self.accelerator.device
        self.given = objective
        self.objective, self.losses = group.prepare(objective)
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
        """Compiles the networks and tries them on the first images."""
        batch = self._on_device(self.train_data.batch(range(self.plan.batch_size)))
        with self.accelerator.autocast():
            failure = compile_networks(self.objective, batch)
        code, outcome = "networks-compiled", "compiled"
        if failure is not None:
            code, outcome = "compilation-failed", f"not compiled: {failure}"
        message = f"{self.config.stage}: {outcome}"
        self.emit(Notice(topic="training", code=code, message=message))

    def run(self) -> StageResult:
        config, plan = self.config, self.plan
        self.emit(
            StageStarted(
                stage=config.stage,
                num_epochs=plan.epochs,
                num_steps_per_epoch=plan.steps_per_epoch,
                first_epoch=self.position.epoch,
            )
        )
        self.reporter = ProgressReporter(
            config.stage,
            self.emit,
            num_steps=plan.num_steps,
            first_step=self._num_steps_done,
            batch_size=plan.images_per_step,
        )
        if config.auto_batch and not config.checkpoint_path.exists():
            self._save()  # from which smaller batches would continue
        while not self._is_finished:
            self._run_epoch()
        self.average.apply()
        self.best.apply()
        self.group.broadcast_buffers(self.objective.trained)
        self.group.copy_trained(self.objective, self.given)
        result = result_of(config.stage, plan, self.position, self.history)
        for event in last_events(result, self.num_workers):
            self.emit(event)
        if any(self.group.all_gather(self.stop.is_set)):  # the stage is finished, the run is not
            raise Interrupted(config.stage, config.checkpoint_path)
        return result

    def restore(self) -> None:
        """Continues from the checkpoint, if there is one.

        Raises:
            TrainingError: it was written with other settings or for another network.
        """
        config = self.config
        if not config.checkpoint_path.exists():
            return
        content = read_checkpoint(config.checkpoint_path)
        check_settings(config, self.plan, content["settings"])
        try:
            self.state.restore(content)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"resuming {config.stage}: '{config.checkpoint_path}' belongs to a different"
                " network",
                code="checkpoint-network-mismatch",
                advice="Resume with the recipe stored in the run directory.",
                stage=config.stage,
                path=str(config.checkpoint_path),
            ) from error
        self.position = Position(**content["position"])
        self.meter.restore(content["meter"])
        self.history = content["history"]

    def _run_epoch(self) -> None:
        self._train_steps()
        self.meter.check(self.config.stage, self.position.epoch + 1)
        held_out = self._evaluate()
        losses = self.group.means(self.meter.means())
        record = epoch_record(self.plan, self.position, losses, held_out)
        self.history.append(record)
        self.best.update(self.history, lambda: self.average.state() or self.state.weights())
        self.position = Position(
            epoch=record["epoch"],
            seconds=self.position.seconds + self.position.epoch_seconds,
            waiting_seconds=self.position.waiting_seconds,
        )
        self.meter = LossMeter(self.device)
        self._save()
        self.emit(EpochFinished(stage=self.config.stage, **record))

    def _train_steps(self) -> None:
        """Runs the remaining steps of the epoch."""
        plan, position = self.plan, self.position
        self.objective.train()
        self.train_data.set_epoch(position.epoch)
        self.train_data.move_to(self.device)
        loader = make_loader(
            self.train_data,
            plan.batch_size,
            shuffle_seed=self.config.seed,
            epoch=position.epoch,
            num_workers=self.num_workers,
            start_batch=position.step * plan.batches_per_step,
            drop_last=plan.batches_per_step,
            share=(self.group.rank, self.group.world_size),
            pin_memory=self.device.type == "cuda",
        )
        lap = last_save = time.monotonic()
        for batches in in_groups(self._timed(loader), plan.accumulate):
            self._stop_if_requested()
            self._step(batches)
            self._report()
            now = time.monotonic()
            position.epoch_seconds += now - lap
            if now - last_save > _SECONDS_BETWEEN_CHECKPOINTS:
                self._save()
                last_save = now = time.monotonic()
            lap = now
        self.meter.means()  # waits for the device, so that its work is timed
        position.epoch_seconds += time.monotonic() - lap

    def _timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; adds up how long training waited for them."""
        batches = iter(loader)
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self.position.waiting_seconds += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def _step(self, batches: Sequence[Batch]) -> None:
        optim = self.config.optim
        rate = set_learning_rate(
            self.optimizer,
            optim,
            step=self._num_steps_done,
            num_steps=self.plan.num_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
        )
        self.stepper.zero_grad()
        parts = [self._accumulate(batch, place) for place, batch in enumerate(batches)]
        if optim.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.objective.trained.parameters(), optim.grad_clip)
        self.stepper.step()
        losses = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        self.meter.add({**losses, "lr": rate}, self.position.step + 1)
        self.position.step += 1
        self.average.update(self._num_steps_done)

    def _accumulate(self, batch: Batch, place: int) -> dict[str, Tensor | float]:
        """Adds the gradients of the `place`-th micro-batch of this process and step."""
        config, plan, group = self.config, self.plan, self.group
        number = self.position.step * plan.batches_per_step + place * group.world_size + group.rank
        torch.manual_seed(step_seed(config.seed, config.stage, self.position.epoch, number))
        progress = self._num_steps_done / max(plan.num_steps - 1, 1)
        is_last = place == plan.accumulate - 1
        with nullcontext() if is_last else group.no_sync(self.objective, self.losses):
            with self.accelerator.autocast():
                losses = self.losses(self._on_device(batch), progress)
            self.accelerator.backward(losses["loss"] / plan.accumulate)
        return {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in losses.items()
        }

    def _report(self) -> None:
        """Reports progress now and then; checks the losses wherever that costs no waiting."""
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
        loader = make_loader(
            self.held_out_data,
            self.plan.batch_size,
            num_workers=self.num_workers,
            share=self.group.evaluation_share,
        )
        with self.average.applied():
            self.group.broadcast_buffers(self.objective.trained)
            return mean_scores(add_scores(map(self._scores, loader)), self.group)

    def _scores(self, batch: Batch) -> Scores:
        if self.group.world_size == 1:  # ranks with unequal numbers of batches cannot communicate
            self._stop_if_requested()
        with torch.no_grad(), self.accelerator.autocast(), uncompiled():
            return self.objective.evaluate(self._on_device(batch))

    def _stop_if_requested(self) -> None:
        """Saves and raises after a signal; all ranks stop after the same step."""
        is_due = self.group.world_size == 1 or self.position.step % _STEPS_BETWEEN_STOP_CHECKS == 0
        if is_due and any(self.group.all_gather(self.stop.is_set)):
            self._save()
            raise Interrupted(self.config.stage, self.config.checkpoint_path)

    def _save(self) -> None:
        """Writes the checkpoint, unless training has diverged."""
        stage, num_steps = self.config.stage, self._num_steps_done
        self.meter.check(stage, self.position.epoch + 1)
        state = self.state.state()
        if not all_finite(state["trained"]):
            raise TrainingError(
                f"training {stage}: a weight is not finite (NaN or infinite) after {num_steps}"
                " steps",
                code="weight-not-finite",
                advice=ADVICE_DIVERGED,
                stage=stage,
                num_steps=num_steps,
            )
        if not self.group.is_first:
            return
        content = {
            "settings": settings_of(self.config, self.plan),
            "position": asdict(self.position),
            "finished": self._is_finished,
            "history": self.history,
            "meter": self.meter.state(),
            **state,
        }
        write_checkpoint(self.config.checkpoint_path, content)

    def _on_device(self, batch: Batch) -> Batch:
        return batch.to(self.device, non_blocking=True)

    @property
    def _is_finished(self) -> bool:
        return self.position.epoch == self.plan.epochs or self.best.is_over(self.history)

    @property
    def _num_steps_done(self) -> int:
        return self.position.epoch * self.plan.steps_per_epoch + self.position.step
