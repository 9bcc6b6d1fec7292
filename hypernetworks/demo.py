"""`hypernetworks demo`: train on sixteen bundled pictures in a style that the embedded model does not draw, then show and measure it.
`hypernetworks demo --generator`: make the weights for a style from one picture of it, without training.
"""
from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw

from .attention import ResidualEdit, attached
from .batches import spread_timesteps
from .catalog import Catalog
from .config import TrainingConfig, read
from .embedded.shapes import Content, Style
from .host import Folders, GenerationRequest, Host, PictureSize
from .losses import add_noise, denoising_target
from .presets import preset
from .progress_bar import show
from .prompt import ActiveNetwork, ConditionSource
from .references import References
from .session import Session
from .trainer import HypernetworkTrainer

STYLE = "striped"
PROMPTS = (
    "a large blue circle on a yellow background",
    "a large red square on a white background",
    "a large purple heart on a orange background",
    "a large green ring on a black background",
    "a large orange cross on a blue background",
    "a large red star on a green background",
    "a large black triangle on a orange background",
    "a large blue diamond on a white background",
)
FAMILY = "styles"  # the bundled generator's name in the demo
UNSEEN = 9  # which of the styles that are never trained on
REFERENCE = Content("circle", "red", "blue")
CFG_SCALE = 3.0
SEED = 7


def run_demo(out: Path, steps: int | None = None) -> dict[str, float]:
    """Trains, draws and measures below `out`; prints where things are. Gives the figures it printed."""
    from .embedded import PICTURES, shapes
    from .hosts.diffusers import DiffusersHost

    started = time.monotonic()
    host = DiffusersHost(None, Folders.below(out))
    values = preset("style") | {"name": STYLE, "dataset": str(PICTURES / STYLE), "preview_every": 0, "preview_prompts": PROMPTS[0]}
    if steps is not None:
        values["max_steps"] = steps
    trainer = HypernetworkTrainer(config=read(TrainingConfig, values))
    print(f"Training {STYLE!r} on {len(list((PICTURES / STYLE).glob('*.png')))} captioned pictures. No caption says {STYLE!r}.")
    with host.exclusive():
        show(trainer, trainer.run(host=host, overwrite=True))
        print(f"Drawing {len(PROMPTS)} prompts that were not among the captions, without and with the network ...")
        drawn = before_and_after(host, Session(Catalog(host.folders.networks)), ActiveNetwork(STYLE))
    path = out / "before-after.png"
    picture_grid(drawn, ("without", "with")).save(path)
    figures = measure(host, shapes.STYLES[STYLE], lambda: attached(host.unet, [ResidualEdit(trainer.hypernetwork)]))
    print(f"\nPictures:  {path}   (above without, below with the network; same prompts, same seeds)")
    print(f"Network:   {host.folders.networks / (STYLE + '.safetensors')}")
    _print_figures("striped pictures that it was never trained on", figures)
    print(f"It took {time.monotonic() - started:.0f} seconds. Next: hypernetworks ui --home {out}")
    return figures


