# SPDX-License-Identifier: Apache-2.0
"""The phases of ``darts-fast search`` on one run directory, with the state that lets a later
process go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from darts_fast.cli.checkpoints import Checkpoints
from darts_fast.cli.console import RunReporter, SignalReporter, command_arguments
from darts_fast.cli.derive import check_derived, train_derived
from darts_fast.cli.limiting import limit_rows, stopping_of
from darts_fast.cli.options import with_cutout
from darts_fast.cli.selecting import selection_config
from darts_fast.data import Dataset, describe_classes, describe_halves
from darts_fast.derive.train import TrainConfig
from darts_fast.distributed import ALONE, World
from darts_fast.environment import environment
from darts_fast.files import atomic_save
from darts_fast.report import draw_genotype
from darts_fast.runs import GENOTYPE, RESULTS, RunDirectory
from darts_fast.search import Search, SearchConfig, SearchResult, genotype_text
from darts_fast.seeding import generator, seed_everything
from darts_fast.selection import Limits, race_summary
from darts_fast.spaces import Genotype, get_space, random_genotype

__all__ = ["SEARCHED", "SUPERNET", "Pipeline"]

SUPERNET = "supernet-{epoch:03d}.pt"  # epochs of training behind it
SEARCHED = "searched.pt"  # the state at the end of the training, for other selections


class Pipeline:
    """Search, selection and derived training with the settings of the command line.

    A run is begun, or goes on from the state of an earlier process, and is run to its end. Several
    processes share search and selection: the first calls `begin` and `run`, the others `follow`.

    Raises:
        ValueError: settings out of range or unfit for the data; nothing has been written then.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        data: Dataset,
        world: World = ALONE,
        limits: Limits | None = None,
    ) -> None:
        self.settings = settings
        self.data = data
        self.space = get_space(settings["space"])
        seed_everything(settings["seed"])
        config = SearchConfig.from_mapping(settings)
        self.net = config.build_supernet(
            self.space,
            channels=settings["init_channels"],
            num_classes=data.num_classes,
            layers=settings["layers"],
        )
        self.search = Search(
            self.net,
            data,
            config,
            select=settings["select"],
            selection=selection_config(settings, self.space),
            proj_images=settings["proj_images"],
            world=world,
            limits=limits,
            stopping=stopping_of(settings),
        )
        self.random = random_genotype(self.space, generator(settings["seed"], "random genotype"))
        self.train_config = TrainConfig(
            epochs=settings["derive_epochs"],
            batch_size=settings["derive_batch_size"],
            learning_rate=settings["derive_learning_rate"],
            weight_decay=settings["derive_weight_decay"],
            auxiliary_weight=settings["auxiliary_weight"],
            drop_path_prob=settings["drop_path_prob"],
            seed=settings["seed"],
        )
        self.derived_sizes = {
            "channels": settings["derive_channels"],
            "layers": settings["derive_layers"],
            "auxiliary": settings["auxiliary"],
        }
        if settings["derive"]:
            check_derived(self.random, data, **self.derived_sizes)
        self.limits: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.training: dict[str, Any] | None = None  # of the derived network under way
        self._resumed = False

    def begin(self, checkpoints: Checkpoints) -> None:
        """Save the state before the first step; supernets of an earlier run go away."""
        for stale in checkpoints.run.path.glob(SUPERNET.format(epoch=0).replace("000", "*")):
            stale.unlink()
        (checkpoints.run.path / SEARCHED).unlink(missing_ok=True)
        checkpoints.save(self.state_dict())

    def run(self, checkpoints: Checkpoints) -> None:
        """All phases, or what is left of them; the results are printed and written to the run
        directory.

        Raises:
            Interrupted: the reporter asked to stop, and the state is saved.
        """
        run, reporter = checkpoints.run, checkpoints.reporter

        def save(_: object = None) -> None:
            checkpoints.save(self.state_dict())

        self.search.reporter = reporter
        self.search.checkpoint = save
        self.search.searched = lambda state: atomic_save(run.path / SEARCHED, state)
        self.search.snapshot = lambda epoch: self._snapshot(epoch, run)
        reporter.begin(self.settings, resumed=self._resumed)
        parameters = sum(parameter.numel() for parameter in self.net.parameters())
        reporter.log(f"param size = {parameters / 1e6:f}MB")
        self._report_classes(run, reporter)
        result = self.search.run()
        save()
        races = race_summary(result.decisions, self.search.pool_images)
        if races is not None:
            reporter.log(races)
        text = genotype_text(result.genotype)
        reporter.log(f"genotype = {text}")
        reporter.say(f"genotype = {text}")
        if self.search.limits is not None:
            self.limits = limit_rows(self.search.limits, result.genotype)
        for row in self.limits:
            reporter.say(f"{row['resource']}: {row['found']:,.6g}, limit {row['most']:,.6g}")
        run.write_text(GENOTYPE, text + "\n")
        genotypes = self._genotypes(result)
        if self.settings["derive"]:
            self._derive(genotypes, run, reporter, save)
        pictures = [
            run.path / f"cells-{label}.png"
            for label in (genotypes if self.settings["derive"] else [self.settings["select"]])
        ]
        for label, path in zip(genotypes, pictures, strict=False):
            draw_genotype(genotypes[label], path)
        self._write_results(result, run, reporter)
        self._show(reporter, pictures, run)

    def follow(self, reporter: SignalReporter) -> None:
        """Search and selection, or what is left of them, as one of the other processes of a world.

        Raises:
            Interrupted: one of the processes was asked to stop.
        """
        self.search.reporter = reporter
        self.search.checkpoint = lambda _: reporter.saved()
        self.search.run()

    def state_dict(self) -> dict[str, Any]:
        """Everything a later process needs to go on bit for bit."""
        return {"search": self.search.state_dict(), "derived": self.rows, "training": self.training}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a run with the same settings."""
        self.search.load_state_dict(state["search"])
        self._resumed = True
        self.rows = list(state["derived"])
        self.training = state["training"]

    def _report_classes(self, run: RunDirectory, reporter: RunReporter) -> None:
        names, trainer = self.data.class_names, self.search.trainer
        line, uneven = describe_classes(self.data.train, names)
        halves = describe_halves(trainer.train, trainer.valid, names)
        if not uneven:
            reporter.log(line)
        for warning in [line] * uneven + [halves] * (halves is not None):
            run.log(f"warning: {warning}")
            reporter.say(f"warning: {warning}")

    def _snapshot(self, epoch: int, run: RunDirectory) -> None:
        """Keep the supernet after an epoch of the search, if it is one to keep."""
        every = self.settings["ckpt_interval"]
        if epoch + 1 == self.settings["epochs"] or (every > 0 and (epoch + 1) % every == 0):
            atomic_save(run.path / SUPERNET.format(epoch=epoch + 1), self.net.full_state_dict())

    def _genotypes(self, result: SearchResult) -> dict[str, Genotype | str]:
        """By label, the selected one first."""
        chosen = {self.settings["select"]: result.genotype}
        return {**chosen, "magnitude": result.magnitude, "random": self.random}

    def _derive(
        self,
        genotypes: Mapping[str, Genotype | str],
        run: RunDirectory,
        reporter: RunReporter,
        save: Callable[[], None],
    ) -> None:
        settings = self.settings
        cutout = settings["cutout_length"] if settings["derive_cutout"] else 0
        augmentation = with_cutout(self.data.augmentation, cutout, 1.0)
        data = replace(self.data, augmentation=augmentation)

        def keep(state: dict[str, Any]) -> None:
            self.training = state
            save()

        for label, genotype in genotypes.items():
            if any(row["selection"] == label for row in self.rows):
                continue
            twin = [row for row in self.rows if row["genotype"] == genotype_text(genotype)]
            if twin:  # the same genotype, recipe and seed: the same network
                reporter.log(f"derived network of {label}: the one of {twin[0]['selection']}")
                row = {**twin[0], "selection": label}
            else:
                row = train_derived(
                    label,
                    genotype,
                    data,
                    self.train_config,
                    reporter,
                    run,
                    **self.derived_sizes,
                    checkpoint=keep,
                    state=self.training,
                )
            self.training = None
            self.rows.append(row)
            save()

    def _write_results(
        self, result: SearchResult, run: RunDirectory, reporter: RunReporter
    ) -> None:
        run.write_json(
            RESULTS,
            {
                "arguments": command_arguments(),
                "environment": environment(),
                "genotype": genotype_text(result.genotype),
                "magnitude_genotype": genotype_text(result.magnitude),
                "history": result.history,
                "decisions": [asdict(decision) for decision in result.decisions],
                "limits": self.limits,
                "derived": self.rows,
                **reporter.spent(),
            },
        )

    def _show(self, reporter: RunReporter, pictures: list[Any], run: RunDirectory) -> None:
        if self.rows:
            table = Table(title=f"derived networks on {self.data.name}, trained alike")
            for name in ("selection", "test accuracy %", "best epoch %", "parameters", "time s"):
                table.add_column(name, justify="left" if name == "selection" else "right")
            for row in self.rows:
                table.add_row(
                    row["selection"],
                    f"{row['test_accuracy']:.2f}",
                    f"{row['best_test_accuracy']:.2f}",
                    f"{row['parameters']:,}",
                    f"{row['seconds']:.0f}",
                )
            reporter.console.print(table)
        times = ", ".join(f"{name} {value:.0f} s" for name, value in reporter.seconds.items())
        reporter.say(f"time: {times}")
        for path in pictures:
            reporter.say(f"picture: {path}")
        reporter.say(f"run directory: {run.path}")
