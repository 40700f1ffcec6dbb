"""The pipeline file as types: strict, and every default lives here and nowhere else.

An unknown, missing, duplicate or mistyped key is an error that names it. Sections that stage one reads (`dataset`,
`detector`, `pairs`, `teacher`) change what a cache holds and enter its fingerprint; the others do not.
Relative paths resolve against the working directory, and `${NAME}` in a text is the environment's value.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from hoi.errors import UserError
from hoi.strict_yaml import parse_yaml, read_yaml

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError("a folder will have this name: letters, digits, - _ and . only, the first a letter or a digit")
    return name


def _own_row(name: str) -> str:
    if name in TABLE_NAMES:
        raise ValueError("the result table has another row of this name")
    return name


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is there twice")
    return seeds


def _in_order(regions: list[str]) -> list[str]:
    if len(set(regions)) < len(regions):
        raise ValueError("a region is there twice")
    # Levels of the map come first in every cache, so that equal content has one fingerprint.
    return [region for region in ("map", "crop") if region in regions]


FolderName = Annotated[str, AfterValidator(_folder_name)]
"""Of a split, or of a student."""
StudentName = Annotated[FolderName, AfterValidator(_own_row)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)]
TABLE_NAMES = frozenset(
    {"detector_prior", "direct_clip", "direct_clip_image", "direct_clip_product", "direct_clip_tuned"}
    | {"direct_clip_gated", "global", "union", "human_object", "spatial", "ungated"}
    | {"labels_on_detections"}
)
"""Rows of the result table that are not a student's own, so no student may be called so."""


class Section(BaseModel):
    """A strict part of the pipeline file: unknown keys, and numbers written as strings, are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class WorldDataset(Section):
    """The embedded world: drawn scenes, nothing to download."""

    name: Literal["world"]
    seed: int = 0
    """World seed; 0 is the committed world, any other a fresh one of the same distribution."""
    splits: dict[str, Count] = {"train": 800, "validation": 300, "test": 500}
    """Number of scenes of each split."""

    @model_validator(mode="after")
    def _known_splits(self) -> WorldDataset:
        foreign = self.splits.keys() - {"train", "validation", "test"}
        if foreign:
            raise ValueError(f"the world has the splits train, validation and test, not {', '.join(sorted(foreign))}")
        return self


class FolderDataset(Section):
    """A folder of photographs and a vocabulary of verb-object phrases; annotations, where there are any, only score."""

    name: Literal["folder"]
    images: str
    """Folder of images; searched below, too."""
    vocabulary: str
    """YAML file: a list of `{verb, object, phrase?}`."""
    annotations: str | None = None
    """JSON lines `{"file_name", "human_xyxy", "object_xyxy", "verb", "object"}`, pixel-edge boxes; stage three only."""
    splits: dict[FolderName, Share] = {"train": 0.7, "validation": 0.1, "test": 0.2}
    """Share of the images in each split, by hash of the file name, so that adding images never moves others."""
    max_image_pixels: Count = 100_000_000
    """Larger images are refused as unreadable before they are decoded."""

    @model_validator(mode="after")
    def _shares(self) -> FolderDataset:
        if not 0.999 < sum(self.splits.values()) < 1.001:
            raise ValueError(f"the shares must sum to 1, got {sum(self.splits.values()):g}")
        return self


class HicodetFiles(Section):
    """A file for each half of HICO-DET."""

    train2015: str | None = None
    test2015: str | None = None


class HicodetDataset(Section):
    """HICO-DET (Chao et al., WACV 2018): 38,118 training and 9,658 test images, 600 interactions of 80 COCO objects."""

    name: Literal["hicodet"]
    root: str
    """Folder that holds `images/train2015` and `images/test2015`, itself or in `hico_20160224_det`."""
    image_lists: HicodetFiles | None = None
    """Text files of image names, one a line; a name without a file is an unreadable image. Without one, every image in
    the folder counts."""
    annotations: HicodetFiles | None = None
    """fredzzhang's or PPDM's JSON, or `anno_bbox.mat`; null looks at `root` for the usual names. Stage three only."""
    splits: dict[Literal["train", "validation", "test"], Share] = {"train": 0.9, "validation": 0.1, "test": 1.0}
    """Shares by hash of the image name: `train` and `validation` of train2015, `test` of test2015."""
    max_image_pixels: Count = 100_000_000
    """Larger images are refused as unreadable before they are decoded."""

    @model_validator(mode="after")
    def _shares(self) -> HicodetDataset:
        if self.splits.get("train", 0.0) + self.splits.get("validation", 0.0) > 1.001:
            raise ValueError("train and validation share train2015, so their shares must sum to 1 at most")
        return self


class VcocoDataset(Section):
    """V-COCO (Gupta and Malik, 2015): 10,346 COCO images, 25 action-role pairs and four actions without object."""

    name: Literal["vcoco"]
    images: str
    """Folder that holds COCO's `train2014` and `val2014`, or `train2017` and `val2017`, or the images themselves."""
    image_list: str | None = None
    """Text file of COCO image ids, one a line; only those of a split count. null for all of V-COCO."""
    vocabulary: Literal["common_sense", "all"] = "common_sense"
    """Which objects an action-role pair goes with: those written down in `hoi.datasets.vcoco_vocabulary` (370
    interactions), or each of the 80 (2,004)."""
    annotations: str | None = None
    """Folder of V-COCO's own `vcoco_{train,val,test}.json`; without those, of fredzzhang's `instances_vcoco_*.json`,
    which are not enough for V-COCO's figures. Stage three only."""
    instances: str | None = None
    """COCO instances JSON with the boxes of V-COCO's label files; null looks for `instances*.json` beside them."""
    splits: dict[Literal["train", "validation", "trainval", "test"], Share] = {
        "train": 1.0,
        "validation": 1.0,
        "test": 1.0,
    }
    """Share of the images of each of V-COCO's own splits, by hash of the image id."""
    max_image_pixels: Count = 100_000_000
    """Larger images are refused as unreadable before they are decoded."""


