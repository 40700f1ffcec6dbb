"""The teacher cache: what a shard holds, how it is planned, built, sealed and read. See FORMAT.md."""

from __future__ import annotations
