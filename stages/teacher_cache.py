"""Stage one: images → detections → pairs → teacher signals → shards. Each image is looked at once.

    make teacher-cache [CONFIG=FILE] [section.key=value ...]      or: hoi teacher-cache [--config FILE] ...

`hoi.cache.build.run.build_cache` is three sentences:

1. Plan: `plan_split` says which images make which shard; a split that is complete with these settings is left alone.
2. Run the missing shards: `run_missing` hands each to a worker, on this machine or a cluster, as one task of names and
   numbers; `build_shard` runs detector and teacher (`extract_stream`) and writes the shard whole or not at all.
3. Seal: `SplitBuild.seal` writes the index and then the manifest, whose presence means complete.

Then the same for every extra pass of the pipeline file (`vlms`), over the finished shards. An interrupted build goes on
where it was and ends with the same bytes.
"""

import sys

from hoi.cli import run_verb
from hoi.errors import run_program

if __name__ == "__main__":
    run_program(lambda: run_verb(["teacher-cache", *sys.argv[1:]]))
