"""Noise by seed, the same whatever the batch.

ImageRNG        A1111 99    Forge 113   reForge 105
ImageRNG.next   A1111 153   Forge 167   reForge 159
"""
import torch


class ImageRNG:
    def __init__(self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0):
        self.shape, self.generators = tuple(shape), [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        torch.manual_seed(int(seeds[-1]))  # the web UIs' draws seed the process, too

    def next(self):
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
