"""An extra pass lies beside the base pass, is built, read, verified and mended like it, and never touches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hoi.cache import base_pass, vlm_pass
from hoi.cache.build.run import build_cache
from hoi.cache.read.split import CacheSplit, Mode, open_split
from hoi.cache.schema import BASE, Pass, of_file, pass_and_name, passes_in
from hoi.cache.shard import inspect_shard
from hoi.cache.tools.describe import export, info
from hoi.cache.tools.estimate import plan
from hoi.cache.tools.repair import repair
from hoi.cache.tools.verify import verify_split
from hoi.cache.vlm_pass import BaseShard, VlmPass, unpack_signals
from hoi.config import PipelineConfig, VlmConfig
from hoi.datasets import load_vocabulary
from hoi.records import PairBatch
from hoi.vlm import VlmSignals
from tests.fakes.extractors import PASS, RandomSignals, RandomVlmSignals, VlmSignalsOf
from tests.fakes.pipelines import built_photos, photo_pipeline, refused, split_files

FIELDS = ("coca/vlm_scores", "coca/vlm_asked", "coca/vlm_log_likelihood", "coca/vlm_pair_scores")
CONTEXT = ("coca/context_embedding", "coca/context_mask")


def pipeline(folder: Path, coca: dict[str, Any] | None = None, **sections: Any) -> PipelineConfig:
    """Photographs in shards of two, and an extra pass `coca`."""
    return photo_pipeline(folder, vlms={"coca": {**PASS, **(coca or {})}}, **sections)


def build(config: PipelineConfig) -> list[int]:
    report = build_cache(config, RandomSignals, VlmSignalsOf(*config.vlms) if config.vlms else None)
    return [split.num_built for split in report.splits]


def mend(config: PipelineConfig) -> tuple[str, ...]:
    return repair(config, RandomSignals, VlmSignalsOf("coca")).lines


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return pipeline(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "test"


def files_of(folder: Path, of: Pass) -> dict[str, bytes]:
    return {name: data for name, data in split_files(folder).items() if of_file(name) == of}


def first(config: PipelineConfig, *names: str, rows: Sequence[int] = (0,), mode: Mode = "auto") -> PairBatch:
    split = CacheSplit.open(config.cache.folder, "test", mode=mode)
    return split.batch(np.array(rows), names or FIELDS)


def test_adding_one_builds_nothing_else_and_changes_no_file(tmp_path: Path, config: PipelineConfig) -> None:
    _, folder = built_photos(tmp_path)
    before = split_files(folder)
    assert build(config) == [0, 3]
    after = split_files(folder)
    assert files_of(folder, BASE) == before
    assert build(config) == [0, 0]
    # Each further one is on its own as well, and a base pass that is alone again needs none of them.
    assert build(photo_pipeline(tmp_path, vlms={"coca-2": PASS})) == [0, 3]
    assert {name: split_files(folder)[name] for name in after} == after
    assert passes_in(folder) == [Pass("coca"), Pass("coca-2")]
    assert verify_split(folder) == []
    assert build(photo_pipeline(tmp_path)) == [0]


@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_its_fields_are_served_by_name_beside_the_pairs(config: PipelineConfig, mode: Mode) -> None:
    build(config)
    rows, vocabulary = [3, 0, 1], load_vocabulary(config.dataset)
    extractor = RandomVlmSignals(config.vlms["coca"], vocabulary)
    batch = first(config, *FIELDS, *CONTEXT, "union_embedding", rows=rows, mode=mode)
    for place, row in enumerate(rows):
        image = np.full((8, 9, 3), [(2, 0, 1, 5, 3)[row], row, 0], np.uint8)
        signals = RandomSignals(config, vocabulary, "cpu").extract([f"{row:02d}.png"], [image])
        [answer] = extractor.extract([(signals[0], image)], {})
        of_pairs = (batch.pair_image == place).numpy()
        for name in (*FIELDS, *CONTEXT):
            found = batch.extra[name].numpy()
            expected = getattr(answer, pass_and_name(name)[1])
            np.testing.assert_array_equal(found[of_pairs] if "pair" in name else found[place], expected)
            assert found.dtype == np.float32
    assert CacheSplit.open(config.cache.folder, "test", mode=mode).table("coca/vlm_scores").shape == (5, 3)


def test_a_pass_that_is_not_there_is_named_with_the_command(
    tmp_path: Path, config: PipelineConfig, folder: Path
) -> None:
    built_photos(tmp_path)
    error = refused(first, config)
    assert (error.what, "vlms.coca in the pipeline" in str(error.fix)) == ("the cache has no pass 'coca'", True)
    split = CacheSplit.open(config.cache.folder, "test")
    assert refused(next, split.batches(2, extra=FIELDS)).what == error.what
    build(config)
    error = refused(first, config, "coca/scores")
    assert error.what.startswith("pass 'coca' has no field 'scores'")
    assert "vlm_asked" in str(error.expected)
    (folder / "coca-index.h5").unlink()
    assert "pass 'coca' is not complete" in refused(first, config).what
    build(config)
    changed = open_split(pipeline(folder.parents[1], {"temperature": 2.0}), "test", same_images=False)
    error = refused(changed.batch, np.array([0]), FIELDS)
    assert (error.what, error.got) == (
        "pass 'coca' was made with other settings",
        "vlms.coca.temperature (cache: 1.0, now: 2.0)",
    )


def test_other_settings_are_refused_and_nothing_is_touched(
    tmp_path: Path, config: PipelineConfig, folder: Path
) -> None:
    build(config)
    other, before = pipeline(tmp_path, {"phrase": "somebody {verb_ing} {a_object}"}), split_files(folder)

    def is_refused() -> None:
        error = refused(build, other)
        assert error.what == "pass 'coca' was made with other settings"
        assert str(error.got).startswith("vlm.phrase (cache: ")
        assert f"or delete {folder}/coca-*" in str(error.fix)

    is_refused()
    assert split_files(folder) == before
    # Without a manifest, it is what it was begun with that refuses; and what is there is gone on with.
    (folder / "coca-manifest.json").unlink()
    (folder / "coca-shard-00002.h5").unlink()
    is_refused()
    assert build(config) == [0, 1]
    assert split_files(folder) == before


def test_a_base_pass_of_other_settings_refuses_it(tmp_path: Path, config: PipelineConfig, folder: Path) -> None:
    build(config)
    for name in files_of(folder, BASE):
        (folder / name).unlink()
    before = split_files(folder)
    other = pipeline(tmp_path, teacher={"precision": "bf16"})
    for run in (build, mend):
        error = refused(run, other)
        assert error.what == "pass 'coca' was made with other settings"
        assert "base.teacher.precision (cache: fp32, now: bf16)" in str(error.got)
        assert "coca-*" in str(error.fix)
    assert files_of(folder, Pass("coca")) == before
    assert refused(first, other).what == "pass 'coca' was made over other shards of the base pass"


def test_a_new_base_shard_renews_only_the_shard_over_it(tmp_path: Path, config: PipelineConfig, folder: Path) -> None:
    image = tmp_path / "images" / "02.png"
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    build(config)
    shard = inspect_shard(folder / "coca-shard-00001.h5", vlm_pass.FIELDS)
    below = inspect_shard(folder / "shard-00001.h5", base_pass.FIELDS)
    assert shard.table("status").tolist() == [1, 0]
    assert shard.table("status_reason")[0] == below.table("status_reason")[0]
    image.write_bytes(whole)
    # Nothing to do for a pass over a base shard that does not know the image, however often it is sealed.
    (folder / "coca-manifest.json").unlink()
    assert build(config) == [0, 0]

    base_alone = config.model_copy(update={"vlms": {}})
    assert "1 shards built" in repair(base_alone, RandomSignals).lines[-1]
    assert "made over other shards of the base pass" in refused(first, config).what
    error = refused(build, config)
    assert error.what == "this shard of pass 'coca' was made over another base shard"
    assert error.where == folder / "coca-shard-00001.h5"
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*shard-*.h5")}
    lines = mend(config)
    assert "coca-shard-00001.h5: foreign: base_sha256 is" in lines[0]
    assert lines[-1].startswith("test, pass 'coca': 1 shards built")
    changed = [name for name, time in times.items() if (folder / name).stat().st_mtime_ns != time]
    assert changed == ["coca-shard-00001.h5"]
    assert first(config, rows=[2]).extra["coca/vlm_pair_scores"].shape == (1, 3)
    _, fresh = built_photos(tmp_path, vlms={"coca": PASS}, cache={"folder": str(tmp_path / "fresh")})
    assert (fresh / changed[0]).read_bytes() == (folder / changed[0]).read_bytes()


def test_an_image_it_cannot_read_has_rows_of_zeros(tmp_path: Path, config: PipelineConfig) -> None:
    built_photos(tmp_path)
    (tmp_path / "images" / "03.png").write_bytes(b"no image any more")
    report = build_cache(config, RandomSignals, VlmSignalsOf("coca"))
    assert [s.num_failed for s in report.splits] == [0, 1]
    batch = first(config, rows=[3, 4])
    pair_scores = batch.extra["coca/vlm_pair_scores"]
    assert (batch.num_pairs, pair_scores.shape) == (8, (8, 3))
    assert not pair_scores[:5].any()
    assert pair_scores[5:].any()
    assert not batch.extra["coca/vlm_asked"][0].any()


def test_verbs_say_what_it_is_and_what_it_would_take(tmp_path: Path, config: PipelineConfig) -> None:
    built_photos(tmp_path)
    before = str(plan(config))
    assert "test, pass 'coca': 5 images, 3 shards: 0 finished, 3 missing: about" in before
    assert "unknown: no shard of pass 'coca' was timed yet" in before
    build(config)
    assert "test, pass 'coca': 5 images, 3 shards: 3 finished" in str(plan(config))
    said = info(config)
    assert "test, pass 'coca': complete" in said
    assert "vlm.phrase: a person {verb_ing} {a_object}" in said
    exported = export(config, "03.png", 2).plain["passes"]["coca"]
    assert (exported["caption"], len(exported["pairs"])) == ("a person in 03.png", 5)


def test_names_of_the_base_pass_are_refused(tmp_path: Path) -> None:
    names = ("shard-00000.h5", "coca-shard-00000.h5", "a-b-bank.json", "coca-notes.txt")
    assert list(map(of_file, names)) == [BASE, Pass("coca"), Pass("a-b"), None]
    assert pass_and_name("coca/vlm_scores") == (Pass("coca"), "vlm_scores")
    assert pass_and_name("spatial_map") == (BASE, "spatial_map")
    plain = photo_pipeline(tmp_path).model_dump(mode="json")
    for name in ("shard", "shard-x", "../x"):
        with pytest.raises(ValidationError):
            PipelineConfig.model_validate({**plain, "vlms": {name: PASS}})


def answers(image_id: str, num_pairs: int, axes: dict[str, int]) -> VlmSignals:
    rng, answer = np.random.default_rng(num_pairs), VlmSignals(image_id, "two men. one dog")
    k, s, d, q = (axes.get(letter, 0) for letter in "KSDQ")
    if s:
        context = rng.normal(size=(s, d)).astype(np.float16)
        answer = replace(answer, context_embedding=context, context_mask=np.ones(s, np.uint8))
    if k:
        scores, sums = rng.uniform(size=k).astype(np.float16), rng.normal(size=k).astype(np.float32)
        answer = replace(answer, vlm_scores=scores, vlm_asked=np.ones(k, np.uint8), vlm_log_likelihood=sums)
    return replace(answer, vlm_pair_scores=rng.uniform(size=(num_pairs, q)).astype(np.float16)) if q else answer


def packed(
    ids: list[str], records: Sequence[VlmSignals | str], offsets: np.ndarray, axes: dict[str, int]
) -> dict[str, np.ndarray]:
    return VlmPass(Pass("coca")).pack(ids, records, axes, BaseShard([], offsets.astype(np.int64), {}))


@pytest.mark.parametrize("letters", ["KQSD", "K", "Q", "SD"])
@pytest.mark.parametrize("num_pairs", [(), (0,), (2,), (1, 0, 3)])
def test_what_is_packed_is_unpacked_whatever_was_asked(letters: str, num_pairs: Sequence[int]) -> None:
    axes = {letter: {"K": 3, "Q": 3, "S": 2, "D": 4}[letter] for letter in letters}
    ids = [f"image {row}" for row in range(len(num_pairs))]
    records: list[VlmSignals | str] = [answers(i, n, axes) for i, n in zip(ids, num_pairs, strict=True)]
    if records:
        records[-1] = "gone"
    tables = packed(ids, records, np.concatenate([[0], np.cumsum(num_pairs)]), axes)
    for row, record in enumerate(records):
        found = unpack_signals(tables, row, axes)
        if isinstance(record, str):
            assert found == record
            continue
        for name, value in vars(record).items():
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_signals_that_break_a_rule_are_named() -> None:
    axes = {"K": 3, "S": 2, "D": 4}
    good = answers("a", 1, axes)

    def pack(**changes: Any) -> None:
        packed(["a"], [VlmSignals(**{**vars(good), **changes})], np.array([0, 1]), axes)

    pack()
    wrong = [
        ({"vlm_scores": np.array([0, 0.5, 1.5], np.float16)}, r"vlm_scores leaves \[0, 1\]"),
        ({"vlm_asked": np.array([0, 1, 1], np.uint8)}, "vlm_scores says something where vlm_asked is 0"),
        ({"vlm_log_likelihood": np.array([0, np.nan, 0], np.float32)}, "vlm_log_likelihood of image a is not finite"),
        ({"context_mask": np.ones(3, np.uint8)}, r"context_mask of image a has shape \(3,\), expected \(2,\)"),
        ({"image_id": "b"}, "of image b came in the place of a"),
    ]
    for changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            pack(**changes)


def test_a_section_that_asks_for_nothing_is_refused() -> None:
    for keys, message in (
        ({"caption": False, "image_scores": False}, "nothing would be asked"),
        ({"yes_no_question": "Is it so?"}, "yes_no_question must have a place"),
        ({"phrase": "a person {verb}"}, "phrase asks for verb"),
        ({"prior_weight": 0.5, "scoring": "yes_no"}, "prior_weight need log-prob"),
    ):
        with pytest.raises(ValidationError, match=message):
            VlmConfig.model_validate({"backend": "coca", "model": "x", **keys})
