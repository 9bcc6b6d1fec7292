"""Training on from what a generator makes: a few steps of ordinary LoRA training, then the file is written as an export writes it."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .catalog import Catalog
from .config import RefineConfig, TrainingConfig
from .errors import ConfigError, NameTaken
from .exporting import asked, make
from .files import check_name
from .host import Host
from .low_rank import LowRankWeights
from .prompt import ActiveNetwork
from .trainer import HypernetworkTrainer, Progress

WARMUP = 5  # steps
_SHARED = ("dataset", "max_steps", "learning_rate", "batch_size", "seed")


class Refiner:
    """Makes weights, trains them on pictures, and writes the LoRA file. Used as a trainer: `run` yields what happens, `stop` and `cancel`
    may come from any thread."""

    def __init__(self, config: RefineConfig, catalog: Catalog, active: ActiveNetwork | None = None) -> None:
        """`active` takes the place of what the configuration says of generator, condition and strength. Raises what `exporting.asked` raises, `NameRefused`, and `NameTaken` for the name of a hypernetwork, whose run would be lost."""
        self.active, self.catalog, self.snapshot = active or asked(config), catalog, config.snapshot
        name = f"{check_name(config.name.strip() or Path(self.active.name).name)} refined"
        if name in catalog.names():
            raise NameTaken(f"There is a hypernetwork named {name}: choose another name for what is refined.")
        self.config = TrainingConfig(
            name=name, **{option: getattr(config, option) for option in _SHARED}, warmup_steps=min(WARMUP, config.max_steps - 1),
            validation_share=0, validation_every=0, preview_every=0, checkpoint_every=0,
        )  # fmt: skip
        self._trainer = HypernetworkTrainer(config=self.config)

    def stop(self) -> None:
        """Ends the run after the step at hand; the file is written."""
        self._trainer.stop()

    def cancel(self) -> None:
        """Ends the run after the step at hand; no file is written."""
        self._trainer.cancel()

    def run(self, host: Host, resume: bool = False, overwrite: bool = False) -> Iterator[Progress]:
        """The run as events; it always starts from the generator. Raises what `exporting.make` and the trainer raise."""
        if not self.config.dataset:
            raise ConfigError("Say which folder of pictures to refine with.")
        made = make(host, self.catalog, self.active, snapshot=self.snapshot)
        yield from (Progress("warning", message=note) for note in made.notes)
        weights = LowRankWeights(made.weights)
        weights.metadata.update(made.metadata)
        weights.metadata["ss_training_comment"] += f" Then trained for up to {self.config.max_steps} steps on pictures."
        self._trainer.hypernetwork = weights
        yield from self._trainer.run(host=host, overwrite=True)
