"""Teachers by kind; a further one is a module and a line in `hoi.registry.TEACHERS`."""

from __future__ import annotations

from hoi.config import TeacherConfig
from hoi.registry import load_target
from hoi.teachers.base import Teacher

__all__ = ["Teacher", "build_teacher"]


def build_teacher(config: TeacherConfig, device: str) -> Teacher:
    """Return the teacher of a pipeline file, ready to run.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        UserError: an unknown model, weights that are missing or do not fit, or a precision that is too low.
    """
    teacher: Teacher = load_target(config.IMPLEMENTATION)(config, device)
    return teacher
