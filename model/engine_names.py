"""The names of the engines: for settings, which need nothing else of them."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["openvino", "torch"]
