"""Which cache a config speaks of: the one door through which training and evaluation reach it."""

from __future__ import annotations

from cache.dataset import CacheSplit
from cache.plan import is_complete, plan_split
from cache.request import request_parts
from hoi.config import PipelineConfig


def open_split(config: PipelineConfig, split: str) -> CacheSplit:
    """A split of the config's cache, made with the config's settings from the config's images.

    Raises:
        UserError: there is no such cache, it is not complete, or it was made with other settings or images.
    """
    is_complete(plan_split(config, split), request_parts(config))
    return CacheSplit.open(config.cache.folder, split)
