"""Which steps of a run are finished, for steps that leave nothing else to tell it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.atomic import read_json, write_json
from cache.fingerprint import digest_of, file_sha256
from hoi.config import PipelineConfig
from hoi.datasets.labels import label_files
from hoi.provenance import commit


class Progress:
    """A small file: step → hash of all that it depended on, so that a step counts as done only as long as that holds.

    Args:
        path: The file.
        config: What runs now; with the annotation files and the commit it is what steps depend on.
    """

    def __init__(self, path: Path, config: PipelineConfig) -> None:
        self._path = path
        labels = [file_sha256(file) for file in label_files(config.dataset)]
        self._digest = digest_of([config.model_dump(mode="json"), labels, commit()])

    def is_done(self, step: str, file: Path, further: Any = None) -> bool:
        """Whether a step was finished with the same settings, and what it wrote is there.

        Args:
            step: Its name.
            file: What it writes last.
            further: What it depends on beside settings, annotations and commit, as plain data.
        """
        return file.is_file() and self._steps().get(step) == digest_of([self._digest, further])

    def note(self, step: str, further: Any = None) -> None:
        """A step is finished; arguments as in `is_done`."""
        write_json(self._path, {**self._steps(), step: digest_of([self._digest, further])})

    def _steps(self) -> dict[str, str]:
        try:
            return read_json(self._path) or {}
        except ValueError:
            # Whoever edited it: steps are done again.
            return {}
