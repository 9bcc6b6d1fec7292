"""CLIP's vocabulary, which no single-file checkpoint contains: looked for on this machine, never downloaded.

Every Stable Diffusion model was trained with the same one. It follows from its 48,894 byte-pair merges (Sennrich et al. 2016;
OpenAI CLIP, clip/simple_tokenizer.py: class SimpleTokenizer).
"""
from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ModelUnfit

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 48894
SIZE = 2 * 256 + MERGES + 2
TOKENS = 77  # that a prompt is padded or cut to


def find_merges(checkpoint: Path) -> list[str]:
    """CLIP's merges for the model in `checkpoint`. Raises `ModelUnfit` that says how to get them."""
    for path in _places(checkpoint.parent):
        if path.is_file() and (merges := _read(path)):
            return merges
    raise ModelUnfit(
        f"{checkpoint.name} can be read only with CLIP's vocabulary, which is not on this machine. Put the folder 'tokenizer' of "
        "any Stable Diffusion model in diffusers' layout beside the file, or run: pip install --no-deps open_clip_torch"
    )


def _places(beside: Path) -> Iterator[Path]:
    """Beside the checkpoint; in Hugging Face's cache, where every web UI leaves it; in the packages that ship it."""
    yield beside / "tokenizer" / "merges.txt"
    from huggingface_hub.constants import HF_HUB_CACHE  # standalone only: a web UI never gets here

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*/snapshots/*")):
        yield folder / "merges.txt"
        yield folder / "tokenizer" / "merges.txt"
    for package in ("open_clip", "clip"):
        found = importlib.util.find_spec(package)
        for folder in (found and found.submodule_search_locations) or ():
            yield Path(folder) / "bpe_simple_vocab_16e6.txt.gz"


def _read(path: Path) -> list[str] | None:
    """The merges in a merges.txt or in OpenAI's packed list (which goes on behind CLIP's last); None where they are others."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    lines = text.split("\n")[1:]
    merges = lines[:MERGES]
    is_clip = len(merges) == MERGES and all(merge.count(" ") == 1 for merge in merges)
    return merges if is_clip and (path.suffix == ".gz" or not "".join(lines[MERGES:]).strip()) else None


def write_tokenizer(folder: Path, merges: Sequence[str], padding: str) -> None:
    """A CLIP tokenizer in transformers' layout. `padding` stands behind a prompt: `END`, or "!" with OpenCLIP's encoders."""
    folder.mkdir(parents=True)
    alphabet = _alphabet()
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(merge.replace(" ", "") for merge in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(
        tokenizer_class="CLIPTokenizer", model_max_length=TOKENS, do_lower_case=True,
        bos_token=START, eos_token=END, unk_token=END, pad_token=padding)), encoding="utf-8")


def _alphabet() -> list[str]:
    """One printable character for each byte: the printable ones of Latin-1 in order, then stand-ins for the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
