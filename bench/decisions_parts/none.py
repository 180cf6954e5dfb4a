"""None of the classes: what a single-label model does with images of none of them.

    .venv/bin/python bench/decisions.py none [--data fashion emoji] [--draws 0 1 2 3 4]
        [--head softmax] [--negatives digits]

`fashion`: Fashion-MNIST without three garments, which each seeded draw leaves out of every
split, trained by `plumbline train --none --none-loss 0.05 --head HEAD`. Of the test images of the
other seven at most 5 % should get no label or a flag; at least 85 % of the foreign images
(`foreign_kinds`) and 50 % of the test images of the three garments should. Beside it the softmax
baseline: a threshold on the best probability alone, that loses 5 % of the validation images. With
`--negatives` the images of one foreign kind are learned from, and the others judge. Of each draw
the AUROC of the outlier score by kind, against those test images, is printed too.

`emoji`: two of the seven categories left out, by a linear head (`--epochs 0`) and fine-tuned
(`--keep-fine-tuned`): AUROC of the outlier score on each far kind (at least 0.96), on near kinds,
and on the categories left out (at least 0.80 in the mean). Of every draw each foreign kind under
0.90 is printed, with what the model says of itself. A statement can name kinds of its own
self-check alone, and the kinds here are none of those; so the rule is that a model which passes its
self-check, and says of no kind that it is weak there, may lie under 0.90 on none: else it is a
miss, and every such kind is counted. One that says that it is weak at all is not held to more.

No foreign image, no test image and no image of a class left out takes part in a choice. Ends with 1
where the mean over the draws misses.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from train_parts.machine import print_machine

from decisions_parts.foreign_kinds import far_from_emoji, foreign_to_garments, near_to_emoji
from decisions_parts.versions import open_trained, outputs_of, train
from model.bundle import OutlierSummary
from model.engines import Engine, Outputs
from model.images import InputSpec, fit_to
from model.images import prepare as prepare_file
from training.evaluate import Decider, Reopened, run_engine
from training.outlier_choice import auroc
from training.raw_tables import fashion_mnist_folder
from training.splits import Split

Pixels = NDArray[np.uint8]
LOSS = 0.05
LEAST_FOREIGN, LEAST_HELD_OUT = 0.85, 0.50
LEAST_FAR, LEAST_CATEGORIES = 0.96, 0.80
LEAST_UNSAID = 0.90  # a model under it on a foreign kind has to say that it is weak
GARMENTS, CATEGORIES = 3, 2  # left out
IN_CLASS, LEFT_OUT = "in class", "classes left out"
NOT_FOREIGN = (IN_CLASS, LEFT_OUT)


def main() -> None:
    """Measure and print; exit with 1 on a miss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", nargs="+", choices=["fashion", "emoji"], default=["fashion", "emoji"]
    )
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--head", choices=["softmax", "sigmoid"], default="softmax")
    parser.add_argument("--negatives", help="A foreign kind of `fashion`, to be learned from.")
    options = parser.parse_args()
    print_machine("torch", "openvino", "numpy")
    reached = True
    if "fashion" in options.data:
        reached &= fashion(options.draws, options.head, options.negatives)
    if "emoji" in options.data:
        for name, training in (
            ("linear head", ("--epochs", "0")),
            ("fine-tuned", ("--keep-fine-tuned",)),
        ):
            reached &= emoji(options.draws, name, training)
    sys.exit(0 if reached else 1)