DatasetConfig = Annotated[Union[WorldDataset, FolderDataset, HicodetDataset, VcocoDataset], Field(discriminator="name")]


class DetectorCommon(Section):
    """Which detections are stored. The pair policy is applied after, so it can be studied without detecting again."""

    min_score: Share = 0.05
    max_detections: Count = 100
    nms_iou: Share = 0.5
    """Class-wise non-maximum suppression."""


class WorldDetectorConfig(DetectorCommon):
    """The embedded world's small detector."""

    name: Literal["world"]
    weights: str = "hoi/world/weights/detector.safetensors"


class TorchvisionDetectorConfig(DetectorCommon):
    """A torchvision COCO detector."""

    name: Literal["torchvision"]
    model: str = "fasterrcnn_resnet50_fpn_v2"
    weights: str = "DEFAULT"
    """torchvision's weight name, a file (.safetensors, or .pth read with weights_only), or `random` for plumbing."""


class Detectron2DetectorConfig(DetectorCommon):
    """A detectron2 model: any YAML config with weights of its own. detectron2 is not installed by this product."""

    name: Literal["detectron2"]
    config_file: str
    """detectron2's YAML config; what its `_BASE_` names is read, too."""
    weights: str
    """A file (.safetensors, .pth read with weights_only, or .pkl of the model zoo, see below), or `random` for
    plumbing. `MODEL.WEIGHTS` of the config is not read."""
    trust_pickle: bool = False
    """Whether a .pkl file may be read. Unpickling runs whatever code the file's author put there."""
    classes: list[str] | None = None
    """Names of the model's classes in its order; null for those of the config's test data set."""


