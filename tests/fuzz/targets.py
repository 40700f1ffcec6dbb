"""What reads files: each target is a folder of sound files, one of which is spoiled, and a public entry point."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import nn

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import CacheSplit
from hoi.cache.tools.describe import info
from hoi.cache.tools.verify import verify
from hoi.config import (
    HicodetDataset,
    HicodetFiles,
    PipelineConfig,
    TeacherConfig,
    VcocoDataset,
    WorldDataset,
    load_config,
)
from hoi.config.detectors import PrecomputedDetectorConfig
from hoi.datasets import UnreadableImage, open_images
from hoi.datasets.hicodet import hicodet_vocabulary
from hoi.datasets.images import read_image
from hoi.datasets.vcoco import KEYS
from hoi.datasets.vocabulary_file import read_vocabulary
from hoi.detectors.looked_up import PrecomputedDetector
from hoi.evaluation.audit import run_audit
from hoi.evaluation.evaluate import evaluate
from hoi.evaluation.score import score
from hoi.files import file_sha256
from hoi.prediction.checkpoint import Checkpoint
from hoi.prediction.export import make_checkpoint
from hoi.prediction.folder import PredictionFolder, Source
from hoi.report.build import write_report
from hoi.sweeps.plan import load_bench, load_sweep
from hoi.teachers.loading import load_model
from hoi.vocabulary import Vocabulary
from hoi.web.check_page import open_session
from hoi.weights import load_weights, read_weights
from hoi.world.models import WEIGHTS
from tests.fakes import hicodet, vcoco
from tests.fakes.extractors import RandomSignals
from tests.fakes.pipelines import photo_pipeline, small_world, trained_world, write_pipeline
from tests.fuzz.mutations import (
    Variant,
    hdf5_variants,
    json_variants,
    lines_variants,
    raw_variants,
    write,
    yaml_variants,
)

EXAMPLES = Path(__file__).parents[2]
VOCABULARY_YAML = "[{verb: ride, object: bicycle, synonyms: [a, b]}, {verb: pet, object: dog, phrase: petting a dog}]"
VOCABULARY = Vocabulary(("person", "bicycle"), ("ride", "push"), (("ride", "bicycle"), ("push", "bicycle")))


@dataclass(frozen=True)
class Target:
    """One kind of file that is read.

    Args:
        folder: Sound files.
        file: The one that is spoiled, below the folder.
        variants: The ways in which it is.
        call: The entry point, given a copy of the folder.
        seal: Makes the records beside a spoiled file speak of it, as whoever spoils it on purpose would.
    """

    name: str
    folder: Path
    file: str
    variants: list[Variant]
    call: Callable[[Path], object]
    seal: Callable[[Path], object] | None = None
    share: float = 1.0
    """Of the cases that other targets get; a report takes seconds."""

    def case(self, number: int, work: Path) -> Callable[[], object]:
        """Return a case: one variant in a fresh copy of the folder; the sound files for -1."""
        name, spoil = self.variants[number] if number >= 0 else ("as it is", lambda path: None)
        # A name of its own: what is read once and kept is kept by its path.
        here = work / f"case-{number}"

        def run() -> object:
            for before in work.glob("case-*"):
                shutil.rmtree(before)
            shutil.copytree(self.folder, here)
            spoil(here / self.file)
            if self.seal is not None:
                self.seal(here)
            return self.call(here)

        run.__name__ = f"{self.name} {self.file}: {name}"
        return run


def targets(root: Path) -> list[Target]:
    """Make the sound files below a folder, and return every target."""
    return [
        *of_checkpoints(root),
        *of_weights(root),
        *of_caches(root),
        *of_results(root),
        *of_predictions(root),
        *of_annotations(root),
        *of_settings(root),
        *of_images(root),
    ]


def of_checkpoints(root: Path) -> list[Target]:
    trained_world(root / "world")
    shutil.rmtree(root / "world/checkpoint")
    make_checkpoint(small_world(root / "world"), out=root / "checkpoint", models="refer")
    folder = root / "checkpoint"

    def call(here: Path) -> object:
        return Checkpoint.open(here).student()

    found = [
        Target(
            "checkpoint",
            folder,
            "checkpoint.json",
            json_variants(folder.joinpath("checkpoint.json").read_bytes()),
            call,
        )
    ]
    for name in ("student.safetensors", "text.safetensors"):
        found.append(Target("checkpoint", folder, name, tensors_variants(folder / name), call, _seal_checkpoint))
    return found


def of_weights(root: Path) -> list[Target]:
    """Return weights of a teacher in a folder with its config, as `torch.save` and as TorchScript write them."""
    folder, model = root / "clip", nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    shutil.copytree(WEIGHTS / "clip", folder)
    torch.save({"state_dict": model.state_dict()}, folder / "saved.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(model), str(folder / "script.tar"))

    def fill(name: str) -> Callable[[Path], object]:
        return lambda here: load_weights(
            nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), read_weights(here / name), name
        )

    def load(here: Path) -> object:
        return load_model(TeacherConfig(model=f"local-dir:{here}"))

    config, tensors = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    return [
        *(
            Target("weights", folder, f, raw_variants((folder / f).read_bytes()), fill(f))
            for f in ("saved.tar", "script.tar")
        ),
        Target("teacher", folder, config.name, json_variants(config.read_bytes()), load),
        Target("teacher", folder, tensors.name, tensors_variants(tensors), load, share=0.2),
    ]


def _seal_checkpoint(here: Path) -> None:
    record = json.loads((here / "checkpoint.json").read_text())
    record["files"] = {name: file_sha256(here / name) for name in record["files"]}
    (here / "checkpoint.json").write_text(json.dumps(record))


def tensors_variants(path: Path) -> list[Variant]:
    """Return a safetensors file with another header, and its raw variants."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]

    def with_header(spoiled: Callable[[Path], None]) -> Callable[[Path], None]:
        def writer(file: Path) -> None:
            spoiled(file)
            changed = file.read_bytes()
            write(file, len(changed).to_bytes(8, "little") + changed + body)

        return writer

    names = list(header)[:2]
    small = json_variants(json.dumps({name: header[name] for name in names}).encode())
    whole = json_variants(json.dumps({"a": 1}).encode())
    return raw_variants(data) + [(f"header: {name}", with_header(spoil)) for name, spoil in small + whole]


