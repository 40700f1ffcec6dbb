"""The report page of small real runs: what it holds, that it needs nothing else, and that browsers agree."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hoi.cache.build import run as teacher_cache
from hoi.config import PipelineConfig, WorldDataset, parse_config
from hoi.datasets import open_images
from hoi.evaluation.evaluate import evaluate
from hoi.files import sole_writer
from hoi.labels import load_labels
from hoi.report.build import write_report
from hoi.report.finished import sweep_lines
from hoi.training import train
from hoi.training.train import choose_student
from hoi.world import INTERACTIONS
from tests.fakes.browser import requested, set_up
from tests.fakes.pipelines import refused, small_world

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
HOSTILE = "<script>document.title='taken'</script>"
HOSTILE_FILE = "\"><img src=x onerror=document.title='taken'>&lt;"


def hostile_config(folder: Path) -> PipelineConfig:
    """Scenes of the world as a folder of files with annotations, every name of which is an attack."""
    source = WorldDataset(name="world", splits={"test": 24})
    images, labels = open_images(source, "test"), load_labels(source, "test")
    (folder / "images").mkdir()
    names = [f"{number:02d} {HOSTILE_FILE}.png" for number in range(24)]
    for row, name in enumerate(names):
        Image.fromarray(images.read(row)).save(folder / "images" / name)
    vocabulary = [{"verb": verb.replace("hold", f"hold {HOSTILE}"), "object": obj} for verb, obj in INTERACTIONS]
    (folder / "vocabulary.yaml").write_text(yaml.safe_dump(vocabulary))
    columns = (labels.image.tolist(), labels.boxes_h.tolist(), labels.boxes_o.tolist(), labels.interaction.tolist())
    lines = [
        {"file_name": names[image], "human_xyxy": box_h, "object_xyxy": box_o, **vocabulary[k]}
        for image, box_h, box_o, k in zip(*columns, strict=True)
    ]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"images": "images", "vocabulary": "vocabulary.yaml", "annotations": "annotations.jsonl"}
    paths = {key: str(folder / name) for key, name in files.items()}
    shown = {"width": 16, "targets": {"image": "pairs"}, "gate": {"exponent": 0.5}, "score_exponent": 0.7}
    return small_world(
        folder,
        name=f"small {HOSTILE}",
        output=str(folder / "out & <b>"),
        dataset={"name": "folder", **paths, "splits": {"train": 0.4, "validation": 0.2, "test": 0.4}},
        pairs={"max_humans": 3, "max_objects": 4},
        students={"student": shown, "supervised": {"width": 16, "supervision": "labels"}},
        train={"seeds": [0, 3], "epochs": 1},
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """A pipeline whose three stages are done."""
    config = hostile_config(tmp_path_factory.mktemp("report"))
    teacher_cache.build_cache(config)
    train.train_students(config)
    evaluate(config)
    return config


@pytest.fixture
def plain(config: PipelineConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


@pytest.fixture(scope="module")
def page(config: PipelineConfig) -> Path:
    sweep = Path(config.output) / "sweeps" / "gates" / "table.json"
    sweep.parent.mkdir(parents=True)
    sweep.write_text(json.dumps(sweep_table(written(config, "summary.json"))))
    return write_report(config).file


def written(config: PipelineConfig, name: str) -> Any:
    return json.loads((Path(config.output) / name).read_text())


def sweep_table(summary: dict[str, Any]) -> dict[str, Any]:
    """What a sweep writes, made of the summary's own figures."""
    means = {record["name"]: record for record in summary["means"]}
    [difference] = [found for found in summary["against_direct"] if found["better"] == "student"]
    row = {"name": "gated", "from": "plain", "changes": {"gate.exponent": 0.5}, "num_seeds": 2}
    tuned = {"name": "direct_clip_tuned", "means": means["direct_clip_tuned"]}
    return {
        "name": "gates",
        "against": "direct_clip_tuned",
        "split": "test",
        "baselines": [{**tuned, "num_seeds": None, "difference": None}],
        "rows": [{**row, "means": means["student"], "difference": difference}],
        "failed": [{"name": "other", "seed": 3, "reason": f"the loss is NaN {HOSTILE}"}],
        "fingerprint": summary["fingerprint"],
    }


def test_the_table_of_a_sweep_may_have_any_file_name(config: PipelineConfig, tmp_path: Path) -> None:
    summary = written(config, "summary.json")
    (tmp_path / "mine.json").write_text(json.dumps(sweep_table(summary)))
    assert sweep_lines(tmp_path / "mine.json", summary).name == "gates"


