"""What models are trained on: GPUs as their data sheets tell, and the memory that this machine has free."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnknownGpu(ValueError):
    """A GPU that is not in GPUS; the message names those that are."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVIDIA's data sheet tells. `memory`: GB (10^9 bytes; the driver shows as much or a little more);
    `bf16`: dense TFLOPS of its tensor cores with fp32 sums, None where it cannot compute in bf16; `fp32`: TFLOPS
    without tensor cores; `bandwidth`: GB/s of its memory. Figures with sparsity are halved.
    """

    name: str
    memory: float
    bf16: float | None
    fp32: float
    bandwidth: float
    sheet: str


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 16, None, 8.1, 320, "NVIDIA T4 Tensor Core GPU data sheet (65 TFLOPS are in fp16)"),
        Gpu("L4", 24, 121, 30.3, 300, "NVIDIA L4 Tensor Core GPU data sheet"),
        Gpu("A10G", 24, 70, 35, 600, "NVIDIA A10G data sheet; not the A10, which has 125 TFLOPS"),
        Gpu("RTX4090", 24, 165.2, 82.6, 1008, "NVIDIA Ada GPU architecture white paper, GeForce RTX 4090"),
        Gpu("L40S", 48, 362, 91.6, 864, "NVIDIA L40S data sheet"),
        Gpu("A100-40GB", 40, 312, 19.5, 1555, "NVIDIA A100 Tensor Core GPU data sheet, 40 GB"),
        Gpu("A100-80GB", 80, 312, 19.5, 2039, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
        Gpu("H100", 80, 989, 67, 3350, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
        Gpu("H200", 141, 989, 67, 4800, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        Gpu("B200", 180, 2250, 75, 8000, "NVIDIA HGX B200 data sheet, one of its eight"),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of this name; case, spaces and hyphens do not count. Raises UnknownGpu."""
    names = {_plain(known): known for known in GPUS}
    if _plain(name) in names:
        return GPUS[names[_plain(name)]]
    near = difflib.get_close_matches(_plain(name), names, n=1) or [known for known in names if _plain(name) in known]
    meant = f" (did you mean {names[near[0]]}?)" if near and name.strip() else ""
    raise UnknownGpu(f"the GPU {name!r} is not known{meant}: there are {', '.join(GPUS)}")


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that is free for a training run, in bytes, on each of `devices` that share one model (1: each has its
    own); `bf16`: whether `precision: auto` means bf16 there; `what`: in words."""

    free: int
    what: str
    devices: int = 1
    bf16: bool = False
    gpu: bool = False


def room(environment: Mapping[str, str] = os.environ) -> Room | None:
    """The room on this machine: of its GPU if torch sees one, else of its memory; None where that cannot be told.

    Under `accelerate launch` with FSDP, one model is divided among the processes.
    """
    sharded = environment.get("ACCELERATE_USE_FSDP", "").casefold() == "true"
    devices = int(environment.get("WORLD_SIZE", "1")) if sharded else 1
    try:
        import torch
    except ImportError:
        pass
    else:
        if torch.cuda.is_available():
            device = int(environment.get("LOCAL_RANK", "0"))
            free = int(torch.cuda.mem_get_info(device)[0])
            name = torch.cuda.get_device_name(device)
            return Room(free, f"GPU memory ({name})", devices, _bf16(torch.cuda), gpu=True)
    free_memory = _free_memory()
    return None if free_memory is None else Room(free_memory, "memory (no GPU is seen)", devices)


def _bf16(cuda: Any) -> bool:
    return bool(cuda.is_bf16_supported(including_emulation=False))


def _free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a new process may take: what Linux calls available, and no more than its control group allows."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        group = root / "sys/fs/cgroup"
        held = int((group / "memory.current").read_text())
        statistics = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Pages of files are given back when somebody asks for memory.
        files = next((int(size) for name, size in statistics if name == "inactive_file"), 0)
        left = int((group / "memory.max").read_text()) - held + files
    except (OSError, ValueError):  # no control group, or one without a limit (`max`)
        return available
    return max(0, min(available, left))