def of_caches(root: Path) -> list[Target]:
    config = photo_pipeline(root / "photos", (2, 0, 1, 5, 0, 3), teacher={"spatial_map": True})
    teacher_cache.build_cache(config, RandomSignals)
    folder = Path(config.cache.folder)

    def read(here: Path) -> None:
        for mode in ("memory", "mapped"):
            split = CacheSplit.open(here, "test", mode=mode)
            _ = split.text_bank, split.vocabulary
            for batch in split.batches(2, extra=("spatial_map",)):
                _ = batch.union_similarity.sum()

    def judge(here: Path) -> None:
        there = config.model_copy(update={"cache": config.cache.model_copy(update={"folder": str(here)})})
        str(verify(there)), str(info(there))

    found = []
    for call in (read, judge):
        name = f"cache, {'training' if call is read else 'verify and info'}"
        for file in ("manifest.json", "bank.json", "shard-00000.json"):
            variants = json_variants((folder / "test" / file).read_bytes())
            found.append(Target(name, folder, f"test/{file}", variants, call))
        for file in ("index.h5", "bank.h5", "shard-00001.h5"):
            variants = hdf5_variants(folder / "test" / file)
            found.append(Target(name, folder, f"test/{file}", variants, call, seal_cache))
    return found


def seal_cache(here: Path) -> None:
    """Make manifest, receipts and index of a cache's split `test` speak of the files as they are."""
    folder = here / "test"
    plain = json.loads((folder / "manifest.json").read_text())
    for shard in plain["shards"]:
        _note(folder / shard["name"], shard)
        (folder / shard["name"]).with_suffix(".json").write_text(json.dumps(shard))
    _note(folder / "bank.h5", plain["bank"])
    (folder / "bank.json").write_text(json.dumps(plain["bank"]))
    digest = hashlib.sha256("".join(shard["sha256"] + "\n" for shard in plain["shards"]).encode()).hexdigest()
    try:
        with h5py.File(folder / "index.h5", "r+", locking=False) as file:
            if file.attrs.get("shards_sha256") != digest:
                file.attrs["shards_sha256"] = digest
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        pass
    _note(folder / "index.h5", plain["index"])
    (folder / "manifest.json").write_text(json.dumps(plain))


def _note(path: Path, record: dict[str, Any]) -> None:
    record |= {"sha256": file_sha256(path), "num_bytes": path.stat().st_size}


