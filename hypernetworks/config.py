"""Every option, declared once. The tab, the command line, configuration files and file metadata all read it from here."""
from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .errors import ConfigError

LONGEST = 100_000  # characters of a text, or members of a list
FOLDERS = ("dataset", "regularization")  # the options that say where pictures lie
NORMAL_INITIALIZATIONS = ("Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")


@dataclass(frozen=True)
class Option:
    """One option: what it is called, what it does, which values it takes."""

    name: str
    label: str
    help: str
    default: Any
    kind: type  # str, int, float, bool or tuple
    group: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    item: type = str  # of a tuple's members

    @property
    def flag(self) -> str:
        """The command line's name of the option."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """`value` as the option's kind. Raises `ConfigError` with the option's label and what it takes."""
        try:
            value = self._convert(value)
        except (TypeError, ValueError, OverflowError):  # the last for infinity as a whole number
            raise ConfigError(f"{self.label} ({self.name}) cannot be {shortened(repr(value), 200)}: it takes {self.takes()}.") from None
        if isinstance(value, (str, tuple)) and len(value) > LONGEST:
            raise ConfigError(f"{self.label} ({self.name}) is longer than {LONGEST:,} {'members' if self.kind is tuple else 'characters'}.")
        for member in value if self.kind is tuple else (value,):
            below = self.minimum is not None and not isinstance(member, str) and member < self.minimum
            above = self.maximum is not None and not isinstance(member, str) and member > self.maximum
            if below or above or (self.choices and member not in self.choices) or member != member:
                raise ConfigError(f"{self.label} ({self.name}) cannot be {shortened(repr(member), 200)}: it takes {self.takes()}.")
        return value

    def _convert(self, value: Any) -> Any:
        if self.kind is tuple:
            if isinstance(value, str):
                value = [part.strip() for part in value.split(",") if part.strip()]
            elif not isinstance(value, (list, tuple)):
                value = [value]
            return tuple(self.item(member) for member in value)
        if self.kind is bool:
            if isinstance(value, str):
                if value.strip().lower() not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
                    raise ValueError(value)
                return value.strip().lower() in ("true", "yes", "on", "1")
            return bool(value)
        if self.kind is int and isinstance(value, float) and value != int(value):
            raise ValueError(value)
        return self.kind(value)

    def takes(self) -> str:
        """In words, which values the option takes."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        text = f"a list of {words[self.item].removeprefix('a ')}s" if self.kind is tuple else words[self.kind]
        if self.minimum is not None and self.maximum is not None:
            return f"{text} from {self.minimum:g} to {self.maximum:g}"
        if self.minimum is not None:
            return f"{text} of at least {self.minimum:g}"
        return text


def option(default: Any, label: str, help: str, **about: Any) -> Any:
    """A dataclass field that carries its option's words."""
    return dataclasses.field(default=default, metadata=dict(label=label, help=help, **about))


@functools.cache  # asked for each queued run whenever a page is refreshed; to resolve the types takes milliseconds
def options(config: type) -> Mapping[str, Option]:
    """The options of a configuration class by name, in the order they are declared."""
    kinds = typing.get_type_hints(config)
    found = {}
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else str
        found[field.name] = Option(
            field.name, default=field.default, kind=typing.get_origin(kind) or kind, item=item, **field.metadata
        )
    return MappingProxyType(found)


def read(config: type, values: Mapping[str, Any]) -> Any:
    """An instance of `config` from plain values. Raises `ConfigError` that names an unknown key or a bad value."""
    known = options(config)
    checked = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"There is no option {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        checked[name] = known[name].check(value)
    return config(**checked)