def run_generator_demo(out: Path) -> dict[str, float]:
    """One picture of a style that the bundled generator was never trained on becomes weights, pictures and a LoRA file below `out`; prints where they
    are. Gives the figures it printed."""
    from .embedded import GENERATOR, shapes
    from .embedded.make_styles import held_out_styles
    from .exporting import export, make
    from .generator import apply_weights
    from .hosts.diffusers import DiffusersHost

    started = time.monotonic()
    host = DiffusersHost(None, Folders.below(out))
    catalog, style = Catalog(host.folders.networks), shapes.random_style(held_out_styles(UNSEEN + 1)[UNSEEN])
    host.folders.networks.mkdir(parents=True, exist_ok=True)
    shutil.copy(GENERATOR, host.folders.networks / f"{FAMILY}.safetensors")
    reference = out / "reference.png"
    shapes.draw(REFERENCE, style).save(reference)
    source = ConditionSource("reference", References(host.folders.references).keep(reference))
    active = ActiveNetwork(FAMILY, condition=source)
    print(f"The picture {reference} is in a style that the generator was never trained on. It makes the weights of {FAMILY!r} for it,")
    print(f"and {len(PROMPTS)} prompts are drawn, without and with them ...")
    with host.exclusive():
        drawn = before_and_after(host, Session(catalog), active)
        weights = make(host, catalog, active).weights
        lora = export(host, catalog, active, "from-one-picture")
        figures = measure(host, style, lambda: apply_weights(host.unet, weights))
    path = out / "from-one-picture.png"
    picture_grid([[Image.open(reference)], *drawn], ("the picture", "without", "with")).save(path)
    print(f"\nPictures:  {path}   (below the picture without, then with its weights; same prompts, same seeds)")
    print(f"LoRA file: {lora.path}   (rank {lora.rank}, {lora.projections} projections, {lora.path.stat().st_size / 1e6:.2f} MB)")
    print(f"In a prompt it is the tag <hypernet:{FAMILY}:1:ref={source.value}>, as a LoRA {lora.tag}")
    _print_figures("other pictures in that style", figures)
    print(f"It took {time.monotonic() - started:.0f} seconds. Next: hypernetworks ui --home {out}")
    return figures


def _print_figures(what: str, figures: dict[str, float]) -> None:
    print(f"Error of the model on {what} (mean squared, 8 timesteps, {len(PROMPTS)} pictures):")
    print(f"           {figures['loss_without']:.4f} without the network, {figures['loss_with']:.4f} with it")


def before_and_after(host: Host, session: Session, network: ActiveNetwork) -> list[list[Image.Image]]:
    """Two rows of pictures: each prompt without and with the network, from the same noise."""
    side = host.model.resolution
    rows = []
    for active in ([], [network]):
        with session.applied(host, active) as applied:
            rows.append([
                host.generate(
                    GenerationRequest(prompt, cfg_scale=CFG_SCALE, width=side, height=side, seed=SEED + number), on_step=applied.at_step
                )[0]
                for number, prompt in enumerate(PROMPTS)
            ])
    return rows


def picture_grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str], gap: int = 4, margin: int = 72) -> Image.Image:
    """Rows of equally large pictures on white, each row with its label on the left."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (margin + columns * (width + gap), len(rows) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (row, label) in enumerate(zip(rows, labels, strict=True)):
        draw.text((8, y * (height + gap) + height // 2 - 6), label, fill="black")
        for x, picture in enumerate(row):
            sheet.paste(picture, (margin + x * (width + gap), y * (height + gap)))
    return sheet


def measure(host: Host, style: Style, acting: Callable[[], AbstractContextManager]) -> dict[str, float]:
    """Mean squared error of the model's prediction on unseen pictures in a style, without and with what `acting` puts at work."""
    from .embedded import shapes

    rng = random.Random("unseen")
    contents = [shapes.random_content(rng) for _ in PROMPTS]
    drawn = numpy.stack([numpy.asarray(shapes.draw(content, style)) for content in contents])
    latents, _ = host.encode_pictures(torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1)
    conditioning = host.encode_prompts([content.caption() for content in contents])
    latents, side = latents.to(host.device), host.model.resolution
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED)).to(host.device)
    sizes = [PictureSize((side, side), (0, 0), (side, side))] * len(contents)
    kind = host.model.prediction_type

    def error(at_work: AbstractContextManager) -> float:
        total = 0.0
        timesteps = spread_timesteps(8, len(host.alphas_cumprod))
        with torch.no_grad(), at_work:
            for timestep in timesteps:
                alphas = host.alphas_cumprod[timestep].expand(len(contents)).to(host.device)
                moment = torch.full((len(contents),), timestep, device=host.device)
                predicted = host.predict(add_noise(latents, noise, alphas), moment, conditioning, sizes)
                total += float((predicted.float() - denoising_target(latents, noise, alphas, kind)).pow(2).mean())
        return total / len(timesteps)

    return {"loss_without": error(nullcontext()), "loss_with": error(acting())}
