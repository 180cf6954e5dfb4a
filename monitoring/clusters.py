"""Groups of drifted images that look alike, and which calibration images they are nearest to.

An image counts as drifted when its neighbours among the calibration images are further away than
those of 95 % of the calibration images themselves are, by the principal components of the records.
Of images like those of calibration 5 % do, so groups are told only where more do than chance would.
The groups are Ward's (1963), in the number whose silhouette (Rousseeuw 1987) is best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NEIGHBOURS = 10
FAR_SHARE = 0.05  # of calibration images that count as far by definition
SIGNIFICANCE = 0.001
LEAST_IMAGES = 5  # of a group,
LEAST_SHARE = 0.1  # and of all that are far: the few of a clean window make small groups, too
MOST_GROUPS = 6
LEAST_SILHOUETTE = 0.25  # under which it is one group
EXAMPLES = 6
_MOST_CLUSTERED = 500  # images; the newest ones
_SAMPLE = 500  # calibration images that tell how far neighbours usually are
_AT_ONCE = 64  # images whose distances to all calibration images are in memory


class Groups:
    """Finds groups in windows of images, against one calibration split.

    >>> rng = np.random.default_rng(0)
    >>> groups = Groups(rng.normal(size=(400, 3)), [["cat"]] * 400, seed=0)
    >>> odd = np.concatenate([rng.normal(size=(80, 3)), rng.normal(9, 0.1, size=(20, 3))])
    >>> found = groups.of(odd, [str(number) for number in range(100)])
    >>> [(its["images"], its["nearest"][0]["label"]) for its in found["groups"]]
    [(20, 'cat')]
    """

    def __init__(
        self, components: FloatArray, labels: Sequence[Sequence[str]], *, seed: int
    ) -> None:
        """`components` N x P of the calibration split, and the labels that each image was given."""
        self._components = np.asarray(components, np.float64)
        self._squares = (self._components**2).sum(axis=1)
        self._labels = labels
        some = np.random.default_rng(seed).permutation(len(self._components))[:_SAMPLE]
        # The nearest of an image of calibration is itself.
        distances = self._nearest(self._components[some], NEIGHBOURS + 1)[1][:, -1]
        self._usual = max(float(np.median(distances)), 1e-9)
        self._far = float(np.quantile(distances, 1 - FAR_SHARE))

    def of(self, components: FloatArray, ids: Sequence[str]) -> dict[str, Any]:
        """Groups of a window, the largest first, as JSON values; `components` M x P.

        `far_images` is how many images count as drifted; `groups` is empty where chance would do so
        many. Of each group: `images`, `share` of the window, `nearest` labels of the neighbours of
        its images with their shares, `times_as_far` as calibration images are from each other
        (median), and the ids of its most typical images as `examples`.
        """
        from scipy.stats import binomtest

        window = np.asarray(components, np.float64)
        rows, distances = self._nearest(window, NEIGHBOURS)
        far = np.flatnonzero(distances[:, -1] > self._far)
        found: dict[str, Any] = {"images": len(window), "far_images": len(far), "groups": []}
        if len(far) < LEAST_IMAGES:
            return found
        chance = binomtest(len(far), len(window), FAR_SHARE, alternative="greater").pvalue
        if chance >= SIGNIFICANCE:
            return found
        far = far[-_MOST_CLUSTERED:]
        numbers = _grouped(window[far])
        least = max(LEAST_IMAGES, LEAST_SHARE * len(far))
        for number in np.unique(numbers):
            members = far[numbers == number]
            if len(members) >= least:
                found["groups"].append(
                    {
                        "images": len(members),
                        "share": len(members) / len(window),
                        "nearest": self._shares(rows[members]),
                        "times_as_far": float(np.median(distances[members, -1]) / self._usual),
                        "examples": [ids[row] for row in _most_typical(window, members)],
                    }
                )
        found["groups"].sort(key=lambda its: -its["images"])
        return found

    def _shares(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Of the labels of all neighbours, the three that come most often."""
        labels = Counter(
            label for row in rows.ravel().tolist() for label in self._labels[row] or ["(none)"]
        )
        return [
            {"label": label, "share": count / labels.total()}
            for label, count in labels.most_common(3)
        ]

    def _nearest(self, points: FloatArray, count: int) -> tuple[NDArray[np.int64], FloatArray]:
        """Rows of the nearest calibration images (M x count), and distances, nearest first."""
        count = min(count, len(self._components))
        rows, distances = np.zeros((len(points), count), np.int64), np.zeros((len(points), count))
        for start in range(0, len(points), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            rows[some], distances[some] = self._nearest_at_once(points[some], count)
        return rows, distances

    def _nearest_at_once(
        self, points: FloatArray, count: int
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """In double precision: what is left of squares that cancel out decides who is near."""
        squared = points @ (-2 * self._components.T)
        squared += (points**2).sum(axis=1)[:, None]
        squared += self._squares
        rows = np.argpartition(squared, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(squared, rows, axis=1)
        order = np.argsort(near, axis=1)
        sorted_squares = np.take_along_axis(near, order, axis=1)
        return np.take_along_axis(rows, order, axis=1), np.sqrt(np.maximum(sorted_squares, 0))


def _grouped(points: FloatArray) -> NDArray[np.int64]:
    """A number of a group for each of M x P points."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    pairs = pdist(points)
    if not pairs.any():
        return np.zeros(len(points), np.int64)
    tree = linkage(points, method="ward")
    distances = squareform(pairs)
    most = min(MOST_GROUPS, len(points) // LEAST_IMAGES)
    best, best_silhouette = np.zeros(len(points), np.int64), LEAST_SILHOUETTE
    for count in range(2, most + 1):
        numbers = fcluster(tree, count, criterion="maxclust")
        silhouette = _silhouette(distances, numbers)
        if silhouette > best_silhouette:
            best, best_silhouette = np.asarray(numbers, np.int64), silhouette
    return best


def _silhouette(distances: FloatArray, numbers: NDArray[np.int64]) -> float:
    """The mean over all points; of a point alone in its group it is 0."""
    present, places = np.unique(numbers, return_inverse=True)
    if len(present) < 2:
        return 0.0
    members = np.eye(len(present))[places]  # M x groups
    sizes = members.sum(axis=0)
    to_groups = distances @ members  # sums of distances, M x groups
    own_size = sizes[places]
    own = to_groups[np.arange(len(numbers)), places] / np.maximum(own_size - 1, 1)
    others = to_groups / sizes
    others[np.arange(len(numbers)), places] = np.inf
    nearest = others.min(axis=1)
    larger = np.maximum(np.maximum(own, nearest), 1e-12)
    values = np.where(own_size > 1, (nearest - own) / larger, 0)
    return float(values.mean())


def _most_typical(window: FloatArray, members: NDArray[np.int64]) -> list[int]:
    """Those nearest to the middle of their group."""
    away = np.linalg.norm(window[members] - np.median(window[members], axis=0), axis=1)
    return [int(row) for row in members[np.argsort(away, kind="stable")[:EXAMPLES]]]
