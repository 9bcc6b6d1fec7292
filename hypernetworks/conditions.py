"""What weights are generated for, and the encoder that turns it into one latent per row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import ConfigError

KINDS = ("text", "image", "task")
IMAGE_FEATURES = ("latents", "tokens")
_DIMENSIONS = {"text": (2,), "latents": (4, 5), "tokens": (3,), "task": (1,)}
_EXPECTED = {
    "text": "[b, width]",
    "latents": "[b, channels, height, width] or [b, pictures, channels, height, width]",
    "tokens": "[b, tokens, width]",
    "task": "[b]",
}
_POOLED_WIDTH = 1024  # narrow picture tokens are pooled in several ways, side by side, up to about this width

_SMALLEST_VARIANCE = 1e-6  # of tokens that are all alike, whose deviation has no slope


@dataclass(frozen=True, eq=False)
class Condition:
    """What weights are generated for, b rows of it. Of several kinds at once the encoder takes the mean.

    `text`: pooled text-encoder features [b, width]. `image`: scaled latents [b, c, h, w], or [b, pictures, c, h, w] for
    several pictures of one style, or an image encoder's tokens [b, tokens, width]. `task`: numbers of tasks [b].
    `dropped`: [b] bool, the rows that get the learned null instead; alone it is the condition that says nothing.
    """

    text: Tensor | None = None
    image: Tensor | None = None
    task: Tensor | None = None
    dropped: Tensor | None = None

    def __post_init__(self) -> None:
        counts = {len(features) for features in self._tensors().values()}
        if not counts:
            raise ConfigError("A condition is a text, an image, a task, or dropped; this one is nothing of these.")
        if len(counts) > 1:
            raise ConfigError("All parts of a condition have the same number of rows.")

    @classmethod
    def none(cls, rows: int = 1) -> Condition:
        """The condition that says nothing: the learned null in every row."""
        return cls(dropped=torch.ones(rows, dtype=torch.bool))

    @property
    def rows(self) -> int:
        """How many sets of weights this condition gives."""
        return len(next(iter(self._tensors().values())))

    @property
    def features(self) -> dict[str, Tensor]:
        """The kinds that are there."""
        return {kind: value for kind, value in self._tensors().items() if kind != "dropped"}

    def select(self, index: Sequence[int]) -> Condition:
        """The same rows in another order, repeated or left out."""
        return Condition(**{kind: value[list(index)] for kind, value in self._tensors().items()})

    def drop(self, dropped: Tensor) -> Condition:
        """The same with more rows dropped; `dropped` is [b] bool."""
        if self.dropped is not None:
            dropped = dropped | self.dropped.to(dropped.device)
        return Condition(self.text, self.image, self.task, dropped)

    def blended(self, other: Condition | Blend, share: float) -> Blend:
        """This condition's weights mixed with `share` of the other's."""
        return Blend(self, other, share)

    def key(self) -> str:
        """64 hex digits, equal for equal conditions: the condition's part of a cache's key."""
        digest = hashlib.sha256()
        for kind, value in self._tensors().items():
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value.long()
            digest.update(f"{kind} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        named = {"text": self.text, "image": self.image, "task": self.task, "dropped": self.dropped}
        return {kind: value for kind, value in named.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Blend:
    """Two conditions at once: `1 - share` of the first one's deltas and `share` of the second one's.

    Deltas are what is mixed. A mean of A times a mean of B is not the mean of the products.
    """

    first: Condition | Blend
    second: Condition | Blend
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"The share of a blend's second condition is a number from 0 to 1, not {self.share:g}.")

    def blended(self, other: Condition | Blend, share: float) -> Blend:
        """This blend's weights mixed with `share` of the other's."""
        return Blend(self, other, share)

    def key(self) -> str:
        """64 hex digits, equal for equal blends."""
        return hashlib.sha256(f"{self.first.key()} {self.second.key()} {self.share!r}".encode()).hexdigest()


class HypernetworkEncoder(nn.Module):
    """A condition of b rows to latents [b, embedding_dim]: an adapter per kind, a type embedding, an MLP, LayerNorm.

    Every adapter normalises, so that the latent does not grow with the features. Weights are on the meta device until
    `initialize`.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_dim: int,
        kinds: Sequence[str],
        text_width: int,
        image_features: str,
        image_width: int,
        tasks: int,
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            make: dict[str, Callable[[], nn.Module]] = {
                "text": lambda: nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, embedding_dim)),
                "image": lambda: ImageAdapter(image_features, image_width, embedding_dim),
                "task": lambda: nn.Embedding(tasks, embedding_dim),
            }
            self.adapters = nn.ModuleDict({kind: make[kind]() for kind in kinds})
            self.adapter_norms = nn.ModuleDict({kind: nn.LayerNorm(embedding_dim) for kind in kinds})
            self.types = nn.ParameterDict({kind: nn.Parameter(torch.empty(embedding_dim)) for kind in kinds})
            self.null = nn.Parameter(torch.empty(embedding_dim))
            self.mlp = nn.Sequential(nn.Linear(embedding_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, embedding_dim))
            self.norm = nn.LayerNorm(embedding_dim)
        self.image_features, self.image_width, self.text_width, self.tasks = image_features, image_width, text_width, tasks

    def forward(self, condition: Condition) -> Tensor:
        """[b, embedding_dim]. Raises `ConfigError` for a kind or a shape that this encoder does not take."""
        rows = condition.rows
        if features := condition.features:
            embedded = torch.stack([self._embed(kind, value) for kind, value in features.items()]).mean(0)
        else:
            embedded = self.null.expand(rows, -1)
        if condition.dropped is not None:
            embedded = torch.where(condition.dropped.to(embedded.device)[:, None], self.null, embedded)
        return self.norm(embedded + self.mlp(embedded))

    def initialize(self, generator: torch.Generator) -> None:
        """Draws the weights; the modules must be on the CPU."""
        initialize_modules(self, generator)
        self.null.data.normal_(generator=generator)
        for parameter in self.types.values():  # small, or all conditions of a kind would look alike
            parameter.data.normal_(0, 0.02, generator=generator)

    def _embed(self, kind: str, features: Tensor) -> Tensor:
        self._check(kind, features)
        features = features.to(self.null.device)
        if features.is_floating_point():
            features = features.to(self.null.dtype)
        return self.adapter_norms[kind](self.adapters[kind](features)) + self.types[kind]

    def _check(self, kind: str, features: Tensor) -> None:
        if kind not in self.adapters:
            raise ConfigError(f"This generator was not made for {kind} conditions but for {' and '.join(self.adapters)}.")
        form = self.image_features if kind == "image" else kind
        if features.ndim not in _DIMENSIONS[form]:
            raise ConfigError(
                f"The {kind} condition has the shape {list(features.shape)}; this generator takes {_EXPECTED[form]}."
            )
        if kind == "task":
            if features.numel() and not 0 <= int(features.min()) <= int(features.max()) < self.tasks:
                raise ConfigError(f"This generator knows the tasks 0 to {self.tasks - 1}.")
            return
        width, wanted = features.shape[-3 if form == "latents" else -1], self.text_width if kind == "text" else self.image_width
        if width != wanted:
            raise ConfigError(
                f"The {kind} condition has width {width}, and this generator was made for {wanted}: use its own encoder."
            )


