"""Several teachers to one target: by hand, and the laws of it."""

from __future__ import annotations

import pytest
import torch

from hoi.students.multilevel.targets import Opinion, mix
from tests.fakes.splits import ADMITTED, VLM, make_vlm_split
from tests.fakes.splits import fresh_multilevel as fresh

OBJECT_OF = torch.tensor([0, 0, 0, 1, 1])
CLIP = torch.tensor([[0.4, 0.2, 0.1, 0.2, 0.1]])
ASKED = torch.tensor([[True, True, False, False, False]])
OTHER = torch.tensor([[0.1, 0.3, 0.7, 0.9, 0.9]])  # what stands where it was not asked must not matter
BOTH = {"clip": 0.7, VLM: 0.3}


def test_a_pass_shares_out_clips_mass_of_what_it_was_asked() -> None:
    opinions = [Opinion(CLIP, 0.5), Opinion(OTHER, 0.5, ASKED)]
    linear = mix(opinions, "linear", OBJECT_OF, is_distribution=True)
    # CLIP says 2 : 1, the other 1 : 3, of a mass of 0.6.
    by_hand = [0.6 * (2 / 3 + 1 / 4) / 2, 0.6 * (1 / 3 + 3 / 4) / 2, 0.1, 0.2, 0.1]
    torch.testing.assert_close(linear.scores, torch.tensor([by_hand]))
    assert linear.scope is None


def test_a_product_takes_from_what_a_pass_finds_less_likely() -> None:
    clip, other, asked = CLIP.repeat(3, 1), OTHER.repeat(3, 1), ASKED.repeat(3, 1)
    opinions = [Opinion(clip, 1.0), Opinion(other, 2.0, asked, torch.tensor([0.3, 0.6, 0.0]))]
    found = mix(opinions, "geometric", OBJECT_OF, is_distribution=True).scores
    first = torch.tensor([0.4 / 9, 0.2, 0.1, 0.2, 0.1])
    # The second pair's image has another pair that is twice as likely; of the third's, nothing was said.
    second = torch.tensor([0.4 / 36, 0.2 / 4, 0.1, 0.2, 0.1])
    torch.testing.assert_close(found, torch.stack([first / first.sum(), second / second.sum(), CLIP[0]]))
    alone = mix(opinions, "geometric", OBJECT_OF, is_distribution=False).scores
    torch.testing.assert_close(alone, torch.stack([first, second, CLIP[0]]))


def test_a_pass_alone_and_sigmoid_scores_by_hand() -> None:
    asked = torch.tensor([[True, True, False, True, False], [False] * 5])
    scores = torch.tensor([[0.2, 0.6, 0.5, 0.3, 0.5], [0.5] * 5])
    target = mix([Opinion(scores, 2.0, asked)], "linear", OBJECT_OF, is_distribution=True)
    # Two objects were asked, and each has half.
    torch.testing.assert_close(target.scores, torch.tensor([[0.125, 0.375, 0, 0.5, 0], [0.0] * 5]))
    assert target.scope is not None
    assert torch.equal(target.scope, asked)
    opinions = [Opinion(CLIP, 3.0), Opinion(OTHER, 1.0, ASKED)]
    alone = mix(opinions, "linear", OBJECT_OF, is_distribution=False).scores
    torch.testing.assert_close(alone, torch.tensor([[0.325, 0.225, 0.1, 0.2, 0.1]]))


@pytest.mark.parametrize("pool", ["linear", "geometric"])
def test_targets_sum_to_one_and_silence_changes_nothing(pool: str) -> None:
    torch.manual_seed(0)
    clip, other, asked = torch.rand(40, 5).softmax(1), torch.rand(40, 5), torch.rand(40, 5) > 0.4
    highest, nothing = (other * asked).amax(1), torch.zeros_like(other)
    opinions = [Opinion(clip, 1.0), Opinion(other, 0.4, asked, highest)]
    target = mix(opinions, pool, OBJECT_OF, is_distribution=True).scores
    torch.testing.assert_close(target.sum(1), torch.ones(40))
    # What it was not asked keeps CLIP's proportions.
    ratio = torch.where(asked, 0.0, target / clip)
    torch.testing.assert_close(ratio[~asked], (ratio.amax(1, keepdim=True) * ~asked)[~asked])
    for silent in (Opinion(other, 0.4, nothing > 0, nothing[:, 0]), Opinion(nothing, 0.4, asked, nothing[:, 0])):
        same = mix([Opinion(clip, 1.0), silent], pool, OBJECT_OF, is_distribution=True)
        torch.testing.assert_close(same.scores, clip)


def test_clip_alone_is_what_it_was_before_to_the_bit() -> None:
    split = make_vlm_split()
    targets = {"image_teachers": {"clip": 2.0, VLM: 0.0}, "pair_teachers": {"clip": 0.3}}
    plain, named = fresh(split), fresh(split, targets=targets)
    for name, loss in plain.losses(split.whole, None).losses.items():
        assert torch.equal(loss, named.losses(split.whole, None).losses[name])
    assert named.extra_fields == ()


@pytest.mark.parametrize("image_target", ["image", "pairs"])
@pytest.mark.parametrize("pool", ["linear", "geometric"])
def test_what_no_teacher_was_asked_gets_no_gradient_at_all(image_target: str, pool: str) -> None:
    split = make_vlm_split()
    batch, alone = split.whole, {VLM: 1.0}
    targets = {"image": image_target, "human_object": "both", "pool": pool}
    student = fresh(split, targets={"image_teachers": alone, "pair_teachers": alone, **targets})
    logits = student(batch)
    for value in (logits.image, logits.union, logits.human_object):
        value.retain_grad()
    student.forward = lambda _: logits
    student.losses(batch, None).total.backward()
    asked = batch.extra[f"{VLM}/vlm_asked"] > 0
    of_pairs = asked[batch.pair_image] & ADMITTED[batch.labels_o]
    # From images alone, a pair learns of all that was asked in its image.
    heard = {"image": asked, "union": of_pairs, "human_object": asked[batch.pair_image]}
    for name, places in heard.items():
        gradient = getattr(logits, name).grad
        assert gradient[places].any(), name
        assert not gradient[~places].any(), name


@pytest.mark.parametrize("pool", ["linear", "geometric"])
def test_a_pass_is_read_only_where_it_was_asked(pool: str) -> None:
    split = make_vlm_split()
    student = fresh(split, targets={"image_teachers": BOTH, "pair_teachers": BOTH, "image": "pairs", "pool": pool})
    before = student.losses(split.whole, None).losses
    asked = split.whole.extra[f"{VLM}/vlm_asked"] > 0
    split.whole.extra[f"{VLM}/vlm_scores"][~asked] = 0.9
    of_pairs = asked[split.whole.pair_image] & ADMITTED[split.whole.labels_o]
    split.whole.extra[f"{VLM}/vlm_pair_scores"][~of_pairs] = 0.9
    for name, loss in student.losses(split.whole, None).losses.items():
        assert torch.equal(loss, before[name])
    assert not torch.equal(before["union"], fresh(split).losses(split.whole, None).losses["union"])
    assert set(student.extra_fields) == {f"{VLM}/vlm_{own}" for own in ("scores", "asked", "pair_scores")}
    assert student.scoring_fields == ()
