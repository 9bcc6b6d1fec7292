"""Forge as a host, and reForge: both keep the model in `sd_model.forge_objects`, as patchers that a memory manager moves.

They differ in the names of a few modules (Forge's `backend`, reForge's `ldm_patched`); `_Backend` holds these.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from modules import sd_models, sd_vae, shared
from torch import nn

from ..errors import ModelUnfit
from ..host import Conditioning, ModelFacts, PictureSize, Row, StepCallback
from .web_ui import (
    WebUiHost,
    changed_attributes,
    checkpointing,
    chosen_checkpoint,
    frozen,
    refuse_unfit,
    size_embedding,
    split_conditioning,
)


class _Forge:
    """Names of Forge (backend/)."""

    @property
    def memory(self) -> Any:
        from backend import memory_management

        return memory_management

    def load(self) -> None:
        """Reads the checkpoint that is chosen, where it is not loaded yet (modules/sd_models.py:473)."""
        sd_models.forge_model_reload()

    @property
    def choice(self) -> Any:
        """Which checkpoint is chosen, with the settings that it is loaded with."""
        return sd_models.model_data.forge_loading_parameters

    @contextmanager
    def choosing(self, choice: Any) -> Iterator[None]:
        """Another choice than the page's within: Forge notes one at once and loads it with the next picture (modules_forge/main_entry.py:229)."""
        data = sd_models.model_data
        chosen, data.forge_loading_parameters = data.forge_loading_parameters, choice
        try:
            yield
        finally:
            if data.forge_loading_parameters is choice:  # the user has not chosen again meanwhile
                data.forge_loading_parameters = chosen

    def is_velocity(self, model: nn.Module) -> bool:
        return model.predictor.prediction_type == "v_prediction"

    def alphas_cumprod(self, model: nn.Module) -> torch.Tensor:
        return 1 / (model.predictor.sigmas.double() ** 2 + 1)

    def dtype(self, model: nn.Module) -> torch.dtype:
        return model.computation_dtype

    def scale(self, objects: Any) -> tuple[float, float]:
        """What a latent is multiplied by, after what is subtracted from it (backend/nn/vae.py:312)."""
        return objects.vae.first_stage_model.scaling_factor, objects.vae.first_stage_model.shift_factor or 0.0


class _ReForge:
    """Names of reForge (ldm_patched/)."""

    @property
    def memory(self) -> Any:
        from ldm_patched.modules import model_management

        return model_management

    def load(self) -> None:
        """Touching `shared.sd_model` reads the checkpoint."""

    @property
    def choice(self) -> str:
        """The checkpoint that is loaded, as settings name it."""
        return shared.sd_model.sd_checkpoint_info.title

    def choosing(self, choice: str) -> AbstractContextManager[None]:
        """Another choice than the page's within."""
        return chosen_checkpoint(choice)

    def is_velocity(self, model: nn.Module) -> bool:
        return any(base.__name__ == "V_PREDICTION" for base in type(model.model_sampling).__mro__)

    def alphas_cumprod(self, model: nn.Module) -> torch.Tensor:
        return 1 / (model.model_sampling.sigmas.double() ** 2 + 1)

    def dtype(self, model: nn.Module) -> torch.dtype:
        return model.manual_cast_dtype or model.get_dtype()

    def scale(self, objects: Any) -> tuple[float, float]:
        """What a latent is multiplied by (ldm_patched/modules/latent_formats.py)."""
        return objects.unet.model.model_config.latent_format.scale_factor, 0.0


