# SPDX-License-Identifier: Apache-2.0
"""A whole search: train the supernet, then select an architecture from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from darts_fast.data import Augmentation, Batches, Dataset, fixed_batches
from darts_fast.distributed import ALONE, World
from darts_fast.evaluation import evaluate
from darts_fast.nn import Supernet
from darts_fast.reporter import Interrupted, Reporter, save_or_stop
from darts_fast.search.config import SearchConfig
from darts_fast.search.early_stopping import EarlyStopping
from darts_fast.search.record import DecisionRecorder, EpochEvent
from darts_fast.search.trainer import Perturb, Trainer
from darts_fast.seeding import generator, rng_state, set_rng_state
from darts_fast.selection import (
    SELECTIONS,
    Decision,
    Limits,
    PerturbationConfig,
    ProgressiveSelection,
    SelectionConfig,
    build_selection,
    limited_magnitude,
)
from darts_fast.spaces import Genotype, read_genotype, write_genotype

__all__ = ["Search", "SearchResult", "genotype_text"]


def genotype_text(genotype: Genotype | str) -> str:
    """One line: a `Genotype` as the originals print it, a NAS-Bench-201 architecture as it is."""
    return genotype if isinstance(genotype, str) else write_genotype(genotype)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the selected architecture, a string for NAS-Bench-201.
        magnitude: the architecture of the largest weights of the same supernet, before any
            projection but those of the search method itself.
        decisions: of the perturbation-based selection, in order.
        history: per search epoch a dict with ``epoch``, ``train_acc``, ``valid_acc`` (percent, None
            where not evaluated) and ``genotype`` (text).
    """

    genotype: Genotype | str
    magnitude: Genotype | str
    decisions: list[Decision]
    history: list[dict[str, Any]]