def plain(config: Any) -> dict[str, Any]:
    """The values that differ from the defaults, fit for TOML or JSON."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, one in options(type(config)).items()
        if (value := getattr(config, name)) != one.default
    }


def said(value: Any) -> str:
    """An option's value as one says it: on and off, lists with commas."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def shortened(text: str, length: int) -> str:
    """The text, or its beginning with three dots where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides a training run. Read it with `read(TrainingConfig, values)`, which checks every value."""

    name: str = option("", "Name", "The file's name; also in the dropdown and the tag.", group="Network")
    kind: str = option(
        "residual", "Kind",
        "residual: small networks at the attention layers learn the one style of a folder. generator: one network learns a whole family, a folder "
        "within the folder for each style, and makes weights from a picture, a text or a task.",
        choices=("residual", "generator"), group="Network")
    per_layer: bool = option(
        True, "One pair per layer",
        "Every attention layer gets its own networks. Learns styles better; only this extension reads such files. "
        "Off: one pair per width, a file that every web UI's hypernetwork code reads.", group="Network")
    also_pt: bool = option(
        False, "Also write .pt",
        "The finished network is written a second time, as a .pt, which web UIs without this extension can use too. Needs “One pair per layer” off.", group="Network")
    target_layers: tuple[str, ...] = option(
        ("attn1", "attn2"), "Layers",
        "attn2 sees the prompt and is enough for colours and mood; attn1 sees the picture itself and is needed for "
        "textures.", choices=("attn1", "attn2"), group="Network")
    blocks: tuple[str, ...] = option(
        ("input", "middle", "output"), "Blocks", "The parts of the UNet whose layers are changed. A choice other than all three needs “One pair per layer”.",
        choices=("input", "middle", "output"), group="Network", advanced=True)
    layer_filter: tuple[str, ...] = option(
        (), "Only these layers",
        "Widths such as 320, 768, or parts of layers' names such as up_blocks.1, which need one pair per layer. Empty: all that are chosen above.",
        group="Network", advanced=True)
    layer_structure: tuple[float, ...] = option(
        (1.0, 0.25, 1.0), "Layer structure",
        "Widths of the network's layers as multiples of the input's width; the first and the last are 1. A narrow middle learns from few "
        "pictures without learning them by heart.",
        minimum=0.001, maximum=64, group="Network")
    activation: str = option(
        "linear", "Activation", "The function between the layers: linear (none), relu, swish or any other that A1111 knows.", group="Network")
    weight_initialization: str = option(
        "zero", "Initial weights", "zero: the last layer starts at zero, so that the untrained network changes nothing. The others are A1111's.",
        choices=("zero", *NORMAL_INITIALIZATIONS), group="Network", advanced=True)
    layer_norm: bool = option(False, "Layer norm", "Normalise after each layer.", group="Network", advanced=True)
    dropout_structure: tuple[float, ...] = option(
        (), "Dropout", "Share of values dropped after each layer while training, one number per entry of the layer structure, e.g. 0, 0.1, 0.",
        minimum=0.0, maximum=0.99, group="Network", advanced=True)
    activate_output: bool = option(False, "Activate the output", "Apply the activation after the last layer too.", group="Network", advanced=True)
    skip_connection: bool = option(
        False, "Skip connections", "A short cut around every layer (the variant of aria1th's trainer).", group="Network", advanced=True)
    upsample_linear: bool = option(
        False, "Learned upsampling", "With skip connections: a linear layer instead of interpolation on the short cut.", group="Network", advanced=True)
    description: str = option("", "Description", "Notes for whoever receives the file.", group="Network", advanced=True)

    conditions: tuple[str, ...] = option(
        ("text", "image"), "Conditions", "What weights can be made from: text (the prompt or another text), image (a reference picture), task (a folder's name).",
        choices=("text", "image", "task"), group="Generator")
    rank: int = option(4, "Rank", "Of the low-rank weights that are made for each projection.", minimum=1, maximum=1024, group="Generator")
    embedding_dim: int = option(768, "Embedding width", "Of the condition's latent and of each layer's token.", minimum=1, maximum=2**16, group="Generator")
    hidden_dim: int = option(1024, "Hidden width", "Of the layers between.", minimum=1, maximum=2**16, group="Generator", advanced=True)
    depth: int = option(3, "Depth", "Residual blocks of the weight generator.", minimum=1, maximum=64, group="Generator", advanced=True)
    decoder: str = option(
        "basis", "Decoder", "basis: mixes learned matrices of each layer. rank_token: layers of one shape share a head; less memory. lidb: tiny (HyperDreamBooth).",
        choices=("basis", "rank_token", "lidb"), group="Generator", advanced=True)
    basis_size: int = option(32, "Basis size", "How many matrices of each factor a layer has to mix (decoder basis).", minimum=1, maximum=4096, group="Generator", advanced=True)
    encoder_steps: int = option(
        300, "Encoder steps", "Before the first step, the encoder learns that many steps to tell the folders apart by their pictures (condition image); "
        "they take no pass through the model.", minimum=0, maximum=1_000_000, group="Generator", advanced=True)
    encoder_rate: float = option(
        0.0, "Encoder's rate", "What the encoder has learned that way goes on learning at this share of the learning rate; 0: it stays as it is.",
        minimum=0, maximum=1, group="Generator", advanced=True)
    condition_dropout: float = option(
        0.05, "Drop conditions", "Share of samples trained without their condition, and as large a share without condition and caption.",
        minimum=0, maximum=0.5, group="Generator", advanced=True)
    weight_penalty: float = option(1e-3, "Weight penalty", "Keeps the generated factors small: times the mean of A² plus that of B².", minimum=0, maximum=1000, group="Generator", advanced=True)

    dataset: str = option(
        "", "Pictures",
        "A folder of pictures with captions in .txt files of the same name, or in the file names. Folders within it named such as 10_ink are shown "
        "ten times as often. For a generator: a folder of such folders.", group="Pictures")
    caption_template: str = option(
        "[filewords]", "Caption template",
        "[filewords] is the picture's caption, [name] the network's name; several templates, one per line, are drawn from at random.", group="Pictures")
    shared_caption: str = option("", "One caption for all", "Used where a picture has no caption of its own.", group="Pictures")
    shuffle_tags: bool = option(False, "Shuffle tags", "Put the comma-separated parts of a caption into a new order each time.", group="Pictures", advanced=True)
    keep_tags: int = option(0, "Tags that stay", "So many of a caption's first parts are neither moved nor dropped.", minimum=0, maximum=1000, group="Pictures", advanced=True)
    tag_dropout: float = option(0.0, "Drop tags", "Share of the comma-separated parts that are left out each time.", minimum=0, maximum=1, group="Pictures", advanced=True)
    caption_dropout: float = option(
        0.1, "Drop captions",
        "Share of samples trained with an empty caption, since the negative prompt's rows are changed by the network too. With 0 the file "
        "asks to leave these rows alone, and guidance then strengthens the style.",
        minimum=0, maximum=1, group="Pictures", advanced=True)
    resolution: int = option(0, "Resolution", "Side in pixels of a square picture; others get about as many pixels. 0: the model's own.", minimum=0, maximum=4096, group="Pictures")
    bucket_step: int = option(64, "Bucket step", "Widths and heights are multiples of this many pixels.", minimum=8, maximum=512, group="Pictures", advanced=True)
    flip: bool = option(False, "Mirror pictures", "Show each picture mirrored half of the time; not for faces, letters or slanted patterns.", group="Pictures")
    crops: int = option(1, "Crops per picture", "How many differently placed crops of each picture are kept; 1 is the centre.", minimum=1, maximum=64, group="Pictures", advanced=True)
    sample_latents: bool = option(True, "Sample latents", "Draw from the autoencoder's distribution each time instead of taking its mean.", group="Pictures", advanced=True)
    masks: str = option(
        "none", "Masks", "Which places of a picture count. files: those that are light in name-mask.png beside name.png. alpha: those that are not transparent. "
        "both: the file where there is one, else the transparency.", choices=("none", "files", "alpha", "both"), group="Pictures", advanced=True)
    invert_masks: bool = option(False, "Invert masks", "The dark or transparent places count instead.", group="Pictures", advanced=True)
    unmasked_weight: float = option(0.0, "Unmasked weight", "What places outside the mask count.", minimum=0, maximum=1, group="Pictures", advanced=True)
    unmasked_share: float = option(0.0, "Without masks", "Share of samples of which all places count, whatever their mask says.", minimum=0, maximum=1, group="Pictures", advanced=True)
    masked_prior_weight: float = option(
        0.0, "Keep what is outside", "How much it counts that places outside the mask come out as the model itself would have them; takes one more pass of the model for each step.",
        minimum=0, maximum=100, group="Pictures", advanced=True)
    normalize_masks: bool = option(False, "Balance masks", "Pictures with small masks count as much as others.", group="Pictures", advanced=True)
    regularization: str = option(
        "", "Regularisation pictures",
        "A folder of pictures of what the model is to keep, such as other things of the subject's class; every second picture shown is one of them.",
        group="Pictures", advanced=True)
    regularization_weight: float = option(1.0, "Regularisation weight", "What a regularisation picture counts beside the others.", minimum=0, maximum=100, group="Pictures", advanced=True)
    regularization_target: str = option(
        "pictures", "Regularisation target",
        "What regularisation pictures teach: what they look like (pictures), or to predict of them what the model itself predicts (model), which takes one more pass of the model.",
        choices=("pictures", "model"), group="Pictures", advanced=True)
    validation_share: float = option(0.1, "Held-out share", "Share of the pictures that are never trained on and measure the validation loss.", minimum=0, maximum=0.5, group="Pictures", advanced=True)

    max_steps: int = option(1000, "Steps", "How many times the weights are updated.", minimum=1, maximum=10_000_000, group="Training")
    max_epochs: int = option(0, "Epochs", "Stop after this many passes over the pictures; 0: only the steps count.", minimum=0, maximum=1_000_000, group="Training", advanced=True)
    batch_size: int = option(4, "Batch size", "Pictures per step.", minimum=1, maximum=1024, group="Training")
    gradient_accumulation: int = option(1, "Gradient accumulation", "Batches per step: a larger effective batch without more memory.", minimum=1, maximum=1024, group="Training", advanced=True)
    learning_rate: str = option(
        "auto", "Learning rate",
        "auto fits the rate to each layer's width, auto*0.5 is half of that. Or a number such as 1e-4, or rates until steps as in A1111: "
        "5e-4:200, 1e-4:1000, 1e-5.", group="Training")
    rate_schedule: str = option(
        "cosine", "Rate over time", "How a single rate changes until the last step.",
        choices=("constant", "linear", "cosine", "restarts", "polynomial", "rex"), group="Training")
    warmup_steps: int = option(20, "Warm-up steps", "The rate rises from zero over this many steps.", minimum=0, maximum=1_000_000, group="Training", advanced=True)
    rate_floor: float = option(0.01, "Lowest rate", "The share of the rate that is left at the end.", minimum=0, maximum=1, group="Training", advanced=True)
    rate_cycles: int = option(3, "Cycles", "How many times the rate falls (Rate over time: restarts).", minimum=1, maximum=1000, group="Training", advanced=True)
    rate_cycle_growth: float = option(1.0, "Cycle growth", "Each cycle is this many times as long as the one before (restarts).", minimum=0.1, maximum=10, group="Training", advanced=True)
    rate_cycle_decay: float = option(1.0, "Cycle decay", "Each cycle begins at this share of the rate before it (restarts).", minimum=0.01, maximum=1, group="Training", advanced=True)
    rate_power: float = option(2.0, "Power", "Of the polynomial; 1 is a straight line.", minimum=0.1, maximum=10, group="Training", advanced=True)
    optimizer: str = option(
        "AdamW", "Optimizer", "Any class of torch.optim; or where the package is installed Prodigy, AdamWScheduleFree, DAdaptAdam, AdamW8bit, Lion and others "
        "of pytorch-optimizer.", group="Training", advanced=True)
    optimizer_arguments: str = option("", "Optimizer arguments", "For example betas=(0.9, 0.99), weight_decay=0.01.", group="Training", advanced=True)
    clip_norm: float = option(1.0, "Clip gradients", "Longest gradient that is let through; 0: no clipping.", minimum=0, maximum=1e6, group="Training", advanced=True)
    clip_value: float = option(0.0, "Clip gradients' values", "Largest value of a gradient that is let through; 0: no clipping.", minimum=0, maximum=1e6, group="Training", advanced=True)
    clip_schedule: str = option("1", "Clipping over time", "Times both limits, until steps as in 10:100, 1.", group="Training", advanced=True)
    ema_decay: float = option(
        0.0, "Average of weights", "Share of the average that each step keeps, such as 0.999; less in the first steps. The file holds the average. 0: no average.",
        minimum=0, maximum=0.99999, group="Training", advanced=True)
    ema_save_both: bool = option(True, "Save both", "Beside the file with the average, name-raw with the weights of the last step.", group="Training", advanced=True)
    explosion_factor: float = option(
        4.0, "Explosion", "A loss this many times what it was (the mean over 32 samples), or one that is not a number, sends the run back to the last good weights at half the rate; 0: only the latter does.",
        minimum=0, maximum=1e6, group="Training", advanced=True)
    rollbacks: int = option(3, "Rollbacks", "How often a run may go back before it ends with the best weights.", minimum=0, maximum=100, group="Training", advanced=True)
    residual_penalty: float = option(0.0, "Residual penalty", "Keeps the change |f(x)|²/|x|² small; protects what the model knew.", minimum=0, maximum=1000, group="Training", advanced=True)
    mixed_precision: str = option("no", "Precision", "no: float32. bf16 and fp16 are faster on graphics cards that have them.", choices=("no", "bf16", "fp16"), group="Training", advanced=True)
    file_precision: str = option(
        "float32", "File's precision", "fp16 and bf16 halve the file; the weights in training, and what a run goes on from, stay float32.",
        choices=("float32", "fp16", "bf16"), group="Training", advanced=True)
    gradient_checkpointing: bool = option(False, "Gradient checkpointing", "Less memory for more time.", group="Training", advanced=True)
    optimizer_offload: bool = option(
        False, "Optimizer off the graphics card", "What the optimizer remembers stays in the machine's memory between steps: less of the graphics card's for a little more time.",
        group="Training", advanced=True)
    seed: int = option(0, "Seed", "The same seed, pictures and options give the same network.", minimum=0, maximum=2**63 - 1, group="Training")

    loss: str = option("mse", "Loss", "What is minimised.", choices=("mse", "huber", "l1", "log_cosh"), group="Loss")
    huber_delta: float = option(1.0, "Huber delta", "Errors above it count linearly.", minimum=1e-4, maximum=100, group="Loss", advanced=True)
    huber_schedule: str = option(
        "constant", "Huber schedule", "How the delta depends on the noise: exponential falls from 1 without noise to the delta, snr does so with the noise's share.",
        choices=("constant", "exponential", "snr"), group="Loss", advanced=True)
    loss_function: str = option("", "Own loss", "The dotted path of a function of (prediction, target) that gives the error of each value; it takes the place of the loss.", group="Loss", advanced=True)
    loss_weighting: str = option(
        "min_snr", "Weighting", "What timesteps count: min_snr (Hang et al. 2023), debiased (Yu et al. 2023), p2 (Choi et al. 2022), or none: all alike.",
        choices=("min_snr", "debiased", "p2", "none"), group="Loss")
    min_snr_gamma: float = option(5.0, "Min-SNR gamma", "Weighs easy timesteps down (Hang et al. 2023); 0: all alike.", minimum=0, maximum=1000, group="Loss")
    noise_offset: float = option(
        0.0, "Noise offset", "Lets pictures become darker and lighter than the model would have them; 0.05 is usual.", minimum=0, maximum=1, group="Loss")
    pyramid_noise: float = option(0.0, "Pyramid noise", "Adds coarser noise, each level this much weaker than the one before; 0.3 is mild, 0.8 strong.", minimum=0, maximum=1, group="Loss", advanced=True)
    pyramid_levels: int = option(6, "Pyramid levels", "How many coarser levels there are at most.", minimum=1, maximum=16, group="Loss", advanced=True)
    input_perturbation: float = option(0.0, "Input perturbation", "More noise in what the model sees than in what it is to find (Ning et al. 2023); 0.1 is usual.", minimum=0, maximum=1, group="Loss", advanced=True)
    zero_terminal_snr: bool = option(
        False, "Zero terminal SNR", "Trains to the end of the noise, where nothing of the picture is left (Lin et al. 2024); for models that predict v, and sample with such a schedule.",
        group="Loss", advanced=True)
    timestep_from: float = option(0.0, "Timesteps from", "Share of the noise schedule where training begins; near 0 are details.", minimum=0, maximum=1, group="Loss", advanced=True)
    timestep_to: float = option(1.0, "Timesteps to", "Share of the noise schedule where training ends; near 1 is what the picture is made up of.", minimum=0, maximum=1, group="Loss", advanced=True)
    timestep_distribution: str = option("uniform", "Timesteps", "uniform: all as often. logit_normal: those in the middle more often.", choices=("uniform", "logit_normal"), group="Loss", advanced=True)
    timestep_mean: float = option(0.0, "Timesteps' mean", "Of the logit-normal distribution; above 0 means more noise.", minimum=-10, maximum=10, group="Loss", advanced=True)
    timestep_spread: float = option(1.0, "Timesteps' spread", "Standard deviation of the logit-normal distribution.", minimum=0.01, maximum=10, group="Loss", advanced=True)

    preview_every: int = option(100, "Preview every", "Steps between previews; 0: none.", minimum=0, maximum=1_000_000, group="Watching")
    preview_prompts: str = option(
        "", "Preview prompts",
        "One prompt per line; empty: captions of the first pictures. A line may say more of its picture: --n negative prompt --w width --h height --d seed "
        "--l CFG scale --s steps --ss sampler.", group="Watching")
    sample_sheet: bool = option(
        True, "Sample sheet", "At the end, the run's folder gets one picture of all previews: a row for each prompt, a column for each step.", group="Watching", advanced=True)
    preview_steps: int = option(20, "Preview sampling steps", "Sampling steps of a preview.", minimum=1, maximum=200, group="Watching", advanced=True)
    preview_cfg_scale: float = option(5.0, "Preview CFG scale", "How strictly previews follow their prompt.", minimum=1, maximum=30, group="Watching", advanced=True)
    preview_seed: int = option(1, "Preview seed", "Every preview starts from the same noise.", minimum=0, maximum=2**32 - 1, group="Watching", advanced=True)
    validation_every: int = option(50, "Validate every", "Steps between validation losses; 0: never.", minimum=0, maximum=1_000_000, group="Watching", advanced=True)
    tensorboard: bool = option(
        False, "TensorBoard", "Losses, rate and previews as event files in the run's folder too; needs the package tensorboard.", group="Watching", advanced=True)
    early_stop: int = option(
        0, "Early stop", "End after so many validations in a row without a lower loss on the held-out pictures; 0: never before the last step.",
        minimum=0, maximum=10_000, group="Watching", advanced=True)
    keep_best: bool = option(
        False, "Keep the best", "The file holds the weights of the lowest validation loss, not those of the last step.", group="Watching", advanced=True)
    checkpoints_kept: int = option(0, "Checkpoints kept", "The newest so many stay as files, to be used as networks; 0: all. A run goes on from the last in any case.", minimum=0, maximum=10_000, group="Watching", advanced=True)
    checkpoint_every: int = option(200, "Checkpoint every", "Steps between checkpoints, from which a run can go on; 0: only at the end.", minimum=0, maximum=1_000_000, group="Watching")


