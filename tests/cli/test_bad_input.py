"""What a user can get wrong: one clear line, nothing half-written, and what is finished stays.

What a single module refuses is tested beside it; here is what takes a whole stage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import CacheSplit
from hoi.config import PipelineConfig, load_config
from hoi.errors import run_program
from hoi.evaluation.evaluate import evaluate
from hoi.records import ImageSignals
from hoi.training import train
from tests.fakes.extractors import DrawnSignals, FailingSignals, RandomSignals
from tests.fakes.pipelines import WEIGHTS, photo_pipeline, refused, small_files, small_pipeline, write_pipeline

ROOT = Path(__file__).parents[2]
STUDENT = {"student": {"width": 16}}
ONE_SEED = {"seeds": [0], "epochs": 2, "batch_images": 8, "checkpoint_every": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cache section of a finished cache."""
    config = small_pipeline(tmp_path_factory.mktemp("world"))
    teacher_cache.build_cache(config, DrawnSignals)
    return config.cache.model_dump(mode="json")


def files(folder: Path) -> list[str]:
    """Everything in a folder but the lock and the log of timings."""
    kept = (p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "journal.jsonl"))
    return sorted(p.relative_to(folder).as_posix() for p in kept)


@pytest.mark.parametrize(
    ("override", "what", "where"),
    [
        ("train.seeds=[0, 0]", "a seed is there twice", "key 'train.seeds'"),
        ("students={../x: {}}", "a folder will have this name", "key 'students"),
        ("students={global: {}}", "another row of this name", "key 'students.global'"),
        ("dataset.splits={fit: 3}", "splits train, validation and test, not fit", "key 'dataset"),
        ("name=a\0b", "not valid YAML", "override name"),
    ],
)
def test_a_wrong_override_is_refused(override: str, what: str, where: str) -> None:
    error = refused(load_config, ROOT / "pipeline.yaml", [override])
    assert what in error.what
    assert where in str(error.where)


