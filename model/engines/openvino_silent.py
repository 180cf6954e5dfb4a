"""OpenVINO without its telemetry; whoever needs `openvino` or `nncf` imports this first.

`import openvino` alone sends an event to its makers and writes an identifier into `~/intel`; nncf
sends more. Both do without the package that does so where it is not installed, and so they are
told. Its own switch is a file in the home folder of each user, which is not ours to write.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "cannot be imported"

import openvino as openvino  # noqa: E402
