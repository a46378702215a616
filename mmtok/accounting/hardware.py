"""Peak numbers of known devices, and the shares of them that a stage used.

Dense peaks without sparsity, from NVIDIA's data sheets; FLOP/s with fp32 accumulation as the sheets
give them. A device that is not in the table has no peak: utilisation is then None, never a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hardware:
    """Peaks of one device.

    Attributes:
        name: as in the table below.
        flops: dtype name -> FLOP/s of dense matrix products.
        bandwidth: bytes/s of device memory.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float


def _gpu(name: str, half: float, single: float, gb_per_s: float, *, bf16: bool = True) -> Hardware:
    """Peaks in TFLOP/s and GB/s; `single` is fp32 outside the tensor cores."""
    flops = {"float16": half * 1e12, "float32": single * 1e12}
    if bf16:
        flops["bfloat16"] = half * 1e12
    return Hardware(name, flops, gb_per_s * 1e9)


# The first entry whose words all occur in the device's name wins: special cases come first.
_TABLE = (
    _gpu("H200", 989.5, 67, 4800),
    _gpu("H100 NVL", 835.5, 60, 3900),
    _gpu("H100 PCIe", 756, 51, 2000),
    _gpu("H100", 989.5, 67, 3350),
    _gpu("A100 80GB PCIe", 312, 19.5, 1935),
    _gpu("A100 80GB", 312, 19.5, 2039),
    _gpu("A100", 312, 19.5, 1555),
    _gpu("L40S", 362, 91.6, 864),
    _gpu("L40", 181, 90.5, 864),
    _gpu("L4", 121, 30.3, 300),
    _gpu("A10G", 70, 35, 600),
    _gpu("A10", 125, 31.2, 600),
    _gpu("RTX 4090", 165.2, 82.6, 1008),
    _gpu("RTX 3090", 71, 35.6, 936),
    _gpu("V100", 125, 15.7, 900, bf16=False),
    _gpu("T4", 65, 8.1, 320, bf16=False),
)

_OTHER = {"D", "LAPTOP", "MAX", "MIG", "SUPER", "TI"}  # variants with peaks of their own


def find(device_name: str) -> Hardware | None:
    """The device of that name, such as `torch.cuda.get_device_name()` gives; None if unknown."""
    words = _words(device_name)
    if words & _OTHER:
        return None
    return next((hw for hw in _TABLE if _words(hw.name) <= words), None)


def _words(name: str) -> set[str]:
    return set(name.upper().replace("-", " ").split())


def mfu(flops: int | None, ms: float | None, hardware: Hardware | None, dtype: Any) -> float | None:
    """Share of peak FLOP/s used: flops / (seconds x peak of the dtype). None if any is unknown.

    Attention is counted dense, so a causal kernel can show more than it computes.
    """
    peak = None if hardware is None else hardware.flops.get(str(dtype).removeprefix("torch."))
    if not flops or not ms or peak is None:
        return None
    return flops / (ms / 1e3 * peak)


def mbu(nbytes: int | None, ms: float | None, hardware: Hardware | None) -> float | None:
    """Share of peak bandwidth used: bytes / (seconds x peak). None if any is unknown.

    Args:
        nbytes: bytes that had to be read; for a decode step weights plus KV cache.
        ms: milliseconds it took.
        hardware: from `find`.
    """
    if not nbytes or not ms or hardware is None:
        return None
    return nbytes / (ms / 1e3 * hardware.bandwidth)


def energy(run: Callable[[], object], *, index: int = 0, window_s: float = 1.0) -> float | None:
    """Joule one call of `run` takes on NVIDIA device `index`; None where that cannot be measured.

    NVML's counter moves every 20 to 100 ms, so `run` (which must synchronise) is repeated until
    `window_s` seconds have passed. Other work on the device is counted in.

    Args:
        run: the work, such as one stage.
        index: NVML's device number.
        window_s: shortest stretch to measure over, at least 1 s.
    """
    read = _energy_counter(index)
    if read is None:
        return None
    calls, start, before = 0, time.perf_counter(), read()
    while time.perf_counter() - start < max(1.0, window_s):
        run()
        calls += 1
    return (read() - before) / 1e3 / calls


def _energy_counter(index: int) -> Callable[[], int] | None:
    """A function that reads the device's energy counter in mJ, if nvidia-ml-py and device allow."""
    try:
        import pynvml  # the module name of the package nvidia-ml-py
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
