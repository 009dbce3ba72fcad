"""Training: one loop whose state is a step count, the weights, the optimiser and torch's generator, so that it resumes.

RUN/last holds the newest checkpoint with all that `Trainer.resume` needs, RUN/best the weights that predicted the
validation part best, RUN/metrics.jsonl a line of JSON for every logged step and every validation.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import files
from .batches import EVALUATION_SEED, Batches
from .checkpoint import CONFIG, load_training, save_model
from .dataset import StrokeSet
from .evaluate import Evaluation, evaluate
from .module import FusedLSTMMDN
from .optim import GravesRMSprop
from .signals import stopping

SKIPS_ALLOWED = 10  # non-finite steps in a row before training stops


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
        batch_size: sequences of a step.
        clip_norm: bound of the gradient's norm; None takes 1, or none where it is clipped inside backpropagation.
        augment: standard deviation of the random stretch of every character, every epoch.
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
    augment: float = 0.0
    precision: str = "float32"
    patience: int = 20
    validate_every: int = 1
    checkpoint_every: int = 200
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for an option out of range."""
        for name, allowed in (
            ("pen", ("bernoulli", "categorical")),
            ("optimizer", ("adam", "graves")),
            ("schedule", ("cosine", "constant")),
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

    def build(self, train: StrokeSet) -> FusedLSTMMDN:
        """The network, with the scale of its training data."""
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
        model.scale = train.scale()
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
        data: the set; each part is chosen by label.
        run: directory to be made; must not hold a run yet.
        device: where to train.

    Raises:
        FileExistsError: `run` holds a run already.
        ValueError: a part of the set is empty.
    """

    def __init__(self, options: TrainOptions, data: StrokeSet, run: str | Path, device: Any = "cpu") -> None:
        run = Path(run)
        if any((run / part / CONFIG).exists() for part in ("last", "best")):
            raise FileExistsError(f"{run} already holds a training run: resume it, or choose another directory")
        self._prepare(options, data, run, device)
        self.model = options.build(self.train_part).to(device)
        self.optimizer = self._new_optimizer()
        self.step, self.best, self.since_best, self.skips = 0, math.inf, 0, 0
        run.mkdir(parents=True, exist_ok=True)
        files.write(run / "metrics.jsonl", "")
        self.save()

    @classmethod
    def resume(cls, data: StrokeSet, run: str | Path, device: Any = "cpu") -> Trainer:
        """Go on from RUN/last; on the CPU the result is bitwise that of a run that was never stopped.

        Raises:
            CheckpointError: RUN/last is missing or damaged.
            ValueError: the data is not what the run was trained on.
        """
        run = Path(run)
        model, tensors, progress = load_training(run / "last", device)
        self = cls.__new__(cls)
        self._prepare(TrainOptions(**progress["options"]), data, run, device)
        if progress["data"] != self.digests:
            raise ValueError(f"{run} was trained on other data (SHA-256 {progress['data']}, not {self.digests})")
        self.model = model
        self.optimizer = self._new_optimizer()
        names = [name for name, _ in model.named_parameters()]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key != "rng":
                name, field = key.rsplit("/", 1)
                state.setdefault(names.index(name), {})[field] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["rng"])
        self.step, self.since_best, self.skips = progress["step"], progress["since_best"], 0
        lost = progress["best"] is None or not (run / "best" / CONFIG).exists()
        self.best = math.inf if lost else progress["best"]
        self._forget_metrics_after(self.step)
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

        SIGINT and SIGTERM finish the step, save, and leave by SystemExit (130, 143).

        Raises:
            TrainingDiverged: see there, or no validation was finite; RUN/last is the last good checkpoint.
        """
        per_epoch = len(self.batches)
        with stopping() as stop, self._board() as board:
            self.model.train()
            while self.step < self.steps and self.since_best < self.options.patience:
                epoch, k = divmod(self.step, per_epoch)
                if k == 0 or not hasattr(self, "_order"):
                    self._order = self.batches.order(epoch)
                began = time.perf_counter()
                report = self._train_step(epoch, self._order[k])
                on_step(report)
                if self.step % self.options.log_every == 0 or report.skipped:
                    line = dataclasses.asdict(report)
                    line["points_per_second"] = round(report.rows / (time.perf_counter() - began), 1)
                    self._log(line, board)
                if self.skips >= SKIPS_ALLOWED:
                    raise TrainingDiverged(
                        f"loss or gradient not finite in {self.skips} steps in a row, up to step {self.step}; "
                        f"{self.run_directory / 'last'} is the last good checkpoint"
                    )
                if self.step % (per_epoch * self.options.validate_every) == 0 or self.step == self.steps:
                    self._validate(on_validation, board)
                    self.save()
                elif self.step % self.options.checkpoint_every == 0:
                    self.save()
                if stop:
                    self.save()
                    raise SystemExit(128 + stop[0])
        if math.isinf(self.best):
            raise TrainingDiverged(
                f"no validation gave a finite loss; {self.run_directory / 'last'} is the last that did"
            )

    def save(self) -> None:
        """Write RUN/last, unless the weights have just failed: then it is better than what would replace it."""
        if self.skips or not self._predicts():
            return
        names = [name for name, _ in self.model.named_parameters()]
        tensors = {
            f"{names[i]}/{field}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for field, value in state.items()
        }
        tensors["rng"] = torch.get_rng_state()
        progress = {
            "options": dataclasses.asdict(self.options),
            "data": self.digests,
            "step": self.step,
            "best": None if math.isinf(self.best) else self.best,
            "since_best": self.since_best,
        }
        save_model(self.model, self.run_directory / "last", tensors, progress)

    def _predicts(self) -> bool:
        """The weights give a finite loss on some validation sequences."""
        rows, lengths = next(self.validation_batches.sorted())
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            loss = self.model.nll(rows.to(self.device), lengths.to(self.device), reduction="sum")
        self.model.train(training)
        return bool(loss.isfinite())

    def _prepare(self, options: TrainOptions, data: StrokeSet, run: Path, device: Any) -> None:
        self.options, self.run_directory, self.device = options, run, torch.device(device)
        self.train_part, self.validation_part = (data.part(p).without_empty() for p in ("train", "validation"))
        for name, part in (("train", self.train_part), ("validation", self.validation_part)):
            if not len(part):
                raise ValueError(f"the {name} part of the data is empty ({len(data)} sequences in all)")
        self.digests = {"train": self.train_part.digest(), "validation": self.validation_part.digest()}
        scale = self.train_part.scale()
        self.batches = Batches(
            self.train_part, options.pen, scale, options.batch_size, options.seed, augment=options.augment
        )
        self.validation_batches = Batches(self.validation_part, options.pen, scale, 16, EVALUATION_SEED)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        parameters = self.model.parameters()
        if self.options.optimizer == "graves":
            return GravesRMSprop(parameters, lr=self.options.peak_lr)
        return torch.optim.Adam(parameters, lr=self.options.peak_lr, betas=(0.9, 0.99))

    def _learning_rate(self) -> float:
        rate = self.options.peak_lr * min(1.0, (self.step + 1) / max(1, self.options.warmup))
        if self.options.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return rate

    def _train_step(self, epoch: int, sequences: list[int]) -> Step:
        rows, lengths = self.batches.collate(sequences, epoch)
        rows, lengths = rows.to(self.device), lengths.to(self.device)
        lr = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        bf16 = self.options.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            total = self.loss(rows, lengths)
        count = int(lengths.sum())
        if self.options.clips_inside:
            # Graves's bounds are on the derivatives of one sequence's loss: each is clipped, then they are averaged.
            total.backward()
            torch._foreach_div_([p.grad for p in self.model.parameters() if p.grad is not None], len(lengths))
        else:
            (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.norm_bound)
        good = bool(total.isfinite()) and bool(norm.isfinite())
        if good:
            self.optimizer.step()
        self.skips = 0 if good else self.skips + 1
        self.step += 1
        loss = total.item()
        return Step(self.step, epoch, loss / count, loss / len(lengths), norm.item(), lr, count, skipped=not good)

    def loss(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Nats of a batch, summed."""
        return self.model.nll(rows, lengths, reduction="sum")

    def _validate(self, on_validation: Callable[[int, Evaluation, bool], None], board: Any) -> None:
        result = evaluate(self.model, self.validation_part, self.options.batch_size)
        better = result.nats_per_row < self.best
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best = result.nats_per_row
            save_model(self.model, self.run_directory / "best")
        self._log({"step": self.step, "validation": dataclasses.asdict(result), "best": self.best}, board)
        on_validation(self.step, result, better)

    def _log(self, line: dict[str, Any], board: Any) -> None:
        with open(self.run_directory / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if board is not None:
            prefix, values = ("validation", line["validation"]) if "validation" in line else ("train", line)
            for name, value in values.items():
                board.add_scalar(f"{prefix}/{name}", value, line["step"])

    def _forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a killed run took after its last checkpoint: they will be taken again."""
        path = self.run_directory / "metrics.jsonl"
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:  # cut short by the kill
                break
        files.write(path, "".join(kept))

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """A TensorBoard writer where tensorboard is installed, else None."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            yield None
            return
        with SummaryWriter(str(self.run_directory / "tensorboard"), purge_step=self.step + 1) as writer:
            yield writer
