"""The pictures that a run draws with its network: what is drawn, where they lie, and all of them as one."""
from __future__ import annotations

from pathlib import Path

import torch

from .batches import Batches
from .checkpoint import RunFolder
from .errors import HypernetworkError, Interrupted
from .memory import clear, full, is_out_of_memory
from .sheets import sheet
from .trainees import Trainee
from .writing import write_atomically


class Previews:
    """Those of a run. `last` are the newest; once one has `failed`, no more are to be drawn."""

    def __init__(self, trainee: Trainee, batches: Batches, folder: RunFolder) -> None:
        self.trainee, self.batches, self.folder = trainee, batches, folder
        self.config, self.host = trainee.config, trainee.host
        self.last: tuple[Path, ...] = ()
        self.failed = False

    @property
    def prompts(self) -> list[str]:
        """Of each, in their order."""
        return [line.prompt for line in self.batches.preview_lines()]

    def draw(self, step: int) -> str:
        """Pictures of the preview prompts, each time from the same noise. The network is as it is to be shown. Gives a sentence where they cannot
        be drawn for want of memory or for something that the user can mend, else nothing."""
        try:
            self.last = self._drawn(step)
            return ""
        except Exception as error:
            if not (isinstance(error, (HypernetworkError, OSError)) or is_out_of_memory(error)):
                raise
            reason = f"{full(self.host.device)}." if is_out_of_memory(error) else str(error)
        # here the handler is left, whose traceback holds all tensors of the pass that failed
        clear(self.host.device)
        self.failed = True
        return f"There are no previews from step {step} on: {reason}"

    def _drawn(self, step: int) -> tuple[Path, ...]:
        side = self.config.resolution or self.host.model.resolution
        paths = []
        for number, line in enumerate(self.batches.preview_lines()):
            request = line.request(self.config, side)
            try:
                with torch.no_grad(), self.trainee.drawing(self.batches, number):
                    picture = self.host.generate(request, lambda step, steps: self.trainee.before_step())[0]
            except Interrupted:  # the host says so in `report`, too; the run is stopped there
                break
            paths.append(self.folder.preview_path(step, number + 1))
            write_atomically(paths[-1], picture.save)
        return tuple(paths)

    def save_sheet(self) -> None:
        """All of them as one picture, where that is asked for."""
        if self.config.sample_sheet and (made := sheet(self.folder.previews_by_place(), self.prompts)) is not None:
            write_atomically(self.folder.sheet_path, lambda path: made.save(path, "PNG"))
