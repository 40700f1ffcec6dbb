"""The section `dataset`: which images there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from hoi.config.section import Count, FolderName, Section, Seed, Share


class DatasetSettings(Section):
    """What all datasets have in common. A new one derives from this class and is named in `hoi.registry.DATASETS`.

    The class variables are `module:attribute` targets, imported on use, so that reading a pipeline file
    opens no image and no label.
    """

    IMPLEMENTATION: ClassVar[str]
    """A `hoi.datasets.Dataset`: images and names."""
    LABELS: ClassVar[str | None] = None
    """A `hoi.labels.LabelReader`, which `hoi.labels` alone imports; None where there are never any labels."""
    METRICS: ClassVar[tuple[str, ...]] = ()
    """What is reported beside mean average precision: names of `hoi.registry.METRICS`."""
    CHECK: ClassVar[str | None] = None
    """What `hoi doctor` looks at; None for a sample of the images."""
    inclusive_boxes: ClassVar[bool] = False
    """Whether published annotations and predictions give the last pixel inside a box, not its right and lower edge."""
    scores_interactions: ClassVar[bool] = True
    """Whether predictions are scored triplets of the vocabulary; V-COCO's are scores of actions."""
    RARE_LIST: ClassVar[str | None] = None
    """Where the official list of rare interactions is from, for the audit; None without one."""
    COCO_DETECTOR: ClassVar[str | None] = None
    COCO_TEACHER: ClassVar[str | None] = None
    """Warnings of the audit where the detector, or the teacher, was trained on COCO."""

    name: str

    if TYPE_CHECKING:
        splits: Mapping[Any, float]
        """Each split's share of the images or, of drawn ones, their number."""


class WorldDataset(DatasetSettings):
    """The embedded world: drawn scenes, nothing to download."""

    IMPLEMENTATION = "hoi.datasets.world:World"
    LABELS = "hoi.labels.world:WorldLabels"
    CHECK = "hoi.project.dataset_checks:check_world"

    name: Literal["world"]
    seed: Seed = 0
    """World seed; 0 is the committed world, any other a fresh one of the same distribution."""
    splits: dict[str, Count] = {"train": 800, "validation": 300, "test": 500}
    """Number of scenes of each split."""

    @model_validator(mode="after")
    def _known_splits(self) -> WorldDataset:
        foreign = self.splits.keys() - {"train", "validation", "test"}
        if foreign:
            raise ValueError(f"the world has the splits train, validation and test, not {', '.join(sorted(foreign))}")
        return self


class FolderDataset(DatasetSettings):
    """A folder of photographs and a vocabulary of verb-object phrases; annotations, where there are any, only score."""

    IMPLEMENTATION = "hoi.datasets.folder:Folder"
    LABELS = "hoi.labels.folder:FolderLabels"
    CHECK = "hoi.project.dataset_checks:check_folder"

    name: Literal["folder"]
    images: str
    """Folder of images, searched recursively; names that start with a dot are skipped."""
    vocabulary: str
    """A text file with one phrase per line ("riding a bicycle"), or a YAML list of `{verb, object, phrase?, synonyms?,
    detector_class?}`; both are explained in docs/own-photographs.md."""
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


class HicodetDataset(DatasetSettings):
    """HICO-DET (Chao et al., WACV 2018): 38,118 training and 9,658 test images, 600 interactions of 80 COCO objects."""

    IMPLEMENTATION = "hoi.datasets.hicodet:Hicodet"
    LABELS = "hoi.labels.hicodet:HicodetLabels"
    CHECK = "hoi.project.dataset_checks:check_hicodet"
    inclusive_boxes = True
    RARE_LIST = "the official 138, from the counts of HICO-DET's training labels"
    COCO_DETECTOR = "HICO's images are from Flickr, as COCO's are: whether the detector saw some of them is not known"

    name: Literal["hicodet"]
    root: str
    """Folder that holds `images/train2015` and `images/test2015`, itself or in `hico_20160224_det`."""
    image_lists: HicodetFiles | None = None
    """Text files of image names, one per line; a name without a file is an unreadable image. null for every image in
    the folder."""
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


class VcocoDataset(DatasetSettings):
    """V-COCO (Gupta and Malik, 2015): 10,346 COCO images, 25 action-role pairs and four actions without object."""

    IMPLEMENTATION = "hoi.datasets.vcoco:Vcoco"
    LABELS = "hoi.labels.vcoco:VcocoLabels"
    METRICS = ("vcoco",)
    CHECK = "hoi.project.dataset_checks:check_vcoco"
    inclusive_boxes = True
    scores_interactions = False
    COCO_DETECTOR = (
        "the detector was trained on COCO train2017, which holds all images of V-COCO's training and validation "
        "split, and those of its test split that are not in val2017 (35,504 of the 40,504 images of val2014 are "
        "not): boxes of test images were seen in training. Count them with --training-images"
    )
    COCO_TEACHER = "the teacher was trained on captions of COCO images, V-COCO's among them"

    name: Literal["vcoco"]
    images: str
    """Folder that holds COCO's `train2014` and `val2014`, or `train2017` and `val2017`, or the images themselves."""
    image_list: str | None = None
    """Text file of COCO image ids, one per line, to restrict the splits to. null for all of V-COCO."""
    vocabulary: Literal["common_sense", "all"] = "common_sense"
    """Which objects an action-role pair goes with: those written down in `hoi.datasets.vcoco` (370
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