class Reader(HTMLParser):
    """Checks that tags nest, and keeps what browsers would follow, the text, and the cells of each table."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.followed: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.followed += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "xlink:href")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(file: Path) -> tuple[str, Reader]:
    html, reader = file.read_text(encoding="utf-8"), Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return html, reader


def test_the_page_is_one_well_formed_file_that_loads_nothing(page: Path) -> None:
    html, reader = read(page)
    assert page.stat().st_size < 5_000_000
    assert re.search(r"https?://|@import|url\(", re.sub(r"<script>.*?</script>", "", html, flags=re.S)) is None
    assert all(target.startswith(("#", "data:")) for target in reader.followed)
    anchors = {target[1:] for target in reader.followed if target.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', html))
    assert reader.tags.count("img") > 8


def test_hostile_names_are_shown_as_text_and_run_nowhere(page: Path) -> None:
    html, reader = read(page)
    assert reader.tags.count("script") == 1
    assert reader.handlers == []
    text = "".join(reader.text)
    # Name of the pipeline, an interaction, an image's file, a sweep's failure, a path in the settings.
    for shown in (f"small {HOSTILE}", f"hold {HOSTILE} b", HOSTILE_FILE, f"the loss is NaN {HOSTILE}", "out & <b>"):
        assert shown in text
    assert html.count("<title>") == 1 + len(re.findall(r"<(?:circle|polyline)[^>]*><title>", html))


def test_tables_say_what_stage_three_wrote(config: PipelineConfig, page: Path) -> None:
    html, _ = read(page)
    results, summary = written(config, "results.json"), written(config, "summary.json")
    table = re.search(r'<table class="sortable" id="result-table">.*?</table>', html, re.S)
    assert table is not None
    rows = re.findall(r"<tr.*?</tr>", table[0], re.S)[1:]
    assert len(rows) == len({row["name"] for row in results})
    for record, row in zip(summary["means"], rows, strict=True):
        assert f'data-value="{record["name"]}"' in row
        for mean in ("full", "non_rare", "several_pairs"):
            assert record[mean] is None or f"{record[mean]['mean']:.2f}" in row
    student = next(row for row in rows if 'data-value="student"' in row)
    [found] = [found for found in summary["against_direct"] if found["better"] == "student"]
    assert all(f"{abs(found[key]):.2f}" in student for key in ("observed", "low", "high"))
    assert "gate.exponent: 0.5" in student
    per_class = written(config, "per_class.json")
    table = re.search(r'id="per-interaction">.*?</table>', html, re.S)
    assert table is not None
    assert table[0].count("<tr>") == 1 + sum(record["num_positives"] > 0 for record in per_class)
    assert "from plain, gate.exponent: 0.5" in html


def test_the_page_says_where_the_map_goes(page: Path) -> None:
    html, _ = read(page)
    table = re.search(r'id="loss-table">.*?</table>', html, re.S)
    assert table is not None
    rows = [re.findall(r'<td class="n">(.*?)</td>', row) for row in re.findall(r"<tr><th.*?</tr>", table[0], re.S)]
    rows = [cells for cells in rows if cells]
    assert (len(rows), {len(cells) for cells in rows}) == (16, {4})
    # Mending everything gains no less than anything alone, for the teacher and the student.
    for method in (1, 3):
        gains = [float(cells[method]) for cells in rows]
        assert max(gains) == gains[-1] > 0
    assert "By HICO-DET’s official rule. Every false positive" in html


def test_the_page_holds_the_pipeline_file_that_made_it(config: PipelineConfig, page: Path) -> None:
    _, reader = read(page)
    [text] = [text for text in reader.text if text.startswith("name: ")]
    assert parse_config(yaml.safe_load(text), "the page") == config


def test_a_second_report_writes_the_same_bytes(config: PipelineConfig, page: Path, tmp_path: Path) -> None:
    assert write_report(config, tmp_path / "again.html").file.read_bytes() == page.read_bytes()


def test_two_reports_of_one_folder_do_not_meet(config: PipelineConfig, page: Path) -> None:
    with sole_writer(page.parent):
        assert refused(write_report, config).what == "another run writes into this folder"
    (page.parent / ".report.html.0123.part").write_bytes(b"half")
    write_report(config)
    assert not list(page.parent.glob("*.part"))


def test_without_annotations_the_page_has_no_precision(plain: dict[str, Any], tmp_path: Path) -> None:
    dataset = {**plain["dataset"], "annotations": None}
    changed = {"dataset": dataset, "output": str(tmp_path), "students": {"first": {"width": 16}}, "name": "unlabelled"}
    config = parse_config({**plain, **changed}, "test")
    train.train_students(config)
    evaluate(config)
    _, reader = read(write_report(config).file)
    text = "".join(reader.text)
    assert "There are no annotations, so nothing says which are right." in text
    assert "average precision" not in text.lower()
    assert "agreement, %" in text
    assert reader.tags.count("img") > 8

    moved = Path(plain["dataset"]["images"])
    moved.rename(moved.with_name("elsewhere"))
    try:
        report = write_report(config)
    finally:
        moved.with_name("elsewhere").rename(moved)
    assert re.match(r"no pictures: \d+ images cannot be read, such as .*: the file is missing", report.notes[0])
    _, reader = read(report.file)
    assert "img" not in reader.tags
    assert re.search(r"There are no pictures here: \d+ images cannot be read", "".join(reader.text))


def test_what_cannot_be_reported_is_said(plain: dict[str, Any], config: PipelineConfig, tmp_path: Path) -> None:
    error = refused(write_report, parse_config({**plain, "output": str(tmp_path)}, "test"))
    assert (error.where, error.fix) == (tmp_path / "summary.json", "hoi eval")
    other = {**plain, "train": {"seeds": [0, 3], "epochs": 2}, "pairs": {"max_humans": 3, "max_objects": 5}}
    assert refused(write_report, parse_config(other, "test")).got == "other values of pairs.max_objects, train.epochs"
    for name in ("summary.json", "results.json", "per_class.json", "audit.json"):
        shutil.copy(Path(config.output) / name, tmp_path)
    shutil.copytree(Path(config.output) / "runs", tmp_path / "runs")
    (tmp_path / "table.json").write_text("{}")
    elsewhere = config.model_copy(update={"output": str(tmp_path)})
    error = refused(write_report, elsewhere, sweeps=[tmp_path / "table.json"])
    assert (error.what, error.where) == ("this result file is damaged", tmp_path / "table.json")
    results = written(elsewhere, "results.json")
    for row in results:
        row["full"] += 1.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "scored again, has another mAP" in refused(write_report, elsewhere).what
    assert not (tmp_path / "report.html").exists()


def test_the_shown_student_is_the_best_without_labels(plain: dict[str, Any]) -> None:
    def shown(students: dict[str, Any]) -> str:
        return choose_student(parse_config({**plain, "students": students}, "test"))

    by_labels: dict[str, Any] = {"supervision": "labels"}
    assert shown({"a": {}, "student": {}, "best": {}}) == "best"
    assert shown({"a": {}, "student": {}, "best": by_labels}) == "student"
    assert shown({"bound": by_labels, "b": {}, "a": {}}) == "b"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_chromium_tables_sort_and_nothing_is_loaded(browser: Any, page: Path, width: int, scheme: str) -> None:
    set_up(browser, width, scheme)
    browser.get(page.as_uri())
    run = browser.execute_script
    assert browser.title.startswith(f"small {HOSTILE}")
    widths = run("return [...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) > 8
    assert min(widths) > 0
    assert run("return document.documentElement.scrollWidth") <= width
    ground = re.findall(r"\d+", run("return getComputedStyle(document.documentElement).backgroundColor"))
    assert (sum(map(int, ground[:3])) > 3 * 128) == (scheme == "light")

    column = "return [...document.querySelectorAll('#result-table tbody tr')].map(r => r.cells[%d].dataset.value)"
    click = "document.querySelectorAll('#result-table thead button')[%d].click()"
    before = run(column % 1)
    run(click % 1)
    falling = [float(value) for value in run(column % 1)]
    assert falling == sorted(map(float, before), reverse=True) != list(map(float, before))
    run(click % 1)
    assert [float(value) for value in run(column % 1)] == falling[::-1]
    run(click % 0)
    assert run(column % 0) == sorted(run(column % 0))
    assert run("return document.querySelector('#result-table th').getAttribute('aria-sort')") == "ascending"

    assert browser.get_log("browser") == []
    asked = requested(browser)
    assert page.as_uri() in asked
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def test_without_javascript_all_is_there_to_read(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        shown = browser.find_element("tag name", "main").text
        assert not browser.find_elements("css selector", "thead button")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    for heading in ("Results", "What each branch adds", "Ablations", "Precision and recall", "Calibration", "Gallery"):
        assert heading in shown
    assert "direct_clip_tuned" in shown
