"""A run, repeated from its folder: the same options, pictures and pauses lead to the same file, bit for bit on the same machine."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoint import RunFolder
from .config import TrainingConfig, read
from .errors import ConfigError, DatasetError, ModelUnfit
from .host import Folders, Host
from .manifest import changes, differences, manifest, sha256, surroundings
from .repeats import read_pictures
from .trainees import trainee_for
from .trainer import HypernetworkTrainer, Progress


@dataclass(frozen=True)
class Aside(Folders):
    """Everything that is made goes into one folder; encoded pictures are found where the first run has left them."""

    @property
    def runs(self) -> Path:
        return self.networks / "runs"


class Rerun:
    """Used as a trainer: `run` yields what happens, `stop` and `cancel` may come from any thread."""

    def __init__(self, folder: str | Path, into: str | Path | None = None, loss_function: str = "") -> None:
        """`folder` is a run's; what is made goes `into` a folder, by default one within it. A function that the run names for its loss is code that is
        run, so whoever asks has to name it as well, as `loss_function`. Raises `ConfigError` for what cannot be repeated."""
        folder = Path(folder).resolve()
        self.folder = RunFolder(folder.parent, folder.name)
        self.about, self.result = self.folder.about(), self.folder.result()
        self.parts = _parts(self.folder.path, self.about)
        _check_loss(self.parts, loss_function)
        self.into = Path(into) if into else folder / "rerun"
        if (self.into / f"{self.name}.safetensors").exists():
            raise ConfigError(f"There is a file {self.name}.safetensors in {self.into} already; name another folder.")
        self._trainer: HypernetworkTrainer | None = None
        self._ending = ""

    @property
    def name(self) -> str:
        """The network's."""
        return self.parts[-1][1].name

    @property
    def folders(self) -> Folders:
        """Where the host is to find and put files."""
        data = self.folder.path.parents[1] if self.folder.path.parent.name == "runs" else self.into / "data"
        return Aside(self.into, data, self.into)

    def stop(self) -> None:
        """Ends the run after the step at hand, with its file saved."""
        self._end("stop")

    def cancel(self) -> None:
        """Ends the run after the step at hand; no file is written."""
        self._end("cancel")

    def check(self, host: Host) -> None:
        """Raises `ModelUnfit` for another model, and `DatasetError` that names the pictures which are not what they were."""
        before = self.about.get("model", {})
        if before.get("hash") != host.model.hash:
            raise ModelUnfit(f"The run was made with the model {before.get('name')} ({before.get('hash')}), and this is {host.model.name} ({host.model.hash}).")
        config = self.parts[-1][1]
        pictures = list(trainee_for(None, config, host).read(config.dataset).pictures)
        if config.regularization:
            pictures += [replace(picture, regularization=True) for picture in read_pictures(config.regularization).pictures]
        if told := changes(self.folder.manifest(), manifest(pictures)):
            raise DatasetError(" ".join(["The pictures are not what they were.", *told]))

    def run(self, host: Host) -> Iterator[Progress]:
        """The run as events, part by part where it was paused and went on with other options. Raises what the trainer raises."""
        if told := differences(self.about.get("surroundings", {}), surroundings(host)):
            yield Progress("warning", message=f"The file may differ in its last digits: {'; '.join(told)}.")
        host.folders = self.folders
        lasts = [step for step, _ in self.parts[1:]] + [self._last_step()]
        for (first, config), last in zip(self.parts, lasts, strict=True):
            self._trainer = HypernetworkTrainer(config=config, date=str(self.about.get("date", "")))
            self._trainer.stop(after=last)
            if self._ending:
                self._end(self._ending)
            yield from self._trainer.run(host=host, resume=first > 0, overwrite=True)
            if self._ending:
                break

    def compared(self) -> list[str]:
        """For each file of the first run, whether the one that was made now is the same."""
        files = self.result.get("files", {})
        if not files:
            return ["The first run has not come to its end, so there is no file to compare with."]
        return [f"{name} is {'the same file, bit for bit' if sha256(self.into / name) == hash else 'another file'}." for name, hash in files.items()]

    def _last_step(self) -> int:
        """Where the first run ended, or was when it was last saved."""
        state = None if self.result else self.folder.load_state()
        step = self.result.get("step") if state is None else state["step"]
        if type(step) is not int or step < 1:
            raise ConfigError(f"The run in {self.folder.path} has not come as far as its first checkpoint, so there is nothing to repeat.")
        return step

    def _end(self, how: str) -> None:
        self._ending = how
        if self._trainer is not None:
            getattr(self._trainer, how)()


def _parts(folder: Path, about: dict[str, Any]) -> list[tuple[int, TrainingConfig]]:
    """From which step on with which options. Raises `ConfigError` where a run cannot be repeated, with the reason."""
    if not about.get("parts"):
        raise ConfigError(f"{folder} is no folder of a run that says how it was made, or its config.json was damaged.")
    if about.get("began_from"):
        raise ConfigError(f"The run in {folder} went on with {about['began_from']}, which its folder does not hold, so it cannot be repeated.")
    parts = [(part["from_step"], read(TrainingConfig, part["options"]), part["pictures"]) for part in about["parts"]]
    if len({pictures for _, _, pictures in parts}) > 1:
        raise ConfigError(f"The pictures of the run in {folder} were changed while it paused, so it cannot be repeated.")
    return [(step, config) for step, config, _ in parts]


def _check_loss(parts: list[tuple[int, TrainingConfig]], allowed: str) -> None:
    """Raises `ConfigError` where the folder, which may come from anybody, names code that was not `allowed`."""
    for _, config in parts:
        if (named := config.loss_function.strip()) and named != allowed.strip():
            raise ConfigError(
                f"The run computes its loss with {named}, which is code of this machine, named by the folder: "
                f"if it is to be run, repeat it with --loss-function {named}."
            )
