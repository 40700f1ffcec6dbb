"""The folder of one `hoi.prediction.run` run: a journal while it lasts, results when it is done.

    settings.json        what decides the results; a folder of other settings is refused by name
    journal.jsonl        one line an image, in the order in which they were done; a run goes on from it
    predictions.jsonl    every triplet a line, as `hoi.evaluation.score` reads them
    detections.json      images, categories and boxes in COCO's layout
    unreadable.jsonl     file name and reason
    pictures/, videos/   what is drawn, and a line a frame for each video

Results are written whole or not at all. A journal line that a kill cut in two is dropped by the next run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hoi.cache.fingerprint import differing_keys
from hoi.errors import UserError
from hoi.files import read_json, replacing, write_json
from hoi.prediction import ImageResult
from hoi.prediction.sources import Source
from hoi.vocabulary import Vocabulary

SETTINGS, JOURNAL, LOCK = "settings.json", "journal.jsonl", ".lock"
PREDICTIONS, DETECTIONS, UNREADABLE = "predictions.jsonl", "detections.json", "unreadable.jsonl"
PICTURES, VIDEOS = "pictures", "videos"
MAX_NAME_BYTES = 180
"""Of a file that is called after another one: room for a suffix, and for the temporary name."""


class PredictionFolder:
    """One folder of results. `open` makes it.

    Args:
        path: Where it lies.
        vocabulary: Of the student.
        inclusive: Whether corners are pixels that belong to the box, as HICO-DET's predictions have them.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, inclusive: bool) -> None:
        self.path, self.vocabulary = path, vocabulary
        self._shift = [0, 0, 1, 1] if inclusive else [0, 0, 0, 0]
        self._places: dict[str, tuple[int, list[int], str]] = {}
        self._end = 0

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, settings: dict[str, Any], vocabulary: Vocabulary, *, inclusive: bool
    ) -> Iterator[PredictionFolder]:
        """Begins a folder or goes on with it.

        Args:
            path: The folder.
            settings: All that decides the results, as plain data.
            vocabulary, inclusive: See the class.

        Raises:
            UserError: the folder holds results of other settings, or something else, or another run writes there.
        """
        folder = cls(path, vocabulary, inclusive)
        _refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
        with (path / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    "another run writes into this folder", where=path, fix="wait for it, or another --out"
                ) from None
            folder._begin(settings)
            yield folder

    def is_done(self, source: Source, picture: Path | None) -> bool:
        """Whether a file was read by an earlier run, is the same still, and what was to be drawn of it is there."""
        place = self._places.get(source.name)
        if place is None or place[1] != source.stamp() or place[2] == "unreadable":
            return False
        return picture is None or picture.is_file()

    def picture_of(self, name: str) -> Path:
        """Where an image's picture goes."""
        return self.path / PICTURES / _file_name(name, ".jpg")

    def video_of(self, name: str, suffix: str) -> Path:
        """Where a drawn video (`.mp4`), or its lines, go."""
        return self.path / VIDEOS / _file_name(name.removesuffix(suffix), suffix)

    def add(self, source: Source, result: ImageResult) -> None:
        """An image that was read."""
        found = result.detections
        plain = {
            "size_hw": list(result.size_hw),
            "boxes": found.boxes_xyxy.tolist(),
            "scores": found.scores.tolist(),
            "labels": found.labels.tolist(),
            "triplets": [
                [each.human_idx, each.object_idx, each.interaction_idx, each.score, each.teacher_score]
                for each in result.triplets
            ],
        }
        self._append(source, "image", plain)

    def add_unreadable(self, source: Source, reason: str) -> None:
        """A file that could not be read."""
        self._append(source, "unreadable", reason)

    def add_video(self, source: Source, num_frames: int) -> None:
        """A video that was read to its end."""
        self._append(source, "video", num_frames)

    def reason(self, name: str) -> str | None:
        """Why a file could not be read; None for one that could, or was not looked at."""
        place = self._places.get(name)
        return self._read(name) if place is not None and place[2] == "unreadable" else None

    def finish(self, sources: Sequence[Source], refused: Sequence[tuple[str, str]]) -> list[Path]:
        """Writes what is known of the files, in their order, and gives the paths that it wrote."""
        images = [source.name for source in sources if self.kind(source.name) == "image"]
        with replacing(self.path / PREDICTIONS) as file:
            for name in images:
                file.write(b"".join(_line(row) for row in self._triplet_rows(name, self._read(name))))
        with replacing(self.path / DETECTIONS) as file:
            for part in self._coco(images):
                file.write(part)
        with replacing(self.path / UNREADABLE) as file:
            named = [(source.name, self.reason(source.name)) for source in sources]
            for name, reason in [*refused, *named]:
                if reason is not None:
                    file.write(_line({"file_name": name, "reason": reason}))
        return [self.path / name for name in (PREDICTIONS, DETECTIONS, UNREADABLE)]

    def kind(self, name: str) -> str | None:
        """`image`, `video` or `unreadable`; None for a file that was not looked at."""
        return self._places[name][2] if name in self._places else None

    def _begin(self, settings: dict[str, Any]) -> None:
        try:
            earlier = read_json(self.path / SETTINGS)
        except ValueError:
            earlier = {"settings": "damaged"}
        now = json.loads(json.dumps(settings))
        if earlier is None:
            write_json(self.path / SETTINGS, now)
        elif earlier != now:
            differences = [each.replace("cache:", "then:") for each in differing_keys(earlier, now)]
            raise UserError(
                "this folder holds predictions of other settings",
                where=self.path,
                got="; ".join(differences[:8]),
                fix=f"another --out, or rm -r {self.path}",
            )
        journal = self.path / JOURNAL
        if journal.is_file():
            self._go_on(journal)
        self._journal = journal

    def _go_on(self, journal: Path) -> None:
        """Notes where each whole line stands, and cuts off what a kill left of another one."""
        with journal.open("rb+") as file:
            for line in iter(file.readline, b""):
                try:
                    plain = json.loads(line if line.endswith(b"\n") else b"")
                    name, place = plain["name"], (self._end, plain["stamp"], plain["kind"])
                except (ValueError, TypeError, KeyError):
                    break
                self._places[name] = place
                self._end += len(line)
            file.truncate(self._end)

    def _append(self, source: Source, kind: str, content: Any) -> None:
        stamp = source.stamp()
        line = _line({"name": source.name, "stamp": stamp, "kind": kind, "content": content})
        with self._journal.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._places[source.name] = (self._end, stamp, kind)
        self._end += len(line)

    def _read(self, name: str) -> Any:
        with self._journal.open("rb") as file:
            file.seek(self._places[name][0])
            return json.loads(file.readline())["content"]

    def _triplet_rows(self, name: str, plain: dict[str, Any]) -> Iterator[dict[str, Any]]:
        boxes = [[edge - by for edge, by in zip(box, self._shift, strict=True)] for box in plain["boxes"]]
        for human, thing, interaction, score, teacher_score in plain["triplets"]:
            verb, object_name = self.vocabulary.interactions[interaction]
            yield {
                "file_name": name,
                "human_xyxy": boxes[human],
                "object_xyxy": boxes[thing],
                "interaction": interaction,
                "verb": verb,
                "object": object_name,
                "score": score,
                "teacher_score": teacher_score,
            }

    def _coco(self, names: Sequence[str]) -> Iterator[bytes]:
        """COCO's layout, piece by piece: ids of images and boxes count from 1, those of categories are rows + 1."""
        categories = [{"id": row, "name": name} for row, name in enumerate(self.vocabulary.objects, start=1)]
        yield b'{"categories": ' + _line(categories).strip() + b',\n"images": ['
        for number, name in enumerate(names, start=1):
            height, width = self._read(name)["size_hw"]
            entry = {"id": number, "file_name": name, "width": width, "height": height}
            yield (b",\n" if number > 1 else b"\n") + _line(entry).strip()
        yield b'],\n"annotations": ['
        box_number = 0
        for number, name in enumerate(names, start=1):
            plain = self._read(name)
            for (x1, y1, x2, y2), score, label in zip(plain["boxes"], plain["scores"], plain["labels"], strict=True):
                box_number += 1
                entry = {
                    "id": box_number,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "score": score,
                    "iscrowd": 0,
                }
                yield (b",\n" if box_number > 1 else b"\n") + _line(entry).strip()
        yield b"]}\n"


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError("there is a file where the folder of results should be", where=path, fix="another --out")
    if path.is_dir() and not (path / SETTINGS).is_file() and any(each.name != LOCK for each in path.iterdir()):
        raise UserError(
            "this folder holds something else", where=path, expected="an empty or new folder", fix="another --out"
        )


def _file_name(name: str, suffix: str) -> str:
    """An image's name to that of a file that is made of it; one that is too long, or cannot be written, by its hash."""
    parent, _, last = name.rpartition("/")
    raw = os.fsencode(last)
    if len(raw) > MAX_NAME_BYTES:
        last = f"{raw[: MAX_NAME_BYTES - 20].decode(errors='ignore')}~{hashlib.sha256(raw).hexdigest()[:12]}"
    return f"{parent}/{last}{suffix}" if parent else f"{last}{suffix}"


def _line(plain: Any) -> bytes:
    """Plain data to a line of JSON in UTF-8; names that are no UTF-8 are escaped, and come back as they were."""
    try:
        return (json.dumps(plain, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(plain) + "\n").encode()
