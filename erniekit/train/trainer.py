"""The one training loop.

A step is: a global batch from the loader, split into micro-batches; the gradient of the step's loss
(`train/step_loss.py`), which no split changes; global-norm clipping; one optimizer update at the
schedule's rate. Whatever is random in a
micro-batch (dropout) is drawn from a generator seeded by (seed, step, micro-batch), so a resumed
run needs no generator state and an evaluation in between moves nothing.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from erniekit.checkpoint.store import Checkpoint, CheckpointStore
from erniekit.log import logger
from erniekit.parallel.seeds import begin_micro_batch
from erniekit.train.contents import Contents
from erniekit.train.dropout import DropoutWarmup
from erniekit.train.evaluation import EvaluationPlan, EvaluationResult
from erniekit.train.nonfinite import NonFinitePolicy
from erniekit.train.reporting import Reporter
from erniekit.train.saving import SavingPlan
from erniekit.train.shared_contents import adapter_tensors, model_tensors, optimizer_tensors
from erniekit.train.signals import StopOnSignal, exit_code_of
from erniekit.train.step_loss import StepLoss
from erniekit.train.team import ALONE, Team, Turn


@dataclass
class Progress:
    """What a run has done; saved with every checkpoint."""

    step: int = 0
    num_tokens: int = 0
    # Since the last row of the log: sums of loss (and its parts) times tokens, and the tokens.
    window: dict[str, float] = field(default_factory=dict)
    window_tokens: int = 0
    last_saved: int = 0
    evaluations: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Trainer:
    """Everything a run consists of, put together by `train/session.py`; `run` is the loop."""

    model: Any
    step_loss: StepLoss
    loader: Any
    optimizer: Any
    schedule: Callable[[int], float]
    store: CheckpointStore
    reporter: Reporter
    evaluation: EvaluationPlan
    saving: SavingPlan
    nonfinite: NonFinitePolicy
    evaluate: Callable[[], EvaluationResult] | None
    contents: Contents
    dropout: DropoutWarmup
    total_steps: int
    seed: int
    team: Team = ALONE
    progress: Progress = field(default_factory=Progress)

    def run(self) -> int:
        """Train to the end, or to a signal; returns the exit code (0, 130 or 143)."""
        self.reporter.start(self.progress.step, self._log_bytes_at_start)
        try:
            with StopOnSignal() as stop:
                self._evaluate_before()
                while self.progress.step < self.total_steps and not self.evaluation.should_stop():
                    stopped_early = self._one_step()
                    received = self.team.agree(stop.received)
                    if received is not None:
                        self._save_if_new()
                        self.store.wait()
                        logger.warning(f"stopped at step {self.progress.step}; start again to continue")
                        return exit_code_of(received)
                    if stopped_early:
                        break
                self._save_if_new()
                self.store.wait()
            return 0
        finally:
            self.reporter.close()

    _log_bytes_at_start: int = 0

    def _one_step(self) -> bool:
        """One optimizer step with what hangs on it; True when early stopping ends the run."""
        progress = self.progress
        step = progress.step + 1
        batches = self.loader.next_step()
        grad_norm = self._forward_backward(batches, step)
        losses, num_tokens = self.step_loss.values(self.team.total), self.step_loss.num_tokens
        accepted = self.nonfinite.accepts(
            step=step,
            loss=losses["loss"],
            grad_norm=grad_norm,
            origins=_origins(batches),
            last_good=self._last_good(),
        )
        learning_rate = self.schedule(step - 1)
        if accepted:
            self.optimizer.step(learning_rate)
            self.team.take_updates()
            for companion in self.step_loss.companions:
                companion.after_update()
            for name, value in losses.items():
                progress.window[name] = progress.window.get(name, 0.0) + value * num_tokens
            progress.window_tokens += num_tokens
            progress.num_tokens += num_tokens
        self.optimizer.zero_grad()
        progress.step = step
        self.reporter.count(sum(batch.num_tokens for batch in batches))
        if self.reporter.is_due(step) and progress.window_tokens:
            self._log(learning_rate, grad_norm)
        stop = self._evaluate_if_due(step)
        steps_per_epoch = self.loader.steps_per_epoch
        if self.saving.is_due(step, steps_per_epoch=steps_per_epoch, last=step == self.total_steps or stop):
            self.save()
        return stop

    def _forward_backward(self, batches: list[Any], step: int) -> float:
        """Accumulate the gradient of a global batch; returns its norm."""
        self.dropout.begin_step(step)
        self.step_loss.begin(batches)
        turns = self.team.turns_of_step(batches)
        if self.team.pipeline is None:
            self._compute(turns, step)
        else:
            self.team.pipeline.run(
                [turn.batch for turn in turns],
                self.step_loss,
                seed_of=lambda place: self._seed_of(step, turns[place].number),
                accumulate=self.optimizer.accumulate_grads,
                fillers=[place for place, turn in enumerate(turns) if not turn.counts],
            )
        self.team.sum_gradients(self._parameters)
        self.step_loss.after_backward()
        return self.optimizer.grad_norm_and_clip(self.team.counts, self.team.sum_of)

    def _compute(self, turns: list[Turn], step: int) -> None:
        """Gradients of this process's micro-batches, one after the other."""
        for turn in turns:
            begin_micro_batch(self._seed_of(step, turn.number))
            run = self.step_loss if turn.counts else self.step_loss.without_effect
            with self.team.micro_batch(last=turn is turns[-1]):
                loss = run(self.model, turn.batch)
                loss.backward()
                self.optimizer.accumulate_grads()
            del loss  # it keeps what its graph saved, a tenth of the memory, beside the next forward pass

    def _seed_of(self, step: int, micro_batch: int) -> int:
        """A generator seed for one micro-batch: distinct, and the same in every process with its columns."""
        seed = (self.seed * 1_000_003 + step) * 4_099 + micro_batch
        return seed if self.team.spread is None else self.team.spread.seed_here(seed)

    @property
    def _parameters(self) -> dict[str, Any]:
        return dict(self.model.named_parameters())

    def _log(self, learning_rate: float, grad_norm: float) -> None:
        progress, companions = self.progress, self.step_loss.companions
        row = {
            "step": progress.step,
            "epoch": round(self.loader.epoch, 4),
            **{name: total / progress.window_tokens for name, total in progress.window.items()},
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens": progress.num_tokens,
            "skipped_steps": self.nonfinite.num_skipped,
        }
        for companion in companions:
            row |= companion.row()
        self.reporter.log_step(row, [line for companion in companions for line in companion.lines()])
        progress.window, progress.window_tokens = {}, 0

    def _evaluate_before(self) -> None:
        """Held-out figures before the first step, to compare with; they never count as the best."""
        if self.progress.step == 0 and self.evaluate is not None:
            self._log_evaluation(0, self.evaluate())

    def _log_evaluation(self, step: int, result: EvaluationResult) -> None:
        row = {"step": step, **result.metrics()}
        self.progress.evaluations.append(row)
        self.reporter.log_evaluation(row)

    def _evaluate_if_due(self, step: int) -> bool:
        interval = self.saving.save_steps
        due = self.evaluation.is_due(
            step, steps_per_epoch=self.loader.steps_per_epoch, default_interval=interval
        )
        last = step == self.total_steps and self.evaluation.strategy != "no"
        if self.evaluate is None or not (due or last):
            return False
        result = self.evaluate()
        self._log_evaluation(step, result)
        if self.evaluation.observe(step, result) and self.evaluation.keeps_best:
            self.save()
            self.store.wait()
            self.store.mark_best(step)
        if self.evaluation.should_stop():
            logger.info(f"early stopping: no gain for {self.evaluation.patience} evaluations")
            return True
        return False

    def save(self) -> None:
        """Write a checkpoint of the present step, unless it is there already."""
        if self.progress.last_saved == self.progress.step:
            return
        self.progress.last_saved = self.progress.step
        state = {
            "format": 1,
            "step": self.progress.step,
            "progress": deepcopy(vars(self.progress)),
            "loader": self.loader.state_dict(),
            "evaluation": self.evaluation.state_dict(),
            "skipped_steps": self.nonfinite.num_skipped,
            "log_bytes": self.reporter.log_bytes(),
            "total_steps": self.total_steps,
        }
        if self.team.spread is not None:
            self._save_shared(state)
            return
        self.store.save(
            self.progress.step,
            model_items=self.contents.items(),
            optimizer_items=self.optimizer.state_items(),
            state=state,
            write_files=self.contents.writer(),
            asynchronous=self.saving.asynchronous,
            model_basename=self.contents.basename,
        )

    def _save_shared(self, state: dict[str, Any]) -> None:
        spread = self.team.spread
        assert spread is not None
        names = dict.fromkeys([*spread.names, *spread.of_all_stages(dict.fromkeys(self._parameters))])
        adapter = self.contents.adapter
        if adapter is None:
            weights = model_tensors(self.model, self.model.config, self.team)
        else:
            weights = adapter_tensors(adapter, self.team)
        self.store.save_shared(
            self.progress.step,
            tensors=[weights, optimizer_tensors(self.optimizer, names, self.team)],
            state=state,
            write_files=self.contents.writer(),
            asynchronous=self.saving.asynchronous,
        )

    def resume(self, checkpoint: Checkpoint, load_optimizer: Callable[[Checkpoint], None]) -> None:
        """Take over everything but the weights (loaded with the model) from a checkpoint."""
        state = checkpoint.state()
        load_optimizer(checkpoint)
        self.progress = Progress(**state["progress"])
        self.loader.load_state_dict(state["loader"])
        self.evaluation.load_state_dict(state["evaluation"])
        self._point_at_best()
        self.nonfinite.num_skipped = state["skipped_steps"]
        self._log_bytes_at_start = state["log_bytes"]

    def _point_at_best(self) -> None:
        """A run that was killed between a checkpoint and its pointer gets the pointer now."""
        best = self.evaluation.best_step
        if self.evaluation.keeps_best and any(checkpoint.step == best for checkpoint in self.store.list()):
            self.store.mark_best(int(best or 0))

    def _save_if_new(self) -> None:
        if self.progress.step:
            self.save()

    def _last_good(self) -> str:
        newest = self.store.latest()
        return f"the last good checkpoint is {newest.path}" if newest else "no checkpoint was written yet"


def _origins(batches: list[Any]) -> list[str]:
    return [origin for batch in batches for row in batch.origins for origin in row]
