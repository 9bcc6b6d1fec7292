"""What previews are drawn of: a prompt per line, which may say its own negative prompt, size, seed, scale, steps and sampler.

    a fox in the snow --n blurry --w 512 --h 768 --d 7 --l 4.5 --s 30 --ss Euler a

The letters are those of kohya-ss' sd-scripts (docs/train_README, sample images), which users of other trainers know.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .config import TrainingConfig
from .errors import ConfigError
from .host import GenerationRequest, Host

FLAG = re.compile(r"\s--([A-Za-z]+)(?=\s|$)")
KINDS: dict[str, tuple[str, type, float, float]] = {
    "n": ("negative_prompt", str, 0, 0), "w": ("width", int, 64, 4096), "h": ("height", int, 64, 4096), "d": ("seed", int, 0, 2**32 - 1),
    "l": ("cfg_scale", float, 1, 30), "s": ("steps", int, 1, 200), "ss": ("sampler", str, 0, 0),
}  # fmt: skip
"""Flag -> what it sets, its kind, lowest and highest value."""


@dataclass(frozen=True)
class PreviewLine:
    """One prompt. What is None is as the options of all previews say; `literal` is text that is in no host's syntax."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    cfg_scale: float | None = None
    steps: int | None = None
    sampler: str = ""
    literal: bool = False

    def request(self, config: TrainingConfig, side: int) -> GenerationRequest:
        """The picture to draw; `side` in pixels where the line says no size."""
        return GenerationRequest(
            self.prompt, self.negative_prompt, steps=self.steps or config.preview_steps, cfg_scale=self.cfg_scale or config.preview_cfg_scale,
            width=self.width or side, height=self.height or side, seed=config.preview_seed if self.seed is None else self.seed,
            literal=self.literal, zero_terminal_snr=config.zero_terminal_snr, sampler=self.sampler,
        )  # fmt: skip


def read_lines(text: str) -> list[PreviewLine]:
    """The lines of `preview_prompts` that say something. Raises `ConfigError` that names the flag."""
    return [_read(line.strip()) for line in text.splitlines() if line.strip()]


def captions_as_lines(captions: Sequence[str]) -> list[PreviewLine]:
    """Captions of pictures, of which nothing is a flag."""
    return [PreviewLine(caption, literal=True) for caption in captions]


def check_lines(config: TrainingConfig, host: Host) -> None:
    """Raises `ConfigError` for a sampler that the host does not have."""
    for line in read_lines(config.preview_prompts):
        if line.sampler and line.sampler not in host.samplers:
            raise ConfigError(f"Preview prompts (preview_prompts): there is no sampler {line.sampler!r} here; there are {', '.join(host.samplers)}.")


def _read(line: str) -> PreviewLine:
    prompt, *parts = FLAG.split(f" {line}")
    found = PreviewLine(prompt.strip())
    for flag, value in zip(parts[::2], parts[1::2], strict=True):
        if flag not in KINDS:
            raise ConfigError(f"Preview prompts (preview_prompts): there is no --{flag}; there are {', '.join(f'--{known}' for known in KINDS)}.")
        name, kind, lowest, highest = KINDS[flag]
        found = replace(found, **{name: _value(flag, value.strip(), kind, lowest, highest)})
    return found


def _value(flag: str, text: str, kind: type, lowest: float, highest: float) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if kind is str and text:
        return text
    if kind is str or value is None or not lowest <= value <= highest or (flag in "wh" and value % 8):
        takes = "text" if kind is str else f"{'a multiple of 8' if flag in 'wh' else 'a number'} from {lowest:g} to {highest:g}"
        raise ConfigError(f"Preview prompts (preview_prompts): --{flag} cannot be {text!r}: it takes {takes}.")
    return value
