"""Teachers by config. A further one is a module here and a section in `hoi.config`."""

from __future__ import annotations

from hoi.config import TeacherConfig
from hoi.teachers.base import Teacher
from hoi.teachers.open_clip_teacher import OpenClipTeacher

__all__ = ["Teacher", "build_teacher"]


def build_teacher(config: TeacherConfig, device: str) -> Teacher:
    """Config section to a teacher that is ready to run.

    Args:
        device: `cpu` or `cuda`.

    Raises:
        UserError: an unknown model, weights that are missing or do not fit, or a precision that is too low.
    """
    return OpenClipTeacher(config, device)