@pytest.mark.parametrize(
    ("name", "what"), [("", "this is a folder"), ("binary.yaml", "not a text file"), ("empty.yaml", "no pipeline")]
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").write_text("")
    assert what in refused(load_config, tmp_path / name).what


@pytest.mark.parametrize(
    ("override", "what", "where"),
    [
        ("teacher.model=local-dir:nowhere", "no folder of an open_clip model", "nowhere"),
        ("detector={name: torchvision, model: fasterrcnn_resnet5_fpn}", "no such detector", "detector.model"),
        ("detector.weights={folder}/cut.safetensors", "no weight file of the world's detector", "cut"),
        ("teacher.model=local-dir:{folder}/clip", "weight file cannot be read", "clip"),
    ],
)
def test_an_unknown_or_damaged_model_leaves_the_cache_empty(
    tmp_path: Path, override: str, what: str, where: str
) -> None:
    (tmp_path / "cut.safetensors").write_bytes((WEIGHTS / "detector.safetensors").read_bytes()[:10_000])
    (tmp_path / "clip").mkdir()
    for path in (WEIGHTS / "clip").iterdir():
        (tmp_path / "clip" / path.name).write_bytes(path.read_bytes()[:100_000])
    path = write_pipeline(small_pipeline(tmp_path), tmp_path / "pipeline.yaml")
    error = refused(teacher_cache.build_cache, load_config(path, [override.replace("{folder}", str(tmp_path))]))
    assert what in error.what
    assert where in str(error.where)
    assert files(tmp_path / "cache") == []


def test_a_link_to_nothing_and_a_lost_image_are_recorded(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, cache={"max_failed_share": 0.4})
    (tmp_path / "images" / "05.png").symlink_to(tmp_path / "gone.png")

    class Loses(RandomSignals):
        """Takes an image away while the first shard is made."""

        def extract(self, image_ids: Sequence[str], images: Sequence[np.ndarray]) -> list[ImageSignals]:
            (tmp_path / "images" / "04.png").unlink(missing_ok=True)
            return super().extract(image_ids, images)

    [split] = teacher_cache.build_cache(config, Loses).splits
    assert (split.num_images, split.num_failed) == (6, 2)
    failed = json.loads((tmp_path / "cache" / "test" / "shard-00002.json").read_text())["failed"]
    assert failed == [["04.png", "the file is missing"], ["05.png", "the file is missing"]]


def test_boxes_of_a_pixel_and_less_have_finite_features(tmp_path: Path) -> None:
    config = photo_pipeline(tmp_path, num_pairs=(1,))
    names = {"person": 1, "bicycle": 2, "dog": 3}
    boxes = [("person", [5, 5, 1, 1]), ("bicycle", [8, 7, 1, 1]), ("dog", [0, 0, 0, 0]), ("dog", [2, 2, 0.01, 300])]
    results = [{"image_id": 7, "category_id": names[n], "bbox": box, "score": 0.9} for n, box in boxes]
    instances = {
        "images": [{"id": 7, "file_name": "00.png"}],
        "categories": [{"id": number, "name": name} for name, number in names.items()],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    places = {"results": str(tmp_path / "results.json"), "instances": str(tmp_path / "instances.json")}
    plain = config.model_dump(mode="json")
    plain["detector"] = {"name": "precomputed", **places}
    plain["teacher"] = {"model": f"local-dir:{WEIGHTS / 'clip'}", "regions": ["map", "crop"], "batch_size": 8}
    teacher_cache.build_cache(PipelineConfig.model_validate(plain, strict=False))
    split = CacheSplit.open(config.cache.folder, "test")
    assert split.num_pairs == 3
    batch = split.batch(np.arange(1))
    for features in (batch.union_feature, batch.human_feature, batch.object_feature):
        assert abs(features.norm(dim=-1) - 1).max() < 2e-3


def test_absent_labels_stop_all_before_anything_is_trained(tmp_path: Path, cache: dict[str, Any]) -> None:
    photos = photo_pipeline(
        tmp_path,
        num_pairs=(1,) * 12,
        dataset={"splits": {"train": 0.4, "validation": 0.3, "test": 0.3}},
        students={"student": {}, "supervised": {"supervision": "labels"}},
        train=ONE_SEED,
    )
    teacher_cache.build_cache(photos, RandomSignals)
    error = refused(train.train_students, photos)
    assert "the data set has no annotations" in error.what
    assert "dataset.annotations" in str(error.fix)
    error = refused(train.train_students, small_pipeline(tmp_path, cache=cache, evaluation={"tune_split": "val"}))
    assert "no split 'val'" in error.what
    assert error.expected == "train or validation or test"
    assert not (tmp_path / "outputs").exists()


def test_a_full_disk_in_stage_two_keeps_finished_students(tmp_path: Path, cache: dict[str, Any]) -> None:
    students = {"small": {"width": 2}, "large": {"width": 256}}
    config = small_pipeline(tmp_path, cache=cache, students=students, train=ONE_SEED)
    with small_files(100_000):
        error = refused(train.train_students, config)
    assert error.what == "the disk is full"
    assert str(error.where).endswith("large/seed-0/state.safetensors")
    assert "cache" not in str(error)
    kept = [f"small/seed-0/{name}" for name in ("metrics.jsonl", "model.safetensors", "run.json")]
    assert files(tmp_path / "outputs" / "runs") == ["large/seed-0/metrics.jsonl", *kept]
    assert [run.seconds is None for run in train.train_students(config).runs] == [True, False]
    assert len((tmp_path / "outputs/runs/large/seed-0/metrics.jsonl").read_text().splitlines()) == 2


def test_a_full_disk_in_stage_three_leaves_old_results_whole(tmp_path: Path, cache: dict[str, Any]) -> None:
    config = small_pipeline(
        tmp_path, cache=cache, students=STUDENT, train=ONE_SEED, evaluation={"bootstrap": 10, "split": "test"}
    )
    train.train_students(config)
    evaluate(config)
    outputs = tmp_path / "outputs"
    before = {name: (outputs / name).read_bytes() for name in files(outputs)}
    with small_files(1_000):
        error = refused(evaluate, config)
    assert (error.what, Path(str(error.where)).name) == ("the disk is full", "per_class.json")
    assert "cache" not in str(error)
    assert {name: (outputs / name).read_bytes() for name in files(outputs)} == before


@pytest.mark.parametrize("stage", ["teacher_cache", "train", "evaluate"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, cache: dict[str, Any], stage: str) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    config = small_pipeline(tmp_path, cache=cache, students=STUDENT, train=ONE_SEED, output=str(taken))
    if stage == "teacher_cache":
        photos = photo_pipeline(tmp_path, cache={"folder": str(taken)})
        error = refused(teacher_cache.build_cache, photos, RandomSignals)
    elif stage == "train":
        error = refused(train.train_students, config)
    else:
        error = refused(evaluate, config.model_copy(update={"students": {}}))
    assert "taken" in str(error)
    assert error.got in ("File exists", "Not a directory")
    assert error.fix
    assert taken.read_text() == ""


def test_after_an_interruption_in_stage_one_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = photo_pipeline(tmp_path, num_pairs=(2, 0, 13, 1, 3))

    class Interrupted(FailingSignals):
        """Ctrl-C in the second shard."""

        error = KeyboardInterrupt()

    def program() -> None:
        teacher_cache.build_cache(config, Interrupted)

    with pytest.raises(SystemExit) as caught:
        run_program(program)
    assert caught.value.code == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "interrupted: finished parts are kept; run the same command again to go on"
    assert files(tmp_path / "cache" / "test") == ["bank.h5", "bank.json", "shard-00000.h5", "shard-00000.json"]
    assert teacher_cache.build_cache(config, RandomSignals).splits[0].num_built == 2
