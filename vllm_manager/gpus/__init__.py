"""The GPUs of this machine, as NVML and ``CUDA_VISIBLE_DEVICES`` show them."""

from vllm_manager.gpus.inventory import GpuReader, used_by
from vllm_manager.gpus.nvml import read_inventory

__all__ = ["GpuReader", "read_inventory", "used_by"]
