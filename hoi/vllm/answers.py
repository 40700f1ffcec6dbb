"""What a further pass knows of one image, and what it asks of all.

Letters: K interactions, P pairs, S sentences at most, D the teacher's joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PhraseBank:
    """The candidates, and what a vision language model makes of them without an image.

    Args:
        phrases: K texts; empty for interactions that are never asked.
        num_tokens: int32 [K], how many tokens a phrase's log-likelihood is summed over; 0 where none is taken.
        prior_log_likelihood: float32 [K], that of the phrase on a blank image, in nats; 0 where none is taken.
    """

    phrases: tuple[str, ...]
    num_tokens: np.ndarray
    prior_log_likelihood: np.ndarray


@dataclass(frozen=True)
class ImageAnswers:
    """One record of a further pass. None for what was not asked for.

    Args:
        image_id: As in the base pass.
        caption: What was generated; empty where none was asked for.
        context_embedding: float16 [S, D] teacher embeddings of its sentences, unit norm; 0 beyond the last one.
        context_mask: uint8 [S], 1 where there is a sentence.
        vllm_scores: float16 [K], confidence in [0, 1]; 0 where not asked.
        vllm_asked: uint8 [K], 1 where the interaction was asked of the image.
        vllm_log_likelihood: float32 [K], sum of the phrase's token log-probabilities in nats; 0 where none is taken.
        vllm_pair_scores: float16 [P, K], confidence asked of the union crops.
    """

    image_id: str
    caption: str = ""
    context_embedding: np.ndarray | None = None
    context_mask: np.ndarray | None = None
    vllm_scores: np.ndarray | None = None
    vllm_asked: np.ndarray | None = None
    vllm_log_likelihood: np.ndarray | None = None
    vllm_pair_scores: np.ndarray | None = None
