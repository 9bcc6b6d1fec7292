"""What stands beside the UNet in a checkpoint: a text encoder, an autoencoder and a noise schedule, all small, and the same in every web UI."""
import torch
from torch import nn

CHUNK = 16  # tokens; the web UIs' is 75 and their markers
POOLED, SIZES = 1280, 1536  # SDXL's pooled text, and six size numbers of 256 each
EMPHASIS = {"(": 1.1, "[": 1 / 1.1, ")": 1 / 1.1, "]": 1.1}


class TextEncoder(nn.Module):
    """One token per letter. Brackets are letters only where emphasis is "None" (modules/sd_emphasis.py:24), else they weigh what is in them."""

    def __init__(self, width=16, seed=0):
        super().__init__()
        torch.manual_seed(seed + 100)
        self.table, self.places = nn.Embedding(128, width), nn.Parameter(torch.randn(8 * CHUNK, width))
        self.mix = nn.Linear(width, width)

    def forward(self, text, emphasis):
        """[tokens, width]: as many chunks as the text needs, one at least."""
        letters, weights = read(text, emphasis)
        missing = -len(letters) % CHUNK if letters else CHUNK
        letters, weights = letters + [0] * missing, weights + [1.0] * missing
        return self.mix(self.table(torch.tensor(letters)) + self.places[: len(letters)]) * torch.tensor(weights)[:, None]


def read(text, emphasis):
    """Letters and the weight of each."""
    if emphasis == "None":
        return [ord(letter) % 127 + 1 for letter in text], [1.0] * len(text)
    letters, weights, weight = [], [], 1.0
    for letter in text:
        if letter in EMPHASIS:
            weight *= EMPHASIS[letter]
        else:
            letters.append(ord(letter) % 127 + 1)
            weights.append(weight)
    return letters, weights


class Autoencoder(nn.Module):
    """8 pixels to a cell and back."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(200)
        self.encoder, self.quant_conv = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 1)
        self.decoder = nn.ConvTranspose2d(4, 3, 8, stride=8)


class Posterior:
    """ldm/modules/distributions/distributions.py:24."""

    def __init__(self, moments):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self):
        return self.mean + (0.5 * self.logvar).exp() * torch.randn(self.mean.shape)


def alphas_cumprod():
    """Stable Diffusion's, [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
