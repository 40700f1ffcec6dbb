"""Whether the teacher can be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import open_clip

from hoi.config import TeacherConfig
from hoi.datasets.findings import Finding
from hoi.teachers.loading import HF_HUB, load_model
from hoi.weights import RANDOM


def check_teacher(config: TeacherConfig, download: bool) -> Iterator[Finding]:
    """Loads the teacher as stage one would, unless that might download its weights and nobody allowed it.

    Raises:
        UserError: it cannot be loaded; the message says why.
    """
    tag = config.pretrained
    may_download = config.model.startswith(HF_HUB) or (
        tag is not None and tag != RANDOM and not Path(tag).is_file() and (config.model, tag) in _published()
    )
    if may_download and not download:
        fix = "run make doctor ALL=1 to load it, which downloads what is missing"
        yield Finding(
            "warning", f"the teacher {config.model} ({tag}) was not loaded: it may have to be downloaded", fix=fix
        )
        return
    loaded = load_model(config)
    yield Finding("ok", f"teacher {config.model}: loads, takes crops of {loaded.style.size_px} px")


def _published() -> set[tuple[str, str]]:
    return {(name, tag) for name, tag in open_clip.list_pretrained()}
