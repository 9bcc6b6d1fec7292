"""Generating without a web UI: a prompt, the generation panel, and the picture beside the same seed without hypernetworks."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from ..errors import ConfigError, HypernetworkError
from ..host import GenerationRequest, Host
from ..prompt import ActiveNetwork, extract
from ..session import Session
from . import compatibility
from .generation_panel import NetworkRows
from .markup import note

LARGEST_SEED = 2**32 - 1


class GenerateTab:
    """Build it within a tab of a page. The standalone app's; web UIs have their own prompt and buttons."""

    def __init__(self, host: Host, session: Session) -> None:
        self.host, self.session = host, session
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=380):
                self._build_inputs()
            with gr.Column(scale=5, min_width=380):
                self._build_results()
        self.button.click(
            self.generate,
            [self.prompt, self.negative_prompt, self.steps, self.cfg_scale, self.width, self.height, self.seed, self.compare, *self.rows.inputs],
            [self.note, self.picture, self.plain_picture],
        )

    def _build_inputs(self) -> None:
        side = self.host.model.resolution
        self.prompt = gr.Textbox(label="Prompt", lines=3, elem_id="hypernetworks_prompt", placeholder="What to draw")
        self.negative_prompt = gr.Textbox(label="Negative prompt", lines=1, elem_id="hypernetworks_negative_prompt", placeholder="What not to draw")
        self.rows = NetworkRows(self.host, self.session.catalog)
        with gr.Row():
            self.steps = gr.Slider(
                minimum=1, maximum=100, step=1, value=20, label="Sampling steps", info="More take longer and look finer.", min_width=160,
                elem_id="hypernetworks_steps",
            )  # fmt: skip
            self.cfg_scale = gr.Slider(
                minimum=1, maximum=20, step=0.5, value=5, label="CFG scale", info="How strictly to follow the prompt.", min_width=160,
                elem_id="hypernetworks_cfg_scale",
            )  # fmt: skip
        with gr.Row():
            about = {"minimum": 64, "maximum": 2048, "step": 8, "value": side, "min_width": 160}
            self.width = gr.Slider(label="Width", elem_id="hypernetworks_width", **about)
            self.height = gr.Slider(label="Height", elem_id="hypernetworks_height", **about)
        with gr.Row():
            self.seed = gr.Number(label="Seed", info="-1: another one each time.", value=-1, precision=0, min_width=160, elem_id="hypernetworks_seed")
            self.compare = gr.Checkbox(
                label="Draw it without hypernetworks too", info="The same seed beside it; takes twice as long.", value=True, min_width=160,
                elem_id="hypernetworks_compare",
            )  # fmt: skip

    def _build_results(self) -> None:
        self.button = gr.Button("Generate", variant="primary", elem_id="hypernetworks_generate")
        self.note = gr.HTML(elem_id="hypernetworks_generated", elem_classes=["hypernetworks-notes"])
        with gr.Row():
            about = {"type": "pil", "interactive": False, "height": 400, "min_width": 160, **compatibility.lossless()}
            self.picture = gr.Image(label="With hypernetworks", elem_id="hypernetworks_picture", **about)
            self.plain_picture = gr.Image(label="Same seed without", elem_id="hypernetworks_plain_picture", **about)

    def generate(
        self, prompt: str, negative_prompt: str, steps: float, cfg_scale: float, width: float, height: float, seed: float, compare: bool,
        *rows: Any, progress: Any = gr.Progress(),  # noqa: B008 (gradio finds it by this default)
    ) -> list[Any]:  # fmt: skip
        """A sentence, the picture, and the same without hypernetworks (None where not asked for or the same)."""
        try:
            request = self._request(prompt, negative_prompt, steps, cfg_scale, width, height, seed)
            plain_prompt, tagged = extract(request.prompt)
            active, request = [*self.rows.active(rows), *tagged], replace(request, prompt=plain_prompt)
            with self.host.exclusive():
                picture, notes = self._draw(request, active, lambda step, of: progress((step, of), desc="Drawing"))
                plain = None
                if compare and active:
                    plain, _ = self._draw(request, [], lambda step, of: progress((step, of), desc="Drawing without"))
        except HypernetworkError as error:
            return [note(str(error)), None, None]
        return ["".join(note(text, "warning") for text in notes) + note(f"Seed {request.seed}.", "hint"), picture, plain]

    def _request(
        self, prompt: str, negative_prompt: str, steps: float | None, cfg_scale: float | None, width: float | None, height: float | None,
        seed: float | None,
    ) -> GenerationRequest:  # fmt: skip
        cell = self.host.model.latent_factor
        if not steps or steps < 1 or not cfg_scale or min(width or 0, height or 0) < cell:
            raise ConfigError(f"Steps and CFG scale must be at least 1, width and height at least {cell} pixels.")
        if seed is not None and seed > LARGEST_SEED:
            raise ConfigError(f"The seed can be at most {LARGEST_SEED}.")
        chosen = random.randrange(LARGEST_SEED) if seed is None or seed < 0 else int(seed)
        return GenerationRequest(
            prompt or "", negative_prompt or "", int(steps), float(cfg_scale), int(width) // cell * cell, int(height) // cell * cell, chosen
        )

    def _draw(self, request: GenerationRequest, active: Sequence[ActiveNetwork], show: Any) -> tuple[Image.Image, list[str]]:
        with self.session.applied(self.host, active, prompts=[request.prompt]) as applied:

            def before_step(step: int, steps: int) -> None:
                applied.at_step(step, steps)
                show(step, steps)

            return self.host.generate(request, before_step)[0], applied.notes
