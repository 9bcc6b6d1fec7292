"""What TensorBoard shows of a run: losses, rate and previews, as event files in the run's folder."""
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image

from .checkpoint import Row
from .config import TrainingConfig
from .errors import ConfigError

TAGS = {"loss": "loss/training", "validation_loss": "loss/validation", "rate": "learning rate"}


def check_board(config: TrainingConfig) -> None:
    """Raises `ConfigError` where TensorBoard is asked for and is not installed."""
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("TensorBoard is not installed: pip install tensorboard, or turn off TensorBoard (tensorboard).")


class Board:
    """Writes event files; look at them with `tensorboard --logdir <data>/runs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, step: int) -> None:
        """The run starts, or goes on, after this step; what is there of later ones is no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else 0)

    def row(self, row: Row) -> None:
        """A line of the loss table."""
        for name, tag in TAGS.items():
            if (value := getattr(row, name)) is not None:
                self._writer.add_scalar(tag, value, row.step)

    def previews(self, step: int, paths: Sequence[Path]) -> None:
        """The pictures of a step, which may be fewer than there are prompts."""
        for number, path in enumerate(paths, 1):
            with Image.open(path) as picture:
                self._writer.add_image(f"preview {number}", numpy.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Everything is in the files."""
        self._writer.close()