def of_results(root: Path) -> list[Target]:
    config = small_world(root / "world")
    evaluate(config)
    run_audit(config)
    output = Path(config.output)
    run = "runs/best/seed-3"

    def there(here: Path) -> PipelineConfig:
        return config.model_copy(update={"output": str(here)})

    def read(here: Path) -> None:
        run_audit(there(here))
        write_report(there(here))

    def judge(here: Path) -> None:
        run_audit(there(here))

    def export(here: Path) -> None:
        make_checkpoint(there(here), out=here / "exported", models="refer")

    of_json = {name: json_variants((output / name).read_bytes()) for name in ("results.json", "summary.json")}
    lines = lines_variants((output / run / "metrics.jsonl").read_bytes())
    record = json_variants((output / run / "run.json").read_bytes())
    tensors = tensors_variants(output / run / "model.safetensors")
    return [
        *(Target("results, audit", output, name, variants, judge) for name, variants in of_json.items()),
        *(Target("results, report", output, name, variants, read, share=0.05) for name, variants in of_json.items()),
        *(Target("results, checkpoint", output, name, variants, export) for name, variants in of_json.items()),
        Target("run, checkpoint", output, f"{run}/run.json", record, export),
        Target("run, checkpoint", output, f"{run}/model.safetensors", tensors, export),
        Target("run, report", output, f"{run}/metrics.jsonl", lines, read, share=0.02),
    ]


def of_predictions(root: Path) -> list[Target]:
    """Return what predictions are read from: the folder of a run, marks, and files of predictions of every kind."""
    folder = root / "predictions"
    folder.mkdir()
    lines = [
        {
            "file_name": f"{image}.jpg",
            "human_xyxy": [1.0, 1.0, 20.0, 30.0],
            "object_xyxy": [5.0, 5.0, 25.0, 30.0],
            "interaction": image % 2,
            "verb": VOCABULARY.interactions[image % 2][0],
            "object": "bicycle",
            "score": 0.9 - image / 20,
        }
        for image in range(12)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = ("file_name", "human_xyxy", "object_xyxy", "verb", "object")
    (folder / "annotations.jsonl").write_text(
        "".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in lines)
    )
    (folder / "images").mkdir()
    for line in lines:
        _photograph(folder / "images" / str(line["file_name"]))
    session, _ = open_session(folder / "predictions.jsonl", folder / "images", None, None, folder / "check", 10, 0)
    for number, row in enumerate(session.sample.asked.tolist()):
        session.mark(row, ("right", "wrong", "skip")[number % 3])

    def results(here: Path) -> None:
        score("folder", here / "annotations.jsonl", here / "predictions.jsonl")

    def marks(here: Path) -> None:
        opened, _ = open_session(here / "predictions.jsonl", here / "images", None, None, here / "check", 10, 0)
        opened.table()

    found = [
        Target("marks", folder, "check/marks.json", json_variants((folder / "check/marks.json").read_bytes()), marks),
        Target(
            "marks", folder, "predictions.jsonl", lines_variants((folder / "predictions.jsonl").read_bytes()), marks
        ),
    ]
    for file in ("predictions.jsonl", "annotations.jsonl"):
        found.append(Target("score of a folder", folder, file, lines_variants((folder / file).read_bytes()), results))
    return found + _of_runs(root)


def _photograph(path: Path) -> None:
    Image.new("RGB", (40, 40)).save(path)


def _of_runs(root: Path) -> list[Target]:
    folder = root / "predicted"
    settings = {"checkpoint": {"sha256": "a" * 64, "overrides": []}, "min_score": 0.1}
    sources = [Source(f"{number}.jpg", folder / f"{number}.jpg") for number in range(3)]
    content = {
        "size_hw": [40, 40],
        "boxes": [[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 30.0, 30.0]],
        "scores": [0.9, 0.8],
        "labels": [0, 1],
        "triplets": [[0, 1, 0, 0.5, 0.4], [0, 1, 1, 0.25, None]],
    }
    with PredictionFolder.open(folder, settings, VOCABULARY, inclusive=False) as opened:
        for source in sources[:2]:
            opened.record(source, "image", content)
        opened.record(sources[2], "unreadable", "the file is truncated")

    def again(here: Path) -> None:
        with PredictionFolder.open(here, settings, VOCABULARY, inclusive=False) as opened:
            for source in sources:
                opened.is_done(source, None)
                opened.reason(source.name)
            opened.finish(sources, [])

    files = {"settings.json": json_variants, "journal.jsonl": lines_variants}
    return [Target("predict", folder, f, variants((folder / f).read_bytes()), again) for f, variants in files.items()]


