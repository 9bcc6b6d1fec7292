"""What AUTOMATIC1111, Forge and reForge have in common, as a host: folders, job lock, progress, prompts, previews.

What differs stands in `a1111.py` and `forge.py`. This module can be imported in a web UI only.
"""
from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from modules import call_queue, paths, processing, scripts, sd_samplers, shared
from PIL import Image
from torch import nn

from ..attention import find_projections
from ..errors import Interrupted, ModelUnfit
from ..host import Conditioning, Folders, GenerationRequest, ModelFacts, PictureSize, Row, StepCallback

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
PREVIEW_SAMPLER = "Euler"  # every web UI has it, and it is deterministic
REFINER_CONTEXT = 1280  # width of what the SDXL refiner's cross-attention reads; no base model has it
SIDES = {"sd1": 512, "sd2": 512, "sdxl": 1024}  # pixels; 768 for Stable Diffusion 2 with v-prediction


class WebUiHost:
    """Implements most of `host.Host`; `a1111.py` and `forge.py` add the model itself."""

    def __init__(self) -> None:
        self._rows: tuple[Row, ...] = ()
        self._step = (0, 1)
        self._watch: tuple[StepCallback, Callable[[], None]] | None = None
        self._watched: Any = None  # the job that is watched

    @property
    def folders(self) -> Folders:
        """The web UI's own folders of hypernetworks and of LoRA files, and one for pictures and runs beside its other data."""
        networks = getattr(shared.cmd_opts, "hypernetwork_dir", None) or Path(paths.models_path) / "hypernetworks"
        chosen = str(getattr(shared.opts, "hypernetworks_data_folder", "") or "").strip()
        loras = getattr(shared.cmd_opts, "lora_dir", None) or Path(paths.models_path) / "Lora"  # extensions-builtin/Lora/preload.py:7
        return Folders(Path(networks).resolve(), Path(chosen or Path(paths.data_path) / "hypernetworks").resolve(), Path(loras).resolve())

    @property
    def client_paths(self) -> bool:
        """Whether who uses the page may name folders of this machine: not where others reach it, unless a setting allows it."""
        flags = shared.cmd_opts
        elsewhere = getattr(flags, "server_name", None) not in (None, "", *THIS_MACHINE)
        reachable = elsewhere or any(getattr(flags, name, None) for name in ("listen", "share", "ngrok"))
        return not reachable or bool(getattr(shared.opts, "hypernetworks_client_paths", False))

    @property
    def captioner(self) -> Callable[[Image.Image], str] | None:
        """The web UI's own interrogator (BLIP); it loads its model at the first picture."""
        interrogator = getattr(shared, "interrogator", None)
        return None if interrogator is None else lambda picture: interrogator.interrogate(picture.convert("RGB"))

    @property
    def samplers(self) -> tuple[str, ...]:
        """The web UI's own, as its page names them."""
        return tuple(sampler.name for sampler in sd_samplers.all_samplers)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of the UNet evaluation that is announced, what each row is; empty between pictures."""
        return self._rows

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The web UI's queue: pictures that are asked for meanwhile wait (call_queue.py, the same lock for page and API)."""
        with call_queue.queue_lock:
            shared.state.begin(job="hypernetworks")
            try:
                yield
            finally:
                shared.state.end()

    def report(self, text: str, step: int, steps: int) -> bool:
        """To the web UI's progress; true after its Interrupt button or route."""
        shared.state.job_count, shared.state.job_no, shared.state.textinfo = max(1, steps), step, text
        return bool(shared.state.interrupted or shared.state.stopping_generation)

    def watch(self, p: Any, before: StepCallback, after: Callable[[], None]) -> None:
        """Until `unwatch`, `before(step, steps)` is called before each evaluation of the UNet in the web UI's job `p`, with `rows` known,
        and `after()` behind it, also after an exception."""
        self._watched, self._watch = p, (before, after)

    def unwatch(self) -> None:
        """Nobody is called any more. May be called again."""
        self._watched = self._watch = None
        self._rows = ()

    def note_step(self, params: Any) -> None:
        """Where the sampler is; from the callback `on_cfg_denoiser`, before the UNet is evaluated.

        The denoiser counts its calls itself. `params.sampling_step` is what the sampler has last reported: one behind from the second step on
        (sd_samplers_common.py, callback_state).
        """
        step, steps = getattr(params.denoiser, "step", None), getattr(params.denoiser, "total_steps", None)
        self._step = (params.sampling_step, params.total_sampling_steps) if step is None or not steps else (step, steps)

    def generate(self, request: GenerationRequest, on_step: StepCallback | None = None) -> list[Image.Image]:
        """Pictures from the web UI's own txt2img pipeline, without scripts and extra networks; they are not saved."""
        p = self._job_for(request)
        with _chance_untouched(), self._announced(p, on_step):
            try:
                pictures = processing.process_images(p).images[: request.count]
            finally:
                p.close()
        if shared.state.interrupted or len(pictures) < request.count:
            raise Interrupted("Drawing was interrupted.")
        return pictures

    def _job_for(self, request: GenerationRequest) -> Any:
        settings = {"return_grid": False}
        if request.literal:
            settings["emphasis"] = "None"
        if request.zero_terminal_snr:
            settings["sd_noise_schedule"] = "Zero Terminal SNR"  # web UIs that have no such setting ignore it
        p = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model, do_not_save_grid=True, do_not_save_samples=True, sampler_name=request.sampler or PREVIEW_SAMPLER,
            prompt=list(request.prompts) or request.prompt, negative_prompt=request.negative_prompt, seed=request.seed,
            steps=request.steps, cfg_scale=request.cfg_scale, width=request.width, height=request.height, batch_size=request.count,
            override_settings=settings,
        )
        p.scripts, p.script_args = scripts.ScriptRunner(), []  # an empty one: reForge does not check whether there is any
        p.disable_extra_networks = True
        p.do_not_reload_embeddings = True
        return p

    @contextmanager
    def _announced(self, p: Any, on_step: StepCallback | None) -> Iterator[None]:
        """`on_step` before each evaluation of the UNet within."""
        self.watch(p, on_step or (lambda step, steps: None), lambda: None)
        try:
            yield
        finally:
            self.unwatch()

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Literal text to conditioning: emphasis is switched off, so that `(` and `[` are letters. One by one: together, a web UI pads all
        of them to the longest."""
        with _literal_prompts():
            return Conditioning.join([self._encode_prompt(prompt) for prompt in prompts])

    def _encode_prompt(self, prompt: str) -> Conditioning:
        raise NotImplementedError

    def _facts(self, sd_model: Any, prediction_type: str, vae: str) -> ModelFacts:
        family = self._family(sd_model)
        side = 768 if family == "sd2" and prediction_type == "v_prediction" else SIDES[family]
        about = sd_model.sd_checkpoint_info
        return ModelFacts(
            name=about.name_for_extra,
            hash=sd_model.sd_model_hash or "",
            family=family,
            prediction_type=prediction_type,
            resolution=self._small_side(sd_model) or side,
            vae=vae,
            clip_skip=int(getattr(shared.opts, "CLIP_stop_at_last_layers", 1)),
        )

    @staticmethod
    def _family(sd_model: Any) -> str:
        for family in ("sdxl", "sd2", "sd1"):
            if getattr(sd_model, f"is_{family}", False):
                return family
        raise ModelUnfit(
            f"The loaded model ({type(sd_model).__name__}) is no Stable Diffusion 1, 2 or XL; hypernetworks work on their attention layers only."
        )

    @staticmethod
    def _small_side(sd_model: Any) -> int:
        """Side in pixels of a model whose configuration says that it is smaller than Stable Diffusion 1, else 0."""
        latent_side = getattr(sd_model, "image_size", None)
        return latent_side * 8 if isinstance(latent_side, int) and latent_side < 64 else 0


@contextmanager
def _chance_untouched() -> Iterator[None]:
    """The random states that a web UI seeds for a picture are afterwards what they were (modules/processing.py and rng.py)."""
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextmanager
def chosen_checkpoint(title: str) -> Iterator[None]:
    """The settings say within that this checkpoint is chosen, as each job asks them at its start (A1111 modules/processing.py:772 and 875). What
    the page has chosen meanwhile is loaded when the queue is free, and is chosen again afterwards."""
    asked, shared.opts.data["sd_model_checkpoint"] = shared.opts.data.get("sd_model_checkpoint"), title
    try:
        yield
    finally:
        if shared.opts.data["sd_model_checkpoint"] == title:  # the user has not chosen once more within
            shared.opts.data["sd_model_checkpoint"] = asked


@contextmanager
def _literal_prompts() -> Iterator[None]:
    """Prompts without emphasis syntax (modules/sd_emphasis.py, the option "None")."""
    asked = shared.opts.data.get("emphasis")
    shared.opts.data["emphasis"] = "None"
    try:
        yield
    finally:
        if asked is None:
            del shared.opts.data["emphasis"]
        else:
            shared.opts.data["emphasis"] = asked


def refuse_unfit(unet: nn.Module) -> None:
    """Raises `ModelUnfit` for a UNet that takes more than the four channels of a latent, one for inpainting or editing; and for SDXL's refiner, which
    web UIs call SDXL too (Forge backend/diffusion_engine/sdxl.py:157) but which reads one text encoder only."""
    if unet.input_blocks[0][0].weight.shape[1] != 4:
        raise ModelUnfit("The loaded model is one for inpainting or editing; choose an ordinary checkpoint to train on.")
    if any(p.in_width == REFINER_CONTEXT for p in find_projections(unet) if p.attention == "attn2" and p.part == "k"):
        raise ModelUnfit("The loaded model is the SDXL refiner, which paints over a finished picture; choose the SDXL base model or one made from it.")


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient within; afterwards each wants what it wanted, and modules are in the mode they were in.

    Parameters are found by their place: Forge's may be other objects by then.
    """
    wanted = [(part, name, one.requires_grad) for part in module.modules() for name, one in part._parameters.items() if one is not None]
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.requires_grad_(False)
        module.eval()
        yield
    finally:
        for part, name, requires_grad in wanted:
            part._parameters[name].requires_grad_(requires_grad)
        for part, training in modes:
            part.training = training


