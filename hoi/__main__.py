"""Run `python -m hoi VERB`."""

from __future__ import annotations

import runpy
import sys

VERBS = {
    "app": "hoi.web.app",
    "audit": "hoi.evaluation.audit",
    "bench": "hoi.sweeps.bench",
    "check-page": "hoi.web.check_page",
    "checkpoint": "hoi.prediction.export",
    "demo": "hoi.cli.demo",
    "doctor": "hoi.project.doctor",
    "eval": "hoi.evaluation.evaluate",
    "hicodet": "hoi.project.published",
    "new": "hoi.project.new",
    "predict": "hoi.prediction.run",
    "quality": "hoi.quality.run",
    "report": "hoi.report.build",
    "score": "hoi.evaluation.score",
    "sweep": "hoi.sweeps.run",
    "teacher-cache": "hoi.cache.build.run",
    "train": "hoi.training.train",
    "world": "hoi.world.weights",
}

if __name__ == "__main__":
    module = VERBS[sys.argv.pop(1)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
