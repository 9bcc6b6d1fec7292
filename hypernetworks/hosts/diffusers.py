"""The standalone host: Stable Diffusion 1.x, 2.x and SDXL through diffusers, from its folders or from single .safetensors files.

Nothing is imported or read before it is needed, and nothing is ever downloaded.
"""
from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from ..embedded import MODEL
from ..errors import ConfigError, HostBusy, HypernetworkError, ModelUnfit
from ..host import Conditioning, Folders, GenerationRequest, ModelFacts, PictureSize, Row, StepCallback
from . import model_folder, samplers, single_file


@dataclass
class _Model:
    """What stays loaded: the UNet, a DDIM scheduler with its noise schedule, and the facts."""

    unet: nn.Module
    scheduler: Any
    facts: ModelFacts


@dataclass
class _Encoders:
    """What turns text and pictures into what the UNet sees; in SDXL there are two text encoders."""

    vae: nn.Module
    tokenizers: list[Any]
    text: list[nn.Module]

    def to(self, device: torch.device | str) -> None:
        for module in (self.vae, *self.text):
            module.to(device)


class DiffusersHost:
    """Implements `host.Host`. `model` is a diffusers folder or a .safetensors file; without one the small embedded model is used.

    Raises `ModelUnfit` where there is no model or one of another kind; its weights are loaded at first need. The autoencoder
    computes in float32 whatever `dtype` is, since SDXL's overflows in half precision. Pictures are sampled with DDIM (Song et al.
    2020) unless another sampler is asked for.
    """

    client_paths = True  # its page answers on this machine only

    def __init__(
        self,
        model: str | Path | None = None,
        folders: Folders | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.path = MODEL if model is None else Path(model)
        self.folders = folders or Folders.below(Path.home() / "hypernetworks")
        self.device = torch.device(device or _best_device())
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.float16)
        self._single_file = single_file.recognise(self.path) if self.path.is_file() else None
        self._pipeline_class = self._single_file.pipeline if self._single_file else model_folder.recognise(self.path)
        self._rows: tuple[Row, ...] = ()
        self._job, self._loading = threading.Lock(), threading.RLock()
        self._model: _Model | None = None
        self._encoders: _Encoders | None = None
        self._released = False  # whether the encoders wait on the CPU while the UNet is elsewhere

    @property
    def model(self) -> ModelFacts:
        """Facts about the model, which is loaded for it."""
        facts = self._loaded().facts
        if not facts.hash:  # of gigabytes, so only when asked for
            files = [self.path] if self._single_file else sorted((self.path / "unet").glob("*.safetensors"))
            facts = self._loaded().facts = replace(facts, hash=_hash_of(files))
        return facts

    @property
    def unet(self) -> nn.Module:
        """diffusers' UNet2DConditionModel."""
        return self._loaded().unet

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """[T] float32 on the CPU."""
        return self._loaded().scheduler.alphas_cumprod.float().cpu()

    @property
    def rows(self) -> tuple[Row, ...]:
        """Of the UNet evaluation that `on_step` announces, what each row is; empty between pictures."""
        return self._rows

    @property
    def samplers(self) -> tuple[str, ...]:
        """Those of diffusers, under the names that web UIs give them."""
        return tuple(samplers.CLASSES)

    @property
    def captioner(self) -> None:
        """There is nothing here that describes pictures."""
        return None

    def _loaded(self) -> _Model:
        with self._loading:
            if self._model is None:
                self._model = self._load()
        return self._model

    def _load(self) -> _Model:
        pipeline = self._read_pipeline()
        unet, scheduler = pipeline.unet.to(self.device).eval(), samplers.sampler(pipeline.scheduler)
        if self._single_file and self._single_file.prediction_type is None and _predicts_velocity(unet):
            scheduler.register_to_config(prediction_type="v_prediction")
            unet.register_to_config(sample_size=96)  # Stable Diffusion 2's v-prediction models are those of 768 pixels
        self._encoders = self._encoders_of(pipeline)
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        facts = ModelFacts(
            name="embedded" if self.path == MODEL else self.path.stem if self._single_file else self.path.resolve().name,
            hash="",
            family=self._family(unet.config.cross_attention_dim),
            prediction_type=scheduler.config.prediction_type,
            resolution=_side(unet.config.sample_size) * factor,
            latent_factor=factor,
        )
        return _Model(unet, scheduler, facts)

    def _family(self, context_width: int) -> str:
        if self._single_file:
            return self._single_file.family
        return "sdxl" if self._pipeline_class == "StableDiffusionXLPipeline" else "sd2" if context_width == 1024 else "sd1"

    def _needed_encoders(self) -> _Encoders:
        """On the host's device, read again if they were released."""
        with self._loading:
            if self._encoders is None:
                self._encoders = self._encoders_of(self._read_pipeline(unet=self.unet))
            self._encoders.to(self.device)
            self._released = False
        return self._encoders

    def _encoders_of(self, pipeline: Any) -> _Encoders:
        names = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipeline, name, None) is not None]
        encoders = _Encoders(
            vae=pipeline.vae.float().eval().requires_grad_(False),
            tokenizers=[getattr(pipeline, name.replace("text_encoder", "tokenizer")) for name in names],
            text=[getattr(pipeline, name).eval().requires_grad_(False) for name in names],
        )
        encoders.to(self.device)
        return encoders

    def _read_pipeline(self, **kept: nn.Module) -> Any:
        """diffusers' pipeline with all parts that are not in `kept`, read from this machine's files only."""
        if lacking := [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]:
            raise HypernetworkError(f'Reading a model needs {" and ".join(lacking)}: pip install "hypernetworks[app]".')
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), _quietly():
            import diffusers

            kind = getattr(diffusers, self._pipeline_class)
            options = dict(torch_dtype=self.dtype, local_files_only=True, **kept)
            try:
                if self._single_file:
                    return _check_whole(self._read_single_file(kind, options), self.path)
                if self._pipeline_class == "StableDiffusionPipeline":
                    options |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
                options |= dict(use_safetensors=True, variant=model_folder.variant(self.path))
                return kind.from_pretrained(str(self.path), **options)
            except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:  # raised for files that do not fit
                missing = "meta tensor" in str(error)  # see _check_whole; some parts stumble over them by themselves
                reason = "some of its weights are missing" if missing else str(error).strip().splitlines()[0].rstrip(".")
                raise ModelUnfit(f"The model {self.path.name} cannot be read: {reason}.") from error

    def _read_single_file(self, kind: type, options: dict[str, Any]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            single_file.write_configurations(self._single_file, Path(folder))
            return kind.from_single_file(str(self.path), config=folder, **options)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Literal text, cut or padded to the text encoder's 77 tokens, to [b, 77, width]; SDXL takes the last layer but one."""
        encoders = self._needed_encoders()
        contexts, pooled = [], None
        for tokenizer, encoder in zip(encoders.tokenizers, encoders.text, strict=True):
            tokens = encoder.config.max_position_embeddings
            found = tokenizer(list(prompts), padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
            output = encoder(found.input_ids.to(self.device), output_hidden_states=len(encoders.text) > 1)
            contexts.append(output.last_hidden_state if len(encoders.text) == 1 else output.hidden_states[-2])
            pooled = getattr(output, "text_embeds", None)
        return Conditioning(torch.cat(contexts, dim=-1), pooled)

    @torch.no_grad()
    def encode_pictures(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 3, h, w] in -1..1 to (mean, log-variance) [b, c, h/8, w/8] of the scaled latents, float32 on the CPU."""
        vae = self._needed_encoders().vae
        latents = vae.encode(pixels.to(self.device, torch.float32)).latent_dist
        scale = vae.config.scaling_factor
        mean = (latents.mean - (vae.config.get("shift_factor") or 0.0)) * scale
        logvar = latents.logvar + 2 * torch.log(torch.tensor(scale))
        return mean.cpu(), logvar.cpu()

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor) -> Image.Image:
        """One picture from scaled latents [1, c, h, w]."""
        vae = self._needed_encoders().vae
        latents = latents.float() / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pixels = (vae.decode(latents).sample[0] / 2 + 0.5).clamp(0, 1)
        return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().cpu().numpy())

    def release_encoders(self) -> None:
        """Autoencoder and text encoders leave the device; from the CPU's memory they go altogether and are read again at need."""
        with self._loading:
            if self.device.type == "cpu":
                self._encoders = None
            elif self._encoders is not None:
                self._encoders.to("cpu")
                self._released = True
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning, sizes: Sequence[PictureSize]
    ) -> torch.Tensor:
        """The UNet's output [b, c, h, w] for noisy latents [b, c, h, w] and integer timesteps [b]."""
        added = None
        if conditioning.pooled is not None:
            numbers = [[*size.original, *size.crop, *size.target] for size in sizes]
            added = {
                "text_embeds": conditioning.pooled.to(self.device, self.dtype),
                "time_ids": torch.tensor(numbers, device=self.device, dtype=self.dtype),
            }
        return self.unet(
            noisy.to(self.device, self.dtype),
            timesteps.to(self.device),
            encoder_hidden_states=conditioning.context.to(self.device, self.dtype),
            added_cond_kwargs=added,
        ).sample

    @contextmanager
    def training(self, gradient_checkpointing: bool = False) -> Iterator[None]:
        """Within it the UNet is frozen; after it every parameter and module is as it was, also after an exception.

        Checkpointing is diffusers' own, which never uses reentrant checkpoints and in its older versions only works in training
        mode; dropout stays off, so that a checkpointed step computes the same as a plain one.
        """
        unet = self.unet
        wanted = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
        modes = [(module, module.training) for module in unet.modules()]
        checkpointed = unet.is_gradient_checkpointing
        try:
            unet.requires_grad_(False)
            unet.train(gradient_checkpointing)
            for module in unet.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
            if gradient_checkpointing:
                unet.enable_gradient_checkpointing()
            yield
        finally:
            if not checkpointed:
                unet.disable_gradient_checkpointing()
            for parameter, requires_grad in wanted:
                parameter.requires_grad_(requires_grad)
            for module, training in modes:
                module.training = training

    @contextmanager
    def _encoders_for_a_while(self) -> Iterator[None]:
        """Encoders that were released to the CPU come back within at need, and go again: a run goes on after its preview."""
        released = self._released
        try:
            yield
        finally:
            if released:
                self.release_encoders()

    @torch.no_grad()
    def generate(self, request: GenerationRequest, on_step: StepCallback | None = None) -> list[Image.Image]:
        """Pictures with classifier-free guidance; with a scale of 1 the negative prompt is left out.

        Each picture has its own generator on the CPU, so that it is the same alone or among others and on every device. A batch's
        rows are those with the negative prompt, then those with the prompt.
        """
        self._check(request)
        with self._encoders_for_a_while():
            return self._drawn(request, on_step)

    def _drawn(self, request: GenerationRequest, on_step: StepCallback | None) -> list[Image.Image]:
        factor, scheduler = self._loaded().facts.latent_factor, samplers.sampler(
            self._loaded().scheduler, request.zero_terminal_snr, request.sampler
        )
        guided, count = request.cfg_scale > 1, request.count
        conditioning = self.encode_prompts(
            [request.negative_prompt] * (count if guided else 0) + list(request.prompts or [request.prompt] * count)
        )
        size = PictureSize((request.height, request.width), (0, 0), (request.height, request.width))
        scheduler.set_timesteps(request.steps)
        shape = (1, self.unet.config.in_channels, request.height // factor, request.width // factor)
        chances = [torch.Generator().manual_seed(request.seed + i) for i in range(count)]
        noise = [torch.randn(shape, generator=chance) for chance in chances]
        latents = torch.cat(noise).to(self.device) * scheduler.init_noise_sigma
        self._rows = tuple(Row(picture, uncond) for uncond in ((True, False) if guided else (False,)) for picture in range(count))
        try:
            for step, t in enumerate(scheduler.timesteps):
                if on_step:
                    on_step(step, len(scheduler.timesteps))
                rows = scheduler.scale_model_input(latents, t)
                rows = torch.cat([rows, rows]) if guided else rows
                output = self.predict(rows, t.expand(len(rows)), conditioning, [size] * len(rows)).float()
                if guided:
                    uncond, cond = output.chunk(2)
                    output = uncond + request.cfg_scale * (cond - uncond)
                latents = samplers.step(scheduler, output, t, latents, chances)
        finally:
            self._rows = ()
        return [self._decode(row[None]) for row in latents]

    def _check(self, request: GenerationRequest) -> None:
        if request.prompts and len(request.prompts) != request.count:
            raise ConfigError(f"There are {len(request.prompts)} prompts for {request.count} pictures; each picture needs one.")
        factor, longest = self._loaded().facts.latent_factor, len(self.alphas_cumprod) - 1
        if request.width < factor or request.height < factor or request.width % factor or request.height % factor:
            raise ConfigError(f"Width and height must be multiples of {factor}, not {request.width} x {request.height}.")
        if not 1 <= request.steps <= longest:
            raise ConfigError(f"The number of sampling steps must lie between 1 and {longest}, not {request.steps}.")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The host's job lock, for one job at a time; it does not nest. Raises `HostBusy` where another job has it."""
        if not self._job.acquire(timeout=0.1):
            raise HostBusy("The model is busy with another job. Wait until it has ended, or stop it.")
        try:
            yield
        finally:
            self._job.release()

    def report(self, text: str, step: int, steps: int) -> bool:
        """Nothing: the page and the command line show progress themselves."""
        return False


def _best_device() -> str:
    """The graphics card that the launcher of several processes has given to this one, else the first; the CPU where there is none."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _check_whole(pipeline: Any, path: Path) -> Any:
    """`pipeline`, all of whose weights were in the file. diffusers leaves those that were not on the meta device."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and any(parameter.is_meta for parameter in part.parameters()):
            raise ModelUnfit(f"The model {path.name} cannot be read: some of its weights are missing.")
    return pipeline


@torch.no_grad()
def _predicts_velocity(unet: nn.Module) -> bool:
    """Whether a Stable Diffusion 2 UNet of unknown origin predicts v, not noise: at the last timestep the latents are noise, so
    that an output far from them is no noise (A1111 modules/sd_models_config.py: is_using_v_parameterization_for_sd2)."""
    half = torch.full((1, 4, 8, 8), 0.5, dtype=unet.dtype, device=unet.device)
    context = torch.full((1, 2, unet.config.cross_attention_dim), 0.5, dtype=unet.dtype, device=unet.device)
    return (unet(half, 999, encoder_hidden_states=context).sample - half).mean().item() < -1


def _side(size: int | Sequence[int] | None) -> int:
    """diffusers' sample_size in latent cells, which may be a pair."""
    return size if isinstance(size, int) else size[0] if size else 64


def _hash_of(files: Sequence[Path]) -> str:
    """First 10 hex digits of the sha256 of the files' bytes."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:10]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps progress bars and warnings of the libraries off the console; afterwards they speak as before."""
    from transformers.utils import logging as of_transformers

    before = of_transformers.get_verbosity()
    of_transformers.set_verbosity_error()  # before diffusers is imported, which makes transformers warn
    from diffusers.utils import logging as of_diffusers

    loggers = ((of_transformers, before), (of_diffusers, of_diffusers.get_verbosity()))
    bars = [module for module, _ in loggers if module.is_progress_bar_enabled()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for module, _ in loggers:
                module.set_verbosity_error()
                module.disable_progress_bar()
            yield
    finally:
        for module, verbosity in loggers:
            module.set_verbosity(verbosity)
        for module in bars:
            module.enable_progress_bar()
