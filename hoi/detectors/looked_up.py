"""Boxes of known images: detections from a COCO result file, and annotated boxes. No pair is read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hoi.boxes import find_other_frame
from hoi.config import DatasetSettings, GroundTruthDetectorConfig, PrecomputedDetectorConfig
from hoi.datasets import dataset_of
from hoi.datasets.names import bare_name, join_names, plain_name
from hoi.detectors import keep_detections, kept_settings, match_classes
from hoi.errors import UserError
from hoi.files import Finite, convert, file_sha256
from hoi.json_lines import read_json_file, refuse_repeats, shown
from hoi.prompts import spaced
from hoi.records import Detections
from hoi.vocabulary import Vocabulary


class PrecomputedDetector:
    """Finds detections by image: file name as in the dataset, image id, or bare file name where each side has it once.

    An image that `instances` lists and `results` does not has no detections; one that `instances` does not list is an
    error, because nobody looked at it.
    """

    def __init__(
        self, config: PrecomputedDetectorConfig, vocabulary: Vocabulary, device: str, dataset: DatasetSettings
    ) -> None:
        self._config, self._dataset, self.listed_in = config, dataset, config.instances
        instances = read_json_file(Path(config.instances), "COCO instances (detector.instances)")
        images, categories, self._size_of = _listed(instances, config.instances)
        labels = match_classes(list(categories.values()), vocabulary, f"detector precomputed, {config.instances}")
        label_of = dict(zip(categories, labels.tolist(), strict=True))
        self._images = images
        self._of_name = {plain_name(name): number for number, name in images.items()}
        count = Counter(map(bare_name, self._of_name))
        self._of_bare = {bare_name(n): number for n, number in self._of_name.items() if count[bare_name(n)] == 1}
        self._of_id = {str(number): number for number in images}
        self._asked_as: dict[Any, str] = {}
        results = read_json_file(Path(config.results), "COCO results (detector.results)")
        self._found = _group(results, config.results, images, label_of)
        self._check_frames()
        content = {"images": _sorted(images), "categories": _sorted(categories)}
        self._digests = {
            "results_sha256": file_sha256(Path(config.results)),
            "instances_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        }

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        numbers = [self._number_or_refuse(image_id) for image_id in image_ids]
        sizes_wh = [(image.shape[1], image.shape[0]) for image in images]
        for number, image_id, size_wh in zip(numbers, image_ids, sizes_wh, strict=True):
            self._check_size(number, image_id, size_wh)
        found = [self._found.get(number, np.zeros((0, 6))) for number in numbers]
        # Where the file says how large its images are, all its boxes were looked at when it was read.
        unsized = [row for row, number in enumerate(numbers) if number not in self._size_of]
        self._refuse_other_frame(
            [found[row] for row in unsized], [image_ids[row] for row in unsized], [sizes_wh[row] for row in unsized]
        )
        detections = []
        for rows, size_wh, image_id in zip(found, sizes_wh, image_ids, strict=True):
            columns = (rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), size_wh[::-1])
            detections.append(keep_detections(*columns, self._config, nms=True, image_id=image_id))
        return detections

    def provenance(self) -> dict[str, object]:
        return {"name": "precomputed", **self._digests, **kept_settings(self._config)}

    def lists(self, image_id: str) -> bool:
        return self._number(image_id) is not None

    def notices(self, image_ids: Sequence[str]) -> list[str]:
        """Say how these images were joined, and what of `instances` none of them is. A UserError if nothing joins."""
        used = {number for image_id in image_ids if (number := self._number(image_id)) is not None}
        if image_ids and not used:
            names = list(self._images.values())
            what, got = "no image of the data set is listed in the instances", shown(names[0]) if names else "no image"
            fix = "name the images in it by their paths below the folder of images"
            expected = f"names such as '{image_ids[0]}'"
            raise UserError(what, where=f"{self.listed_in}, images", expected=expected, got=got, fix=fix)
        left = [name for number, name in self._images.items() if number not in used]
        said = f"{len(left)} images of {self.listed_in} are none of the data set's, as '{left[0]}'" if left else ""
        return [*self._of_dataset[1], *([said] if said else [])]

    @cached_property
    def _of_dataset(self) -> tuple[dict[str, Any], list[str]]:
        """The numbers of the dataset's images by image id, and notices of how they were joined."""
        try:
            source = dataset_of(self._dataset)
            listed = (name for split in self._dataset.splits for name in source.images(split).image_ids)
            image_ids = list(dict.fromkeys(listed))
        except UserError:
            # A checkpoint is used where its training images are not.
            return {}, []
        by_id = {name: self._of_id[name] for name in image_ids if name in self._of_id}
        joined = join_names(self._images.values(), image_ids)
        by_name = {image_ids[joined.rows[name]]: n for n, name in self._images.items() if name in joined.rows}
        return dict.fromkeys(image_ids) | by_id | by_name, joined.notices(f"images of {self.listed_in}")

    def _number(self, image_id: str) -> Any:
        if image_id in self._of_dataset[0]:
            return self._of_dataset[0][image_id]
        number = self._of_name.get(plain_name(image_id), self._of_id.get(image_id))
        return self._of_bare.get(bare_name(image_id)) if number is None else number

    def _number_or_refuse(self, image_id: str) -> Any:
        number = self._number(image_id)
        if number is None:
            problem, where = "the precomputed detections do not list an image", f"{self.listed_in}, images"
            expected = f"an entry with file_name or id '{image_id}'"
            fix = "run the detector on this image too, or take the image out of the dataset"
            raise UserError(problem, where=where, expected=expected, fix=fix)
        asked_as = self._asked_as.setdefault(number, image_id)
        if asked_as != image_id:
            what, where = "two images would get the boxes of one listed image", f"{self.listed_in}, images"
            got = f"{asked_as} and {image_id}"
            fix = "list both by their paths below the folder of images"
            raise UserError(what, where=where, expected=f"one image '{self._images[number]}'", got=got, fix=fix)
        return number

    def _check_size(self, number: Any, image_id: str, size_wh: tuple[int, int]) -> None:
        size = self._size_of.get(number, size_wh)
        if size != size_wh:
            is_turned = size == size_wh[::-1]
            cause = "the image is turned by EXIF, its boxes are not" if is_turned else "the file is a resized copy"
            raise UserError(
                f"boxes are of an image of another size: {cause}",
                where=f"{self.listed_in}, image {self._images[number]}",
                expected=f"width {size_wh[0]} and height {size_wh[1]}, as of the upright image {image_id}",
                got=f"width {size[0]} and height {size[1]}",
                fix="run the detector on these very files, turned upright",
            )

    def _check_frames(self) -> None:
        numbers = [number for number in self._found if number in self._size_of]
        self._refuse_other_frame(list(self._found.values()), [self._images[n] for n in self._found], None)
        sizes = [self._size_of[number] for number in numbers]
        self._refuse_other_frame([self._found[n] for n in numbers], [self._images[n] for n in numbers], sizes)

    def _refuse_other_frame(
        self, found: Sequence[np.ndarray], names: Sequence[str], sizes_wh: Sequence[tuple[int, int]] | None
    ) -> None:
        of = np.repeat(np.arange(len(found)), list(map(len, found)))
        if not len(of):
            return
        boxes = np.concatenate(found)[:, :4]
        mistake = find_other_frame(boxes, None if sizes_wh is None else np.array(sizes_wh)[of])
        if mistake is not None:
            row, what = mistake
            name, (x1, y1, x2, y2) = names[of[row]], boxes[row].tolist()
            size = "the image" if sizes_wh is None else "its {} x {}".format(*sizes_wh[of[row]])
            expected = f"bbox [x, y, width, height] in {size} pixels"
            got, fix = f"[{x1:g}, {y1:g}, {x2 - x1:g}, {y2 - y1:g}]", "write the boxes in pixels of these very files"
            raise UserError(what, where=f"{self._config.results}, image {name}", expected=expected, got=got, fix=fix)