def of_annotations(root: Path) -> list[Target]:
    """Return annotations and predictions of HICO-DET and V-COCO, in the formats of others."""
    folder = root / "published"
    folder.mkdir()
    (folder / "hico.json").write_text(json.dumps(hicodet.instances_json()))
    (folder / "ppdm.json").write_text(json.dumps(hicodet.ppdm_json()))
    hicodet.write_mat(folder / "anno_bbox.mat")
    image = {
        "filename": hicodet.NAMES[0],
        "predictions": [{"bbox": [0, 5, 18, 28], "category_id": 1}, {"bbox": [4, 24, 39, 43], "category_id": 15}],
        "hoi_prediction": [{"subject_id": 0, "object_id": 1, "category_id": 245, "score": 0.5}],
    }
    (folder / "gen-vlkt.json").write_text(json.dumps({"preds": [image] * 2}))
    (folder / "printed.json").write_text(str([image] * 2))
    (folder / "names.txt").write_text("\n".join(hicodet.NAMES) + "\n")
    # Its own numbers: COCO's classes from 0, and the verb instead of the interaction.
    verb = hicodet_vocabulary().verbs.index("sit_on")
    pair = {"subject_id": 0, "object_id": 1, "category_id": verb, "score": 0.5}
    boxes = [{"bbox": [0, 5, 18, 28], "category_id": 0}, {"bbox": [4, 24, 39, 43], "category_id": 13}]
    qpic = {"filename": hicodet.NAMES[0], "predictions": boxes, "hoi_prediction": [pair]}
    (folder / "qpic.json").write_text(json.dumps([qpic] * 2))
    line = {"file_name": hicodet.NAMES[0], "human_xyxy": [0, 5, 18, 28], "object_xyxy": [4, 24, 39, 43]}
    (folder / "lines.jsonl").write_text(json.dumps({**line, "interaction": 245, "score": 0.5}) + "\n")
    vcoco.write_annotations(folder / "vcoco")
    image_id = vcoco.ids_of("test")[0]
    of_vcoco = {"image_id": image_id, "human_xyxy": [0, 0, 9, 9], "object_xyxy": None}
    (folder / "vcoco.jsonl").write_text(json.dumps({**of_vcoco, "scores": dict.fromkeys(KEYS, 0.5)}) + "\n")
    role = {
        "image_id": image_id,
        "person_box": [0.0, 0.0, 9.0, 9.0],
        "hold_agent": 0.5,
        "hold_obj": [1.0, 1.0, 5.0, 5.0, 0.5],
    }
    (folder / "vsrl.pkl").write_bytes(pickle.dumps([role] * 2))

    def scored(annotations: str, predictions: str, format: str = "lines") -> Callable[[Path], object]:
        return lambda here: score("hicodet", here / annotations, here / predictions, format=format)

    def scored_vcoco(here: Path, predictions: str = "vcoco.jsonl", format: str = "lines") -> object:
        files = here / "vcoco/vcoco_test.json", here / predictions
        return score("vcoco", *files, instances=here / "vcoco/instances_all.json", format=format)

    def scored_pickle(here: Path) -> object:
        return scored_vcoco(here, "vsrl.pkl", "vsrl")

    def scored_images(here: Path) -> object:
        return score("hicodet", here / "hico.json", here / "lines.jsonl", images=here / "names.txt")

    def target(
        file: str, call: Callable[[Path], object], of: Callable[[bytes], list[Variant]] = json_variants
    ) -> Target:
        name = "score of V-COCO" if call in (scored_vcoco, scored_pickle) else "score of HICO-DET"
        return Target(name, folder, file, of((folder / file).read_bytes()), call)

    return [
        target("hico.json", scored("hico.json", "lines.jsonl")),
        target("ppdm.json", scored("ppdm.json", "lines.jsonl")),
        target("anno_bbox.mat", scored("anno_bbox.mat", "lines.jsonl"), raw_variants),
        target("lines.jsonl", scored("hico.json", "lines.jsonl"), lines_variants),
        target("gen-vlkt.json", scored("hico.json", "gen-vlkt.json", "gen-vlkt")),
        target("qpic.json", scored("hico.json", "qpic.json", "qpic")),
        target("printed.json", scored("hico.json", "printed.json", "gen-vlkt"), raw_variants),
        target("names.txt", scored_images, raw_variants),
        target("vsrl.pkl", scored_pickle, raw_variants),
        target("vcoco.jsonl", scored_vcoco, lines_variants),
        target("vcoco/vcoco_test.json", scored_vcoco),
        target("vcoco/instances_all.json", scored_vcoco),
    ]