class ForgeHost(WebUiHost):
    """Implements `host.Host` on Forge's and reForge's `forge_objects`."""

    def __init__(self) -> None:
        super().__init__()
        self._names = _Forge() if importlib.util.find_spec("backend") else _ReForge()
        self._wrapper: Callable[..., Any] | None = None  # the last `model_function_wrapper` of ours
        self._trained_on: tuple[Any, Any] | None = None  # the model and the choice that led to it, while a run holds them

    @property
    def _sd_model(self) -> Any:
        """Loads the checkpoint first: Forge shows a stand-in until then (modules/sd_models.py, FakeInitialModel)."""
        if self._trained_on is not None:
            return self._trained_on[0]
        if self._watched is None:  # else a job is at work; what was chosen since is for the next one
            self._names.load()
        sd_model = shared.sd_model
        if sd_model is None or getattr(sd_model, "forge_objects", None) is None:
            raise ModelUnfit("No checkpoint is loaded: put one into models/Stable-diffusion and choose it at the top of the page.")
        self._family(sd_model)
        return sd_model

    @property
    def _patcher(self) -> Any:
        return self._sd_model.forge_objects_original.unet

    @property
    def model(self) -> ModelFacts:
        """Facts about the loaded checkpoint."""
        sd_model = self._sd_model
        kind = "v_prediction" if self._names.is_velocity(sd_model.forge_objects_original.unet.model) else "epsilon"
        return self._facts(sd_model, kind, sd_vae.get_loaded_vae_name() or "")

    @property
    def unet(self) -> nn.Module:
        """Forge's IntegratedUNet2DConditionModel or reForge's UNetModel, both with ldm's names."""
        return self._patcher.model.diffusion_model

    @property
    def device(self) -> torch.device:
        """Where the UNet computes, wherever the memory manager keeps it."""
        return torch.device(self._patcher.load_device)

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in; its weights may be stored in another one."""
        return self._names.dtype(self._patcher.model)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """[1000] float32 on the CPU, from the sigmas that the sampler uses."""
        with torch.inference_mode(False):
            return self._names.alphas_cumprod(self._patcher.model).float().cpu().clone()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """As `WebUiHost.encode_prompts`, without the last picture's LoRA."""
        with self._unet_afterwards():
            return super().encode_prompts(prompts)

    def _encode_prompt(self, prompt: str) -> Conditioning:
        sd_model = self._sd_model
        if hasattr(sd_model, "set_clip_skip"):
            sd_model.set_clip_skip(self.model.clip_skip)
        with _without_lora(sd_model), torch.inference_mode():
            self._names.memory.load_models_gpu([sd_model.forge_objects_original.clip.patcher])
            found = sd_model.get_learned_conditioning([prompt])
        with torch.inference_mode(False), torch.no_grad():
            return split_conditioning(found)

    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 3, h, w] in -1..1 to (mean, log-variance) of the scaled latents, float32 on the CPU."""
        objects = self._sd_model.forge_objects_original
        vae = objects.vae.first_stage_model
        scale, shift = self._names.scale(objects)
        with self._unet_afterwards(), torch.inference_mode():
            self._names.memory.load_models_gpu([objects.vae.patcher])
            moments = vae.encoder(pixels.to(objects.vae.device, objects.vae.vae_dtype))
            if getattr(vae, "quant_conv", None) is not None:
                moments = vae.quant_conv(moments)
        with torch.inference_mode(False), torch.no_grad():
            mean, logvar = moments.float().cpu().clone().chunk(2, dim=1)
            return (mean - shift) * scale, logvar.clamp(-30, 20) + 2 * torch.tensor(scale).log()

    def release_encoders(self) -> None:
        """Nothing: the memory manager moves them out when something else needs the room."""

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, sizes: Sequence[PictureSize]
    ) -> torch.Tensor:
        """The UNet's output for noisy latents [b, c, h, w] and integer timesteps [b]."""
        device, dtype = self.device, self.dtype
        more = {}
        if conditioning.pooled is not None:
            pooled = conditioning.pooled.to(device, dtype)
            more["y"] = torch.cat([pooled, size_embedding(sizes, pooled)], dim=1)
        context = conditioning.context.to(device, dtype)
        return self.unet(noisy.to(device, dtype), timesteps.to(device).float(), context=context, transformer_options={}, **more)

    def generate(self, request: Any, on_step: StepCallback | None = None) -> list[Any]:
        """As `WebUiHost.generate`, without the last picture's LoRA."""
        choosing = self._names.choosing(self._trained_on[1]) if self._trained_on else nullcontext()
        with self._unet_afterwards(), choosing, _without_lora(self._sd_model):
            return super().generate(request, on_step)

    @contextmanager
    def _unet_afterwards(self) -> Iterator[None]:
        """What happens within is done in inference mode, and other models may need the UNet's room; a run gets it back."""
        try:
            yield
        finally:
            if self._trained_on is not None:
                self._make_fit()

    def _make_fit(self) -> nn.Module:
        """The UNet where it computes, as its checkpoint has it, with weights that backward takes."""
        patcher = self._patcher
        with torch.inference_mode(False):
            self._names.memory.load_models_gpu([patcher])  # takes LoRA out of the weights, too
            if hasattr(patcher, "refresh_loras"):
                patcher.refresh_loras()
            leave_inference_mode(patcher.model.diffusion_model)
        return patcher.model.diffusion_model

    @contextmanager
    def training(self, gradient_checkpointing: bool = False) -> Iterator[None]:
        """Within it the UNet is frozen, as its checkpoint has it, and fit for backward; afterwards as it was. Another checkpoint that is
        chosen meanwhile is loaded after it."""
        sd_model = self._sd_model
        refuse_unfit(self.unet)
        with torch.inference_mode(False), ExitStack() as stack:
            self._trained_on = (sd_model, self._names.choice)
            stack.callback(setattr, self, "_trained_on", None)
            stack.enter_context(_without_lora(sd_model))
            sd_models.apply_token_merging(sd_model, 0.0)
            unet = self._make_fit()
            stack.enter_context(frozen(unet))
            stack.enter_context(_copied_for_backward(unet))
            stack.enter_context(checkpointing(unet, gradient_checkpointing))
            yield

    def on_denoiser(self, params: Any) -> None:
        """From `on_cfg_denoiser`: the step. The patcher that the sampler is about to use announces each evaluation of the UNet: it is the job's
        own, made anew for each pass (processing.py:1373-1381) and by a refiner, so that nothing is left, also after an exception."""
        self.note_step(params)
        if self._watched is None or params.denoiser.p is not self._watched:
            return
        objects = params.denoiser.inner_model.inner_model.forge_objects
        if self._wrapper is None or objects.unet.model_options.get("model_function_wrapper") is not self._wrapper:
            unet = objects.unet.clone()
            self._wrapper = _announcing(self, unet.model_options.get("model_function_wrapper"))
            unet.set_model_unet_function_wrapper(self._wrapper)
            objects.unet = unet

    def announce(self, cond_or_uncond: Sequence[int], rows: int) -> None:
        """The coming evaluation: for each chunk 1 for the negative prompts and 0 for the prompts, a row for each picture in every chunk."""
        if self._watch is None:
            return
        pictures = rows // len(cond_or_uncond)
        self._rows = tuple(Row(picture, bool(flag)) for flag in cond_or_uncond for picture in range(pictures))
        self._watch[0](*self._step)

    def announced(self) -> None:
        """The evaluation is over."""
        self._rows = ()
        if self._watch is not None:
            self._watch[1]()


