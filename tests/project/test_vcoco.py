"""V-COCO through the three stages, on drawn images under COCO's names; stages one and two without an annotation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hoi.cache.build import run as teacher_cache
from hoi.cache.read.split import open_split
from hoi.config import PipelineConfig, load_config
from hoi.datasets import load_vocabulary
from hoi.evaluation.evaluate import evaluate
from hoi.training import train
from tests.fakes.vcoco import COUNTS, write_annotations, write_detections, write_images

ROOT = Path(__file__).parents[2]
FIGURES = ("agent_ap", "role_ap_s1", "role_ap_s2", "role_ap_s1_24", "role_ap_s2_24")


def pipeline(folder: Path, *overrides: str) -> PipelineConfig:
    ids = write_images(folder / "coco")
    results, instances = write_detections(folder)
    dataset = {"name": "vcoco", "images": str(folder / "coco"), "image_list": str(ids)}
    detector = {"name": "precomputed", "results": str(results), "instances": str(instances)}
    cache = {"folder": str(folder / "cache"), "scheduler": "synchronous", "device": "cpu"}
    settings = [
        f"dataset={json.dumps(dataset)}",
        f"detector={json.dumps(detector)}",
        f"cache={json.dumps(cache)}",
        f"output={folder / 'out'}",
        "students={student: {}}",
        "train.seeds=[0]",
        "train.epochs=2",
        "evaluation.bootstrap=10",
    ]
    return load_config(ROOT / "pipeline.yaml", [*settings, *overrides])


def test_vcoco_goes_through_all_three_stages(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    # ANNA and BEN pair with each other, the ball, the racket and themselves.
    found = {report.split: (report.num_images, report.num_pairs) for report in teacher_cache.build_cache(config).splits}
    assert found == {split: (num, 8 * num) for split, num in COUNTS.items()}
    train.train_students(config)

    split, vocabulary = open_split(config, "test", same_images=False), load_vocabulary(config.dataset)
    batch = split.batch(np.arange(4))
    is_itself = (batch.rows_h == batch.rows_o).numpy()
    assert is_itself.sum() == 2 * 4
    assert (batch.labels_o.numpy()[is_itself] == vocabulary.no_object_idx).all()
    assert set(batch.labels_o.numpy()[~is_itself]) == {
        vocabulary.objects.index(n) for n in ("person", "sports ball", "tennis racket")
    }
    # What a human does alone is asked of the human's own crop.
    np.testing.assert_array_equal(batch.union_feature[is_itself], batch.human_feature[is_itself])

    annotated = pipeline(tmp_path, f"dataset.annotations={write_annotations(tmp_path / 'vcoco')}")
    report = str(evaluate(annotated))
    assert "V-COCO's evaluation in percent" in report
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"direct_clip", "student", "union"} <= {row["name"] for row in rows}
    for row in rows:
        figures = row["vcoco"]
        assert 0 < figures["agent_ap"] < 1
        # Three roles are boxed, and `look` is not: rows without object score no role.
        assert 0 < figures["role_ap_s1"] <= figures["role_ap_s2"] <= 4 / 25
        assert figures["num_positives"]["stand"] == figures["num_positives"]["look"] == 4
        assert figures["num_images"] == 4
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [record["name"] for record in summary["vcoco"]] == [row["name"] for row in rows]
