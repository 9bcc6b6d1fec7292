"""AUTOMATIC1111's web UI as a host. Its model is ldm's LatentDiffusion (SD 1 and 2) or sgm's DiffusionEngine (SDXL)."""
from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from modules import devices, extra_networks, lowvram, prompt_parser, sd_models, sd_unet, sd_vae, shared
from torch import nn

from ..errors import ConfigError, ModelUnfit
from ..host import Conditioning, ModelFacts, PictureSize, Row, StepCallback
from .web_ui import WebUiHost, checkpointing, chosen_checkpoint, frozen, refuse_unfit, size_embedding, split_conditioning


class A1111Host(WebUiHost):
    """Implements `host.Host` on `shared.sd_model`."""

    def __init__(self) -> None:
        super().__init__()
        self._pending: deque[Row] = deque()
        self._handles: list[Any] = []
        self._hooked: nn.Module | None = None
        self._released = False  # whether the encoders wait on the CPU

    @property
    def _sd_model(self) -> Any:
        """Loads the checkpoint where none is loaded yet (modules/shared_items.py, the property `sd_model`)."""
        sd_model = shared.sd_model
        if sd_model is None:
            raise ModelUnfit("No checkpoint is loaded, and none could be: put one into models/Stable-diffusion and choose it at the top of the page.")
        return sd_model

    @property
    def model(self) -> ModelFacts:
        """Facts about the loaded checkpoint."""
        sd_model = self._sd_model
        kind = "v_prediction" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
        vae = sd_vae.get_loaded_vae_name()
        return self._facts(sd_model, kind, vae or "")

    @property
    def unet(self) -> nn.Module:
        """ldm's or sgm's UNetModel."""
        return self._sd_model.model.diffusion_model

    @property
    def device(self) -> torch.device:
        """Where the UNet computes, wherever --medvram keeps it between jobs."""
        return torch.device(devices.device)

    @property
    def dtype(self) -> torch.dtype:
        """That of the UNet's weights; float16 but for --no-half."""
        return next(self.unet.parameters()).dtype

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """[1000] float32 on the CPU. "Zero Terminal SNR" and downcasting are settings of generation only (processing.py:917-926)."""
        sd_model = self._sd_model
        return getattr(sd_model, "alphas_cumprod_original", sd_model.alphas_cumprod).detach().float().cpu()

    @torch.no_grad()
    def _encode_prompt(self, prompt: str) -> Conditioning:
        sd_model = self._sd_model
        if not lowvram.is_enabled(sd_model):
            sd_model.cond_stage_model.to(devices.device)
        with _without_lora(), devices.autocast():
            return split_conditioning(sd_model.get_learned_conditioning([prompt]))

    @torch.no_grad()
    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 3, h, w] in -1..1 to (mean, log-variance) of the scaled latents, float32 on the CPU."""
        sd_model = self._sd_model
        vae = sd_model.first_stage_model
        if not lowvram.is_enabled(sd_model):
            vae.to(devices.device)
        pixels = pixels.to(devices.device, devices.dtype_vae)
        posterior = vae.encode(pixels)
        if isinstance(posterior, torch.Tensor):  # sgm's gives a draw already
            mean, logvar = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
        else:
            mean, logvar = posterior.mean, posterior.logvar
        scale = torch.as_tensor(sd_model.scale_factor, dtype=torch.float32).cpu()
        return mean.float().cpu() * scale, logvar.float().cpu().clamp(-30, 20) + 2 * scale.log()

    def release_encoders(self) -> None:
        """To the CPU where the user has chosen that for training; --medvram and --lowvram do it anyway."""
        sd_model = self._sd_model
        if shared.opts.unload_models_when_training and not lowvram.is_enabled(sd_model):
            sd_model.cond_stage_model.to(devices.cpu)
            sd_model.first_stage_model.to(devices.cpu)
            self._released = True

    def _fetch_encoders(self) -> None:
        sd_model = self._sd_model
        if not lowvram.is_enabled(sd_model):
            sd_model.cond_stage_model.to(devices.device)
            sd_model.first_stage_model.to(devices.device)
        self._released = False

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """As `WebUiHost.exclusive`; afterwards the encoders are where the web UI's next picture expects them."""
        with super().exclusive():
            try:
                yield
            finally:
                if self._released:
                    self._fetch_encoders()

    def generate(self, request: Any, on_step: StepCallback | None = None) -> list[Any]:
        """As `WebUiHost.generate`, with the model at hand; encoders that were released come back for it, and go again."""
        released = self._released
        self._fetch_encoders()
        try:
            with chosen_checkpoint(self._sd_model.sd_checkpoint_info.title):
                return super().generate(request, on_step)
        finally:
            if released:
                self.release_encoders()

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, sizes: Sequence[PictureSize]
    ) -> torch.Tensor:
        """The UNet's output for noisy latents [b, c, h, w] and integer timesteps [b]; through ldm's wrapper, which --medvram hooks."""
        sd_model, dtype = self._sd_model, self.dtype
        noisy, context = noisy.to(self.device, dtype), conditioning.context.to(self.device, dtype)
        with devices.autocast():
            if conditioning.pooled is None:
                return sd_model.model(noisy, timesteps.to(self.device), c_crossattn=[context])
            pooled = conditioning.pooled.to(self.device, dtype)
            return sd_model.model(
                noisy, timesteps.to(self.device), {"crossattn": context, "vector": torch.cat([pooled, size_embedding(sizes, pooled)], 1)}
            )

    @contextmanager
    def training(self, gradient_checkpointing: bool = False) -> Iterator[None]:
        """Within it the UNet is frozen, as its checkpoint has it, and fit for backward; afterwards as it was."""
        sd_model = self._sd_model
        if shared.cmd_opts.lowvram:
            raise ConfigError("With --lowvram the UNet is never whole on the graphics card, and cannot be trained on; start with --medvram instead.")
        refuse_unfit(self.unet)
        self._make_bare(sd_model)
        with frozen(sd_model.model), checkpointing(self.unet, gradient_checkpointing):
            yield

    @staticmethod
    def _make_bare(sd_model: Any) -> None:
        """Nothing of the last picture is left: no LoRA, no hypernetwork, no token merging, no hypertile, no compiled UNet."""
        shared.loaded_hypernetworks.clear()
        if (lora := _lora()) is not None:
            lora.load_networks([])
        sd_models.apply_token_merging(sd_model, 0.0)
        sd_unet.apply_unet("None")
        for part in sd_model.model.modules():
            params = getattr(part, "__webui_hypertile_params", None)  # extensions-builtin/hypertile/hypertile.py
            if params is not None:
                params.enabled = False

    def watch(self, p: Any, before: StepCallback, after: Callable[[], None]) -> None:
        """As `WebUiHost.watch`, with two hooks on ldm's wrapper around the UNet; the UNet itself gets none."""
        self.unwatch()
        super().watch(p, before, after)

    def _hook(self, wrapper: nn.Module) -> None:
        """The hooks are on this wrapper; a refiner or a hires checkpoint changes the model within a job."""
        if wrapper is self._hooked:
            return
        self._unhook()
        self._hooked = wrapper
        self._handles = [
            wrapper.register_forward_pre_hook(self._before_evaluation), wrapper.register_forward_hook(self._after_evaluation, always_call=True)
        ]

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooked = None

    def unwatch(self) -> None:
        """The hooks come off."""
        self._unhook()
        self._pending.clear()
        super().unwatch()

    def on_denoiser(self, params: Any) -> None:
        """From `on_cfg_denoiser`: the step, and what the rows of the coming evaluations are.

        CFGDenoiser puts the prompts' rows first, for each picture as many as its prompt has parts (AND), then the negative prompts';
        it may cut them into several evaluations but keeps the order (sd_samplers_cfg_denoiser.py:195-262).
        """
        if params.denoiser.p is not self._watched:  # an exception ended the job that was watched, and nobody has said so
            self.unwatch()
            return
        self._hook(self._sd_model.model)
        self.note_step(params)
        text_cond = params.text_cond["crossattn"] if isinstance(params.text_cond, dict) else params.text_cond
        conds, total = len(text_cond), len(params.x)
        text_uncond = params.text_uncond["crossattn"] if isinstance(params.text_uncond, dict) else params.text_uncond
        pictures = len(text_uncond)
        parts = _parts_per_picture(params.denoiser, pictures, conds)
        self._pending = deque(Row(picture, False) for picture, count in enumerate(parts) for _ in range(count))
        self._pending += [Row(number % pictures, True) for number in range(total - conds)]

    def _before_evaluation(self, wrapper: nn.Module, inputs: tuple) -> None:
        if self._watch is None or not self._pending:
            return
        self._rows = tuple(self._pending.popleft() for _ in range(min(len(inputs[0]), len(self._pending))))
        self._watch[0](*self._step)

    def _after_evaluation(self, wrapper: nn.Module, inputs: tuple, output: Any) -> None:
        if self._watch is not None and self._rows:
            self._rows = ()
            self._watch[1]()


