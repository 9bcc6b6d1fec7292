"""Captioned synthetic shapes: the world that the small Stable Diffusion model knows.

A plain picture is one flat shape on one flat background. A `Style` redraws the same content in another manner. The model draws
plainly unless the caption names a manner ("..., striped, sepia"); a hypernetwork is trained on styled pictures whose captions do *not*
name it, so that plain prompts come out in that style: what people train hypernetworks for.
"""
from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageOps

Color = tuple[int, int, int]
Point = tuple[float, float]

COLORS: dict[str, Color] = dict(
    red=(220, 40, 40), green=(40, 170, 70), blue=(50, 80, 220), yellow=(240, 210, 50), orange=(245, 140, 30),
    purple=(140, 60, 190), white=(245, 245, 245), black=(20, 20, 20))
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
SIZES = dict(small=0.24, large=0.40)  # radius as a share of the picture's width
PIXELS = 128

FILL_WORDS = dict(stripes="striped", dots="dotted", checks="checkered", gradient="shaded", outline="outlined")
BACKGROUND_WORDS = dict(stripes="striped wall", gradient="fading wall", vignette="vignette")
PALETTE_WORDS = dict(sepia="sepia", pastel="pastel", night="night", negative="negative", hue="odd colors")


@dataclass(frozen=True)
class Style:
    """A manner of drawing. The defaults are the plain manner."""

    fill: str = "flat"  # flat, stripes, dots, checks, gradient, outline
    period: float = 0.2  # of the fill's pattern, as a share of the picture's width
    angle: float = 0.0  # of stripes, in turns
    background: str = "flat"  # flat, stripes, gradient, vignette
    palette: str = "plain"  # plain, sepia, pastel, night, negative, hue
    hue: float = 0.0  # turn of the colour wheel where palette is "hue"

    def words(self) -> str:
        """How the model's captions name this manner; angle, period and hue have no words."""
        words = FILL_WORDS.get(self.fill), BACKGROUND_WORDS.get(self.background), PALETTE_WORDS.get(self.palette)
        return ", ".join(word for word in words if word)


PLAIN = Style()
STYLES = dict(
    plain=PLAIN,
    striped=Style(fill="stripes", period=0.19, angle=0.125),
    dotted=Style(fill="dots", period=0.19),
    outlined=Style(fill="outline", period=0.22),
    sepia=Style(palette="sepia"),
)


def random_style(number: int) -> Style:
    """The style with that number: always the same, never the plain one. For families of styles, split by number."""
    rng = random.Random(f"style {number}")
    style = Style(
        fill=rng.choice(["flat", "stripes", "dots", "checks", "gradient", "outline"]),
        period=rng.uniform(0.14, 0.3),
        angle=rng.random(),
        background=rng.choice(["flat", "flat", "stripes", "gradient", "vignette"]),
        palette=rng.choice(["plain", "plain", "sepia", "pastel", "night", "negative", "hue"]),
        hue=rng.uniform(0.2, 0.8),
    )
    plain = style.fill == "flat" and style.background == "flat" and style.palette == "plain"
    return Style(fill="stripes", period=style.period, angle=style.angle) if plain else style


@dataclass(frozen=True)
class Content:
    """What a caption tells: one shape on a background. Shifts are shares of the picture's width."""

    shape: str
    color: str
    background: str
    size: str = "large"
    shift_x: float = 0.0
    shift_y: float = 0.0

    def caption(self) -> str:
        """The full caption."""
        return f"a {self.size} {self.color} {self.shape} on a {self.background} background"


def random_content(rng: random.Random) -> Content:
    """A shape, two different colours, a size and a small shift."""
    color, background = rng.sample(list(COLORS), 2)
    shape, size = rng.choice(SHAPES), rng.choice(list(SIZES))
    return Content(shape, color, background, size, rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08))


def random_caption(content: Content, rng: random.Random) -> str:
    """Mostly the full caption, sometimes a part of it, as people write them."""
    u = rng.random()
    if u < 0.60:
        return content.caption()
    if u < 0.75:
        return f"a {content.color} {content.shape} on a {content.background} background"
    if u < 0.85:
        return f"a {content.color} {content.shape}, {content.background} background"
    if u < 0.95:
        return f"{content.size} {content.color} {content.shape}"
    return f"a {content.shape}"


def draw(content: Content, style: Style = PLAIN, pixels: int = PIXELS) -> Image.Image:
    """RGB picture of `content` in `style`, `pixels` wide and high, antialiased by drawing at twice the size."""
    s = pixels * 2
    mask = shape_mask(content, s)
    color, ground = COLORS[content.color], COLORS[content.background]
    contrast = COLORS["black"] if content.color == "white" else COLORS["white"]
    picture = pattern(style.background, s, ground, lighter(ground, 0.45), 0.25, 0.0)
    if style.fill == "outline":
        mask.paste(0, (0, 0), shape_mask(content, s, scale=1 - style.period * 1.6))
        picture.paste(Image.new("RGB", (s, s), color), (0, 0), mask)
    else:
        picture.paste(pattern(style.fill, s, color, contrast, style.period, style.angle), (0, 0), mask)
    return recolor(picture.resize((pixels, pixels), Image.LANCZOS), style)


