"""Loading: the pixels of serving, decoded once, written whole or not at all."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError
from model.images import InputSpec, Pixels, prepare
from training.loading import load, load_presized, presized_spec
from training.sources import Source, open_source
from training.splits import Split

SPEC = InputSpec(size=24, crop=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def photograph(seed: int, format: str) -> bytes:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((90 + seed, 70), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, format, **({"quality": 90} if format == "JPEG" else {}))
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "eel")):
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        for seed in range(12):
            format = ("JPEG", "PNG", "WEBP")[seed % 3]
            data = photograph(100 * number + seed, format)
            (place / f"{seed}.{format.lower()}").write_bytes(data)
    return tmp_path / "data"


class NoReader:
    def prepare(self, row: int, spec: InputSpec, place: float = 0.5) -> Pixels:
        raise AssertionError("decoded again")


def without_reader(source: Source) -> Source:
    return replace(source, reader=NoReader())


def test_training_pixels_are_serving_pixels(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    splits = load(source, SPEC, tmp_path / "cache")
    assert sum(len(split) for split in splits.values()) == 36
    for split in splits.values():
        assert split.images.dtype == np.uint8
        for name, pixels in zip(split.names, split.images, strict=True):
            np.testing.assert_array_equal(pixels, prepare((folder / name).read_bytes(), SPEC))


def test_targets_follow_the_labels(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    fit = load(source, SPEC, tmp_path / "cache")[Split.FIT]
    assert fit.targets.dtype == np.int64
    assert [source.classes[target] for target in fit.targets] == [
        name.split("/")[0] for name in fit.names
    ]


def test_idx_images_keep_their_pixels(tmp_path: Path) -> None:
    import struct

    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28)).astype(np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4i", 2051, 60, 28, 28) + images.tobytes()
    )
    labels = (np.arange(60) % 3).astype(np.uint8)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">2i", 2049, 60) + labels.tobytes()
    )
    spec = SPEC.model_copy(update={"size": 28, "crop": 1.0})
    fit = load(open_source(tmp_path), spec, tmp_path / "cache")[Split.FIT]
    rows = [int(name.split("/")[1]) for name in fit.names]
    np.testing.assert_array_equal(fit.images, np.repeat(images[rows][..., None], 3, axis=3))
    np.testing.assert_array_equal(fit.targets, labels[rows])


def test_second_load_never_decodes(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    first = load(source, SPEC, tmp_path / "cache")
    again = load(without_reader(open_source(folder)), SPEC, tmp_path / "cache")
    for split in Split:
        np.testing.assert_array_equal(first[split].images, again[split].images)
        np.testing.assert_array_equal(first[split].targets, again[split].targets)


def test_other_content_size_or_seed_is_another_cache(folder: Path, tmp_path: Path) -> None:
    load(open_source(folder), SPEC, tmp_path / "cache")
    with pytest.raises(AssertionError, match="decoded again"):
        load(without_reader(open_source(folder, seed=1)), SPEC, tmp_path / "cache")
    larger = SPEC.model_copy(update={"size": 32})
    with pytest.raises(AssertionError, match="decoded again"):
        load(without_reader(open_source(folder)), larger, tmp_path / "cache")
    (folder / "cat" / "0.jpeg").write_bytes(photograph(999, "JPEG"))
    with pytest.raises(AssertionError, match="decoded again"):
        load(without_reader(open_source(folder)), SPEC, tmp_path / "cache")


def test_a_loading_that_breaks_off_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        load(without_reader(open_source(folder)), SPEC, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_cut_short_is_made_anew(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    expected = load(source, SPEC, tmp_path / "cache")[Split.FIT].images.copy()
    file = next((tmp_path / "cache").rglob("fit.u8"))
    file.write_bytes(file.read_bytes()[:-1])
    np.testing.assert_array_equal(
        load(source, SPEC, tmp_path / "cache")[Split.FIT].images, expected
    )


def truncate(folder: Path) -> list[str]:
    """Cut images in their last tenth, where the header does not show it."""
    names = ["cat/3.jpeg", "dog/4.png"]
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(0.93 * len(data))])
    return names


def test_truncated_images_are_named_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    names = truncate(folder)
    source = open_source(folder)  # headers are whole
    with pytest.raises(DataError, match=r"2 of 36 files.*--skip-bad") as caught:
        load(source, SPEC, tmp_path / "cache")
    assert all(name in str(caught.value) for name in names)
    assert list((tmp_path / "cache").iterdir()) == []


def test_truncated_images_are_skipped_on_demand(folder: Path, tmp_path: Path) -> None:
    names = truncate(folder)
    source = open_source(folder, skip_bad=True)
    for _ in range(2):  # the second time from the cache
        splits = load(source, SPEC, tmp_path / "cache")
        left = [name for split in splits.values() for name in split.names]
        assert len(left) == 34
        assert not set(names) & set(left)
        for split in splits.values():
            for name, pixels in zip(split.names, split.images, strict=True):
                np.testing.assert_array_equal(pixels, prepare((folder / name).read_bytes(), SPEC))
    assert sum("2 of 36 files were skipped" in note for note in source.notes) == 1
    with pytest.raises(DataError, match="2 of 36 files"):
        load(open_source(folder), SPEC, tmp_path / "cache")


def test_multi_label_targets_and_rows_without_a_label(folder: Path, tmp_path: Path) -> None:
    labels = ["cat", "cat dog", "", "dog"]
    rows = [
        f"cat/{seed}.{('jpeg', 'png', 'webp')[seed % 3]},{labels[seed % 4]},{seed > 3}"
        for seed in range(12)
    ]
    table = folder / "table.csv"
    table.write_text("\n".join(["fname,labels,is_valid", *rows]))
    fit = load(open_source(table), SPEC, tmp_path / "cache")[Split.FIT]
    assert fit.targets.dtype == np.float32
    assert fit.targets.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    single = load(open_source(table, task="single"), SPEC, tmp_path / "cache")
    assert single[Split.FIT].targets.tolist() == [0, 1, -1, 2]
    assert len(single[Split.TEST]) == 0
    assert single[Split.TEST].images.shape == (0, 24, 24, 3)


def test_progress_counts_to_the_end(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(open_source(folder), SPEC, tmp_path / "c", progress=lambda *step: seen.append(step))
    assert seen == sorted(seen)
    assert seen[-1] == (36, 36)


def test_a_cache_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(DataError, match="cannot write the cache"):
        load(open_source(folder), SPEC, blocked / "cache")


def test_presized_images_are_larger_and_cut_from_anywhere_along_the_longer_side(
    folder: Path, tmp_path: Path
) -> None:
    source = open_source(folder)
    fit = load(source, SPEC, tmp_path / "cache")[Split.FIT]
    presized = load_presized(source, 42, SPEC, tmp_path / "cache", seed=0)
    assert presized.images.shape == (len(fit), 42, 42, 3)
    assert presized.names == fit.names
    np.testing.assert_array_equal(presized.targets, fit.targets)
    whole = presized_spec(SPEC, 42)
    starts = []
    for name, pixels in zip(presized.names, presized.images, strict=True):
        cuts = [prepare((folder / name).read_bytes(), whole, place=at / 50) for at in range(51)]
        distance = [np.abs(cut.astype(int) - pixels).mean() for cut in cuts]
        assert min(distance) < 8  # of 255; cut elsewhere it is about 70
        starts.append(int(np.argmin(distance)))
    assert min(starts) < 10
    assert max(starts) > 40


def test_presizing_again_decodes_nothing_and_gives_the_same_but_for_another_seed(
    folder: Path, tmp_path: Path
) -> None:
    first = load_presized(open_source(folder), 42, SPEC, tmp_path / "cache", seed=0)
    unread = without_reader(open_source(folder))
    again = load_presized(unread, 42, SPEC, tmp_path / "cache", seed=0)
    np.testing.assert_array_equal(first.images, again.images)
    other = load_presized(open_source(folder), 42, SPEC, tmp_path / "cache", seed=1)
    assert (other.images != first.images).any()