@contextmanager
def _without_lora(sd_model: Any) -> Iterator[None]:
    """The checkpoint's own patchers take the place of the last picture's, which hold its LoRA: the text encoder is loaded from the ones, and
    a job without extra networks draws with the others (processing.py:943). The next picture with that LoRA finds them again."""
    names = ("forge_objects", "forge_objects_after_applying_lora")
    with changed_attributes([(sd_model, name, sd_model.forge_objects_original.shallow_copy()) for name in names]):
        yield


def _announcing(host: ForgeHost, inner: Callable[..., Any] | None) -> Callable[..., Any]:
    """A `model_function_wrapper` around another extension's, if there is one. A plain function: patchers are copied deeply, and a bound
    method would take its host along."""

    def wrapper(apply_model: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        host.announce(arguments["cond_or_uncond"], len(arguments["input"]))
        try:
            if inner is not None:
                return inner(apply_model, arguments)
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        finally:
            host.announced()

    return wrapper


def leave_inference_mode(module: nn.Module) -> None:
    """Replaces parameters and buffers that were made in inference mode, which no backward takes, by equal ones that were not.

    Forge loads its model in inference mode (backend/loader.py:497). Raises `ModelUnfit` for quantised weights.
    """
    if any(type(parameter) is not nn.Parameter or not parameter.is_floating_point() for parameter in module.parameters()):
        raise ModelUnfit("The loaded model's weights are quantised; pictures can be made with it, but training needs it in fp16, bf16 or fp32.")
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and _is_inference(parameter):
                    part._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None and _is_inference(buffer):
                    part._buffers[name] = buffer.detach().clone()


def _is_inference(tensor: torch.Tensor) -> bool:
    """Whether it was made in inference mode. One that `Module.to` has moved to another device outside that mode denies it, and still has no
    version counter, which backward asks for."""
    try:
        tensor._version  # noqa: B018
    except RuntimeError:
        return True
    return tensor.is_inference()


@contextmanager
def _copied_for_backward(unet: nn.Module) -> Iterator[None]:
    """The norms of a transformer block get a copy: the block adds to its input in place afterwards, and backward would find it changed
    (backend/nn/unet.py:240 and 272)."""
    handles = [
        norm.register_forward_pre_hook(lambda part, inputs: (inputs[0].clone(), *inputs[1:]))
        for block in unet.modules() if hasattr(block, "attn1") and hasattr(block, "attn2")
        for norm in (getattr(block, name, None) for name in ("norm1", "norm2")) if norm is not None
    ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