def _lora() -> Any | None:
    """The web UI's module for LoRA (extensions-builtin/Lora/networks.py), or None. What it is told acts at a layer's next use, in the text
    encoder as well as in the UNet (network_apply_weights)."""
    answering = extra_networks.extra_network_registry.get("lora")
    return getattr(sys.modules.get(type(answering).__module__), "networks", None)


@contextmanager
def _without_lora() -> Iterator[None]:
    """Texts are encoded as the checkpoint does it within. Afterwards the LoRA is back: a condition is encoded amid the job that asked for both,
    whichever tag stands first."""
    lora = _lora()
    if lora is None:
        yield
        return
    loaded = list(lora.loaded_networks)
    lora.loaded_networks.clear()
    try:
        yield
    finally:
        lora.loaded_networks[:] = loaded


def _parts_per_picture(denoiser: Any, pictures: int, conds: int) -> list[int]:
    """How many rows each picture's prompt has: more than one where its parts are joined by AND."""
    if conds == pictures:
        return [1] * pictures
    prompts = getattr(denoiser.p, "hr_prompts" if getattr(denoiser.p, "is_hr_pass", False) else "prompts", None)
    counts = [len(parts) for parts in prompt_parser.get_multicond_prompt_list(prompts)[0]] if prompts else []
    return counts if sum(counts) == conds else [conds // pictures] * pictures