class ImageAdapter(nn.Module):
    """Latents or tokens to [b, embedding_dim], wherever in the picture something is.

    Latents go through three convolutions first, at half their size, where a pattern of a few cells still shows. Then learned queries
    each take a softmax-weighted mean of the tokens. Beside these stand mean and deviation of all tokens, by which textures and palettes
    are told apart long before the queries have learned where to look.
    """

    def __init__(self, features: str, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.convolutions = None
        if features == "latents":
            self.convolutions = nn.Sequential(
                nn.Conv2d(width, 64, 3, padding=1), nn.GELU(),
                nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.GELU(),
                nn.Conv2d(128, 128, 3, padding=1), nn.GELU(),
            )  # fmt: skip
            width = 128
        queries = max(1, _POOLED_WIDTH // width)
        self.norm, self.moments_norm = nn.LayerNorm(width), nn.LayerNorm(2 * width)
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.out = nn.Linear((queries + 2) * width, embedding_dim)

    def forward(self, image: Tensor) -> Tensor:
        """[b, c, h, w], [b, pictures, c, h, w] or [b, tokens, width] to [b, embedding_dim]."""
        tokens = image if self.convolutions is None else self._tokens(image)
        deviation = (tokens.var(1, unbiased=False) + _SMALLEST_VARIANCE).sqrt()
        moments = self.moments_norm(torch.cat([tokens.mean(1), deviation], dim=-1))
        tokens = self.norm(tokens)
        attention = (self.queries @ tokens.mT / tokens.shape[-1] ** 0.5).softmax(-1)  # [b, queries, tokens]
        return self.out(torch.cat([(attention @ tokens).flatten(1), moments], dim=-1))

    def _tokens(self, latents: Tensor) -> Tensor:
        pictures = latents if latents.ndim == 4 else latents.flatten(0, 1)
        maps = self.convolutions(pictures)
        if maps.requires_grad:
            maps.register_hook(Tensor.contiguous)  # of a transposed gradient the GELU of torch 2.1 makes nonsense on the CPU
        tokens = maps.flatten(2).mT  # [b * pictures, h * w / 4, 128]
        return tokens.reshape(len(latents), -1, tokens.shape[-1])


def initialize_modules(module: nn.Module, generator: torch.Generator) -> None:
    """Linear maps Normal(0, 1 / fan-in) (LeCun et al. 1998), convolutions Normal(0, 2 / fan-in) (He et al. 2015), embeddings
    and queries Normal(0, 1), biases 0, LayerNorm's gains 1."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.data.normal_(0, part.in_features**-0.5, generator=generator)
        elif isinstance(part, nn.Conv2d):
            part.weight.data.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=generator)
        elif isinstance(part, nn.Embedding):
            part.weight.data.normal_(generator=generator)
        elif isinstance(part, nn.LayerNorm):
            part.weight.data.fill_(1)
        elif isinstance(part, ImageAdapter):
            part.queries.data.normal_(generator=generator)
        if isinstance(getattr(part, "bias", None), nn.Parameter):
            part.bias.data.zero_()
