"""What every test process starts with."""

from __future__ import annotations

import os
from pathlib import Path

from jaxtyping import install_import_hook

# Two test processes on two cores: a second thread each would only wait. Read when torch is imported, and by children.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whoever names shapes is held to them: every call into those modules has its arguments and results checked.
ROOT = Path(__file__).parents[1]
SHAPED = [path for path in sorted((ROOT / "hoi").rglob("*.py")) if "from jaxtyping import" in path.read_text()]
install_import_hook([".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SHAPED], "beartype.beartype")