def shape_mask(content: Content, s: int, scale: float = 1.0) -> Image.Image:
    """Greyscale picture of `s` x `s` pixels, white where the shape is."""
    mask = Image.new("L", (s, s), 0)
    d = ImageDraw.Draw(mask)
    x, y, r = s * (0.5 + content.shift_x), s * (0.5 + content.shift_y), s * SIZES[content.size] * scale
    if content.shape in ("circle", "ring"):
        d.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if content.shape == "ring":
            d.ellipse((x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r), fill=0)
    else:
        d.polygon([(x + r * u, y + r * v) for u, v in OUTLINES[content.shape]()], fill=255)
    return mask


def _star() -> list[Point]:
    return [
        (q * math.sin(k * math.pi / 5), -q * math.cos(k * math.pi / 5)) for k in range(10) for q in [1 if k % 2 == 0 else 0.42]
    ]


def _cross(a: float = 0.33) -> list[Point]:
    return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * k / 60 for k in range(60)]
    return [
        (16 * math.sin(t) ** 3 / 17, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17)
        for t in turns
    ]


OUTLINES: dict[str, Callable[[], list[Point]]] = dict(  # around (0, 0), y downwards, in radii
    square=lambda: [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    diamond=lambda: [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    triangle=lambda: [(0, -1), (0.92, 0.75), (-0.92, 0.75)],
    star=_star,
    cross=_cross,
    heart=_heart,
)


def pattern(kind: str, s: int, base: Color, other: Color, period: float, angle: float) -> Image.Image:
    """`s` x `s` pixels of `base` with `other` in a pattern: stripes, dots, checks, gradient, vignette or flat."""
    picture = Image.new("RGB", (s, s), base)
    p = max(4, int(period * s))
    if kind == "stripes":
        picture.paste(other, (0, 0), _stripes(s, p, angle))
    elif kind == "dots":
        _draw_dots(ImageDraw.Draw(picture), s, p, other)
    elif kind == "checks":
        _draw_checks(ImageDraw.Draw(picture), s, max(3, p // 2), other)
    elif kind == "gradient":
        picture.paste(Image.new("RGB", (s, s), other), (0, 0), Image.linear_gradient("L").resize((s, s)))
    elif kind == "vignette":
        picture.paste(Image.new("RGB", (s, s), lighter(base, -0.6)), (0, 0), Image.radial_gradient("L").resize((s, s)))
    return picture


def _stripes(s: int, period: int, angle: float) -> Image.Image:
    """Mask of stripes, drawn twice as large so that the turned picture has no empty corners."""
    mask = Image.new("L", (2 * s, 2 * s), 0)
    d = ImageDraw.Draw(mask)
    for x in range(0, 2 * s, period):
        d.rectangle((x, 0, x + int(0.42 * period), 2 * s), fill=255)
    return mask.rotate(360 * angle, Image.BICUBIC).crop((s // 2, s // 2, s // 2 + s, s // 2 + s))


def _draw_dots(d: ImageDraw.ImageDraw, s: int, period: int, color: Color) -> None:
    for row, y in enumerate(range(0, s + period, period)):
        for x in range(0, s + period, period):
            center, r = x + (period // 2 if row % 2 else 0), 0.28 * period
            d.ellipse((center - r, y - r, center + r, y + r), fill=color)


def _draw_checks(d: ImageDraw.ImageDraw, s: int, side: int, color: Color) -> None:
    for row, y in enumerate(range(0, s, side)):
        for column, x in enumerate(range(0, s, side)):
            if (row + column) % 2:
                d.rectangle((x, y, x + side - 1, y + side - 1), fill=color)


def lighter(color: Color, amount: float) -> Color:
    """`color` moved towards white by a share `amount`, towards black where it is negative."""
    to = 255 if amount > 0 else 0
    return tuple(int(c + (to - c) * abs(amount)) for c in color)


def recolor(picture: Image.Image, style: Style) -> Image.Image:
    """The picture in the style's palette."""
    if style.palette == "plain":
        return picture
    if style.palette == "negative":
        return ImageOps.invert(picture)
    if style.palette == "sepia":
        return ImageOps.colorize(ImageOps.grayscale(picture), (40, 22, 8), (255, 232, 190))
    if style.palette == "pastel":
        return Image.blend(picture, Image.new("RGB", picture.size, (255, 245, 250)), 0.5)
    if style.palette == "night":
        return Image.blend(picture, Image.new("RGB", picture.size, (10, 14, 60)), 0.62)
    if style.palette == "hue":
        h, s, v = picture.convert("HSV").split()
        return Image.merge("HSV", (h.point(lambda x: int(x + 255 * style.hue) % 256), s, v)).convert("RGB")
    raise KeyError(style.palette)
