"""The files that a prediction run reads, and the folder of results that it writes, which docs/predict.md describes.

Results are written whole or not at all. A stopped run continues from its journal, a line a file in the order in which
they were done; a line that a kill cut in two is dropped. A folder made with other settings is refused.
"""

from __future__ import annotations

import glob
import hashlib
import json
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hoi.datasets.images import SUFFIXES
from hoi.errors import UserError
from hoi.files import LOCK, Finite, convert, parse_json, read_json, replacing, sole_writer, write_json
from hoi.prediction.predictor import ImageResult
from hoi.provenance import flatten
from hoi.vocabulary import Vocabulary

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".mts", ".m2ts", ".m2t", ".ts"}
    | {".3gp", ".3g2", ".wmv", ".asf", ".flv", ".f4v", ".ogv"}
)
SETTINGS, JOURNAL = "settings.json", "journal.jsonl"
PREDICTIONS, DETECTIONS, UNREADABLE = "predictions.jsonl", "detections.json", "unreadable.jsonl"
PICTURES, VIDEOS = "pictures", "videos"
Kind = Literal["image", "video", "unreadable"]
MAX_NAME_BYTES = 180  # of a file named after another one: leaves room for a suffix and for a temporary name


@dataclass(frozen=True)
class Source:
    """An image or video file; `name` is its path below the folder that the user named, with forward slashes."""

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    def stamp(self) -> list[int]:
        """Return size and time of change, by which a replaced file is noticed; empty where there is no file."""
        try:
            status = self.path.stat()
        except OSError:
            return []
        return [status.st_size, status.st_mtime_ns]


@dataclass
class SourceList:
    """Files to predict, names and reasons of what only looks like an image, and other files that were found."""

    sources: list[Source] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def find_sources(arguments: Sequence[str], leave_out: Path | None = None) -> SourceList:
    """List the files that paths name: a file as it is, a folder with all below it, a glob pattern with its matches.

    A file that is named is read whatever its suffix; inside folders the suffix decides. Links to folders are not
    followed, and the folder `leave_out`, where results go, is not searched. Raises UserError: nothing is there, or two
    files would have one name.
    """
    listed = SourceList()
    path_by_name: dict[str, Path] = {}
    for argument in arguments:
        for source in _expand(argument, leave_out, listed):
            # Not `resolve`, which fails on a circular link.
            place = Path(os.path.abspath(source.path))
            if source.name not in path_by_name:
                path_by_name[source.name] = place
                listed.sources.append(source)
            elif path_by_name[source.name] != place:
                raise UserError(
                    f"two files would have the name {printable(source.name)}",
                    where=f"{printable(str(path_by_name[source.name]))} and {printable(str(place))}",
                    fix="name the folder above both, so that their names differ",
                )
    return listed


