"""Stages one and two on a HICO-DET tree that holds images and no annotation file at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hoi.datasets.coco import COCO_OBJECTS
from hoi.datasets.hicodet import HALVES
from tests.fakes.hicodet import write_json, write_tree

ROOT = Path(__file__).parents[2]
RUN = """
import json, sys
from hoi.config import load_config
from hoi.cache.build import run as teacher_cache
from hoi.training import train

config = load_config(*sys.argv[1:2], sys.argv[2:])
splits = teacher_cache.build_cache(config).splits
runs = train.train_students(config).runs
read = sorted(name for name in sys.modules if name.startswith("hoi.labels"))
print(json.dumps([{s.split: [s.num_images, s.num_failed, s.num_pairs] for s in splits}, len(runs), read]))
"""


def test_stages_one_and_two_load_no_reader_of_annotations(tmp_path: Path) -> None:
    tree = tmp_path / "hico"
    write_tree(tree)
    names = [path.name for half in HALVES for path in sorted((tree / "images" / half).iterdir())]
    images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
    categories = [{"id": k, "name": name} for k, name in enumerate(COCO_OBJECTS)]
    boxes = [(COCO_OBJECTS.index("person"), [2, 4, 20, 24]), (COCO_OBJECTS.index("bench"), [10, 8, 20, 20])]
    found = [
        {"image_id": image["id"], "category_id": category, "bbox": box, "score": 0.9}
        for image in images
        for category, box in boxes
    ]
    instances = write_json(tmp_path / "instances.json", {"images": images, "categories": categories})
    # A listed image whose file is gone: recorded, not dropped.
    (tmp_path / "test.txt").write_text("\n".join(name for name in names if "test2015" in name))
    (tree / "images" / "test2015" / "HICO_test2015_00000003.jpg").unlink()
    dataset = {"name": "hicodet", "root": str(tree), "image_lists": {"test2015": str(tmp_path / "test.txt")}}
    detector = {
        "name": "precomputed",
        "results": str(write_json(tmp_path / "found.json", found)),
        "instances": str(instances),
    }
    settings = [
        f"dataset={json.dumps(dataset)}",
        f"detector={json.dumps(detector)}",
        f"output={tmp_path / 'out'}",
        f"cache={json.dumps({'folder': str(tmp_path / 'cache'), 'scheduler': 'synchronous', 'max_failed_share': 0.5})}",
        "students={student: {}}",
        "train.seeds=[0]",
        "train.epochs=1",
    ]
    command = [sys.executable, "-c", RUN, str(ROOT / "pipeline.yaml"), *settings]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    splits, num_runs, labels_read = json.loads(done.stdout.splitlines()[-1])
    assert splits["train"][0] + splits["validation"][0] == 12
    assert splits["train"][2] == splits["train"][0]
    assert splits["test"] == [3, 1, 2]
    assert (num_runs, labels_read) == (1, [])
