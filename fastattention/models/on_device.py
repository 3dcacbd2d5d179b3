"""``fastattention generate --device``: the options, the plan, and the session that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from ..offload.hardware import Hardware
    from ..offload.plan import OffloadPlan
    from ..offload.shapes import ModelShape
    from ..runtime.device import Device
    from .gguf import ModelFile
    from .llama import Llama
    from .offloaded import OffloadedSession
    from .sizes import Config

__all__ = ["OnDevice", "add_arguments", "wanted"]

# What `numpy`, which has no figures of its own, plays.
_PLAYED = "v100-16gb"

# Options that a plan has answered already, by their names among the arguments.
_PLANNED = ("gpu_layers", "way", "weight_dtype", "cache_dtype", "context", "threads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options on `parser`."""
    group = parser.add_argument_group(
        "on a GPU",
        "The model runs there, in float32 unless told otherwise; its KV cache lies there, too, as far as "
        "there is room, and beyond that in host memory, where the CPU attends to it.",
    )
    group.add_argument(
        "--device",
        metavar="NAME",
        help="'cuda', 'cuda:1', ..., or 'numpy': CPU memory that plays a GPU (default: no GPU)",
    )
    group.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="what lies where, from `fastattention plan --json` (default: planned for this machine)",
    )
    group.add_argument(
        "--gpu-layers",
        type=_count,
        metavar="N",
        help="keep the cache of so many layers on the GPU, that of the others in host memory",
    )
    group.add_argument(
        "--way",
        metavar="WAY",
        help="who attends to what lies in host memory, as in `fastattention plan` (default: the fastest)",
    )
    group.add_argument(
        "--weight-dtype",
        choices=("float32", "float16"),
        help="what weights are stored in, and computed with (default: float32, as on the CPU)",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def wanted(args: argparse.Namespace) -> bool:
    """Return whether the run is one on a device.

    Raises
    ------
    ModelError
        Options do not go together.
    """
    names = ("device", "plan", "gpu_layers", "way", "weight_dtype")
    given = [name for name in names if getattr(args, name) is not None]
    if given and args.backend != "cpu":
        raise ModelError(f"--backend {args.backend} runs without {_option(given[0])}")
    if args.plan is not None:
        for name in _PLANNED:
            if getattr(args, name) is not None:
                raise ModelError(f"{_option(name)}: --plan says it already")
    return bool(given)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


class OnDevice:
    """A device, and a plan for a model on it.

    Parameters
    ----------
    args : Namespace
        Of a parser that `add_arguments` and `generate.add_arguments` have been at.
    file : ModelFile
    context : int
        Tokens, where no plan says how many.

    Attributes
    ----------
    plan : OffloadPlan

    Raises
    ------
    ModelError
        There is no such device, the plan cannot be read, or is for another model, or nothing fits. Nothing
        was taken yet.
    """

    def __init__(self, args: argparse.Namespace, file: ModelFile, context: int) -> None:
        from .sizes import Config

        self._name = file.path.name
        self.device = _open(args.device or "cuda")
        config = Config.from_file(file)
        try:
            if args.plan is not None:
                self.plan: OffloadPlan = self._read(args.plan, config)
            else:
                shape = _shape(config, self._name, tied="output.weight" not in file.tensor_names)
                self.plan = self._planned(args, shape, context)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            raise ModelError(" ".join(str(error).split())) from error

    def _read(self, path: Path, config: Config) -> OffloadPlan:
        from ..offload.plan import OffloadPlan
        from .offloaded import check_plan

        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"--plan {path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            plan = OffloadPlan.from_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"--plan {path}: not a plan: {error}") from error
        check_plan(plan, self._name, config)
        if plan.batch != 1:
            raise ModelError(f"--plan {path}: it is for a batch of {plan.batch}; this is one sequence")
        return plan

    def _planned(self, args: argparse.Namespace, shape: ModelShape, context: int) -> OffloadPlan:
        from ..offload.plan import plan_offload

        overrides: dict[str, Any] = {"threads": args.threads, "gpu_layers": args.gpu_layers}
        return plan_offload(
            shape,
            _hardware(self.device),
            context=context,
            kv_dtype=args.cache_dtype or "float16",
            weight_dtype=args.weight_dtype or "float32",
            way=args.way or "auto",
            **{name: value for name, value in overrides.items() if value is not None},
        )

    def session(self, llama: Llama) -> OffloadedSession:
        """Copy the model to the device and make the session.

        Raises
        ------
        ModelError
            A weight is beyond the dtype.
        MemoryError
            There is less room than the plan says.
        """
        from .device_llama import DeviceLlama
        from .offloaded import OffloadedSession

        try:
            plan = self.plan
            model = DeviceLlama.from_llama(
                llama, self.device, plan.weight_dtype, self._name, embedding=plan.embedding
            )
            return OffloadedSession(model, self.plan, self.device)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ModelError(" ".join(str(error).split())) from error


def _open(name: str) -> Device:
    from ..runtime.device import open_device

    try:
        return open_device(name)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ModelError(f"--device {name}: {' '.join(str(error).split())}") from error


def _hardware(device: Device) -> Hardware:
    if device.name == "numpy":
        from ..offload.hardware import hardware

        return hardware(_PLAYED)
    from ..offload.detect import detect

    with device.xp.cuda.Device(int(device.name.partition(":")[2])):
        return detect()


def _shape(config: Config, name: str, tied: bool) -> ModelShape:
    """Return a model's sizes as the planner wants them."""
    from ..offload.shapes import ModelShape

    return ModelShape(
        name=name, layers=config.layers, hidden=config.hidden, feed_forward=config.feed_forward,
        heads=config.heads, kv_heads=config.kv_heads, head_dim=config.head_dim, vocab_size=config.vocab_size,
        tied=tied, context=config.context, rope_base=config.rope_base, norm_epsilon=config.norm_epsilon,
        gated=True, note="",
    )  # fmt: skip
