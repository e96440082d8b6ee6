"""Random numbers of a run: drawn from its seed, the caller's own untouched."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside; the caller's generators, on all devices, stay as they are."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def mix_seed(*numbers: int) -> int:
    """One seed from several numbers; those of neighbouring numbers are independent."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