def _listed(instances: Any, path: str) -> tuple[dict[Any, str], dict[Any, str], dict[Any, tuple[int, int]]]:
    """Return file names and (width, height), where given, by image id, and names by category id."""
    try:
        images, categories = instances["images"], instances["categories"]
        names = {_known_id(entry["id"]): str(entry["file_name"]) for entry in images}
        classes = {_known_id(entry["id"]): str(entry["name"]) for entry in categories}
        sizes = {entry["id"]: (entry.get("width"), entry.get("height")) for entry in images}
        for size in sizes.values():
            convert(size, tuple[Finite | None, Finite | None])
    except (KeyError, TypeError, AttributeError) as error:
        expected = "images [{id, file_name}] and categories [{id, name}]"
        got = f"no {error}" if isinstance(error, KeyError) else type(instances).__name__
        raise UserError("this is no COCO instances file", where=path, expected=expected, got=got) from None
    except ValueError as error:
        what, expected = "an id or a size is of another type", "ids that are whole numbers or text, sizes in pixels"
        raise UserError(what, where=path, expected=expected, got=error) from None
    refuse_repeats((entry["id"] for entry in images), "an image id", path, "images")
    refuse_repeats((plain_name(str(entry["file_name"])) for entry in images), "a file name", path, "images")
    refuse_repeats((entry["id"] for entry in categories), "a category id", path, "categories")
    return names, classes, {number: size for number, size in sizes.items() if None not in size}


