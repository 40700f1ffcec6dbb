"""Settings of the student `hoiclip`."""

from __future__ import annotations

from typing import Literal

from hoi.config.student import StudentSettings


class HoiclipConfig(StudentSettings):
    """HOICLIP (Ning et al., CVPR 2023) on the cache."""

    method: Literal["hoiclip"]