def of_settings(root: Path) -> list[Target]:
    """Return what a user writes: pipeline files, sweeps, vocabularies, and boxes from elsewhere."""
    folder = root / "settings"
    folder.mkdir()
    write_pipeline(photo_pipeline(root / "photographs"), folder / "pipeline.yaml")
    shutil.copy(EXAMPLES / "pipeline.yaml", folder / "base.yaml")
    (folder / "vocabulary.yaml").write_text(VOCABULARY_YAML)
    (folder / "phrases.txt").write_text(
        "riding a bicycle\nholding a cup | gripping a cup\nriding a scooter\nscooter = motorcycle\n"
    )
    for name in ("ablation", "bench"):
        (folder / f"{name}.yaml").write_bytes((EXAMPLES / "examples" / f"{name}.yaml").read_bytes())
    boxes = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 50}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
    }
    (folder / "instances.json").write_text(json.dumps(boxes))
    found = [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 30, 40], "score": 0.9}] * 2
    (folder / "results.json").write_text(json.dumps(found))

    def looked_up(here: Path) -> None:
        config = PrecomputedDetectorConfig(
            name="precomputed", results=str(here / "results.json"), instances=str(here / "instances.json")
        )
        detector = PrecomputedDetector(config, VOCABULARY, "cpu", WorldDataset(name="world"))
        detector.detect([np.zeros((50, 60, 3), np.uint8)], ["a.jpg"])

    vcoco.write_images(folder / "coco")
    hicodet.write_tree(folder / "hico")
    (folder / "names.txt").write_text("\n".join(hicodet.NAMES) + "\n")

    def of_ids(here: Path) -> object:
        files = {"images": str(here / "coco"), "image_list": str(here / "coco/ids.txt")}
        return open_images(VcocoDataset(name="vcoco", **files), "test").image_ids

    def of_names(here: Path) -> object:
        lists = HicodetFiles(test2015=str(here / "names.txt"))
        return open_images(HicodetDataset(name="hicodet", root=str(here / "hico"), image_lists=lists), "test").image_ids

    calls: dict[str, tuple[Callable[[bytes], list[Variant]], Callable[[Path], object]]] = {
        "pipeline.yaml": (yaml_variants, lambda here: load_config(here / "pipeline.yaml")),
        "base.yaml": (yaml_variants, lambda here: load_config(here / "base.yaml")),
        "vocabulary.yaml": (yaml_variants, lambda here: read_vocabulary(str(here / "vocabulary.yaml"))),
        "phrases.txt": (raw_variants, lambda here: read_vocabulary(str(here / "phrases.txt"))),
        "coco/ids.txt": (raw_variants, of_ids),
        "names.txt": (raw_variants, of_names),
        "ablation.yaml": (yaml_variants, lambda here: load_sweep(here / "ablation.yaml")),
        "bench.yaml": (yaml_variants, lambda here: load_bench(here / "bench.yaml")),
        "instances.json": (json_variants, looked_up),
        "results.json": (json_variants, looked_up),
    }
    return [
        Target(
            "settings" if file.endswith((".yaml", ".txt")) else "boxes",
            folder,
            file,
            of((folder / file).read_bytes()),
            call,
        )
        for file, (of, call) in calls.items()
    ]


def of_images(root: Path) -> list[Target]:
    folder = root / "images"
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))

    def target(kind: str) -> Target:
        noise.save(folder / f"a.{kind}")

        def read(here: Path) -> None:
            with suppress(UnreadableImage):
                read_image(here / f"a.{kind}", 10_000_000)

        return Target("images", folder, f"a.{kind}", raw_variants((folder / f"a.{kind}").read_bytes()), read)

    return [target(kind) for kind in ("png", "jpg", "webp", "tiff", "gif", "bmp")]
