"""Settings of the student `clhoi`."""

from __future__ import annotations

from typing import Literal

from hoi.config.student import StudentSettings


class ClhoiConfig(StudentSettings):
    """CL-HOI (Gao et al., 2024) on the cache."""

    method: Literal["clhoi"]
