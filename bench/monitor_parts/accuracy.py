"""Accuracy without labels: how near, when it calls itself invalid, and are class priors found.

    .venv/bin/python bench/monitor.py accuracy [--home HOME] [--windows 10] [--model NAME]

Windows of 1,000 images of the test split of Fashion-MNIST, each after 500 clean ones of its own
and of a watch of its own, as the champion of --model answers them: by default that of the default
recipe, which is trained into --home the first time. Mild: nothing, noise 25 %, dark 25 %, blur
25 %, brighter and darker by a sixth, three classes three times as frequent, and that
with blur 25 %. Gross: inverted, turned by 90 degrees, noise on all. Asked for: a mean absolute
error of at most 0.04 over the windows that call themselves valid, and gross ones invalid. The watch
calls a window invalid also for its alarm alone, so the error is shown by the rule of the flagged
share alone, too: that is what the alarm has to make good where it comes late. Coverage: windows
whose true accuracy lies in the interval. Class priors: mean absolute error of a class's share, by
both estimates; windows in which a pure prior shift was recognised; and what adjusting to it gains,
as expected and in truth.

Beyond that --home is only read. A champion of before bundles kept true labels of their calibration
split is copied, with those, into a home of its own.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from model import bundle as bundles
from model.bundle import TRUTH, Bundle, save_arrays
from model.decision import probabilities
from model.settings import ModelSettings
from model.store import ModelStore
from monitor_parts.figures import Figures, parser_of
from monitor_parts.versions import GARMENTS, garments_of
from monitoring.accuracy import believable
from monitoring.records import Record, to_table
from monitoring.settings import MonitoringSettings
from monitoring.truth import truth_arrays
from monitoring.watch import Watch
from training.evaluate import Reopened, reopen, run_engine
from training.reference import prepared_records
from training.splits import Split

Pixels = NDArray[np.uint8]

WINDOW = 1_000
BEFORE = 500  # clean images that the watch has seen
MOST_ERROR = 0.04
TRIPLED = (0, 3, 6)  # classes
GROSS = ("inverted", "turned by 90 degrees", "noise on all")
KINDS: dict[str, tuple[str, float]] = {  # how images are changed, and which share of them
    "nothing": ("clean", 0.0),
    "noise 25 %": ("noise", 0.25),
    "dark 25 %": ("dark", 0.25),
    "blur 25 %": ("blur", 0.25),
    "darker by a sixth": ("darker", 1.0),
    "brighter by a sixth": ("brighter", 1.0),
    "tripled class prior": ("clean", 0.0),
    "tripled and blur 25 %": ("blur", 0.25),
    "inverted": ("inverted", 1.0),
    "turned by 90 degrees": ("turned", 1.0),
    "noise on all": ("noise", 1.0),
}


@dataclass(frozen=True)
class Answered:
    """What the version makes of every test image, changed in one way."""

    records: list[Record]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """One window."""

    kind: str
    truth: float
    estimate: dict[str, Any]
    by_flags: bool  # whether the flagged share alone would call it valid
    change: dict[str, Any]
    prior_errors: tuple[float, float]  # of both estimates; NaN where there is none
    gained: float  # accuracy by what was proposed; NaN where nothing was


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default=GARMENTS)
    parser.add_argument("--windows", type=int, default=10, help="Of each kind.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = Figures("accuracy", options)
    if options.model == GARMENTS:
        garments_of(options.home.absolute())
    with home_with_truth(options.home.absolute(), options.model) as store:
        opened = reopen(store, f"{options.model}:champion")
        print(
            f"{opened.manifest.tag}: accuracy {opened.manifest.metrics['accuracy'].value:.4f} on"
            f" the test split; seed {options.seed}"
        )
        answered = {kind: answer(opened, kind, options.seed) for kind in changes()}
        beginning = Watch(opened.bundle, MonitoringSettings(home=store.home))
        seen = [
            window(kind, number, answered, opened, beginning, options.seed)
            for kind in KINDS
            for number in range(options.windows)
        ]
    report(seen, figures)
    figures.end()


# --- images ------------------------------------------------------------------------------------


def changes() -> tuple[str, ...]:
    """The ways, each once."""
    return tuple(dict.fromkeys(how for how, _ in KINDS.values()))


def change(how: str, image: Pixels, random: np.random.Generator) -> Pixels:
    """One image, uint8 H x W x 3."""
    match how:
        case "noise":
            noisy = image + random.normal(0, 40, image.shape[:2])[..., None]
            return np.asarray(np.clip(noisy, 0, 255), np.uint8)
        case "dark":
            return np.asarray(image // 2, np.uint8)
        case "blur":
            return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1)))
        case "darker":
            return np.asarray(image * (5 / 6), np.uint8)
        case "brighter":
            return np.asarray(np.clip(image * (7 / 6), 0, 255), np.uint8)
        case "inverted":
            return np.asarray(255 - image, np.uint8)
        case "turned":
            return np.ascontiguousarray(np.rot90(image))
    return image


def answer(opened: Reopened, how: str, seed: int) -> Answered:
    """Run the version on all test images."""
    random = np.random.default_rng(seed)
    split = opened.splits[Split.TEST]
    images = np.stack([change(how, image, random) for image in split.images])
    made = prepared_records(
        opened.decider(),
        run_engine(opened.engine(), images),
        images,
        model=opened.manifest.tag,
        time=datetime(2026, 1, 1, tzinfo=UTC),
        client="bench",
    )
    # Changed images count as other images, whatever the change left of them.
    records = [
        replace(its, id=str(uuid.UUID(int=row)), image_sha256=f"{how}-{row}")
        for row, its in enumerate(made)
    ]
    given = np.array(
        [opened.manifest.classes.index(its.labels[0]) if its.labels else -1 for its in records]
    )
    return Answered(records, given == split.targets)


# --- windows -----------------------------------------------------------------------------------


def window(
    kind: str,
    number: int,
    answered: dict[str, Answered],
    opened: Reopened,
    beginning: Watch,
    seed: int,
) -> Seen:
    """A fresh watch sees clean images and then a window of a kind."""
    random = np.random.default_rng((seed, number))
    how, share = KINDS[kind]
    targets = opened.splits[Split.TEST].targets
    order = random.permutation(len(targets))
    before, rest = order[:BEFORE], order[BEFORE:]
    if kind.startswith("tripled"):
        weights = np.where(np.isin(targets[rest], TRIPLED), 3.0, 1.0)
        rows = random.choice(rest, WINDOW, replace=False, p=weights / weights.sum())
    else:
        rows = rest[:WINDOW]
    changed = random.random(WINDOW) < share
    clean = answered["clean"]
    records = [clean.records[row] for row in before] + [
        (answered[how] if is_changed else clean).records[row]
        for row, is_changed in zip(rows.tolist(), changed.tolist(), strict=True)
    ]
    right = np.where(changed, answered[how].right[rows], clean.right[rows])
    watch = copy.deepcopy(beginning)
    table = to_table([at(record, place) for place, record in enumerate(records)])
    watch.take(table)
    change_seen = watch.class_mix_change()
    true = np.bincount(targets[rows], minlength=len(watch.manifest.classes)) / WINDOW
    return Seen(
        kind,
        float(right.mean()),
        watch.accuracy_estimate(),
        believable(sum(watch.last.flags), len(watch.last.flags), watch.alpha),
        change_seen,
        prior_errors(change_seen, dict(zip(watch.manifest.classes, true, strict=True))),
        gain(change_seen["proposal"], records[BEFORE:], targets[rows], watch) - float(right.mean()),
    )


def gain(
    proposal: dict[str, Any] | None, records: list[Record], targets: NDArray[Any], watch: Watch
) -> float:
    """True accuracy of a window by corrected probabilities."""
    if proposal is None:
        return float("nan")
    manifest = watch.manifest
    logits = np.stack([its.logits for its in records])
    factors = np.array([proposal["factors"][name] for name in manifest.classes])
    chances = probabilities(logits, manifest.calibration, manifest.task) * factors
    return float((chances.argmax(axis=1) == targets).mean())


def at(record: Record, place: int) -> Record:
    """The same, a second after the one before."""
    moved = copy.copy(record)
    moved.time = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=place)
    return moved


def prior_errors(change_seen: dict[str, Any], true: dict[str, float]) -> tuple[float, float]:
    """Mean absolute errors of both estimates over classes."""
    table = change_seen.get("classes", [])
    found = []
    for name in ("share", "black_box"):
        errors = [abs(its[name] - true[its["name"]]) for its in table if its[name] is not None]
        found.append(float(np.mean(errors)) if errors else float("nan"))
    return found[0], found[1]


# --- the home ----------------------------------------------------------------------------------


@contextmanager
def home_with_truth(home: Path, model: str) -> Iterator[ModelStore]:
    """A home whose champion keeps the true labels of its calibration split."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        for name in ("state.sqlite", "state.sqlite-wal"):
            if (home / name).exists():
                shutil.copy(home / name, own / name)
        shutil.copytree(home / "bentoml", own / "bentoml")
        store = ModelStore(ModelSettings(home=own))
        champion = store.load(store.find(f"{model}:champion"))
        if TRUTH not in champion.manifest.files:
            opened = reopen(store, champion.manifest.tag)
            targets = opened.splits[Split.CALIBRATION].targets
            store.promote(register_with_truth(store, champion, targets))
        yield store
        store.state.dispose()