class PrecomputedDetectorConfig(DetectorCommon):
    """Detections out of a COCO result file, joined by image id or file name."""

    name: Literal["precomputed"]
    results: str
    """JSON list of `{image_id, category_id, bbox: [x, y, w, h], score}`."""
    instances: str
    """COCO instances JSON that gives the images' file names and the categories' names."""


class GroundTruthDetectorConfig(DetectorCommon):
    """Annotated boxes (not pairs) at score 1, with optional jitter: an upper bound, and for tests."""

    name: Literal["ground_truth"]
    jitter: Share = 0.0
    """Standard deviation of the corner noise, as a share of the box's sides."""


DetectorConfig = Annotated[
    Union[
        WorldDetectorConfig,
        TorchvisionDetectorConfig,
        Detectron2DetectorConfig,
        PrecomputedDetectorConfig,
        GroundTruthDetectorConfig,
    ],
    Field(discriminator="name"),
]


class PairsConfig(Section):
    """Which detections pair up: every kept human with every other kept detection, itself excepted."""

    min_score: Share = 0.2
    max_humans: Count = 15
    max_objects: Count = 15


class CropConfig(Section):
    """How the union of a pair becomes a square input of the teacher."""

    mode: Literal["square", "pad", "squash", "model"] = "square"
    """`square`: widened to a square with image context, padded where the image ends; `pad`: the box alone, padded to
    a square; `squash`: the box stretched; `model`: the model's own resize and centre crop."""
    margins: tuple[Annotated[float, Field(ge=1.0, le=4.0)], ...] = (1.15,)
    """Factors on the union box; the first is the one that students learn from, the others are for comparison."""
    merge_px: Annotated[float, Field(ge=0.0, le=8.0)] = 0.0
    """Crops of an image share one forward pass where none of their edges differs by more than this many pixels of the
    teacher's input; 0 for equal ones only. At 0.5 a hundredth of the passes is saved, and embeddings move by up to 0.03
    in cosine."""

    @model_validator(mode="before")
    @classmethod
    def _tuple(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("margins"), list):
            data = {**data, "margins": tuple(data["margins"])}
        return data

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Caches that were begun before this key was there go on.
        return {key: value for key, value in serialize(self).items() if key != "merge_px" or value > 0}


class TeacherConfig(Section):
    """A frozen open_clip model: what it is, what it is asked, and how images reach it."""

    model: str
    """open_clip's name (`ViT-B-16-quickgelu`), `hf-hub:owner/name`, or `local-dir:folder`."""
    pretrained: str | None = None
    """A tag of open_clip's, a weight file, or `random` for plumbing; null where `model` names weights itself."""
    prompts: list[str] = ["a photo of a person {verb_ing} {a_object}."]
    """Templates whose embeddings are averaged. `{verb_ing}`, `{object}`, `{a_object}` and `{phrase}` are filled in."""
    no_interaction_prompts: list[str] = ["a photo of a person and {a_object}."]
    crop: CropConfig = CropConfig()
    image_size_px: Count | None = None
    """Side of the padded square whole image; null for the model's own. Positions are interpolated."""
    regions: Annotated[list[Literal["map", "crop"]], Field(min_length=1), AfterValidator(_in_order)] = ["crop"]
    """Levels of the region features of humans, objects and unions. `crop`: each box's own crop through the teacher,
    which suits any model; `map`: RoIAlign on the spatial map of the whole image, one forward pass for all boxes."""
    spatial_map: bool = False
    """Whether the teacher's last spatial map is cached as well."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """What the image tower computes in. A lower one is refused where it moves embeddings. `auto` takes the fastest that
    does not, if it is clearly faster than fp32 here; a cache that was begun goes on with what was found then."""
    batch_size: Count = 128
    """Crops of one forward pass; the last of a shard is padded to it."""


class CacheConfig(Section):
    """Where the shards lie and who computes them; nothing here changes what they hold, but the shard size."""

    folder: str
    images_per_shard: Count = 64
    scheduler: str = "local"
    """`local` starts a dask LocalCluster, `synchronous` no dask process, an address (`tcp://…`) joins a cluster."""
    workers: Count | None = None
    """Worker processes of `local`; null for one per GPU, or one per CPU core up to 8."""
    threads: Count = 1
    """Threads that a worker computes with. Changes the last bits of what is cached, so it enters the fingerprint."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the workers compute on."""
    max_failed_share: Share = 0.01
    """Share of unreadable images above which stage one refuses to seal the cache."""