class Search:
    """``Search(net, data, method="darts").run()``.

    Noise operations and drop-path draw from torch's global generator: for a reproducible run seed
    it first, with `darts_fast.seeding.seed_everything`. Everything else draws from generators
    seeded by ``config.seed``.

    Args:
        net: a supernet; it is trained, and by every selection but magnitude projected, in place.
        data: the images; ``data.train`` is cut into a half for the weights and one for architecture
            and selection.
        config: see :class:`SearchConfig`; ``settings`` replace single fields of it, or options of
            its method.
        select: a method of `darts_fast.selection.select`.
        selection: its configuration; default with ``config.seed``.
        proj_images: select on the first so many validation images; default all.
        perturb: gives edge weights for each weight step of the tuning, by cell type (SDARTS), from
            the network, images and labels; cell types it leaves out keep their own.
        augmentation: of the search; default ``data.augmentation``.
        reporter: is told of the progress, and asked whether to save or to stop.
        checkpoint: takes the state when an epoch or a projection is about to begin, the run is to
            stop, or the reporter wants it saved.
        snapshot: called with the number of the epoch after every epoch of the search.
        world: processes that search together (`darts_fast.distributed.join`), each with the same
            arguments. They start from weights and random state of the first.
        limits: on the cost of the derived network (`darts_fast.selection.limits`).
        stopping: what may end the search early.

    Attributes:
        pool_images: images that the selection scores on.
        searched: takes the state at the end of the training, which `begin_selection` goes on from.

    Raises:
        ValueError: settings out of range, images of a size that the network cannot take.
    """

    def __init__(
        self,
        net: Supernet,
        data: Dataset,
        config: SearchConfig | None = None,
        *,
        select: str = "perturbation",
        selection: SelectionConfig | None = None,
        proj_images: int | None = None,
        augmentation: Augmentation | None = None,
        perturb: Perturb | None = None,
        reporter: Reporter | None = None,
        checkpoint: Callable[[dict[str, Any]], object] | None = None,
        snapshot: Callable[[int], object] | None = None,
        world: World = ALONE,
        limits: Limits | None = None,
        stopping: EarlyStopping | None = None,
        **settings: Any,
    ) -> None:
        if select not in SELECTIONS:
            raise ValueError(f"Search: select must be one of {', '.join(SELECTIONS)}, got {select}")
        net.check_image_size(*data.image_size)
        self.net = net
        self.data = data
        self.config = (config or SearchConfig()).with_settings(**settings)
        self.reporter = reporter or Reporter()
        self.world = world
        self.trainer = Trainer(net, data, self.config, augmentation, perturb, world)
        self.trainer.stopping = stopping
        self._limits = limits
        self._recorder = DecisionRecorder()
        self.history: list[dict[str, Any]] = []
        self._select = select
        self._magnitude: Genotype | str | None = None
        self.checkpoint = checkpoint
        self.snapshot = snapshot
        self.searched: Callable[[dict[str, Any]], object] | None = None
        self._done = 0  # forwards and steps of the selection phase
        self._fresh: Batches | None = None
        self.pool_images = 0
        self._selection = self._build_selection(selection, proj_images)

    def run(self) -> SearchResult:
        """Train the supernet and select; after :meth:`load_state_dict` the rest of it.

        Raises:
            Interrupted: the reporter asked to stop; the last state handed to ``checkpoint`` goes on
            from there.
            NonFiniteLossError: a training loss, its gradient or a weight to be saved is NaN or
            infinite; the state handed to ``checkpoint`` before it is whole.
            RankLostError: a process of the world is gone.
        """
        self._start_alike()
        if self._magnitude is None:
            self._train_supernet()
            if self.searched is not None:
                self.searched(self.state_dict())
            self._magnitude = self.net.genotype()
            if self._selection is not None:
                self.trainer.start_tuning()
        if self._selection is None:
            found = self._magnitude
            if self._limits is not None:
                found = limited_magnitude(self.net, self._limits)
            return SearchResult(found, self._magnitude, [], self.history)
        self._run_selection(self._selection)
        genotype = self.net.genotype()
        return SearchResult(genotype, self._magnitude, self._selection.decisions, self.history)

    @property
    def limits(self) -> Limits | None:
        """On the cost of the derived network."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits | None) -> None:
        self._limits = limits
        if self._selection is not None:
            self._selection.limits = limits

    def state_dict(self) -> dict[str, Any]:
        """Everything a later process needs to go on bit for bit; loads with
        ``weights_only=True``.
        """
        selection, magnitude = self._selection, self._magnitude
        return {
            "net": self.net.full_state_dict(),
            "trainer": self.trainer.state_dict(),
            "selection": None if selection is None else selection.state_dict(),
            "fresh": None if self._fresh is None else self._fresh.state_dict(),
            "magnitude": None if magnitude is None else genotype_text(magnitude),
            "limits": None if self._limits is None else self._limits.state_dict(),
            "history": self.history,
            "done": self._done,
            "rng": rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a search with the same settings."""
        self.net.load_full_state_dict(state["net"])
        self.trainer.load_state_dict(state["trainer"])
        if self._selection is not None:
            self._selection.load_state_dict(state["selection"])
        if self._fresh is not None:
            self._fresh.load_state_dict(state["fresh"])
        if self._limits is not None:
            self.limits = self._limits.with_costs(state["limits"])
        magnitude = state["magnitude"]
        self._magnitude = None if magnitude is None else read_genotype(magnitude)
        self.history = list(state["history"])
        self._done = state["done"]
        self._recorder.skip(0 if self._selection is None else len(self._selection.decisions))
        set_rng_state(state["rng"])

    def begin_selection(self, state: Mapping[str, Any]) -> None:
        """Take the supernet as it is in the state of another search, trained to its end or not, and
        go on with the selection.

        Args: state, a :meth:`state_dict` of before the selection, of the same supernet, method and
        data; with "net" alone, tuning starts from a new optimizer and new draws.
        """
        taken = {key: state[key] for key in ("net", "trainer", "history", "rng") if key in state}
        self.load_state_dict({**self.state_dict(), **taken})
        self._magnitude = self.net.genotype()
        if self._selection is not None:
            self.trainer.start_tuning()

    def _start_alike(self) -> None:
        if self.world.alone:
            return
        state, random = self.world.broadcast((self.net.full_state_dict(), rng_state()))
        self.net.load_full_state_dict(state)
        set_rng_state(random)

    def _train_supernet(self) -> None:
        trainer, reporter = self.trainer, self.reporter
        reporter.start("search", trainer.total_steps, trainer.steps_done)
        while trainer.epoch < self.config.epochs and not trainer.stopped:
            epoch = trainer.epoch
            reporter.log(f"epoch {epoch} lr {trainer.learning_rate:e}")
            event = EpochEvent("search", trainer, self.config.epochs)
            train_acc = trainer.run_epoch(reporter, self._between_steps)
            event.trained()
            reporter.expect(trainer.total_steps)
            reporter.log(f"train_acc {train_acc:f}")
            text = genotype_text(self.net.genotype())
            reporter.log(f"genotype = {text}")
            valid_acc = None
            if self._evaluates(epoch):
                valid_acc, valid_loss = self._validate()
                event.validated(valid_acc, valid_loss)
                reporter.log(f"valid_acc {valid_acc:f}")
            reporter.record({**event.fields, "genotype": text})
            self.history.append(
                {"epoch": epoch, "train_acc": train_acc, "valid_acc": valid_acc, "genotype": text}
            )
            if self.snapshot is not None:
                self.snapshot(epoch)
            if trainer.epoch < self.config.epochs:
                self._checkpoint()
        reporter.finish()

    def _evaluates(self, epoch: int) -> bool:
        every = self.config.valid_freq
        return every > 0 and (epoch + 1) % every == 0

    def _validate(self) -> tuple[float, float]:
        """Accuracy in percent and loss on the validation half."""
        valid, world = self.trainer.valid, self.world
        own = valid
        if not world.alone:
            own = valid.subset(torch.arange(len(valid))[world.share(len(valid))])
        random = rng_state()  # noise operations draw in evaluation too; the search must not see it
        accuracy = loss = 0.0
        if len(own) > 0:
            accuracy, loss = evaluate(
                self.net,
                own,
                lambda images: self.data.plain(images).to(self.trainer.dtype),
                self.config.batch_size,
            )
        set_rng_state(random)
        if world.alone:
            return accuracy, loss
        parts = world.gather((round(accuracy * len(own) / 100), loss * len(own)))
        correct, losses = (sum(column) for column in zip(*parts, strict=True))
        return 100 * correct / len(valid), losses / len(valid)

    def _build_selection(
        self, config: SelectionConfig | None, proj_images: int | None
    ) -> ProgressiveSelection | None:
        kind = SELECTIONS[self._select]
        if kind is None:
            if config is not None:
                raise ValueError(
                    f"Search: magnitude takes no selection, got {type(config).__name__}"
                )
            return None
        pool, size = self.trainer.valid, self.config.batch_size
        if proj_images is not None:
            if not 1 <= proj_images <= len(pool):
                raise ValueError(
                    f"Search: proj_images must be 1 to {len(pool)} (the validation images), "
                    f"got {proj_images}"
                )
            pool = pool.take(proj_images)
        config = config or kind(seed=self.config.seed)
        source: Any
        if isinstance(config, PerturbationConfig) and config.mode == "compat":
            draws = generator(config.seed, "scoring")
            self._fresh = Batches(pool, self.trainer.augmentation, size, draws)
            source = self._fresh_pass
        else:
            source = fixed_batches(pool, self.data.plain, size)
        self.pool_images = len(pool)
        self._pool_batches = -(-len(pool) // size)
        self._converge_epochs = getattr(config, "proj_intv", 0)
        return build_selection(
            self._select,
            self.net,
            source,
            config,
            tune=self._tune,
            converge=self._converge,
            log=self._log,
            between=self._between_forwards,
            checkpoint=self._between_decisions,
            world=self.world,
            limits=self._limits,
        )

    def _fresh_pass(self) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        assert self._fresh is not None
        return iter(self._fresh)

    def _run_selection(self, selection: ProgressiveSelection) -> None:
        epochs = selection.tuning_epochs + selection.trainings * self._converge_epochs
        tuning = epochs * self.trainer.epoch_steps
        total = tuning + selection.evaluations * self._pool_batches
        self.reporter.start("select", total, self._done)
        selection.run()
        self.reporter.finish()

    def _tune(self, epoch: int) -> None:
        assert self._selection is not None
        self._record_decisions()
        self.reporter.log(f"epoch {epoch} lr {self.trainer.learning_rate:e}")
        event = EpochEvent("tune", self.trainer, self._selection.tuning_epochs)
        accuracy = self.trainer.run_epoch(self.reporter, self._between_tuning_steps)
        event.trained()
        self.reporter.log(f"train_acc {accuracy:f}")
        if self._fresh is not None and self._evaluates(epoch):  # as published
            event.validated(*self._validate())
            self.reporter.log(f"valid_acc {event.fields['valid_acc']:f}")
        self.reporter.record(event.fields)

    def _converge(self, net: Supernet) -> None:
        """Tune a copy of the network, every copy on the same sequence of images."""
        own = self.trainer
        trainer = Trainer(net, self.data, self.config, own.augmentation, own.perturb, self.world)

        def between() -> None:
            """As between forwards, but the step has advanced the reporter already."""
            self._done += 1
            if trainer.asked.stopping:
                raise Interrupted

        trainer.start_tuning()
        for epoch in range(self._converge_epochs):
            self.reporter.log(f"epoch {epoch} lr {trainer.learning_rate:e}")
            accuracy = trainer.run_epoch(self.reporter, between)
            self.reporter.log(f"train_acc {accuracy:f}")

    def _log(self, line: str) -> None:
        self.reporter.log(line)

    def _between_decisions(self) -> None:
        self._record_decisions()
        self._checkpoint()

    def _record_decisions(self) -> None:
        assert self._selection is not None
        text = genotype_text(self.net.genotype())
        self._recorder.decisions(self._selection.decisions, text, self.reporter)

    def _checkpoint(self) -> None:
        if self.checkpoint is not None:
            self.trainer.check_weights()
            self.checkpoint(self.state_dict())

    def _between_steps(self) -> None:
        save_or_stop(self.trainer.asked, self._checkpoint)

    def _between_tuning_steps(self) -> None:
        self._done += 1
        self._between_steps()

    def _between_forwards(self) -> None:
        """A projection is done again from its beginning: the checkpoint made there stands."""
        self._done += 1
        self.reporter.advance()
        if self.reporter.stopping:
            raise Interrupted
