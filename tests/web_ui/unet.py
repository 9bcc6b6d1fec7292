"""A UNet with the module tree of Stable Diffusion 1.5's as the web UIs name it, small enough to be evaluated hundreds of times in a test.

It takes latents [b, 4, h, w] as theirs do, and has what the hosts have to cope with there: A1111's checkpointed blocks, whose checkpoint
gives no gradient to what it does not know, and Forge's blocks that add to their input in place. No line is theirs. In A1111's tree it is
UNetModel of ldm/modules/diffusionmodules/openaimodel.py:421, BasicTransformerBlock of ldm/modules/attention.py:246 and CheckpointFunction
of ldm/modules/diffusionmodules/util.py:118; in Forge's IntegratedUNet2DConditionModel and BasicTransformerBlock of backend/nn/unet.py:481
and 158, which add in place in lines 240, 272 and 278.
"""
import math

import torch
from models import Attention, Downsample, Upsample
from torch import nn

from .parts import POOLED, SIZES


class ForgeAttention(Attention):
    """Forge's has more arguments (backend/nn/unet.py:131)."""

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        assert value is None and mask is None
        return super().forward(x, context)


class CheckpointFunction(torch.autograd.Function):
    """Computes without a record, and again in backward; only the inputs and parameters that it is told of get gradients."""

    @staticmethod
    def forward(ctx, function, count, *tensors):
        ctx.function, ctx.count, ctx.tensors = function, count, tensors
        with torch.no_grad():
            return function(*tensors[:count])

    @staticmethod
    def backward(ctx, *gradients):
        inputs = [tensor.detach().requires_grad_(True) for tensor in ctx.tensors[: ctx.count]]
        with torch.enable_grad():
            outputs = ctx.function(*(tensor.view_as(tensor) for tensor in inputs))
        return (None, None, *torch.autograd.grad(outputs, [*inputs, *ctx.tensors[ctx.count :]], gradients, allow_unused=True))


def checkpoint(function, inputs, parameters, flag):
    """As ldm's."""
    if not flag:
        return function(*inputs)
    return CheckpointFunction.apply(function, len(inputs), *inputs, *parameters)


def forge_checkpoint(function, inputs, parameters, flag):
    """As Forge's, which has none."""
    if flag:
        raise NotImplementedError
    return function(*inputs)


class Block(nn.Module):
    """A1111's BasicTransformerBlock."""

    def __init__(self, width, context_width, in_place):
        super().__init__()
        attention = ForgeAttention if in_place else Attention
        self.attn1, self.attn2 = attention(width, width), attention(width, context_width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.checkpoint = not in_place

    def forward(self, x, context=None):
        return checkpoint(self._forward, (x, context), tuple(self.parameters()), self.checkpoint)

    def _forward(self, x, context=None):
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


class InPlaceBlock(Block):
    """Forge's BasicTransformerBlock."""

    def forward(self, x, context=None, transformer_options=None):
        return forge_checkpoint(self._forward, (x, context, transformer_options), None, self.checkpoint)

    def _forward(self, x, context=None, transformer_options=None):
        n = self.attn1(self.norm1(x))
        for patch in (transformer_options or {}).get("patches", {}).get("attn1_output_patch", []):
            n = patch(n, {})
        x += n
        n = self.norm2(x)
        x += self.attn2(n, context=context)
        skip = x
        x = self.ff(self.norm3(x))
        x += skip
        return x


class SpatialTransformer(nn.Module):
    """Pixels become tokens, and pixels again."""

    def __init__(self, width, context_width, in_place):
        super().__init__()
        self.norm, self.proj_in, self.proj_out = nn.GroupNorm(2, width), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        kind = InPlaceBlock if in_place else Block
        self.transformer_blocks = nn.ModuleList([kind(width, context_width, in_place) for _ in range(2)])
        self.in_place = in_place

    def forward(self, x, context, transformer_options=None):
        rows, width, height, breadth = x.shape
        tokens = self.proj_in(self.norm(x)).flatten(2).mT.contiguous()
        for block in self.transformer_blocks:
            tokens = block(tokens, context, transformer_options) if self.in_place else block(tokens, context)
        return self.proj_out(tokens.mT.reshape(rows, width, height, breadth)) + x


class ResBlock(nn.Module):
    def __init__(self, before, after, time_width, in_place):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(2, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, after))
        self.skip_connection = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.use_checkpoint, self._checkpoint = not in_place, forge_checkpoint if in_place else checkpoint

    def forward(self, x, time):
        return self._checkpoint(self._forward, (x, time), tuple(self.parameters()), self.use_checkpoint)

    def _forward(self, x, time):
        return self.skip_connection(x) + self.in_layers(x) + self.emb_layers(time)[..., None, None]


def embedded_time(timesteps, width):
    """Cosines, then sines."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = timesteps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


class UNetModel(nn.Module):
    """Input blocks 1, 2 | 4, 5 | 7, 8 and output blocks 3-5 | 6-8 | 9-11 carry attention; all work on the full picture."""

    watcher = None  # called with (unet, x, timesteps, context, y, output)

    def __init__(self, info, in_place=False):
        super().__init__()
        torch.manual_seed(info.seed)
        width, context_width, self.in_channels = info.width, info.context_width, info.in_channels
        self.width, time_width = width, 2 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.label_emb = nn.Linear(POOLED + SIZES, time_width) if info.family == "sdxl" else None

        def level(after, before=None):
            return [ResBlock(before or width, width, time_width, in_place), *([transformer()] if after else [])]

        def transformer():
            return SpatialTransformer(width, context_width, in_place)

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(info.in_channels, width, 3, padding=1)])])
        for number in range(4):
            self.input_blocks += [nn.ModuleList(level(number < 3)) for _ in range(2)]
            if number < 3:
                self.input_blocks.append(nn.ModuleList([Downsample()]))
        self.middle_block = nn.ModuleList([*level(True), *level(False)])
        self.output_blocks = nn.ModuleList()
        for number in range(4):
            for place in range(3):
                entry = level(number > 0, 2 * width)
                self.output_blocks.append(nn.ModuleList(entry + ([Upsample()] if place == 2 and number < 3 else [])))
        self.out = nn.Conv2d(width, 4, 3, padding=1)
        self.eval()

    def forward(self, x, timesteps=None, context=None, y=None, control=None, transformer_options=None):
        assert getattr(self, "here", True), "the UNet is not where its inputs are"
        output = self._computed(x, timesteps, context, y, transformer_options)
        if UNetModel.watcher is not None:
            UNetModel.watcher(self, x, timesteps, context, y, output)
        return output

    def _computed(self, x, timesteps, context, y, options):
        time = self.time_embed(embedded_time(timesteps, self.width))
        if self.label_emb is not None:
            time = time + self.label_emb(y)
        skips = []
        for entry in self.input_blocks:
            x = self._through(entry, x, time, context, options)
            skips.append(x)
        x = self._through(self.middle_block, x, time, context, options)
        for entry in self.output_blocks:
            x = self._through(entry, torch.cat([x, skips.pop()], 1), time, context, options)
        return self.out(x)

    @staticmethod
    def _through(entry, x, time, context, options):
        for child in entry:
            if isinstance(child, ResBlock):
                x = child(x, time)
            elif isinstance(child, SpatialTransformer):
                x = child(x, context, options)
            else:
                x = child(x) if isinstance(child, nn.Conv2d) else child(x, context)
        return x
