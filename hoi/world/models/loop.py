"""The training loop that the world's CLIP, captioner and detector share, and their files. One core, no GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Report = Callable[[str], None]
"""Gets a line of progress now and then."""


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    losses: Callable[[int], Mapping[str, Tensor]],
    steps: int,
    report: Report,
    max_grad_norm: float = 1.0,
) -> None:
    """Minimise the `loss` among the figures that `losses` returns for each step, from 1; report all every 50 steps."""
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        figures = losses(step)
        optimizer.zero_grad()
        figures["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        if step % 50 == 0 or step == steps:
            report(f"step {step}/{steps} " + " ".join(f"{name} {value.item():.3f}" for name, value in figures.items()))


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW for a CLIP: gains, biases and the scale are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)


def warmup_cosine(rate: float, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Return the learning rate by step, from 1: a linear warm-up, then half a cosine."""

    def at(step: int) -> float:
        if step <= warmup_steps:
            return rate * (step / warmup_steps)
        done = (step - 1 - warmup_steps) / max(steps - warmup_steps, 1)
        return rate * (0.5 * (1 + math.cos(math.pi * done)))

    return at


def row_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of row numbers without end: each epoch in a new order, without its incomplete last batch."""
    batch_size = min(batch_size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def save_float16(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as float16 safetensors; equal weights give equal bytes if `metadata` has one entry."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, path, metadata=metadata)
    path.chmod(0o644)