def fashion(draws: Sequence[int], head: str, negatives: str | None = None) -> bool:
    """Print each draw and the means; whether they reach the floors.

    The kind of the `negatives` is told, and counts for no mean over the kinds.
    """
    rows = []
    for draw in draws:
        left_out = np.sort(np.random.default_rng(draw).permutation(10)[:GARMENTS])
        with tempfile.TemporaryDirectory() as folder:
            held_out = write_without(Path(folder, "data"), left_out)
            options = ["--none", "--none-loss", str(LOSS), "--seed", str(draw), "--head", head]
            if negatives is not None:
                options += ["--negatives", str(write_kind(Path(folder, "negatives"), negatives))]
            version = train(Path(folder, "data"), Path(folder, "home"), options)
            opened, engine = open_trained(Path(folder, "home"), version)
            decider, spec = opened.decider(), opened.manifest.input
            validation, targets = outputs_of(opened, engine, Split.VALIDATION)
            baseline = softmax_threshold(decider, validation, targets)
            test, _ = outputs_of(opened, engine, Split.TEST)
            kinds = {IN_CLASS: test, LEFT_OUT: run_engine(engine, prepared(held_out, spec))}
            kinds |= {kind: run_engine(engine, its) for kind, its in foreign_to_garments(spec)}
            rows.append({kind: found(decider, its, baseline) for kind, its in kinds.items()})
            apart = aurocs(decider, kinds, test)
            print(f"  draw {draw}, without {left_out.tolist()}: {told(rows[-1])}")
            print(f"    AUROC of the outlier score: {listed(apart)}", flush=True)
    means = {kind: np.mean([row[kind] for row in rows], axis=0) for kind in rows[0]}
    foreign = np.mean(
        [its for kind, its in means.items() if kind not in (*NOT_FOREIGN, negatives)],
        axis=0,
    )
    learned = f", learned from {negatives}" if negatives else ""
    print(
        f"fashion, {head}{learned}, share with no label or a flag (softmax alone),"
        f" mean of {len(rows)} draws"
    )
    for kind, its in means.items():
        spread = [row[kind][0] for row in rows]
        print(
            f"  {kind}: {its[0]:.3f} ({min(spread):.3f} to {max(spread):.3f}); softmax {its[1]:.3f}"
        )
    print(f"  foreign kinds together: {foreign[0]:.3f}; softmax {foreign[1]:.3f}")
    return bool(foreign[0] >= LEAST_FOREIGN and means[LEFT_OUT][0] >= LEAST_HELD_OUT)


def found(decider: Decider, outputs: Outputs, baseline: float) -> tuple[float, float]:
    """Share with no label or a flag, and share under the softmax baseline's threshold."""
    best = decider.probabilities(outputs).max(axis=1)
    threshold = np.float32(decider.thresholds.value or 0)
    ours = (best < threshold) | decider.flags(outputs)
    return float(ours.mean()), float((best < baseline).mean())


def softmax_threshold(decider: Decider, validation: Outputs, targets: NDArray[np.int64]) -> float:
    """Loses LOSS of the labelled validation images."""
    best = decider.probabilities(validation).max(axis=1)[targets >= 0]
    return float(np.quantile(best, LOSS))


def told(row: dict[str, tuple[float, float]]) -> str:
    """In a line."""
    return ", ".join(f"{kind} {ours:.2f} ({alone:.2f})" for kind, (ours, alone) in row.items())


def write_without(folder: Path, left_out: NDArray[np.int64]) -> Pixels:
    """idx files of the other garments, numbered anew; gives the test images of those left out."""
    folder.mkdir()
    kept = np.setdiff1d(np.arange(10), left_out)
    held_out: list[Pixels] = []
    for part in ("train", "t10k"):
        images, labels = read_idx(part)
        rows = np.isin(labels, kept)
        held_out.append(images[~rows])
        write_idx(folder / f"{part}-images-idx3-ubyte", images[rows], 2051)
        numbers = np.searchsorted(kept, labels[rows]).astype(np.uint8)
        write_idx(folder / f"{part}-labels-idx1-ubyte", numbers, 2049)
    return held_out[1]


def write_kind(folder: Path, kind: str) -> Path:
    """PNGs of the images of a foreign kind."""
    folder.mkdir()
    spec = InputSpec(size=28, mean=(0, 0, 0), std=(1, 1, 1))
    kinds = dict(foreign_to_garments(spec))
    if kind not in kinds:
        raise SystemExit(f"--negatives {kind}: valid are {', '.join(kinds)}")
    for number, image in enumerate(kinds[kind]):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


def read_idx(part: str) -> tuple[Pixels, Pixels]:
    """Images N x 28 x 28 and labels N."""
    source = fashion_mnist_folder()
    images = gzip.decompress((source / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8),
    )


def write_idx(path: Path, values: Pixels, magic: int) -> None:
    """One idx file."""
    path.write_bytes(struct.pack(f">{1 + values.ndim}i", magic, *values.shape) + values.tobytes())


def prepared(images: Pixels, spec: InputSpec) -> Pixels:
    """As the service would prepare them."""
    return np.stack([fit_to(np.ascontiguousarray(image), spec) for image in images])


