"""What students compute in. Parameters, optimizer, similarities and losses are float32 in any case."""

from __future__ import annotations

from typing import Literal

import torch

from hoi.errors import UserError

Precision = Literal["fp32", "bf16"]


def choose_precision(name: Literal["fp32", "bf16", "auto"], device: torch.device) -> Precision:
    """`train.precision` and a device to what the layers compute in; `auto` takes bf16 on a GPU that has it.

    Raises:
        UserError: bf16 is asked of a GPU that does not have it.
    """
    if name == "fp32" or (name == "auto" and device.type != "cuda"):
        return "fp32"
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise UserError(
            "this GPU does not compute in bf16",
            where="train.precision",
            expected="auto or fp32",
            got=f"bf16 on {torch.cuda.get_device_name(device)}",
            fix="set train.precision: auto",
        )
    return "bf16" if has_bf16 else "fp32"


def mixed(precision: Precision, device: torch.device) -> torch.autocast:
    """Where layers are called: their matrices are multiplied in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> torch.autocast:
    """Inside of `mixed`, what stays float32: at a logit scale of 100, cosines in bf16 would be off by 0.2 in logits."""
    return torch.autocast(device.type, enabled=False)
