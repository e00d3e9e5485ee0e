"""What a device computes fast, and what that needs."""

import os
import shutil

import torch

from flowmatch_rl.checks import UserError


def processor_instructions() -> str:
    """Instructions of the processor that the speed of matrix products depends on, such as ``AVX-512 with BF16``."""
    has = torch.cpu.get_capabilities()
    if has.get("amx_bf16"):
        return "AMX with BF16"
    if has.get("avx512_f"):
        return f"AVX-512 {'with' if has.get('avx512_bf16') else 'without'} BF16"
    return "AVX2" if has.get("avx2") else str(has.get("architecture", "unknown"))


def has_fast_bfloat16(accelerator: str) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32; where they are emulated they are slower.

    Args:
        accelerator: Name of a Lightning accelerator, ``auto`` for the GPU if there is one and else the processor.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    # Only x86 was measured.
    return accelerator in ("cpu", "auto") and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def device_name(accelerator: str) -> str:
    """Name of the GPU or the processor that an accelerator stands for, of the latter with its instructions.

    Args:
        accelerator: As in ``has_fast_bfloat16``.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities().get('cpu_name', 'the processor')} ({processor_instructions()})"


def check_compiler() -> None:
    """Raise where ``torch.compile`` would find no C++ compiler, which it needs on the CPU.

    Raises:
        UserError: If there is neither a GPU nor a compiler.
    """
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not torch.cuda.is_available() and not any(map(shutil.which, wanted)):
        raise UserError(f"compile needs a C++ compiler ({' or '.join(wanted)}), found none; install one or set CXX")
