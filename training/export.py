"""The trained network as files that engines run, checked against torch on real images."""

from __future__ import annotations

import importlib.util
import logging
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from model.bundle import INT8, NETWORK, ONNX, OPENVINO
from model.engines import Outputs
from model.engines.openvino_engine import OpenVinoEngine
from model.engines.openvino_silent import openvino
from model.errors import BundleError, EngineError
from model.images import Pixels
from model.network import weights_of
from model.whole_embedding import WholeEmbedding
from training.mapped import copy_rows

# Largest difference between exported and torch outputs, relative to the largest output, in
# float32. Differences of summation order stay below 1e-4.
EXPORT_TOLERANCE = 1e-3
BATCH = 64
INT8_IMAGES = 300  # that ranges are taken from, nncf's own default
_INT8_BATCH = 10


def export_network(whole: WholeEmbedding, directory: Path, image_size: int) -> None:
    """Write `network.safetensors`, `network.onnx` and `network.xml` with `network.bin`.

    The graphs take a uint8 batch `images` N x H x W x 3, N free, and give `logits` N x C and
    `embedding` N x D, of all layers; the normalisation lives inside. Raises OSError,
    SafetensorError or `BundleError` where the disk is full, by who meets it.
    """
    whole = whole.eval().cpu().float()
    save_file(weights_of(whole.network), directory / NETWORK)
    whole.network.use_memory_format(torch.contiguous_format)
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    torch.onnx.export(
        whole,
        (example,),
        directory / ONNX,
        input_names=["images"],
        output_names=["logits", "embedding"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    write_openvino(directory)


def write_openvino(directory: Path) -> None:
    """Write `network.xml` with `network.bin` from `network.onnx`. Raises `BundleError`."""
    # read_model instead of convert_model: the converter reports its use over the network.
    _save(openvino.Core().read_model(directory / ONNX), directory / OPENVINO)


def check_int8() -> None:
    """Raise `EngineError` where nncf is not installed, before the hours of a training."""
    if importlib.util.find_spec("nncf") is None:
        raise EngineError(
            "--int8 needs nncf, which is not installed;"
            " install it with: pip install 'plumbline[training]'"
        )


def write_int8(directory: Path, images: Pixels) -> None:
    """Write `network.int8.xml` with its `.bin` from `network.xml`: weights and arithmetic in int8.

    nncf takes the ranges of activations from `images`, uint8 N x H x W x 3, and corrects biases
    by them (post-training quantisation; Nagel et al. 2021, "A White Paper on Neural Network
    Quantization", sections 3.1 to 3.3). The head stays in float: it costs next to nothing, and one
    that was fitted to standardised features and carries their scales in its weights is nothing but
    rounding in 8 bits (27 % of the labels of a linear head on EfficientNet-Lite0 were then those
    of torch, against 94 %). Give images of the fit split: those of validation judge
    the outcome, and would judge what was made to suit them. The normalisation becomes part of the
    quantised graph; input and both outputs stay as they are. Raises `EngineError` where nncf
    cannot quantise the network, `BundleError` where the disk is full.
    """
    rows = min(len(images), INT8_IMAGES)
    batches = [
        copy_rows(images, slice(start, min(start + _INT8_BATCH, rows)))
        for start in range(0, rows, _INT8_BATCH)
    ]
    # Of a machine without a GPU torch says, when nncf loads its parts for CUDA, that it has none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()):  # where its log and progress go, and a version is printed
        import nncf  # takes seconds, and imports torch

        nncf.set_log_level(logging.ERROR)
        try:
            graph = openvino.Core().read_model(directory / OPENVINO)
            quantised = nncf.quantize(
                graph,
                nncf.Dataset(batches),
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=_head(graph)),
            )
        except Exception as error:  # its errors have no base of their own
            raise EngineError(f"nncf cannot quantise the network: {error}") from error
    _save(quantised, directory / INT8)


def _head(graph: openvino.Model) -> list[str]:
    """The name of the matrix product that gives the logits; none where they come otherwise."""
    node = graph.output("logits").get_node()
    while node.get_input_size():
        if node.get_type_name() == "MatMul":
            return [node.get_friendly_name()]
        node = node.input_value(0).get_node()
    return []


def remove_int8(directory: Path) -> None:
    """Remove what `write_int8` wrote, or began to."""
    for path in (directory / INT8, (directory / INT8).with_suffix(".bin")):
        path.unlink(missing_ok=True)


def _save(graph: openvino.Model, path: Path) -> None:
    try:
        openvino.save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # of a full disk, too, it says but "iostream error"
        raise BundleError(
            f"{path} and {path.with_suffix('.bin').name} could not be written: {error};"
            " see that the disk has room"
        ) from error


def run_network(whole: WholeEmbedding, images: NDArray[np.uint8]) -> Outputs:
    """Logits and embedding by torch in float32 on the CPU; what the exports are held to."""
    network = whole.eval().cpu().float()
    logits, embedding = [], []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = torch.from_numpy(copy_rows(images, slice(start, start + BATCH)))
            outputs = network(batch)
            logits.append(outputs[0].numpy())
            embedding.append(outputs[1].numpy())
    return Outputs(np.concatenate(logits), np.concatenate(embedding))


def check_exports(directory: Path, images: NDArray[np.uint8], expected: Outputs) -> float:
    """Run both graphs in float32 on real images; return the largest relative difference.

    Raises `EngineError` above EXPORT_TOLERANCE: a graph that does not do what the network does
    is never shipped.
    """
    worst = 0.0
    for graph in (ONNX, OPENVINO):
        engine = OpenVinoEngine(directory, threads=0, precision="f32", graph=graph)
        given = engine.run(np.ascontiguousarray(images))
        for name in ("logits", "embedding"):
            wanted = getattr(expected, name)
            largest = float(np.abs(wanted).max())
            difference = float(np.abs(getattr(given, name) - wanted).max()) / max(largest, 1e-9)
            worst = max(worst, difference)
            if difference > EXPORT_TOLERANCE:
                raise EngineError(
                    f"{graph} gives other {name} than torch: {difference:.2g} of the largest,"
                    f" at most {EXPORT_TOLERANCE:g} is allowed; nothing was registered"
                )
    return worst