class StudentConfig(Section):
    """The multi-level student (Wan & Tuytelaars, WACV 2024) and what it learns from. The defaults are `faithful`.

    The paper fixes the three branches, what supervises each, and late fusion of scores. Every value marked [choice] is
    ours, fixed beforehand and never by a label.
    """

    READ_WHEN_SCORING: ClassVar[frozenset[str]] = frozenset(
        {"score_exponent", "score_fusion", "score_union_weight", "score_human_object_weight", "score_global_weight"}
        | {"gate", "gate_exponent"}
    )
    """Keys that leave the weights alone, so changing them asks for no new training."""

    method: Literal["multilevel"] = "multilevel"
    supervision: Literal["teacher", "labels"] = "teacher"
    """`teacher`: cached scores only. `labels`: annotated pairs matched to cached boxes; the supervised upper bound."""
    width: Count = 256
    """Hidden width of the adapters and of the human-object network. [choice]"""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """In the hidden layers. [choice]"""
    target_temperature: Annotated[float, Field(gt=0)] = 2.0
    """T of softmax(logit_scale · cosine / T) over all K interactions; the student's logits are read at the same T.
    [choice]"""
    score_form: Literal["teacher", "softmax", "sigmoid"] = "teacher"
    """How similarities become scores. `teacher`: sigmoid where the teacher has a logit bias (SigLIP), softmax where it
    has none (CLIP). `supervision: labels` always reads sigmoids. [choice]"""
    target_scope: Literal["all", "object"] = "all"
    """What targets and scores are normalised over: `all` K interactions, or those that the pair's `object` admits (for
    an image, those that any of its pairs' objects admits). [choice]"""
    aggregation: Literal["max", "logsumexp", "softmax_mean", "noisy_or"] = "max"
    """From the pairs' logits of the human-object branch to the image's; `noisy_or` takes 1 − Π(1 − score), and where
    scores are a softmax, normalises it. [choice]"""
    fusion: Literal["late", "early"] = "late"
    """Where the union's features join. `late`: in a branch of their own, by scores, as in the paper. `early`: as inputs
    of the human-object branch, and there is no union branch."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Exponent of the focal loss of `supervision: labels`; 0 is plain binary cross-entropy. [choice]"""
    human_object_target: Literal["image", "union", "both"] = "image"
    """What supervises the human-object branch. `image`: its image's target, over its aggregated pairs, as in the paper;
    `union`: each pair's union scores; `both`: the sum of the two losses."""
    image_target: Literal["image", "pairs"] = "image"
    """What an image's target is there. `image`: the teacher's scores of the whole image, as in the paper. `pairs`: at
    each interaction the best of its pairs' union scores · (s_h · s_o)^½, masked by object, normalised to a distribution
    over the image; this departs from the paper."""
    target_gate_exponent: Annotated[float, Field(ge=0)] = 0.0
    """With `image_target: pairs`: the competition gate's power on the union scores before they become image targets, 0
    for none. Departs from the paper."""
    union_views: Literal["first", "all"] = "first"
    """Crops that the union branch sees, and whose mean similarity it learns: the first of `teacher.crop.margins`, or
    all of them. [choice]"""
    gate_exponent: Annotated[float, Field(ge=0)] = 0.0
    """Competition gate on the fused score, 0 for none: real interactions are multiplied by the pair's share of the
    fused real-verb mass among the pairs of its object, then of its human, to this power. Departs from the paper, and
    leans on one partner per object."""
    gate: Literal["both", "object", "human", "best"] = "both"
    """Among whom that gate shares: the pairs of the object, then those of the human (`both`), or one of the two alone;
    `best` divides by the largest mass instead of the sum, so that people who share an object may all keep it.
    [choice]"""
    score_exponent: Annotated[float, Field(ge=0)] = 1.0
    """γ of (s_h · s_o)^γ in the final score. [choice]"""
    score_fusion: Literal["product", "sum"] = "product"
    """How the branches' scores join: Π s^w, or Σ w · s / Σ w, with the four weights below; 0 leaves a branch out.
    [choice]"""
    score_union_weight: Annotated[float, Field(ge=0)] = 1.0
    """w of the union branch, where there is one. [choice]"""
    score_human_object_weight: Annotated[float, Field(ge=0)] = 1.0
    """w of the human-object branch. [choice]"""
    score_global_weight: Annotated[float, Field(ge=0)] = 0.0
    """w of the global branch; 0 leaves it to training. [choice]"""
    score_spatial_weight: Annotated[float, Field(ge=0)] = 0.0
    """w of the spatial branch; 0 for no such branch at all. It sees boxes and classes alone, and learns what teacher,
    union and human-object branch say together, gated. Departs from the paper."""
    score_relatedness_weight: Annotated[float, Field(ge=0)] = 0.0
    """w of r^w on the real interactions of the fused score, 0 for no relatedness head at all: a pair's chance to be the
    one that its image is about, self-taught from the student's top pairs of the teacher's confident classes.
    [choice]"""

    @model_validator(mode="after")
    def _some_branch_scores(self) -> StudentConfig:
        weights = [self.score_human_object_weight, self.score_global_weight, self.score_spatial_weight]
        if self.fusion == "late":
            weights.append(self.score_union_weight)
        if not any(weights):
            raise ValueError("every branch has the weight 0, so none is left to score")
        return self


