"""Reading a CSV of a million rows.

    .venv/bin/python bench/train.py table [--rows 1000000]

The rows name 10,000 files many times over, so that what is measured is the table. Ends with 1
over 30 seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from train_parts.machine import print_machine
from training.tables import Columns, read_table_file

FILES, MOST_SECONDS = 10_000, 30.0


def main() -> None:
    """Measure and print; exit with 1 where it takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    print_machine("numpy")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder, "table.csv")
        for number in range(FILES):
            Path(folder, f"{number}.jpg").touch()
        with table.open("w", encoding="utf-8") as file:
            file.write("fname,labels,is_valid\n")
            for row in range(options.rows):
                file.write(f"{row % FILES}.jpg,cat {row % 7},{row % 5 == 0}\n")
        start = time.perf_counter()
        rows = read_table_file(table, Columns(), " ")
        seconds = time.perf_counter() - start
    print(f"{len(rows.names):,} rows in {seconds:.1f} s")
    sys.exit(0 if seconds <= MOST_SECONDS else 1)
