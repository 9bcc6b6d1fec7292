"""Trains tokenizer, text encoder and UNet of the small Stable Diffusion model on captioned shapes, over its autoencoder. Half of the
pictures are plain; the others are in a random style that the caption names.

    python -m hypernetworks.embedded.train_diffusion MODEL_FOLDER [--steps 4500] [--from MODEL] [--preview FILE]

MODEL_FOLDER/vae must exist (train_autoencoder.py), or `--from` names a model to go on with: fresh pictures, a lower peak of the
learning rate. 4,500 steps take about 35 minutes on 2 CPU cores that compute in bfloat16, and the shipped model saw 1,500 more.
What comes out is an equivalent model, not the same bytes.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import shapes

WIDTH = 128  # of the text embedding, the context that hypernetworks edit
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """What one run of training does."""

    steps: int
    pictures: int
    peak_rate: float
    warmup_steps: int
    averaging: float  # of the weights: the share that the average keeps at each step
    seed: int
    batch: int = 32
    plain_share: float = 0.5


NEW_MODEL = Recipe(steps=4500, pictures=9000, peak_rate=1e-3, warmup_steps=200, averaging=0.999, seed=0)
LONGER_RUN = Recipe(steps=1500, pictures=12000, peak_rate=6e-4, warmup_steps=150, averaging=0.998, seed=11)


def captioned_pictures(recipe: Recipe) -> tuple[list[shapes.Content], list[shapes.Style], list[str]]:
    """What is drawn, how, and the captions, which name the manner."""
    rng = random.Random(recipe.seed)
    contents = [shapes.random_content(rng) for _ in range(recipe.pictures)]
    styles = [
        shapes.PLAIN if rng.random() < recipe.plain_share else shapes.random_style(rng.randrange(1 << 30))
        for _ in range(recipe.pictures)
    ]
    captions = [
        ", ".join(filter(None, [shapes.random_caption(content, rng), style.words()]))
        for content, style in zip(contents, styles, strict=True)
    ]
    return contents, styles, captions


def make_tokenizer(captions: Sequence[str], folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer learned on the captions (about 620 tokens), written to `folder`."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    learned.normalizer, learned.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned.train_from_iterator([*captions, *["style drawing of in the photo picture art ,"] * 50], trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", initial_alphabet=alphabet, special_tokens=[], show_progress=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(learned.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(m.replace(" ", "") for m in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        model_max_length=77, bos_token=START, eos_token=END, unk_token=END, pad_token=END, do_lower_case=True,
        tokenizer_class="CLIPTokenizer")), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder))


def new_pipeline(folder: Path, captions: Sequence[str]) -> StableDiffusionPipeline:
    """An untrained model around the autoencoder in `folder`/vae."""
    tokenizer = make_tokenizer(captions, folder / "tokenizer")
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id))
    unet = UNet2DConditionModel(
        sample_size=shapes.PIXELS // 8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[48, 96, 96],
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(str(folder / "vae")).float(), text_encoder=text, tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@torch.no_grad()
def encode(vae: AutoencoderKL, contents: Sequence[shapes.Content], styles: Sequence[shapes.Style]) -> torch.Tensor:
    """Unscaled latents [pictures, 4, h / 8, w / 8] of the drawn pictures."""
    latents = []
    for i in range(0, len(contents), 16):
        drawn = [np.asarray(shapes.draw(*pair)) for pair in zip(contents[i : i + 16], styles[i : i + 16], strict=True)]
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(vae.encode(pixels).latent_dist.mean)
    return torch.cat(latents)


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16. One without the instructions emulates it, about 15 times slower than float32."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="ignore") if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def stratified_timesteps(batch: int, total: int = 1000) -> torch.Tensor:
    """[batch] timesteps, one out of each of `batch` equal parts of 0..total, in random order."""
    return ((torch.arange(batch) + torch.rand(batch)) * total / batch).long()[torch.randperm(batch)]


class Trainer:
    """Trains a pipeline's UNet and text encoder together and keeps a running average of their weights."""

    def __init__(self, pipe: StableDiffusionPipeline, recipe: Recipe, latents: torch.Tensor, captions: Sequence[str]) -> None:
        self.pipe, self.recipe, self.latents = pipe, recipe, latents
        self.ids = self.tokenize(captions)
        self.empty = self.tokenize([""])[0]
        self.snr = pipe.scheduler.alphas_cumprod / (1 - pipe.scheduler.alphas_cumprod)
        self.parameters = [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.peak_rate, weight_decay=1e-3)
        self.bfloat16 = has_bfloat16()

    def tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        """[captions, 77] token numbers."""
        return self.pipe.tokenizer(
            list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids

    def step(self, number: int) -> float:
        """One update of the weights; gives the loss. One caption in ten is dropped, min-SNR 5 weighs (Hang et al. 2023)."""
        recipe, scheduler = self.recipe, self.pipe.scheduler
        decay = 0.5 * (1 + math.cos(math.pi * number / recipe.steps)) + 0.01
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.peak_rate * min(1, (number + 1) / recipe.warmup_steps) * decay
        chosen = torch.randint(0, len(self.latents), (recipe.batch,))
        x, ids, t = self.latents[chosen], self.ids[chosen].clone(), stratified_timesteps(recipe.batch)
        ids[torch.rand(recipe.batch) < 0.1] = self.empty
        noise = torch.randn_like(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            context = self.pipe.text_encoder(ids).last_hidden_state
            predicted = self.pipe.unet(scheduler.add_noise(x, noise, t), t, context).sample
        losses = F.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
        loss = (losses * torch.clamp(self.snr[t], max=5) / self.snr[t]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        kept = min(recipe.averaging, (1 + number) / (10 + number))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - kept)
        return loss.item()

    def run(self, folder: Path, sheet: Path | None = None, report_every: int = 50, save_every: int = 500) -> None:
        """All steps; the averaged weights are written to `folder` now and then, and pictures by them to `sheet`."""
        started = time.monotonic()
        for number in range(self.recipe.steps):
            self.pipe.unet.train()
            self.pipe.text_encoder.train()
            loss = self.step(number)
            if number % report_every == 0:
                print(f"step {number} loss {loss:.4f} after {time.monotonic() - started:.0f} s", flush=True)
            if (number + 1) % save_every == 0 or number + 1 == self.recipe.steps:
                self.save(folder, sheet)

    @torch.no_grad()
    def save(self, folder: Path, sheet: Path | None) -> None:
        """Writes the averaged weights in half precision, and a sheet of pictures if asked for one."""
        live = [p.detach().clone() for p in self.parameters]
        parts = (self.pipe.unet.eval(), self.pipe.text_encoder.eval(), self.pipe.vae)
        for parameter, averaged in zip(self.parameters, self.average, strict=True):
            parameter.copy_(averaged)
        if sheet is not None:
            preview(self.pipe).save(sheet)
        for part in parts:
            part.half()
        self.pipe.save_pretrained(str(folder))
        for part in parts:
            part.float()
        for parameter, trained in zip(self.parameters, live, strict=True):
            parameter.copy_(trained)


def preview(pipe: StableDiffusionPipeline, columns: int = 6) -> Image.Image:
    """A sheet of pictures for fixed captions: a plain row, a striped one, a sepia dotted one."""
    rng, side = random.Random(7), shapes.PIXELS
    manners = ("", ", striped", ", sepia, dotted")
    captions = [shapes.random_content(rng).caption() + words for words in manners for _ in range(columns)]
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        captions, num_inference_steps=20, guidance_scale=3.0, height=side, width=side,
        generator=torch.Generator().manual_seed(1)).images
    sheet = Image.new("RGB", (side * columns, side * len(manners)))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (side * (i % columns), side * (i // columns)))
    return sheet


def train(folder: Path, recipe: Recipe, model: Path | None = None, sheet: Path | None = None) -> None:
    """Trains a new model around `folder`/vae, or goes on with `model`, and writes it to `folder`."""
    torch.manual_seed(recipe.seed)
    contents, styles, captions = captioned_pictures(recipe)
    if model is None:
        pipe = new_pipeline(folder, captions)
    else:
        pipe = StableDiffusionPipeline.from_pretrained(str(model), local_files_only=True).to(torch.float32)
    latents = encode(pipe.vae, contents, styles)
    if model is None:
        pipe.vae.register_to_config(scaling_factor=1 / latents.std().item())
    Trainer(pipe, recipe, latents * pipe.vae.config.scaling_factor, captions).run(folder, sheet)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the small Stable Diffusion model on captioned shapes.")
    parser.add_argument("folder", type=Path, metavar="MODEL_FOLDER", help="the model's folder; a new one needs vae/ in it")
    parser.add_argument("--from", type=Path, dest="model", metavar="MODEL", help="go on with this model and fresh pictures")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pictures", type=int, help="how many different pictures are drawn")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="draw a sheet of pictures whenever the model is written")
    options = parser.parse_args(arguments)
    recipe = NEW_MODEL if options.model is None else LONGER_RUN
    given = {name: value for name in ("steps", "pictures") if (value := getattr(options, name)) is not None}
    train(options.folder, dataclasses.replace(recipe, **given), options.model, options.preview)


if __name__ == "__main__":
    main()
