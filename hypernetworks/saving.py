"""What a run writes: what was asked of it, checkpoints, the state that it goes on from, and at the end the network."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .best import Best
from .checkpoint import RunFolder
from .config import FOLDERS, plain
from .errors import TrainingFailed
from .learner import Learner
from .manifest import digest, surroundings
from .networks import training_metadata
from .recovery import finite
from .trainees import Trainee
from .writing import check_space, clear_temporaries, make_folder


class Saving:
    """Of one run. `preview` is the picture that the network's file shows, `step` that of the state on the disk."""

    def __init__(self, trainee: Trainee, learner: Learner, folder: RunFolder, best: Best, pictures: int, date: str) -> None:
        """`pictures` is how many it learns from, `date` what the file says of when it was made, in ISO 8601; empty: now."""
        self.trainee, self.learner, self.folder, self.best, self.pictures = trainee, learner, folder, best, pictures
        self.network, self.config, self.host = trainee.network, trainee.config, trainee.host
        self.date = date or datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.preview: Path | None = None
        self.step = 0

    def check_space(self) -> None:
        """Raises `DiskFull` where there is no room for a checkpoint, before hours of training have come to nothing: a file of the network,
        and in the state its weights, two averages of gradients as Adam keeps them, and the average of the weights."""
        make_folder(self.host.folders.runs)
        size = sum(parameter.nbytes for parameter in self.network.parameters())
        check_space(self.host.folders.runs, size * (5 if self.learner.average is not None else 4), f"A checkpoint of {self.config.name}")

    def note_what_was_asked(self, step: int, pictures: Mapping[str, Any], began_from: str, processes: int) -> None:
        """Enough to repeat the run. It has a part for every pause after which it went on, at `step`, with other options or pictures; `pictures`
        is their manifest."""
        before = self.folder.about() if step else {}
        self.date = before.get("date", self.date)
        folders = {name: os.path.abspath(folder) for name in FOLDERS if (folder := getattr(self.config, name))}
        part = {"from_step": step, "options": vars(self.config) | folders, "pictures": digest(pictures)}
        parts = [one for one in before.get("parts", []) if one["from_step"] < step]
        if not parts or any(json.loads(json.dumps(part[name])) != parts[-1][name] for name in ("options", "pictures")):
            parts.append(part)
        about = {
            "options": plain(self.config), "model": vars(self.host.model), "pictures": self.pictures, "date": self.date, "parts": parts,
            "surroundings": surroundings(self.host, processes), "began_from": before.get("began_from", began_from),
        }  # fmt: skip
        self.folder.begin(about, step)
        self.folder.note_manifest(pictures)

    def checkpoint(self, step: int, about: Mapping[str, Any]) -> Path:
        """The network as a file, which is given, and all that is needed to go on from here; `about` is what the run itself has to remember."""
        self._describe(step)
        with self.learner.shown():
            (path,) = self.trainee.save(self.folder.checkpoint_path(step))
        self.state(step, about)
        if self.config.checkpoints_kept:
            self.folder.keep_checkpoints(self.config.checkpoints_kept, step)
        return path

    def state(self, step: int, about: Mapping[str, Any]) -> None:
        """What the run goes on from."""
        self.folder.save_state(self.learner.state() | {"step": step, "best": self.best.state(), **about})
        self.step = step

    def finish(self, step: int, about: Mapping[str, Any], kept: bool) -> list[Path]:
        """Writes the checkpoint and the network, with the weights of the best validation where these are `kept`; the average where there is one,
        and then the weights themselves beside it if that is asked for. Gives the files. The network stays as it was written."""
        self.checkpoint(step, about)
        raw = []
        if kept:
            self._describe_best(step)
        if self.learner.average is not None and self.config.ema_save_both:
            if kept and self.best.raw is not None:
                self.network.load_state_dict(self.best.raw)
            target = raw_path(self.trainee.target)
            self.network.name = target.stem
            raw = self.trainee.save(target)
            self.network.name = self.config.name
        self._settle(kept)
        return [*self.trainee.save(self.trainee.target), *raw]

    def finish_without_files(self, step: int, kept: bool) -> None:
        """The same for a process that writes nothing."""
        self._describe(step)
        if kept:
            self._describe_best(step)
        self._settle(kept)

    def _settle(self, kept: bool) -> None:
        self.learner.settle()
        if kept:
            self.network.load_state_dict(self.best.weights)

    def _describe(self, step: int) -> None:
        if not finite(self.network):
            raise TrainingFailed(f"The weights are not numbers at step {step}; nothing was saved over the last good checkpoint.")
        self.network.name, self.network.step = self.config.name, step
        self.network.metadata.update(training_metadata(self.config, self.host.model, self.pictures, self.preview, self.date))

    def _describe_best(self, step: int) -> None:
        """The file is of an earlier step; a run that goes on does so from the last one."""
        self.network.step = self.best.step
        self.network.metadata.update({"last_step": str(step), "validation_loss": f"{self.best.loss:.6g}"})


def raw_path(target: Path) -> Path:
    """Where the weights themselves stand when `target` holds their average."""
    return target.with_name(f"{target.stem}-raw{target.suffix}")


def clear_leftovers(target: Path) -> None:
    """What a killed run has left half written beside its network's file."""
    for file in (target, target.with_suffix(".pt"), raw_path(target)):
        clear_temporaries(file.parent, file.name)
