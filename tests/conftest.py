"""What every test process starts with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from hoi.config import PipelineConfig

# Two test processes on two cores: a second thread each would only wait. Read when torch is imported, and by children.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What make was called with is not for the makes that tests call.
for variable in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "SLOW"):
    os.environ.pop(variable, None)

# Check the shapes of every call into a module that names shapes.
ROOT = Path(__file__).parents[1]
SHAPED = [path for path in sorted((ROOT / "hoi").rglob("*.py")) if "from jaxtyping import" in path.read_text()]
install_import_hook([".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SHAPED], "beartype.beartype")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run it with --slow, or make test SLOW=1"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    """A small world whose students are trained; the checkpoint of `best` lies beside its output, in `checkpoint`."""
    from tests.fakes.pipelines import trained_world

    return trained_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The cache section of `small_pipeline` with its cache built; for tests that only read it."""
    from hoi.cache.build.run import build_cache
    from tests.fakes.extractors import DrawnSignals
    from tests.fakes.pipelines import small_pipeline

    config = small_pipeline(tmp_path_factory.mktemp("drawn"))
    build_cache(config, DrawnSignals)
    return config.cache.model_dump(mode="json")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium that keeps its console, every request, and its downloads in the folder `downloads`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.downloads = tmp_path_factory.mktemp("downloads")
    behaviour = {"behavior": "allow", "downloadPath": str(opened.downloads)}
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    yield opened
    opened.quit()
