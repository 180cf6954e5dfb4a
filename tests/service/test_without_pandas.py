"""Workers write records without loading pandas."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, io, datetime
from service.without_pandas import keep_pandas_out
keep_pandas_out()
import pyarrow, pyarrow.parquet
table = pyarrow.Table.from_pylist([{"id": "a", "time": datetime.datetime.now(), "values": [1.0]}])
file = io.BytesIO()
pyarrow.parquet.write_table(table, file, compression="zstd")
# Arrow's threads may still begin when so short a process ends, and abort it (apache/arrow 34314).
read = pyarrow.parquet.read_table(io.BytesIO(file.getvalue()), use_threads=False)
assert read.num_rows == 1
print("pandas" in sys.modules)
"""


def test_pyarrow_writes_and_reads_without_loading_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


LOOKING = """
import importlib.util
from service.without_pandas import keep_pandas_out
keep_pandas_out()
assert importlib.util.find_spec("pandas") is not None
try:
    import pandas
except ModuleNotFoundError as error:
    print(error)
"""


def test_who_looks_for_it_goes_on_and_who_imports_it_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOKING], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "pandas is kept out of the workers of the service"


@pytest.mark.slow
def test_timm_is_imported_without_it() -> None:
    """torch looks for pandas then; refused to, no worker could run a timm network by torch."""
    code = "from service.without_pandas import keep_pandas_out; keep_pandas_out(); import timm"
    subprocess.run([sys.executable, "-c", code], check=True)