@contextmanager
def changed_attributes(changes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Objects with their own attributes replaced, (object, name, value) each; afterwards they are as they were."""
    missing = object()
    before = [(thing, name, vars(thing).get(name, missing)) for thing, name, _ in changes]
    try:
        for thing, name, value in changes:
            setattr(thing, name, value)
        yield
    finally:
        for thing, name, value in before:
            if value is missing:
                delattr(thing, name)
            else:
                setattr(thing, name, value)


def checkpointing(unet: nn.Module, gradient_checkpointing: bool) -> AbstractContextManager[None]:
    """Each block's forward through `torch.utils.checkpoint` without reentrance, or not at all.

    The blocks' own flags go off: ldm's checkpoints give no gradient to what is captured by a closure, and say nothing
    (ldm/modules/diffusionmodules/util.py, CheckpointFunction).
    """
    blocks = [part for part in unet.modules() if hasattr(part, "_forward") and (hasattr(part, "checkpoint") or hasattr(part, "use_checkpoint"))]
    flags = [(part, name, False) for part in blocks for name in ("checkpoint", "use_checkpoint") if isinstance(vars(part).get(name), bool)]
    if not gradient_checkpointing:
        return changed_attributes(flags) if flags else nullcontext()
    recomputed = [
        (part, "forward", partial(torch.utils.checkpoint.checkpoint, partial(_on_a_copy, part.forward), use_reentrant=False)) for part in blocks
    ]
    return changed_attributes([*flags, *recomputed])


def _on_a_copy(forward: Callable[..., Any], x: torch.Tensor, *others: Any, **named: Any) -> Any:
    """The block on a copy of its input: Forge's blocks add to it in place, and it is needed once more for the recomputation."""
    return forward(x.clone(), *others, **named)


def size_embedding(sizes: Sequence[PictureSize], like: torch.Tensor) -> torch.Tensor:
    """SDXL's six size numbers as [b, 6 * 256]: cosines, then sines of each (sgm ConcatTimestepEmbedderND, outdim 256)."""
    numbers = torch.tensor([[*size.original, *size.crop, *size.target] for size in sizes], dtype=torch.float32, device=like.device)
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=like.device) / 128)
    angles = numbers[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1).to(like.dtype)


def split_conditioning(found: Any, pooled_width: int = 1280) -> Conditioning:
    """A web UI's conditioning: a tensor [b, tokens, width], or SDXL's dict whose vector is the pooled text and then the sizes."""
    if isinstance(found, dict):
        return Conditioning(found["crossattn"].detach().clone(), found["vector"][:, :pooled_width].detach().clone())
    return Conditioning(found.detach().clone())
