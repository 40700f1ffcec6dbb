"""An extra pass lies beside the base pass, is built, read, verified and mended like it, and never touches it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hoi.cache import base_pass, vlm_pass
from hoi.cache.build.run import CacheReport, build_cache
from hoi.cache.read.split import CacheSplit, Mode, open_split
from hoi.cache.schema import BASE, Pass, of_file, pass_and_name, passes_in
from hoi.cache.shard import inspect_shard
from hoi.cache.tools.describe import export, info
from hoi.cache.tools.estimate import plan
from hoi.cache.tools.repair import repair
from hoi.cache.tools.verify import verify_split
from hoi.cache.vlm_pass import BaseShard, VlmPass, unpack_signals
from hoi.config import PipelineConfig, VlmConfig
from hoi.errors import UserError
from hoi.records import ImageSignals
from hoi.vlm import VlmSignals
from tests.fakes.extractors import PASS, RandomSignals, RandomVlmSignals, VlmSignalsOf
from tests.fakes.pipelines import photo_pipeline, split_files

FIELDS = ("coca/vlm_scores", "coca/vlm_asked", "coca/vlm_log_likelihood", "coca/vlm_pair_scores")
CONTEXT = ("coca/context_embedding", "coca/context_mask")


def pipeline(folder: Path, *num_pairs: int, coca: dict[str, Any] | None = None, **sections: Any) -> PipelineConfig:
    """Photographs in shards of two, and an extra pass `coca`."""
    return photo_pipeline(folder, num_pairs or (2, 0, 1, 5, 3), vlms={"coca": {**PASS, **(coca or {})}}, **sections)


def build(config: PipelineConfig) -> CacheReport:
    return build_cache(config, RandomSignals, VlmSignalsOf("coca"))


def mend(config: PipelineConfig) -> list[str]:
    return list(repair(config, RandomSignals, VlmSignalsOf("coca")).lines)


def files_of(folder: Path, of: Pass) -> dict[str, bytes]:
    return {name: data for name, data in split_files(folder).items() if of_file(name) == of}


def opened(config: PipelineConfig, mode: Mode = "auto") -> CacheSplit:
    return CacheSplit.open(config.cache.folder, "test", mode=mode)


def test_adding_one_builds_nothing_else_and_changes_no_file(tmp_path: Path) -> None:
    build_cache(photo_pipeline(tmp_path), RandomSignals)
    folder = tmp_path / "cache" / "test"
    before = split_files(folder)
    report = build(pipeline(tmp_path))
    assert [(s.of.label(s.split), s.num_built) for s in report.splits] == [("test", 0), ("test, pass 'coca'", 3)]
    after = split_files(folder)
    assert {name: after[name] for name in before} == before
    assert files_of(folder, BASE) == before
    assert [s.num_built for s in build(pipeline(tmp_path)).splits] == [0, 0]
    # Each further one is on its own as well, and a base pass that is alone again needs none of them.
    plain = pipeline(tmp_path).model_dump(mode="json")
    both = PipelineConfig.model_validate_json(json.dumps({**plain, "vlms": {"coca-2": PASS}}))
    assert [s.num_built for s in build_cache(both, RandomSignals, VlmSignalsOf("coca-2")).splits] == [0, 3]
    assert {name: split_files(folder)[name] for name in after} == after
    assert passes_in(folder) == [Pass("coca"), Pass("coca-2")]
    assert verify_split(folder) == []
    assert [s.num_built for s in build_cache(photo_pipeline(tmp_path), RandomSignals).splits] == [0]


@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_its_fields_are_served_by_name_beside_the_pairs(tmp_path: Path, mode: Mode) -> None:
    config = pipeline(tmp_path)
    build(config)
    split = opened(config, mode)
    extractor = RandomVlmSignals(config.vlms["coca"], split.vocabulary)
    rows = np.array([3, 0, 1])
    batch = split.batch(rows, extra=(*FIELDS, *CONTEXT, "union_embedding"))
    for place, row in enumerate(rows.tolist()):
        image = np.full((8, 9, 3), [(2, 0, 1, 5, 3)[row], row, 0], np.uint8)
        signals = RandomSignals(config, split.vocabulary, "cpu").extract([f"{row:02d}.png"], [image])
        [answer] = extractor.extract([(signals[0], image)], {})
        of_pairs = (batch.pair_image == place).numpy()
        for name in (*FIELDS, *CONTEXT):
            found = batch.extra[name].numpy()
            expected = getattr(answer, pass_and_name(name)[1])
            np.testing.assert_array_equal(found[of_pairs] if "pair" in name else found[place], expected)
            assert found.dtype == np.float32
    assert split.table("coca/vlm_scores").shape == (5, 3)


def test_a_pass_that_is_not_there_is_named_with_the_command(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    build(photo_pipeline(tmp_path))
    split = opened(config)
    with pytest.raises(UserError, match=r"the cache has no pass 'coca' .* vlms\.coca in the pipeline .*"):
        split.batch(np.array([0]), FIELDS)
    with pytest.raises(UserError, match="no pass 'coca'"):
        next(split.batches(2, extra=FIELDS))
    build(config)
    with pytest.raises(UserError, match=r"pass 'coca' has no field 'scores' .* vlm_asked.*"):
        split.batch(np.array([0]), ("coca/scores",))
    (split.folder / "coca-index.h5").unlink()
    with pytest.raises(UserError, match=r"pass 'coca' is not complete .*"):
        opened(config).batch(np.array([0]), FIELDS)
    build(config)
    changed = pipeline(tmp_path, coca={"temperature": 2.0})
    with pytest.raises(UserError, match=r"pass 'coca' was made .*vlms.coca.temperature \(cache: 1.0, now: 2"):
        open_split(changed, "test", same_images=False).batch(np.array([0]), FIELDS)


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    build(config)
    folder = tmp_path / "cache" / "test"
    before = split_files(folder)
    message = r"pass 'coca' was made with other settings .*vlm\.phrase \(cache: .* or delete .*/test/coca-\*"
    with pytest.raises(UserError, match=message):
        build(pipeline(tmp_path, coca={"phrase": "somebody {verb_ing} {a_object}"}))
    assert split_files(folder) == before
    # Without a manifest, it is what it was begun with that refuses; and what is there is gone on with.
    (folder / "coca-manifest.json").unlink()
    (folder / "coca-shard-00002.h5").unlink()
    with pytest.raises(UserError, match=r"pass 'coca' was made with other settings .*vlm\.phrase"):
        build(pipeline(tmp_path, coca={"phrase": "somebody {verb_ing} {a_object}"}))
    assert build(config).splits[1].num_built == 1
    assert split_files(folder) == before


def test_a_base_pass_of_other_settings_refuses_it(tmp_path: Path) -> None:
    build(pipeline(tmp_path))
    folder = tmp_path / "cache" / "test"
    for name in files_of(folder, BASE):
        (folder / name).unlink()
    before = split_files(folder)
    other = pipeline(tmp_path, teacher={"precision": "bf16"})
    message = r"'coca' was made with other .*base\.teacher\.precision \(cache: fp32, now: bf16\).* delete .*coca-\*"
    for run in (build, mend):
        with pytest.raises(UserError, match=message):
            run(other)
    assert files_of(folder, Pass("coca")) == before
    with pytest.raises(UserError, match=r"pass 'coca' was made over other shards of the base pass"):
        opened(other).batch(np.array([0]), FIELDS)


def test_a_new_base_shard_renews_only_the_shard_over_it(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    images, folder = tmp_path / "images", tmp_path / "cache" / "test"
    whole = (images / "02.png").read_bytes()
    (images / "02.png").write_bytes(b"no image")
    build(config)
    shard = inspect_shard(folder / "coca-shard-00001.h5", vlm_pass.FIELDS)
    assert shard.table("status").tolist() == [1, 0]
    assert (
        shard.table("status_reason")[0]
        == inspect_shard(folder / "shard-00001.h5", base_pass.FIELDS).table("status_reason")[0]
    )
    (images / "02.png").write_bytes(whole)
    # Nothing to do for a pass over a base shard that does not know the image, however often it is sealed.
    (folder / "coca-manifest.json").unlink()
    assert build(config).splits[1].num_built == 0

    base_alone = photo_pipeline(tmp_path)
    assert "1 shards built" in repair(base_alone, RandomSignals).lines[-1]
    with pytest.raises(UserError, match=r"made over other shards of the base pass"):
        opened(config).batch(np.array([0]), FIELDS)
    with pytest.raises(UserError, match=r"shard of pass 'coca' was made over another base shard .*00001.h5"):
        build(config)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*shard-*.h5")}
    lines = mend(config)
    assert "coca-shard-00001.h5: foreign: base_sha256 is" in lines[0]
    assert lines[-1].startswith("test, pass 'coca': 1 shards built")
    changed = [name for name, time in times.items() if (folder / name).stat().st_mtime_ns != time]
    assert changed == ["coca-shard-00001.h5"]
    assert opened(config).batch(np.array([2]), FIELDS).extra["coca/vlm_pair_scores"].shape == (1, 3)
    fresh = pipeline(tmp_path, cache={"folder": str(tmp_path / "fresh")})
    build(fresh)
    assert (
        files_of(tmp_path / "fresh" / "test", Pass("coca"))["coca-shard-00001.h5"]
        == (folder / "coca-shard-00001.h5").read_bytes()
    )


def test_an_interrupted_one_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_on(self: RandomVlmSignals, signals: ImageSignals, image: np.ndarray) -> VlmSignals:
        if signals.image_id == "02.png":
            raise RuntimeError("the third")
        return answer(self, signals, image)

    answer = RandomVlmSignals._answer
    config, folder = pipeline(tmp_path), tmp_path / "cache" / "test"
    with monkeypatch.context() as patch:
        patch.setattr(RandomVlmSignals, "_answer", break_on)
        with pytest.raises(UserError, match=r"1 of 4 tasks failed .*coca-journal\.jsonl of each split .*the third"):
            build(config)
    done = {name: data for name, data in split_files(folder).items() if "shard" in name}
    assert not (folder / "coca-shard-00001.h5").exists()
    assert build(config).splits[1].num_built == 1
    assert {name: split_files(folder)[name] for name in done} == done


def test_an_image_it_cannot_read_has_rows_of_zeros(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    build_cache(photo_pipeline(tmp_path), RandomSignals)
    (tmp_path / "images" / "03.png").write_bytes(b"no image any more")
    report = build(config)
    assert [s.num_failed for s in report.splits] == [0, 1]
    batch = opened(config).batch(np.array([3, 4]), FIELDS)
    assert (batch.num_pairs, batch.extra["coca/vlm_pair_scores"].shape) == (8, (8, 3))
    assert not batch.extra["coca/vlm_pair_scores"][:5].any()
    assert batch.extra["coca/vlm_pair_scores"][5:].any()
    assert not batch.extra["coca/vlm_asked"][0].any()


def test_verbs_say_what_it_is_and_what_it_would_take(tmp_path: Path) -> None:
    config = pipeline(tmp_path)
    build_cache(photo_pipeline(tmp_path), RandomSignals)
    before = str(plan(config))
    assert "test, pass 'coca': 5 images, 3 shards: 0 finished, 3 missing: about" in before
    assert "unknown: no shard of pass 'coca' was timed yet" in before
    build(config)
    assert "test, pass 'coca': 5 images, 3 shards: 3 finished" in str(plan(config))
    said = info(config)
    assert "test, pass 'coca': complete" in said
    assert "vlm.phrase: a person {verb_ing} {a_object}" in said
    exported = export(config, "03.png", 2).plain["passes"]["coca"]
    assert exported["caption"] == "a person in 03.png"
    assert len(exported["pairs"]) == 5


def test_names_of_the_base_pass_are_refused(tmp_path: Path) -> None:
    assert [of_file(name) for name in ("shard-00000.h5", "coca-shard-00000.h5", "a-b-bank.json", "coca-notes.txt")] == [
        BASE,
        Pass("coca"),
        Pass("a-b"),
        None,
    ]
    assert pass_and_name("coca/vlm_scores") == (Pass("coca"), "vlm_scores")
    assert pass_and_name("spatial_map") == (BASE, "spatial_map")
    plain = photo_pipeline(tmp_path).model_dump(mode="json")
    for name in ("shard", "shard-x", "../x"):
        with pytest.raises(ValidationError):
            PipelineConfig.model_validate({**plain, "vlms": {name: PASS}})


def answers(image_id: str, num_pairs: int, axes: dict[str, int]) -> VlmSignals:
    rng = np.random.default_rng(num_pairs)
    return VlmSignals(
        image_id,
        "two men. one dog",
        rng.normal(size=(axes["S"], axes["D"])).astype(np.float16) if "S" in axes else None,
        np.ones(axes["S"], np.uint8) if "S" in axes else None,
        rng.uniform(size=axes["K"]).astype(np.float16) if "K" in axes else None,
        np.ones(axes["K"], np.uint8) if "K" in axes else None,
        rng.normal(size=axes["K"]).astype(np.float32) if "K" in axes else None,
        rng.uniform(size=(num_pairs, axes["Q"])).astype(np.float16) if "Q" in axes else None,
    )


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
    with pytest.raises(ValueError, match=r"vlm_scores leaves \[0, 1\]"):
        pack(vlm_scores=np.array([0, 0.5, 1.5], np.float16))
    with pytest.raises(ValueError, match="vlm_scores says something where vlm_asked is 0"):
        pack(vlm_asked=np.array([0, 1, 1], np.uint8))
    with pytest.raises(ValueError, match="vlm_log_likelihood of image a holds NaN"):
        pack(vlm_log_likelihood=np.array([0, np.nan, 0], np.float32))
    with pytest.raises(ValueError, match=r"context_mask of image a has shape \(3,\), expected \(2,\)"):
        pack(context_mask=np.ones(3, np.uint8))
    with pytest.raises(ValueError, match="of image b came in the place of a"):
        pack(image_id="b")


def test_a_section_that_asks_for_nothing_is_refused() -> None:
    for keys, message in (
        ({"caption": False, "image_scores": False}, "nothing would be asked"),
        ({"yes_no_question": "Is it so?"}, "yes_no_question must have a place"),
        ({"phrase": "a person {verb}"}, "phrase asks for verb"),
        ({"prior_weight": 0.5, "scoring": "yes_no"}, "prior_weight need log-prob"),
    ):
        with pytest.raises(ValidationError, match=message):
            VlmConfig.model_validate({"backend": "coca", "model": "x", **keys})
