"""Keeps pandas out of a process that has no use for it.

pyarrow imports pandas, where it is installed, to see whether it was given its objects: more than a
second and 80 MB at the first file of records, in the middle of traffic.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Refusing(MetaPathFinder, Loader):
    """Finds pandas for who merely looks for it, as torch does, and refuses to load it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == "pandas" else None

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError("pandas is kept out of the workers of the service")


def keep_pandas_out() -> None:
    """From now on `import pandas` fails in this process; libraries do without it."""
    sys.meta_path.insert(0, _Refusing())