def emoji(draws: Sequence[int], name: str, training: Sequence[str]) -> bool:
    """Print AUROC by kind over the draws; whether it reaches the floors."""
    rows, unsaid = [], 0
    for draw in draws:
        with tempfile.TemporaryDirectory() as folder:
            data, others = write_emoji(Path(folder), draw)
            options = ("--seed", str(draw), *training)
            version = train(data, Path(folder, "home"), options)
            opened, engine = open_trained(Path(folder, "home"), version)
            kinds = kinds_of_emoji(opened, engine, others)
            test, _ = outputs_of(opened, engine, Split.TEST)
            rows.append(aurocs(opened.decider(), kinds, test))
            said, silent = judged(opened.manifest.outlier, rows[-1])
            unsaid += silent
            print(f"  {name}, draw {draw}: {listed(rows[-1])}; {said}", flush=True)
    means = {kind: float(np.mean([row[kind] for row in rows])) for kind in rows[0]}
    print(f"emoji, {name}: AUROC, mean of {len(rows)} draws")
    for kind, value in means.items():
        spread = [row[kind] for row in rows]
        print(f"  {kind}: {value:.3f} ({min(spread):.3f} to {max(spread):.3f})")
    print(f"  kinds under {LEAST_UNSAID} of which a model that passed gave no warning: {unsaid}")
    far = [value for kind, value in means.items() if not kind.startswith(("near", LEFT_OUT))]
    return not unsaid and min(far) >= LEAST_FAR and means[LEFT_OUT] >= LEAST_CATEGORIES


def judged(summary: OutlierSummary, found: Mapping[str, float]) -> tuple[str, int]:
    """What a model says of itself beside every foreign kind under LEAST_UNSAID.

    Also how many of those kinds count as misses: all, where it passed and names no weakness.
    """
    under = {
        kind: its for kind, its in found.items() if its < LEAST_UNSAID and kind not in NOT_FOREIGN
    }
    told = f"under {LEAST_UNSAID}: {listed(under) or 'none'}"
    if not summary.self_check_passed:
        return f"{told}; its self-check failed", 0
    _, says, weak = summary.statement.partition("It is weak on ")
    if says:
        return f"{told}; it says that it is weak on {weak.partition(').')[0]})", 0
    return f"{told}; it names no weakness{', SILENT' if under else ''}", len(under)


def listed(found: Mapping[str, float]) -> str:
    """AUROC by kind, in a line."""
    return ", ".join(f"{kind} {value:.3f}" for kind, value in found.items())


def kinds_of_emoji(opened: Reopened, engine: Engine, others: Sequence[bytes]) -> dict[str, Outputs]:
    """Outputs for the categories left out, and for far and near kinds."""
    spec = opened.manifest.input
    left_out = np.stack([prepare_file(data, spec) for data in others])
    test_images = np.array(opened.splits[Split.TEST].images)
    near = ((f"near: {kind}", its) for kind, its in near_to_emoji(test_images))
    kinds = [(LEFT_OUT, left_out), *far_from_emoji(spec), *near]
    return {kind: run_engine(engine, images) for kind, images in kinds}


def aurocs(decider: Decider, kinds: Mapping[str, Outputs], test: Outputs) -> dict[str, float]:
    """Of the outlier score, every kind against test images of the classes."""
    domestic = decider.scores(test)
    return {
        kind: auroc(decider.scores(its), domestic)
        for kind, its in kinds.items()
        if kind != IN_CLASS
    }


def write_emoji(folder: Path, draw: int) -> tuple[Path, list[bytes]]:
    """Class folders without two categories, and the files of those two."""
    example = Path(__file__).parents[2] / "examples" / "make_emoji.py"
    data = folder / "emoji"
    subprocess.run([sys.executable, example, data], check=True, stdout=subprocess.DEVNULL)
    (data / "words.csv").unlink()
    categories = sorted(path for path in data.iterdir() if path.is_dir())
    others: list[bytes] = []
    for number in np.random.default_rng(draw).permutation(len(categories))[:CATEGORIES]:
        others += [file.read_bytes() for file in sorted(categories[number].iterdir())]
        shutil.rmtree(categories[number])
    return data, others