def register_with_truth(store: ModelStore, bundle: Bundle, targets: NDArray[Any]) -> str:
    """The same version once more; gives its tag."""
    with store.registering(bundle.manifest.name) as (version, directory, seal):
        for name in bundle.manifest.files:
            if name != bundles.BENTOML_DESCRIPTION:
                shutil.copyfile(bundle.path(name), directory / name)
        save_arrays(directory / TRUTH, truth_arrays(targets))
        seal(bundle.manifest.model_copy(update={"version": version, "files": {}}))
    return f"{bundle.manifest.name}:{version}"


# --- the report --------------------------------------------------------------------------------


def report(seen: list[Seen], figures: Figures) -> None:
    """Print the tables, and keep them; held against what is asked for."""
    print(
        f"{'windows of':22} {'true':>6} {'CBPE':>6} {'ATC':>6} {'error':>11} {'in interval':>11}"
        f" {'valid':>6} {'by flags':>8} {'flagged':>8}"
    )
    for kind in KINDS:
        its = [one for one in seen if one.kind == kind]
        print(
            f"{kind:22} {mean(one.truth for one in its):6.3f}"
            f" {mean(one.estimate['cbpe'] for one in its):6.3f}"
            f" {mean(one.estimate['atc'] for one in its):6.3f}"
            f" {mean_error(its, 'cbpe'):5.3f} {mean_error(its, 'atc'):5.3f}"
            f" {inside(its, 'cbpe'):5.0%} {inside(its, 'atc'):5.0%}"
            f" {mean(one.estimate['valid'] for one in its):6.0%}"
            f" {mean(one.by_flags for one in its):8.0%}"
        )
        figures.keep(kind, row_of(its))
    valid = [one for one in seen if one.estimate["valid"]]
    by_flags = [one for one in seen if one.by_flags]
    for name, its in (("valid", valid), ("valid by the flagged share alone", by_flags)):
        for which in ("cbpe", "atc"):
            what = f"mean absolute error of {which.upper()} over {len(its)} windows {name}"
            figures.add(what, [mean_error(its, which)], ".4f", most=MOST_ERROR)
            errors = [abs(one.estimate[which] - one.truth) for one in its]
            figures.add(f"absolute error of one of them, {which.upper()}", errors, ".4f")
    gross = [one for one in seen if one.kind in GROSS]
    called = [100 * mean(not one.estimate["valid"] for one in gross)]
    by_share = [100 * mean(not one.by_flags for one in gross)]
    figures.add(f"of {len(gross)} gross windows call themselves invalid, %", called, least=100)
    figures.add("by the flagged share alone, %", by_share)
    print(f"{'class priors':22} {'EM error':>9} {'BBSE error':>10} {'recognised':>10}")
    for kind in KINDS:
        its = [one for one in seen if one.kind == kind]
        print(
            f"{kind:22} {mean(one.prior_errors[0] for one in its):9.4f}"
            f" {mean(one.prior_errors[1] for one in its):10.4f}"
            f" {mean(one.change['recognised'] for one in its):10.0%}"
            f"   {its[0].change['sentence']}"
        )
    proposed = [one for one in seen if one.change["proposal"] is not None]
    if proposed:
        expected = mean(one.change["proposal"]["expected"]["gain"] for one in proposed)
        print(
            f"proposals: {len(proposed)}; accuracy gained in the mean: {expected:.4f} expected,"
            f" {mean(one.gained for one in proposed):.4f} in truth"
        )