def printable(name: str) -> str:
    """Return a file name with line breaks, control characters and broken letters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _expand(argument: str, leave_out: Path | None, listed: SourceList) -> Iterator[Source]:
    path = Path(argument)
    if path.is_dir():
        yield from _below(path, path, leave_out, listed)
    elif os.path.lexists(path):
        yield Source(path.name, path)
    elif glob.has_magic(argument):
        parts = path.parts
        root = Path(*parts[: next(row for row, part in enumerate(parts) if glob.has_magic(part))])
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            raise UserError("no file matches", where=printable(argument), fix="check the pattern")
        for match in map(Path, matches):
            if match.is_dir():
                yield from _below(match, root, leave_out, listed)
            else:
                yield Source(match.relative_to(root).as_posix(), match)
    else:
        raise UserError("there is no such image, folder or video", where=printable(argument), fix="check the path")


def _below(folder: Path, root: Path, leave_out: Path | None, listed: SourceList) -> Iterator[Source]:
    def name_of(path: Path) -> str:
        return path.relative_to(root).as_posix()

    def refuse(error: OSError) -> None:
        listed.refused.append((name_of(Path(str(error.filename))), f"the folder cannot be read ({error.strerror})"))

    known_suffixes = SUFFIXES | VIDEO_SUFFIXES
    left_out = None if leave_out is None else os.path.abspath(leave_out)
    sources = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if os.path.abspath(os.path.join(parent, name)) != left_out]
        for path in (Path(parent, name) for name in folders):
            if path.suffix.lower() in known_suffixes:
                listed.refused.append((name_of(path), "this is a folder"))
            if path.is_symlink():
                listed.ignored.append(name_of(path))
        for path in (Path(parent, name) for name in files):
            if path.suffix.lower() in known_suffixes:
                sources.append(Source(name_of(path), path))
            else:
                listed.ignored.append(name_of(path))
    yield from sorted(sources, key=lambda source: source.name)


Box = tuple[Finite, Finite, Finite, Finite]
Row = Annotated[int, Meta(ge=0)]


class _Image(Struct):
    # An image's result in the journal; the numbers of a triplet are human, object, interaction, score, teacher's score.
    size_hw: tuple[Row, Row]
    boxes: list[Box]
    scores: list[Finite]
    labels: list[Row]
    triplets: list[tuple[Row, Row, Row, Finite, Finite | None]]


class _Video(Struct):
    frames: Row
    damage: str | None = None


class _Entry(Struct):
    name: str
    stamp: list[int]
    kind: Kind
    content: Any


class PredictionFolder:
    """A folder of results; made by `open`."""

    def __init__(self, path: Path, vocabulary: Vocabulary, inclusive: bool) -> None:
        self.path, self.vocabulary = path, vocabulary
        self._shift = [0, 0, 1, 1] if inclusive else [0, 0, 0, 0]
        # By name: offset in the journal, stamp, kind.
        self._entries: dict[str, tuple[int, list[int], str]] = {}
        self._end = 0

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, settings: dict[str, Any], vocabulary: Vocabulary, *, inclusive: bool
    ) -> Iterator[PredictionFolder]:
        """Start a folder of results, or continue one, and keep other runs out of it meanwhile.

        `settings` is all that decides the results, as plain data. With `inclusive`, box corners are pixels that belong
        to the box, as in HICO-DET's predictions.

        Raises UserError: the folder holds results of other settings, or something else, or another run writes there.
        """
        if path.exists() and not path.is_dir():
            raise UserError("the folder for results is a file", where=path, fix="give another --out")
        if path.is_dir() and not (path / SETTINGS).is_file() and any(each.name != LOCK for each in path.iterdir()):
            expected = "an empty or new folder"
            raise UserError("this folder holds something else", where=path, expected=expected, fix="give another --out")
        folder = cls(path, vocabulary, inclusive)
        with sole_writer(path, fix="wait for it, or give another --out", within="**/"):
            folder._check_settings(json.loads(json.dumps(settings)))
            folder._read_journal()
            yield folder

    def is_done(self, source: Source, picture: Path | None) -> bool:
        """Return whether an earlier run read this very file and drew the picture, where one is wanted."""
        entry = self._entries.get(source.name)
        if entry is None or entry[1] != source.stamp() or entry[2] == "unreadable":
            return False
        return picture is None or picture.is_file()

    def picture_of(self, name: str) -> Path:
        return self.path / PICTURES / _file_name(name, ".jpg")

    def video_of(self, name: str, suffix: str) -> Path:
        """Return where a drawn video (`.mp4`) or its lines (`.jsonl`) go."""
        return self.path / VIDEOS / _file_name(name.removesuffix(suffix), suffix)

    def add(self, source: Source, result: ImageResult) -> None:
        detections = result.detections
        columns = operator.attrgetter("human_idx", "object_idx", "interaction_idx", "score", "teacher_score")
        plain = {
            "size_hw": result.size_hw,
            "boxes": detections.boxes_xyxy.tolist(),
            "scores": detections.scores.tolist(),
            "labels": detections.labels.tolist(),
            "triplets": [columns(each) for each in result.triplets],
        }
        self.record(source, "image", plain)

    def record(self, source: Source, kind: Kind, content: Any) -> None:
        """Add a line to the journal: an image's result, a video's frames and damage, or why a file is unreadable."""
        stamp = source.stamp()
        line = _line({"name": source.name, "stamp": stamp, "kind": kind, "content": content})
        with self._journal.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._entries[source.name] = (self._end, stamp, kind)
        self._end += len(line)

    def reason(self, name: str) -> str | None:
        """Return why a file could not be read; None for any other file."""
        return self._read(name) if self.kind(name) == "unreadable" else None

    def damage(self, name: str) -> str | None:
        """Return what could not be read of a video; None for any other file."""
        return convert(self._read(name), _Video).damage if self.kind(name) == "video" else None

    def kind(self, name: str) -> str | None:
        """Return the kind of a file's entry; None for a file that is not in the journal."""
        return self._entries[name][2] if name in self._entries else None

    def finish(self, sources: Sequence[Source], refused: Sequence[tuple[str, str]]) -> list[Path]:
        """Write the results of the files, in their order, and return the paths written."""
        images = [source.name for source in sources if self.kind(source.name) == "image"]
        with replacing(self.path / PREDICTIONS) as file:
            for name in images:
                file.write(b"".join(_line(row) for row in self._triplet_rows(name, self._read(name))))
        with replacing(self.path / DETECTIONS) as file:
            for part in self._coco(images):
                file.write(part)
        with replacing(self.path / UNREADABLE) as file:
            for name, reason in [
                *refused,
                *((each.name, self.reason(each.name) or self.damage(each.name)) for each in sources),
            ]:
                if reason is not None:
                    file.write(_line({"file_name": name, "reason": reason}))
        return [self.path / name for name in (PREDICTIONS, DETECTIONS, UNREADABLE)]

    def _check_settings(self, settings: dict[str, Any]) -> None:
        try:
            earlier = read_json(self.path / SETTINGS)
        except UserError:
            earlier = {"settings": "damaged"}
        if earlier is None:
            write_json(self.path / SETTINGS, settings)
        elif earlier != settings:
            before, now = flatten(earlier), flatten(settings)
            differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
            raise UserError(
                "this folder holds predictions made with other settings",
                where=self.path,
                expected=", ".join(f"{key} {json.dumps(before.get(key))}"[:80] for key in differing[:8]),
                got=", ".join(f"{key} {json.dumps(now.get(key))}"[:80] for key in differing[:8]),
                fix=f"give another --out, or rm -r {self.path}",
            )

    def _read_journal(self) -> None:
        self._journal = self.path / JOURNAL
        if not self._journal.is_file():
            return
        with self._journal.open("rb+") as file:
            for line in iter(file.readline, b""):
                try:
                    entry: _Entry = parse_json(line if line.endswith(b"\n") else b"", _Entry, any_text=True)
                    self._check(entry)
                except ValueError:
                    break
                self._entries[entry.name] = (self._end, entry.stamp, entry.kind)
                self._end += len(line)
            file.truncate(self._end)

    def _check(self, entry: _Entry) -> None:
        # Raises a ValueError. What `record` was given passes.
        if entry.kind == "image":
            image = convert(entry.content, _Image)
            boxes, interactions = len(image.boxes), len(self.vocabulary)
            if not boxes == len(image.scores) == len(image.labels):
                raise ValueError("boxes, scores and labels differ in number")
            if max(image.labels, default=0) >= len(self.vocabulary.objects):
                raise ValueError("a label is outside the vocabulary")
            if any(max(h, o) >= boxes or k >= interactions for h, o, k, *_ in image.triplets):
                raise ValueError("a triplet is of no box or interaction")
        else:
            convert(entry.content, str if entry.kind == "unreadable" else _Video)

    def _read(self, name: str) -> Any:
        with self._journal.open("rb") as file:
            file.seek(self._entries[name][0])
            return parse_json(file.readline())["content"]

    def _triplet_rows(self, name: str, plain: dict[str, Any]) -> Iterator[dict[str, Any]]:
        boxes = [[edge - by for edge, by in zip(box, self._shift, strict=True)] for box in plain["boxes"]]
        for human_idx, object_idx, interaction, score, teacher_score in plain["triplets"]:
            verb, object_name = self.vocabulary.interactions[interaction]
            yield {
                "file_name": name,
                "human_xyxy": boxes[human_idx],
                "object_xyxy": boxes[object_idx],
                "interaction": interaction,
                "verb": verb,
                "object": object_name,
                "score": score,
                "teacher_score": teacher_score,
            }

    def _coco(self, names: Sequence[str]) -> Iterator[bytes]:
        # Piece by piece, so that memory does not grow with the number of images. Ids count from 1.
        categories = [{"id": row, "name": name} for row, name in enumerate(self.vocabulary.objects, start=1)]
        yield b'{"categories": ' + _line(categories).strip() + b',\n"images": ['
        for number, name in enumerate(names, start=1):
            height, width = self._read(name)["size_hw"]
            yield _entry(number, {"file_name": name, "width": width, "height": height})
        yield b'],\n"annotations": ['
        box_ids = count(1)
        for number, name in enumerate(names, start=1):
            plain = self._read(name)
            for (x1, y1, x2, y2), score, label in zip(plain["boxes"], plain["scores"], plain["labels"], strict=True):
                place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                of_image = {"image_id": number, "category_id": label + 1, **place}
                yield _entry(next(box_ids), {**of_image, "score": score, "iscrowd": 0})
        yield b"]}\n"


def _file_name(name: str, suffix: str) -> str:
    # A last part that is too long or cannot be written is replaced by its beginning and its hash.
    parent, slash, last = name.rpartition("/")
    raw = os.fsencode(last)
    if len(raw) > MAX_NAME_BYTES:
        last = f"{raw[: MAX_NAME_BYTES - 20].decode(errors='ignore')}~{hashlib.sha256(raw).hexdigest()[:12]}"
    return f"{parent}{slash}{last}{suffix}"


def _entry(number: int, columns: dict[str, Any]) -> bytes:
    return (b",\n" if number > 1 else b"\n") + _line({"id": number, **columns}).strip()


def _line(plain: Any) -> bytes:
    try:
        return (json.dumps(plain, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8: escaped, it comes back as it was.
        return (json.dumps(plain) + "\n").encode()