def _sorted(of_id: dict[Any, str]) -> list[tuple[Any, str]]:
    return sorted(of_id.items(), key=lambda item: (isinstance(item[0], str), item[0]))


def _known_id(value: Any) -> Any:
    # True and 1 are equal in Python, and infinity is a number of what Python writes.
    if isinstance(value, bool) or not (isinstance(value, str | int) or (isinstance(value, float) and value % 1 == 0)):
        raise ValueError(shown(value))
    return value


def _group(results: Any, path: str, images: dict[Any, str], label_of: dict[Any, int]) -> dict[Any, np.ndarray]:
    """Return the detections of each image, float64 [N, 6]: xyxy, score, label."""
    if not isinstance(results, list):
        raise UserError("this is no COCO result file", where=path, expected="a list", got=type(results).__name__)
    known: dict[str, dict[Any, Any]] = {"image_id": images, "category_id": label_of}
    rows: dict[Any, list[list[float]]] = defaultdict(list)
    for position, entry in enumerate(results):
        where = f"{path}, entry {position}"
        try:
            number, category = entry["image_id"], entry["category_id"]
            x, y, width, height = (float(side) for side in entry["bbox"])
            score = float(entry["score"])
            foreign = [key for key, values in known.items() if isinstance(entry[key], bool) or entry[key] not in values]
        except (KeyError, TypeError, ValueError, OverflowError):
            expected = "{image_id, category_id, bbox: [x, y, width, height], score}"
            raise UserError("a detection is not understood", where=where, expected=expected, got=shown(entry)) from None
        for key in foreign:
            what, examples = f"a detection has a foreign {key}", ", ".join(map(shown, list(known[key])[:3]))
            expected = f"one of instances' (such as {examples}): text is no number"
            raise UserError(what, where=where, expected=expected, got=shown(entry[key]))
        if not (np.isfinite([x, y, width, height]).all() and width >= 0 and height >= 0 and 0 <= score <= 1):
            expected = "a finite box of width and height >= 0, a score in [0, 1]"
            raise UserError("a detection is impossible", where=where, expected=expected, got=shown(entry))
        rows[number].append([x, y, x + width, y + height, score, label_of[category]])
    return {number: np.array(found) for number, found in rows.items()}


class GroundTruthDetector:
    """Annotated boxes of the vocabulary's objects at score 1, with noise that is drawn from the image's id."""

    def __init__(
        self, config: GroundTruthDetectorConfig, vocabulary: Vocabulary, device: str, dataset: DatasetSettings
    ) -> None:
        self._config, self._dataset = config, dataset_of(dataset)
        self._rows = {spaced(name).lower(): row for row, name in enumerate(vocabulary.objects)}

    def detect(self, images: Sequence[np.ndarray], image_ids: Sequence[str]) -> list[Detections]:
        return [self._detect(image.shape[:2], image_id) for image, image_id in zip(images, image_ids, strict=True)]

    def provenance(self) -> dict[str, object]:
        return {"name": "ground_truth", "jitter": self._config.jitter, **kept_settings(self._config)}

    def _detect(self, size_hw: tuple[int, int], image_id: str) -> Detections:
        boxes, names = self._dataset.boxes(image_id)
        labels = np.array([self._rows.get(spaced(name).lower(), -1) for name in names], dtype=np.int64)
        if self._config.jitter > 0:
            seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
            sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
            boxes = boxes + np.random.default_rng(seed).normal(0.0, self._config.jitter, boxes.shape) * sides
            # Noise may have swapped two edges.
            boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        scores = np.ones(len(boxes), np.float32)
        return keep_detections(boxes, scores, labels, size_hw, self._config, nms=False, image_id=image_id)