class TrainConfig(Section):
    """How students are fitted; the same for each of them. All [choice]: AdamW, a short warm-up, cosine to zero."""

    seeds: Seeds = [0, 1, 2]
    split: str = "train"
    max_images: Count | None = None
    """Readable images that are learned from, at most; null for all. They are the first of one shuffled order, the same
    for all seeds, so that a larger number keeps the smaller one's images."""
    epochs: Count = 20
    batch_images: Count = 32
    """Images of a step, over all processes that train together."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip_gradient: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""
    checkpoint_every: Count = 5
    """Epochs between checkpoints from which an interrupted run goes on, and among which `supervision: labels` chooses
    by mean average precision on `evaluation.tune_split`."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    resident: Literal["auto", "never", "always"] = "auto"
    """Whether the cached features are kept on that device, so that batches are made there. `auto`: on a GPU, if they
    take at most half of its free memory. The batches are the same."""
    threads: Count = 1
    """CPU threads. Small matrices gain nothing from a second one, and the last bits of the weights depend on it."""
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    """What the layers compute in; weights, similarities and losses stay in fp32. `auto`: bf16 on a GPU that has it."""
    tensorboard: bool = False
    """Whether the figures of metrics.jsonl are written for TensorBoard, too, which the extra `tensorboard` brings."""


class EvaluationConfig(Section):
    """What stage three scores and how sure it says it is."""

    split: str = "test"
    tune_split: str = "validation"
    """Its labels tune the baselines `direct_clip_tuned` and `supervised`, in their favour, and nothing else."""
    bootstrap: Count = 1000
    """Paired resamples of the test images."""
    intervals: list[Literal["rare", "non_rare", "without_no_interaction", "one_pair", "several_pairs"]] = []
    """Means beside `full` that are resampled as well, for `make bench`; each takes as long as `full` does."""
    zero_shot: list[str] = []
    """Zero-shot splits of HICO-DET whose unseen and seen means are reported, too: `rare_first`, `non_rare_first`,
    `unseen_object`, `unseen_verb`, `uc0` to `uc4` (docs/zero-shot.md)."""
    save_predictions: bool = False
    """Whether the triplets of every student of the teacher are written as JSON lines that `stages.score` reads."""
    detector_trained_on: str | None = None
    """What the detector's weights were trained on, in words for the audit; null for what is known of published ones."""
    teacher_trained_on: str | None = None
    """The same of the teacher."""


