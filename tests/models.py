"""Small UNets for tests: one of diffusers, one with A1111's module names, both with random weights."""
import torch
from torch import nn


def diffusers_unet(**changes):
    """A UNet2DConditionModel: self-attention widths 32 and 64, context width 16."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    about = dict(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[32, 64], cross_attention_dim=16,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        attention_head_dim=2, norm_num_groups=8,
    )
    return UNet2DConditionModel(**about | changes).eval().requires_grad_(False)


class Attention(nn.Module):
    """As A1111's CrossAttention: the projections are called as modules and the context defaults to the picture itself."""

    def __init__(self, width, context_width):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(width, width, bias=False), nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v)


class Block(nn.Module):
    def __init__(self, width, context_width):
        super().__init__()
        self.attn1, self.attn2 = Attention(width, width), Attention(width, context_width)

    def forward(self, x, context):
        x = x + self.attn1(x)
        return x + self.attn2(x, context=context)


class SpatialTransformer(nn.Module):
    def __init__(self, width, context_width):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block(width, context_width)])

    def forward(self, x, context):
        for block in self.transformer_blocks:
            x = block(x, context)
        return x


class ResBlock(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.in_layers = nn.Sequential(nn.Linear(before, after))

    def forward(self, x, context):
        return self.in_layers(x)


class Downsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.op = nn.Identity()

    def forward(self, x, context):
        return x


class Upsample(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Identity()

    def forward(self, x, context):
        return x


class LdmUNet(nn.Module):
    """The module tree of Stable Diffusion 1.5's UNet as A1111 and Forge name it, with tokens in place of pictures.

    Input blocks 1, 2 | 4, 5 | 7, 8 and output blocks 3-5 | 6-8 | 9-11 carry attention, 3, 6, 9 downsample.
    """

    def __init__(self, width=8, context_width=16):
        super().__init__()
        torch.manual_seed(0)

        def res():
            return ResBlock(width, width)

        def transformer():
            return SpatialTransformer(width, context_width)

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Linear(width, width)])])
        for level in range(4):
            for _ in range(2):
                self.input_blocks.append(nn.ModuleList([res(), transformer()] if level < 3 else [res()]))
            if level < 3:
                self.input_blocks.append(nn.ModuleList([Downsample()]))
        self.middle_block = nn.ModuleList([res(), transformer(), res()])
        self.output_blocks = nn.ModuleList()
        for level in range(4):
            for i in range(3):
                entry = [res(), transformer()] if level > 0 else [res()]
                self.output_blocks.append(nn.ModuleList(entry + ([Upsample()] if i == 2 and level < 3 else [])))

    def forward(self, x, timesteps=None, context=None, **kwargs):
        for entry in (*self.input_blocks, self.middle_block, *self.output_blocks):
            for child in entry:
                x = child(x) if isinstance(child, nn.Linear) else child(x, context)
        return x


def hooks(unet):
    """How many there are on its modules."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in unet.modules())


def generator(unet, seed=1, **options):
    """A small one whose weights do something: B is not zero, as if it had been trained."""
    from hypernetworks.generator import Hypernetwork

    small = dict(embedding_dim=16, hidden_dim=16, rank=2, basis_size=3, tasks=("etching", "fresco"))
    made = Hypernetwork(seed=seed, **small | options).bind(unet)
    torch.manual_seed(seed)
    for name, weight in made.decoder.named_parameters():
        if name.endswith("up"):
            weight.data.normal_(0, 0.1)
    return made
