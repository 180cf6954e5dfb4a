"""The names of the engines and their precisions: for settings, which need nothing else of them."""

from __future__ import annotations

from typing import Literal

EngineName = Literal["openvino", "torch"]
Precision = Literal["f32", "bf16", "int8"]
