"""Training: one loop whose state is a step count, the weights and the optimiser, so that it resumes.

The batches of an epoch are a function of the seed; of several processes each takes its share of every batch. All go
through the loop together and decide alike, from numbers that they have gathered; the first alone writes.

RUN/last holds the newest checkpoint with all that `Trainer.resume` needs, RUN/best the weights that predicted the
validation part best, RUN/metrics.jsonl a line of JSON for every logged step and every validation.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files, kinds, preparing
from .batches import EVALUATION_SEED, Batches
from .checkpoint import CONFIG, CheckpointError, save_model
from .curve import Curve
from .dataset import NORMALIZATIONS, StrokeSet
from .distributed import ALONE, World
from .evaluate import Evaluation, evaluate
from .module import FusedLSTMMDN
from .optim import GravesRMSprop
from .resuming import best_is_intact, last_of
from .signals import stopping

SKIPS_ALLOWED = 10  # non-finite steps in a row before training stops


def holds_run(directory: Path) -> bool:
    """Whether a training run was begun there."""
    return any((directory / part / CONFIG).exists() for part in ("last", "best"))


class TrainingDiverged(RuntimeError):
    """The loss or its gradient was not finite for SKIPS_ALLOWED steps in a row."""


@dataclass(frozen=True)
class TrainOptions:
    """What a run is made of; saved with every checkpoint.

    Attributes:
        hidden_size, num_layers, num_mixtures, pen, skip, peephole, dropout, clip_gates, clip_output: the network's.
        optimizer: "adam", or "graves" (his RMSProp).
        lr: peak learning rate; None takes 2e-3 for adam, 1e-4 for graves.
        schedule: "cosine" falls to zero at the last step, "constant" stays.
        warmup: steps over which the rate rises from zero.
        epochs: passes over the training part.
        batch_size: sequences of a step, over all processes.
        clip_norm: bound of the gradient's norm; None takes 1, or none where it is clipped inside backpropagation.
        normalize: "std" scales offsets to standard deviation 1, "mean-std" also moves their mean to 0.
        simplify: tolerance within which pen strokes lose points before all else, in raw units; None leaves them.
        resample: distance at which points are set anew instead, in raw units; None leaves them.
        augment: standard deviation of the random stretch of every character, every epoch.
        drop: probability of a point inside a pen stroke to be left out, every epoch.
        precision: "float32", or "bf16" for matrix products in bfloat16 (autocast).
        patience: validations without a better one before training stops.
        validate_every: epochs between validations.
        checkpoint_every: steps between checkpoints; one is also written after every validation.
        log_every: steps between lines of metrics.jsonl.
        seed: of the initial weights, the batches, the noise and the dropout.
    """

    hidden_size: int = 400
    num_layers: int = 1
    num_mixtures: int = 20
    pen: str = "categorical"
    skip: bool = False
    peephole: bool = False
    dropout: float = 0.0
    clip_gates: float | None = None
    clip_output: float | None = None
    optimizer: str = "adam"
    lr: float | None = None
    schedule: str = "cosine"
    warmup: int = 100
    epochs: int = 50
    batch_size: int = 64
    clip_norm: float | None = None
    normalize: str = "std"
    simplify: float | None = None
    resample: float | None = None
    augment: float = 0.0
    drop: float = 0.0
    precision: str = "float32"
    patience: int = 20
    validate_every: int = 1
    checkpoint_every: int = 200
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for an option of another kind, or out of range."""
        kinds.check_saved(dataclasses.asdict(self), TrainOptions)
        for name, allowed in (
            ("pen", ("bernoulli", "categorical")),
            ("optimizer", ("adam", "graves")),
            ("schedule", ("cosine", "constant")),
            ("normalize", NORMALIZATIONS),
            ("precision", ("float32", "bf16")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "patience", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("lr", "clip_norm", "clip_gates", "clip_output"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        for name in ("augment", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}")
        preparing.check_preparation(self.simplify, self.resample)
        preparing.check_probability("drop", self.drop)
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")

    @property
    def peak_lr(self) -> float:
        """The learning rate, or the optimiser's default."""
        return self.lr if self.lr is not None else {"adam": 2e-3, "graves": 1e-4}[self.optimizer]

    @property
    def clips_inside(self) -> bool:
        """Gradients are clipped inside backpropagation, as Graves did."""
        return self.clip_gates is not None or self.clip_output is not None

    @property
    def norm_bound(self) -> float:
        """The bound of the gradient's norm, or its default."""
        if self.clip_norm is not None:
            return self.clip_norm
        return math.inf if self.clips_inside else 1.0

    @property
    def prepared(self) -> dict[str, float]:
        """What the strokes go through first: arguments of `preparing.prepare`."""
        return {k: v for k, v in (("epsilon", self.simplify), ("step", self.resample)) if v is not None}

    def build(self, train: StrokeSet) -> FusedLSTMMDN:
        """The network, with the scale of its training data, which has been prepared."""
        torch.manual_seed(self.seed)
        row = {"bernoulli": 3, "categorical": 5}[self.pen]
        model = FusedLSTMMDN(
            row,
            self.hidden_size,
            self.num_layers,
            self.num_mixtures,
            pen=self.pen,
            skip=self.skip,
            peephole=self.peephole,
            dropout=self.dropout,
            clip_gates=self.clip_gates,
            clip_output=self.clip_output,
        )
        model.scale = train.scale(self.normalize)
        return model


@dataclass(frozen=True)
class Step:
    """What one training step reports; nats of the batch as trained on."""

    step: int
    epoch: int
    nats_per_row: float
    nats_per_sequence: float
    grad_norm: float
    lr: float
    rows: int
    skipped: bool


class Trainer:
    """Trains a network on the "train" part of a set, judged by its "validation" part.

    Args:
        options: what to train, and how.
        data: the set, not yet prepared; each part is chosen by label.
        run: directory to be made; must not hold a run yet.
        device: where to train.
        world: the processes that train it together, each with a Trainer and the same arguments but the device.

    Raises:
        FileExistsError: `run` holds a run already.
        ValueError: a part of the set is empty, or the processes' arguments differ.
    """

    def __init__(
        self,
        options: TrainOptions,
        data: StrokeSet,
        run: str | Path,
        device: Any = "cpu",
        world: World = ALONE,
    ) -> None:
        run = Path(run)
        if holds_run(run):
            raise FileExistsError(f"{run} already holds a training run: resume it, or choose another directory")
        self._prepare(options, data, run, device, world)
        # None makes the run before all have seen that there was none.
        world.check_same("options and data", repr((options, self.digests)), self.device)
        self._set_up(options.build(self.train_part).to(device))
        self.step, self.best, self.since_best, self.skips = 0, math.inf, 0, 0
        if world.leads:
            run.mkdir(parents=True, exist_ok=True)
            files.sweep(run)
            self.curve.begin()
        self.save()

    @classmethod
    def resume(
        cls,
        data: StrokeSet,
        run: str | Path,
        device: Any = "cpu",
        world: World = ALONE,
        options: TrainOptions | None = None,
    ) -> Trainer:
        """Go on from RUN/last, with as many processes as there are now; given `options`, only with a run of those.

        On the CPU, with as many as before, the result is bitwise that of a run that was never stopped.

        Raises:
            FileExistsError: the run has other options; nothing of it is touched.
            CheckpointError: RUN/last is missing or damaged; the message says whether RUN/best is intact.
            ValueError: the data is not what the run was trained on, or the processes found different checkpoints.
        """
        run = Path(run)
        last = last_of(run, device, TrainOptions)
        if options is not None and last.options != options:
            raise FileExistsError(f"{run} holds a training run of other options: choose another directory")
        self = cls.__new__(cls)
        self._prepare(last.options, data, run, device, world)
        progress = last.progress
        if progress.data != self.digests:
            raise ValueError(f"{run} was trained on other data (SHA-256 {progress.data}, not {self.digests})")
        if progress.step > self.steps:
            raise CheckpointError(f"{run / 'last' / CONFIG}: step {progress.step} of a run of {self.steps}")
        self.best = progress.best if progress.best is not None and best_is_intact(run) else math.inf
        ended = progress.step == self.steps or progress.since_best >= self.options.patience
        if ended and progress.best is not None and math.isinf(self.best):
            raise CheckpointError(f"{run / 'best'}: is damaged, and the run is at its end; {run / 'last'} is intact")
        world.check_same(str(run), f"{(run / 'last' / CONFIG).read_text()} {self.best}", self.device)
        self._set_up(last.model)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": last.state, "param_groups": groups})
        self.step, self.since_best, self.skips = progress.step, progress.since_best, 0
        if world.leads:
            for directory in (run, run / "last", run / "best"):
                files.sweep(directory)
            self.curve.forget_after(self.step)
        return self

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.options.epochs * len(self.batches)

    def run(
        self,
        on_step: Callable[[Step], None] = lambda step: None,
        on_validation: Callable[[int, Evaluation, bool], None] = lambda step, evaluation, better: None,
    ) -> None:
        """Train to the end, or until validation stops improving.

        SIGINT and SIGTERM, to any of the processes, finish the step, save, and leave by SystemExit (130, 143): all do.

        Raises:
            TrainingDiverged: see there, or no validation was finite; RUN/last is the last good checkpoint.
        """
        per_epoch = len(self.batches)
        board = self.curve.on_board(self.step) if self.world.leads else nullcontext()
        with stopping() as stop, board:
            self.model.train()
            while self.step < self.steps and self.since_best < self.options.patience:
                epoch, k = divmod(self.step, per_epoch)
                if k == 0 or not hasattr(self, "_order"):
                    self._order = self.batches.order(epoch)
                began = time.perf_counter()
                report, signal = self._train_step(epoch, self._order[k], stop)
                on_step(report)
                if self.step % self.options.log_every == 0 or report.skipped:
                    line = dataclasses.asdict(report)
                    line["points_per_second"] = round(report.rows / (time.perf_counter() - began), 1)
                    self._log(line)
                if self.skips >= SKIPS_ALLOWED:
                    raise TrainingDiverged(
                        f"loss or gradient not finite in {self.skips} steps in a row, up to step {self.step}; "
                        f"{self.run_directory / 'last'} is the last good checkpoint"
                    )
                if self.step % (per_epoch * self.options.validate_every) == 0 or self.step == self.steps:
                    self._validate(on_validation)
                    self.save()
                elif self.step % self.options.checkpoint_every == 0:
                    self.save()
                if signal:
                    self.save()
                    self.world.wait()
                    raise SystemExit(128 + signal)
        if math.isinf(self.best):
            raise TrainingDiverged(
                f"no validation gave a finite loss; {self.run_directory / 'last'} is the last that did"
            )

    def save(self) -> None:
        """Write RUN/last, unless the weights have just failed: then it is better than what would replace it."""
        if not self.world.leads or self.skips or not self._predicts():
            return
        self.curve.sync()
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {
            f"{names[i]}/{field}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for field, value in state.items()
        }
        progress = {
            "options": dataclasses.asdict(self.options),
            "data": self.digests,
            "step": self.step,
            "best": None if math.isinf(self.best) else self.best,
            "since_best": self.since_best,
        }
        save_model(self.model, self.run_directory / "last", tensors, progress, prepared=self.options.prepared)

    def _predicts(self) -> bool:
        """The weights give a finite loss on some validation sequences."""
        rows, lengths = next(self.validation_batches.sorted())
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            loss = self.model.nll(rows.to(self.device), lengths.to(self.device), reduction="sum")
        self.model.train(training)
        return bool(loss.isfinite())

    def _prepare(self, options: TrainOptions, data: StrokeSet, run: Path, device: Any, world: World) -> None:
        self.options, self.run_directory, self.device, self.world = options, run, torch.device(device), world
        self.curve = Curve(run)
        self.train_part, self.validation_part = (
            preparing.prepare(data.part(p).without_empty(), **options.prepared) for p in ("train", "validation")
        )
        for name, part in (("train", self.train_part), ("validation", self.validation_part)):
            if not len(part):
                raise ValueError(f"the {name} part of the data is empty ({len(data)} sequences in all)")
        self.digests = {"train": self.train_part.digest(), "validation": self.validation_part.digest()}
        scale = self.train_part.scale(options.normalize)
        self.batches = Batches(
            self.train_part, options.pen, scale, options.batch_size, options.seed, options.augment, options.drop
        )
        self.validation_batches = Batches(self.validation_part, options.pen, scale, 16, EVALUATION_SEED)

    def _set_up(self, model: FusedLSTMMDN) -> None:
        """Make this the model that is trained."""
        self.model = model.train()
        self.network = self.world.wrap(model)
        if self.options.optimizer == "graves":
            self.optimizer: torch.optim.Optimizer = GravesRMSprop(model.parameters(), lr=self.options.peak_lr)
        else:
            self.optimizer = torch.optim.Adam(model.parameters(), lr=self.options.peak_lr, betas=(0.9, 0.99))
        if self.network is not model:
            # DistributedDataParallel lays its buckets out anew after the first backward pass, and so sums in another
            # order: that pass is done here, for nothing, or a resumed run would differ from one that went on.
            self.loss(*self.batches.collate([], 0)).backward()
            self.optimizer.zero_grad()

    def _learning_rate(self) -> float:
        rate = self.options.peak_lr * min(1.0, (self.step + 1) / max(1, self.options.warmup))
        if self.options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return rate

    def _train_step(self, epoch: int, sequences: list[int], stop: Sequence[int] = ()) -> tuple[Step, int]:
        """One step of all processes; also the number of a signal that one of them has been sent, or 0."""
        batch = self.batches.collate(self.world.share(sequences), epoch)
        count = self.batches.count_rows(sequences, epoch)
        lr = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.options.dropout:
            seed = dropout_seed(self.options.seed, self.step, self.world.rank)
            # the first is what the second does on a CPU, in a hundredth of its time
            (torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed)(seed)
        self.optimizer.zero_grad()
        total = self.loss(*batch)
        if self.options.clips_inside:
            # Graves's bounds are on the derivatives of one sequence's loss: each is clipped, then they are averaged.
            total.backward()
            divisor = len(sequences) / self.world.size  # the processes' gradients have been averaged
            torch._foreach_div_([p.grad for p in self.model.parameters() if p.grad is not None], divisor)
        else:
            (total * (self.world.size / count)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.norm_bound)
        own = torch.stack([total.detach(), norm, total.new_tensor(stop[0] if stop else 0)])
        totals, norms, signals = self.world.gather(own).unbind(1)
        loss = totals.sum().item()
        good = math.isfinite(loss) and bool(norms.isfinite().all())
        if good:
            self.optimizer.step()
        self.skips = 0 if good else self.skips + 1
        self.step += 1
        nats = loss / count, loss / len(sequences)
        return Step(self.step, epoch, *nats, norm.item(), lr, count, skipped=not good), int(signals.max())

    def loss(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Nats of a batch, each row predicted from those before it, summed in float64."""
        rows, lengths = rows.to(self.device), lengths.to(self.device)
        inputs = torch.cat([torch.zeros_like(rows[:1]), rows[:-1]])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            nll, _ = self.network(inputs, lengths=lengths, target=rows)
        return nll.sum(dtype=torch.float64)

    def _validate(self, on_validation: Callable[[int, Evaluation, bool], None]) -> None:
        result = evaluate(self.model, self.validation_part, self.options.batch_size, self.world)
        better = result.nats_per_row < self.best
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best = result.nats_per_row
            if self.world.leads:
                save_model(self.model, self.run_directory / "best", prepared=self.options.prepared)
        self._log({"step": self.step, "validation": dataclasses.asdict(result), "best": self.best})
        on_validation(self.step, result, better)

    def _log(self, line: dict[str, Any]) -> None:
        if self.world.leads:
            self.curve.log(line)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """64 bits for torch's generator: each step of each process has a stream of its own, which a resume finds again."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
