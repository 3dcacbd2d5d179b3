"""Hold the attention functions of other libraries to the reference, and ours: `make verify-peers`.

What runs on a CPU and takes arrays: PyTorch's, JAX's, and ONNX Runtime's by way of files of one node each.
The reports go to results/; the book reads them there.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastattention
from fastattention.verify.show import progress, show

RESULTS = Path(__file__).parents[1] / "results"


def kernels(folder: Path) -> Iterator[tuple[str, Any, str]]:
    """Yield a name for the file, the kernel, and what the command is called with for it."""
    import jax
    import torch

    yield "fastattention", fastattention.attention, "fastattention:attention"
    sdpa = torch.nn.functional.scaled_dot_product_attention
    yield "pytorch", sdpa, "torch.nn.functional:scaled_dot_product_attention"
    yield "jax", jax.nn.dot_product_attention, "jax.nn:dot_product_attention"
    for name, options in (("plain", {}), ("causal", {"causal": True}), ("mask", {"mask": True})):
        for dtype in ("float32", "float16"):
            path = folder / f"attention-{name}-{dtype}.onnx"
            write_onnx(path, dtype, **options)
            yield f"onnxruntime-{name}-{dtype}", path, path.name


def write_onnx(path: Path, dtype: str = "float32", causal: bool = False, mask: bool = False) -> None:
    """Write a model of one Attention node, of any sizes."""
    import onnx
    from onnx import TensorProto, helper

    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[dtype]
    inputs = [
        helper.make_tensor_value_info(name, kind, ["B", f"H{name}", f"S{name}", f"D{name}"]) for name in "qkv"
    ]
    if mask:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, ["B", "Hm", "Sq", "Sk"]))
    output = helper.make_tensor_value_info("out", kind, ["B", "Hq", "Sq", "Dv"])
    node = helper.make_node("Attention", [item.name for item in inputs], ["out"], is_causal=int(causal))
    graph = helper.make_graph([node], "attention", inputs, [output])
    # IR version 10 is read by every ONNX Runtime that has the node, which came with opset 23.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)


def main() -> None:
    """Run all, print the reports, and write them where `--record` says so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="write results/verify-*.json")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--only", metavar="NAME", help="kernels whose name has this in it")
    args = parser.parse_args()
    today = datetime.now(UTC).date().isoformat()
    with tempfile.TemporaryDirectory() as folder:
        for name, kernel, called in kernels(Path(folder)):
            if args.only and args.only not in name:
                continue
            with progress() as tell:
                report = fastattention.verify(kernel, quick=args.quick, progress=tell)
            show(report, called)
            print()
            if args.record:
                for old in RESULTS.iterdir():
                    if re.fullmatch(rf"verify-{name}-\d{{4}}-\d\d-\d\d\.json", old.name):
                        old.unlink()
                report.save(RESULTS / f"verify-{name}-{today}.json")


if __name__ == "__main__":
    main()
