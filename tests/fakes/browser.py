"""What tests of pages ask of a browser: another screen, and which addresses it requested."""

from __future__ import annotations

import json
from typing import Any


def set_up(browser: Any, width: int, scheme: str) -> None:
    """Give the browser a screen of this width and a `light` or `dark` scheme, and forget its logs."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for log in ("browser", "performance"):
        browser.get_log(log)


def requested(browser: Any) -> set[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
