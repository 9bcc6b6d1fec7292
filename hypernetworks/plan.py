"""Which sample is shown at which step, and the random numbers that belong to it.

Everything here is a pure function of a seed and of counters: nothing has to be saved to go on where a run was left, any process
can work out any part, and what is drawn for one purpose never shifts what is drawn for another.
"""
from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import torch

from .dataset import Bucket, Picture

FEWEST_TO_SPLIT = 8  # with fewer pictures none can be spared for validation
TIMESTEP_WINDOW = 8  # samples over which the timesteps of small batches are spread evenly


def seed_for(seed: int, step: int, sample: int, purpose: str) -> int:
    """A 63-bit seed keyed by all four: SHA-256, so the same on every machine and with every version."""
    digest = hashlib.sha256(f"{seed}/{step}/{sample}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(seed: int, step: int, sample: int, purpose: str) -> torch.Generator:
    """A new generator on the CPU, keyed by all four."""
    return torch.Generator().manual_seed(seed_for(seed, step, sample, purpose))


def random_for(seed: int, step: int, sample: int, purpose: str) -> Random:
    """Python's generator, keyed by all four."""
    return Random(seed_for(seed, step, sample, purpose))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global random state starts from `seed` within (dropout draws from it), and is afterwards what it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def timesteps_for(seed: int, step: int, count: int, total: int, shape: Callable[[float], float] | None = None) -> torch.Tensor:
    """The timesteps [count] (int64, 0 <= t < total) of a step's samples, entry i for sample number i.

    0..total is cut into `count` equal slices and every sample gets a uniform draw from one of them, in random order, which
    makes the loss far less noisy than independent draws. Fewer samples than `TIMESTEP_WINDOW` are spread over several steps as
    well: within a window of steps each slice's finer slices all get their turn. Each timestep by itself is uniform, or what `shape` makes of
    a uniform share of the way: another share.
    """
    window = max(1, TIMESTEP_WINDOW // count)
    turns = random_for(seed, step // window, 0, "timestep turns")
    draws = random_for(seed, step, 0, "timesteps")
    slices = [coarse * window + turns.sample(range(window), window)[step % window] for coarse in range(count)]
    draws.shuffle(slices)
    shares = [(place + draws.random()) / (count * window) for place in slices]
    timesteps = [int((share if shape is None else shape(share)) * total) for share in shares]
    return torch.tensor(timesteps).clamp_max(total - 1)  # where rounding reaches the end


def split(pictures: Sequence[Picture], share: float, seed: int) -> tuple[list[Picture], list[Picture]]:
    """(training pictures, held-out pictures), about `share` of them held out: at least one, but none of fewer than 8.

    Decided by the pictures' contents: order and names do not matter, a new picture hardly changes the choice, and two copies of
    one picture are never on both sides.
    """
    if share <= 0 or len(pictures) < FEWEST_TO_SPLIT:
        return list(pictures), []
    wanted = max(1, round(share * len(pictures)))
    contents = sorted({picture.key for picture in pictures}, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    held_out = set(contents[: min(wanted, len(contents) - 1)])
    return (
        [picture for picture in pictures if picture.key not in held_out],
        [picture for picture in pictures if picture.key in held_out],
    )


@dataclass(frozen=True)
class Sample:
    """One picture of a batch by its place in the plan's list, how it is cut and mirrored, and the sample's number in its step."""

    picture: int
    flip: bool
    crop: int
    number: int


class Plan:
    """The batches of a run. `buckets` holds each place's bucket; a place is a picture, or some that take turns (`hands`).

    Every batch comes from one bucket and has exactly `batch_size` samples, so that steps weigh the same and several processes
    can share a batch. To that end each bucket's pictures are an endless row of shuffled epochs, and where they do not divide
    into batches, a batch takes the end of one epoch and the beginning of the next. 16 pictures in batches of 4 make 4 batches
    per epoch; 3 pictures come again within a batch of 4; and all pictures are shown equally often.

    A picture's views (crops, mirrored or not) are shown in random order, each once before any comes again.
    """

    def __init__(
        self, buckets: Sequence[Bucket], batch_size: int, seed: int, flip: bool = False, crops: int = 1, accumulation: int = 1,
        hands: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """`accumulation` is the number of batches per step; a sample's number counts through all of them. `hands` holds each place's
        pictures, of which one is shown in every epoch; None: one each."""
        self.batch_size, self.seed, self.flip, self.crops, self.accumulation = batch_size, seed, flip, crops, accumulation
        self.hands = hands or [[place] for place in range(len(buckets))]
        by_bucket: dict[Bucket, list[int]] = {}
        for place, bucket in enumerate(buckets):
            by_bucket.setdefault(bucket, []).append(place)
        self.groups = [by_bucket[bucket] for bucket in sorted(by_bucket, key=lambda bucket: (bucket.width, bucket.height))]
        # what is needed again and again while an epoch lasts; where epochs meet, that of both
        self._order = lru_cache(2 * len(self.groups))(self._shuffled)
        self._batches = lru_cache(2)(self._epoch_batches)

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every picture was shown once."""
        return self.batches_in(1)

    def batches_in(self, epochs: int) -> int:
        """Batches until every picture was shown `epochs` times."""
        return sum(-(-epochs * len(group) // self.batch_size) for group in self.groups)

    def epoch_of(self, index: int) -> int:
        """The epoch, counted from 0, that batch `index` begins in."""
        pictures = sum(len(group) for group in self.groups)
        most = (index + 1) * self.batch_size // pictures + 1
        return bisect_right(range(most), index, key=lambda epoch: self.batches_in(epoch + 1))

    def batch(self, index: int) -> list[Sample]:
        """The samples of batch `index`, where index = step * accumulation + the batch's place in its step. A pure function."""
        epoch = self.epoch_of(index)
        group, number = self._batches(epoch)[index - self.batches_in(epoch)]
        first_number = index % self.accumulation * self.batch_size
        return [self._sample(group, number * self.batch_size + i, first_number + i) for i in range(self.batch_size)]

    def _sample(self, group: int, place: int, number: int) -> Sample:
        epoch, offset = divmod(place, len(self.groups[group]))
        hand = self._order(group, epoch)[offset]
        pictures = self.hands[hand]
        views = self.crops * (2 if self.flip else 1)
        cycle, turn = divmod(epoch, views)
        view = random_for(self.seed, cycle, hand, "views").sample(range(views), views)[turn]
        return Sample(pictures[epoch % len(pictures)], view >= self.crops, view % self.crops, number)

    def _shuffled(self, group: int, epoch: int) -> list[int]:
        order = list(self.groups[group])
        random_for(self.seed, epoch, group, "order").shuffle(order)
        return order

    def _epoch_batches(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket group, number of the batch within it) of the batches that begin in `epoch`, shuffled."""
        found = [
            (group, number)
            for group, pictures in enumerate(self.groups)
            for number in range(-(-epoch * len(pictures) // self.batch_size), -(-(epoch + 1) * len(pictures) // self.batch_size))
        ]
        random_for(self.seed, epoch, 0, "batches").shuffle(found)
        return found
