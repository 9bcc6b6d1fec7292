"""Training: a folder of captioned pictures goes in, a hypernetwork file comes out, and `Progress` events tell of it on the way.

The UNet is frozen and keeps no weight gradients. A step costs one forward and one backward to the networks' inputs.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from .batches import left_out
from .checkpoint import RunFolder
from .config import TrainingConfig, read
from .dataset import Dataset
from .errors import ConfigError, NameTaken, TrainingFailed
from .files import check_name
from .forecast import SMALL, Forecast, foresee, model_bytes
from .host import Host
from .learner import check_options
from .locks import RUN, held
from .manifest import manifest
from .memory import is_out_of_memory, out_of_memory
from .objective import Objective
from .preview_lines import check_lines
from .processes import any_of, is_main, make_accelerator
from .run import Orders, Progress, Run
from .saving import raw_path
from .trainees import Network, Trainee, check_trainable, trainee_for


class HypernetworkTrainer:
    """Trains one network. `run` yields what happens, `train` just runs to the end; `stop` and `cancel` may come from any thread."""

    def __init__(
        self, hypernetwork: Network | None = None, config: Mapping[str, Any] | TrainingConfig | None = None, date: str = ""
    ) -> None:
        """`hypernetwork`: one to train on; None makes a new one of the configuration's kind. A network's own structure counts, not the
        configuration's, and its name where the configuration has none. `date`: what the file says of when it was made, in ISO 8601; by default when
        the run begins."""
        config = config if isinstance(config, TrainingConfig) else read(TrainingConfig, config or {})
        if hypernetwork is not None:
            check_trainable(hypernetwork)
            config = replace(config, name=config.name or hypernetwork.name or "hypernetwork")
        self.hypernetwork, self.config = hypernetwork, config
        self._orders, self._date = Orders(), date
        self._run: Run | None = None  # the last one that came as far as its first step

    def stop(self, after: int | None = None) -> None:
        """Ends the run after the step at hand, or after that step; the network and a checkpoint are saved."""
        if after is None:
            self._orders.stop.set()
        else:
            self._orders.last_step = after

    def cancel(self) -> None:
        """Ends the run after the step at hand; no network file is written."""
        self._orders.cancel.set()

    def train(
        self, dataset: str | Path | Dataset | None = None, host: Host | None = None, *, resume: bool = False, overwrite: bool = False
    ) -> Path:
        """Runs to the end and gives the path of the network's file. Raises `TrainingFailed` where the run was cancelled."""
        end = deque(self.run(dataset, host, resume=resume, overwrite=overwrite), maxlen=1).pop()
        if end.path is None:
            raise TrainingFailed(end.message)
        return end.path

    def run(
        self, dataset: str | Path | Dataset | None = None, host: Host | None = None, *, resume: bool = False, overwrite: bool = False
    ) -> Iterator[Progress]:
        """One training run as events.

        `dataset` is a folder or a read one (default: the configuration's folder), `host` the model (default: the embedded one).
        `resume` goes on from the run's last checkpoint, else from the file of that name. `overwrite` allows to replace that file.
        Raises `NameTaken` where the file exists and neither was asked for, and where a run of that name is going on.
        """
        host = host or _standalone_host()
        folder = RunFolder(host.folders.runs, check_name(self.config.name))
        trainee = trainee_for(self.hypernetwork, self.config, host)
        objective = Objective(self.config, host)
        check_options(self.config, host.device)
        check_lines(self.config, host)
        if self.config.mixed_precision == "fp16" and host.device.type == "cpu":
            raise ConfigError("Precision fp16 needs a graphics card; on this machine choose no or bf16.")
        with _alone(folder):
            self._check_free(trainee, folder, resume, overwrite)
            yield from self._events(dataset, trainee, folder, objective, resume)

    def _events(
        self, dataset: str | Path | Dataset | None, trainee: Trainee, folder: RunFolder, objective: Objective, resume: bool
    ) -> Iterator[Progress]:
        host = trainee.host
        accelerator = make_accelerator(self.config.mixed_precision, host.device)
        with accelerator.main_process_first():  # what it encodes the others find on the disk
            dataset = dataset if isinstance(dataset, Dataset) else trainee.read(dataset or self.config.dataset)
            yield from (Progress("warning", message=message) for message in [*dataset.warnings, *left_out(dataset.skipped)])
            file = trainee.target if resume and trainee.target.exists() and not folder.has_state else None
            batches = trainee.batches(dataset, accelerator.num_processes, accelerator.process_index, file)
            if accelerator.is_main_process and model_bytes(host) > SMALL and (foreseen := self.forecast(dataset, host)) is not None:
                yield Progress("preparing" if foreseen.fits else "warning", message=foreseen.sentence)
            yield from self._preparing(batches.prepare())
        if (yield from self._cancelled(accelerator)):
            return
        self._run = run = Run(self._orders, trainee, accelerator, batches, folder, objective, self._date)
        try:
            run.begin(resume, manifest([*dataset.pictures, *batches.regular]))
            self.hypernetwork = run.network
            yield from (Progress("warning", message=message) for message in [*batches.warnings, *objective.warnings, *run.learner.warnings, *run.warnings])
            if run.network.step == run.step == 0:
                yield from self._preparing(trainee.learn_beforehand(batches))
                if (yield from self._cancelled(accelerator)):
                    return
            with run.at_work():
                yield from run.events()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingFailed(out_of_memory(host.device, f"at step {run.step}")) from None
        finally:
            if accelerator.is_main_process:
                folder.put_back()  # what a run that has saved nothing was to replace

    def shown(self) -> AbstractContextManager[None]:
        """Within it, between two steps of a run, `hypernetwork` is as its file would be now: averaged where it is to be, and without dropout."""
        return self._run.learner.shown()

    def forecast(self, dataset: str | Path | Dataset | None = None, host: Host | None = None) -> Forecast | None:
        """What a run would take of the device's memory; takes seconds. None where the host's UNet does not let it be foreseen."""
        host = host or _standalone_host()
        trainee = trainee_for(self.hypernetwork, self.config, host)
        dataset = dataset if isinstance(dataset, Dataset) else trainee.read(dataset or self.config.dataset)
        return foresee(trainee, trainee.batches(dataset, 1, 0), Objective(self.config, host))

    def _preparing(self, work: Iterator[tuple[int, int, str]]) -> Iterator[Progress]:
        """Tells of what goes before the first step, until it is done or the run is told to end."""
        for done, total, what in work:
            yield Progress("preparing", done, total, what)
            if self._orders.ending:
                break

    def _cancelled(self, accelerator: Any) -> Generator[Progress, None, bool]:
        """Whether the run was told to end before its first step, and a word of it."""
        if not any_of(accelerator, self._orders.ending):
            return False
        yield Progress("cancelled", message="Cancelled before the first step.")
        return True

    def _check_free(self, trainee: Trainee, folder: RunFolder, resume: bool, overwrite: bool) -> None:
        """Raises `NameTaken` where a file would be replaced, or a run forgotten, that is not to be, and `ConfigError` where there is nothing to go on
        from but a `.pt`."""
        if not (resume or overwrite):
            if trainee.target.exists():
                raise NameTaken(
                    f"A hypernetwork named {self.config.name!r} exists already; replace it (overwrite), continue its training (resume), or choose another name."
                )
            if folder.has_state:
                raise NameTaken(f"A run named {self.config.name!r} was left before its end; go on with it (resume), replace it (overwrite), or choose another name.")
        before, name = folder.about().get("options", {}) if resume else {}, self.config.name
        pt, raw = trainee.target.with_suffix(".pt"), raw_path(trainee.target)
        if resume and pt.exists() and not (trainee.target.exists() or folder.has_state):
            raise ConfigError(f"{name}.pt cannot be trained on as it is: convert it first (hypernetworks convert {name}.pt {name}.safetensors).")
        if self.config.also_pt and pt.exists() and not (overwrite or before.get("also_pt")):
            raise NameTaken(f"There is a file {pt.name} already; replace it, choose another name, or turn off Also write .pt (also_pt).")
        if _saves_both(vars(self.config)) and raw.exists() and not (overwrite or _saves_both(before)):
            raise NameTaken(f"There is a file {raw.name} already; replace it, choose another name, or turn off Save both (ema_save_both).")


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Within it nobody else trains in the folder, which is not left empty. Raises `NameTaken` where somebody does. Of several processes that train
    one network the main one speaks for all."""
    if not is_main():
        yield
        return
    try:
        with held(folder.path / RUN) as ours:
            if not ours:
                raise NameTaken(f"A run named {folder.path.name!r} is going on already, here or in another program; wait for its end, or choose another name.")
            yield
    finally:
        with suppress(OSError):  # it is not empty once the run has begun
            folder.path.rmdir()


def _saves_both(options: Mapping[str, Any]) -> bool:
    """Whether a run with these options writes the weights of its last step beside their average."""
    return bool(options.get("ema_decay")) and options.get("ema_save_both", True)


def _standalone_host() -> Host:
    from .hosts.diffusers import DiffusersHost

    return DiffusersHost()
