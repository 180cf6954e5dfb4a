"""ADWIN (Bifet and Gavalda 2007; river's) on every stream; run by a Python that has river.

    PYTHON adwin_side.py STREAMS.npz

`clean` D x N x 7 (values in 0 to 1, the first `bag` of which are the reference that every ADWIN
begins with) settles delta: the largest of a grid at which the streams together alarm at most
`allowed` times. Prints JSON: that delta, its alarms on clean images, and for every other array
R x N x 7, whose first `bag` + `quiet` images are clean, how many images after them each run took to
the first alarm: null for never, -1 for an alarm before.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN

DELTAS = np.logspace(-1, -16, 46)


def main(path: str) -> None:
    """Settle delta, measure, print."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    bag, quiet, allowed = (int(arrays.pop(name)) for name in ("bag", "quiet", "allowed"))
    clean = arrays.pop("clean")
    low, high = 0, len(DELTAS) - 1  # of the grid; fewer alarms further on
    while low < high:
        middle = (low + high) // 2
        if clean_alarms(clean, bag, float(DELTAS[middle]), allowed) <= allowed:
            high = middle
        else:
            low = middle + 1
    delta = float(DELTAS[low])
    found = {
        "delta": delta,
        "alarms": clean_alarms(clean, bag, delta, None),
        "delays": {
            name: [delay(run, bag, quiet, delta) for run in runs] for name, runs in arrays.items()
        },
    }
    print(json.dumps(found))


def clean_alarms(streams: NDArray[np.float32], bag: int, delta: float, enough: int | None) -> int:
    """Alarms after the reference, of all streams; counting stops past `enough`."""
    found = 0
    for images in streams:
        for column in images.T.tolist():
            detector = ADWIN(delta=delta)
            for number, value in enumerate(column):
                detector.update(value)
                found += detector.drift_detected and number >= bag
            if enough is not None and found > enough:
                return found
    return found


def delay(images: NDArray[np.float32], bag: int, quiet: int, delta: float) -> int | None:
    """Images from the change to the first alarm of any stream."""
    firsts = []
    for column in images.T.tolist():
        detector = ADWIN(delta=delta)
        for number, value in enumerate(column):
            detector.update(value)
            if detector.drift_detected and number >= bag:
                firsts.append(number)
                break
    if not firsts:
        return None
    first = min(firsts) - bag - quiet
    return -1 if first < 0 else first + 1


if __name__ == "__main__":
    main(sys.argv[1])