class PipelineConfig(Section):
    """The whole pipeline file."""

    name: str
    output: str
    """Folder of runs and results."""
    dataset: DatasetConfig
    detector: DetectorConfig
    pairs: PairsConfig = PairsConfig()
    teacher: TeacherConfig
    cache: CacheConfig
    students: dict[StudentName, StudentConfig]
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> PipelineConfig:
    """Pipeline file plus `section.key=value` overrides to a checked config.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing, duplicate or mistyped.
    """
    plain = read_yaml(path)
    if not isinstance(plain, dict):
        raise UserError("this is no pipeline file", where=path, expected="keys and values", got=type(plain).__name__)
    for override in overrides:
        _apply_override(plain, override)
    return parse_config(_expand_environment(plain, str(path), ()), str(path))


def _expand_environment(value: Any, where: str, key: tuple[str, ...]) -> Any:
    """Replaces `${NAME}` in every text by the environment's value, which must exist."""
    if isinstance(value, dict):
        return {name: _expand_environment(inner, where, (*key, str(name))) for name, inner in value.items()}
    if not isinstance(value, str):
        return value

    def expand(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UserError(
                f"the environment variable {name} is not set",
                where=f"{where}, key '{'.'.join(key)}'",
                fix=f"run with {name}=... (make {name}=... TARGET)",
            )
        return os.environ[name]

    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", expand, value)


def parse_config(plain: dict[str, Any], where: str) -> PipelineConfig:
    """Plain data to a checked config; every wrong key is named in one line."""
    return parse_section(PipelineConfig, plain, where)


def parse_section(kind: type[AnySection], plain: dict[str, Any], where: str, under: str = "") -> AnySection:
    """Plain data to a checked section; every wrong key is named in one line.

    Args:
        kind: Which section.
        plain: Its keys.
        where: The file.
        under: Key in it at which the section stands; empty for the whole file.

    Raises:
        UserError: a key is unknown, missing or mistyped.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        first, *more = error.errors()
        raise UserError(
            _explain(first),
            where=f"{where}, key '{'.'.join(filter(None, (under, _key_path(first, plain))))}'",
            got=None if first["type"] == "missing" else repr(first.get("input"))[:120],
            fix="mend this key"
            + (f" ({len(more)} more: {', '.join(_key_path(m, plain) for m in more[:5])})" if more else ""),
        ) from None


def _explain(error: Any) -> str:
    kinds = {"extra_forbidden": "unknown key", "missing": "missing key"}
    return kinds.get(error["type"], "wrong value: " + error["msg"].removeprefix("Value error, "))


def _key_path(error: Any, plain: dict[str, Any]) -> str:
    """The dotted key as written in the file; pydantic adds the tag of a union and `[key]`, which are none."""
    parts: list[str] = []
    here: Any = plain
    for part in error["loc"]:
        is_tag = isinstance(here, dict) and part not in here and here.get("name") == part
        if is_tag or part == "[key]":
            continue
        parts.append(str(part))
        here = here.get(part) if isinstance(here, dict) else None
    return ".".join(parts)


def _apply_override(plain: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError("an override is not understood", got=override, expected="section.key=value")
    *parents, last = key.split(".")
    here = plain
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise UserError("an override goes below a key that holds no section", where=key, got=repr(here))
    here[last] = parse_yaml(text, f"override {key}")
