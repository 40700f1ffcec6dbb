"""Students: one section per method, told apart by `method`."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Discriminator, Tag

from hoi.config.clhoi import ClhoiConfig
from hoi.config.hoiclip import HoiclipConfig
from hoi.config.multilevel import MultiLevelConfig
from hoi.config.student import StudentSettings

__all__ = ["ClhoiConfig", "HoiclipConfig", "MultiLevelConfig", "StudentConfig", "StudentSettings", "method_of"]


def method_of(section: Any) -> str | None:
    """A student's section, plain or checked, to its method; `multilevel` where it says none."""
    if isinstance(section, dict):
        return section.get("method", "multilevel")
    return getattr(section, "method", None)


StudentConfig = Annotated[
    Union[
        Annotated[MultiLevelConfig, Tag("multilevel")],
        Annotated[HoiclipConfig, Tag("hoiclip")],
        Annotated[ClhoiConfig, Tag("clhoi")],
    ],
    Discriminator(method_of),
]
