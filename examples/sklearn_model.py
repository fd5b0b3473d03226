"""A model that is ready at once: an estimator of scikit-learn, whose data come as it needs them.

python sklearn_model.py [IMAGE]      (default: model.lzr in the current folder)

The first run fits the model and dumps it; the next ones load it. Loading a pickle runs code that
the image names: load only what you, or someone you trust, wrote.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lazyrestore

POINTS = 200_000


def build(image: Path) -> None:
    """Fit a model to noisy data, and dump it: it keeps all of its points, in a tree."""
    random = np.random.default_rng(1)
    points = random.uniform(-3, 3, (POINTS, 3))
    values = np.sin(points[:, 0]) + points[:, 1] * points[:, 2] + random.normal(0, 0.01, POINTS)
    neighbours = KNeighborsRegressor(n_neighbors=5, algorithm="brute")
    model = make_pipeline(StandardScaler(), neighbours).fit(points, values)
    report = lazyrestore.dump_pickle(model, image)
    print(f"dumped {report.logical_bytes:,} bytes as {report.stored_bytes:,} in {image}")


def main() -> None:
    """Predict a few values."""
    image = Path(sys.argv[1] if len(sys.argv) > 1 else "model.lzr")
    if not image.exists():
        build(image)
    started = time.perf_counter()
    model: Any = lazyrestore.load_pickle(image, trusted=True)
    print(f"loaded in {(time.perf_counter() - started) * 1000:.1f} ms: {model[-1]}")
    for point in ((0.5, 1.0, 2.0), (-1.0, -2.0, 1.5)):
        expected = np.sin(point[0]) + point[1] * point[2]
        print(f"at {point}: {model.predict([point])[0]:.2f}, and {expected:.2f} would be right")


if __name__ == "__main__":
    main()