@dataclass(frozen=True)
class ExportConfig:
    """What is to be exported as a LoRA file. Read it with `read(ExportConfig, values)`, which checks every value."""

    generator: str = option(
        "", "Generator", "Its name, or a whole tag such as <hypernet:maker:0.8:task=ink>, which says the conditions and strengths too.")
    name: str = option("", "File name", "The content's hash is added to it. Empty: the generator's name.")
    text: str = option("", "Text", "Makes the weights for this text.")
    reference: str = option(
        "", "Reference picture", "Makes the weights for what this picture looks like: a picture, or the ten digits of one that was used before.")
    task: str = option("", "Task", "Makes the weights for one of the generator's tasks.")
    text2: str = option("", "Second text", "Mixes in the weights for this text.")
    reference2: str = option("", "Second picture", "Mixes in the weights for this picture, said in the same way.")
    task2: str = option("", "Second task", "Mixes in the weights for this task.")
    blend: float = option(None, "Blend", "The second condition's share of the mixture. Not said: what the tag says of it, else 0.5.", minimum=0, maximum=1)
    strength: float = option(1.0, "Strength", "How strongly the file acts at its full weight.", minimum=-100, maximum=100)
    snapshot: bool = option(
        False, "Snapshot", "Export a tag that acts at some steps only, or not on the negative prompt, as a file that always acts.")


@dataclass(frozen=True)
class RefineConfig(ExportConfig):
    """What is to be exported, and how it is trained on before that: at most 40 steps, or it would be another training run."""

    dataset: str = option("", "Pictures", "A folder of pictures of what the weights are for, with captions as for training.")
    max_steps: int = option(40, "Steps", "How many times the weights are updated.", minimum=1, maximum=40)
    learning_rate: str = option("auto", "Learning rate", "As for training: auto, a multiple of it such as auto*0.5, or a number.")
    batch_size: int = option(4, "Batch size", "Pictures per step.", minimum=1, maximum=1024)
    seed: int = option(0, "Seed", "The same seed, pictures and options give the same file.", minimum=0, maximum=2**63 - 1)
