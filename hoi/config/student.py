"""What the settings of all students share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hoi.config.section import Section


class StudentSettings(Section):
    """One student of the pipeline file; each method has a section of its own."""

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset({"score_exponent"})
    """Keys that leave the weights alone, so changing them asks for no new training."""

    method: str
    """Which of the sections this is."""
    supervision: Literal["teacher", "labels"] = "teacher"
    """`teacher`: cached scores only. `labels`: annotated pairs matched to cached boxes."""
    score_exponent: Annotated[float, Field(ge=0)] = 1.0
    """γ of (s_h · s_o)^γ in the final score. [choice]"""