def row_of(its: list[Seen]) -> dict[str, float]:
    """The means of the windows of one kind, of those that there are."""
    found = {
        "true": mean(one.truth for one in its),
        **{which: mean(one.estimate[which] for one in its) for which in ("cbpe", "atc")},
        **{f"{which} error": mean_error(its, which) for which in ("cbpe", "atc")},
        **{f"{which} in interval": inside(its, which) for which in ("cbpe", "atc")},
        "valid": mean(one.estimate["valid"] for one in its),
        "valid by flags": mean(one.by_flags for one in its),
        "EM error": mean(one.prior_errors[0] for one in its),
        "BBSE error": mean(one.prior_errors[1] for one in its),
        "recognised": mean(one.change["recognised"] for one in its),
        "gained": mean(one.gained for one in its),
    }
    return {name: value for name, value in found.items() if value == value}


def mean(values: Any) -> float:
    """NaN of nothing, and without those that are NaN."""
    known = [float(its) for its in values if its == its]
    return float(np.mean(known)) if known else float("nan")


def mean_error(seen: list[Seen], which: str) -> float:
    """Mean absolute error of an estimate."""
    return mean(abs(one.estimate[which] - one.truth) for one in seen)


def inside(seen: list[Seen], which: str) -> float:
    """Share of the windows whose true accuracy lies in the interval."""
    return mean(
        one.estimate[f"{which}_interval"][0] <= one.truth <= one.estimate[f"{which}_interval"][1]
        for one in seen
    )


if __name__ == "__main__":
    main()
