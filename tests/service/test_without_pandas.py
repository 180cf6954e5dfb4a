"""Workers write records without loading pandas."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, io, datetime
from service.without_pandas import keep_pandas_out
keep_pandas_out()
import pyarrow, pyarrow.parquet
table = pyarrow.Table.from_pylist([{"id": "a", "time": datetime.datetime.now(), "values": [1.0]}])
file = io.BytesIO()
pyarrow.parquet.write_table(table, file, compression="zstd")
assert pyarrow.parquet.read_table(io.BytesIO(file.getvalue())).num_rows == 1
print("pandas" in sys.modules)
"""


def test_pyarrow_writes_and_reads_without_loading_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
