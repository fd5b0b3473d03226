"""Weights that are there at once: torch's tensors in the CPU's memory, loaded as they are used.

python torch_tensors.py [IMAGE]      (default: weights.lzr in the current folder)

The first run makes a model and dumps its weights; the next ones load them. Loading a pickle runs
code that the image names: load only what you, or someone you trust, wrote.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

import lazyrestore

WIDTH = 1024
LAYERS = 8


def make_model() -> Any:
    """A model without weights yet."""
    with torch.device("meta"):
        layers = [torch.nn.Linear(WIDTH, WIDTH, dtype=torch.bfloat16) for _ in range(LAYERS)]
        return torch.nn.Sequential(*layers)


def build(image: Path) -> None:
    """Make weights, and dump them."""
    torch.manual_seed(1)
    model = make_model().to_empty(device="cpu")
    for layer in model:
        layer.reset_parameters()
    report = lazyrestore.dump_pickle(model.state_dict(), image)
    print(f"dumped {report.logical_bytes:,} bytes as {report.stored_bytes:,} in {image}")


def main() -> None:
    """Use the first layer, then all of them."""
    image = Path(sys.argv[1] if len(sys.argv) > 1 else "weights.lzr")
    if not image.exists():
        build(image)
    model = make_model()
    started = time.perf_counter()
    # assign: the model takes the tensors as they are, rather than copies of what is in them.
    model.load_state_dict(lazyrestore.load_pickle(image, trusted=True), assign=True)
    print(f"loaded in {(time.perf_counter() - started) * 1000:.1f} ms")
    given = torch.ones(WIDTH, dtype=torch.bfloat16)
    with torch.inference_mode():
        print(f"after the first layer: {model[0](given)[:3].tolist()}")
        print(f"after all {len(model)}: {model(given)[:3].tolist()}")


if __name__ == "__main__":
    main()
