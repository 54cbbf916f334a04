"""Chromium without a window, driven over its DevTools pipe: no driver and no library between."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["CHROMIUM", "DEVICES", "Browser", "Device", "box", "fill", "share", "text"]

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
"""Where it is; None: there is none here."""

_PATIENCE = 60.0
"""Seconds for one answer, on a machine with other work to do."""


class Device(NamedTuple):
    """What a page is looked at with."""

    width: int = 1200
    height: int = 900
    theme: Literal["light", "dark"] = "light"
    is_phone: bool = False


DEVICES = {
    f"{size}, {theme}": Device(*pixels, theme, is_phone=size == "phone")
    for size, pixels in {"desktop": (1200, 900), "phone": (360, 740)}.items()
    for theme in ("light", "dark")
}


class Browser:
    """One page in one browser; a context manager. `complaints` is what its console said."""

    def __init__(self) -> None:
        assert CHROMIUM is not None, "look at CHROMIUM before"
        self.complaints: list[str] = []
        self._home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._home.name}",
            "about:blank",
        ]
        # It reads commands from descriptor 3 and answers on 4.
        moved = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, CHROMIUM, *options],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._read, self._number, self._session = b"", 0, None
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(it["targetId"] for it in targets if it["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # its window is the one in use

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self._call("Browser.close")
        os.close(self._commands)
        self._process.wait(_PATIENCE)
        os.close(self._answers)
        self._home.cleanup()

    def open(self, page: Path, device: Device) -> None:
        """Open a file, without a network, and wait until its script has drawn."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=device.width,
            height=device.height,
            deviceScaleFactor=1,
            mobile=device.is_phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": device.theme}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=0,
            uploadThroughput=0,
        )
        self.complaints.clear()
        self._is_loaded = False
        self._call("Page.navigate", url=page.resolve().as_uri())
        while not self._is_loaded:
            self._hear(self._next())
        until = time.monotonic() + _PATIENCE
        while not self.ask("document.documentElement.dataset.drawn"):
            assert time.monotonic() < until, f"{page} draws nothing: {self.complaints}"
            time.sleep(0.02)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def point(self, x: float, y: float, button: Literal["none", "left"] = "none") -> None:
        """Move the pointer there, in pixels of the window; press a button too."""
        where: dict[str, Any] = {"x": x, "y": y}
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **where)
        if button != "none":
            for kind in ("mousePressed", "mouseReleased"):
                pressed = {"type": kind, "button": button, "clickCount": 1}
                self._call("Input.dispatchMouseEvent", **pressed, **where)

    def press(self, key: str) -> None:
        """Press and release a key, as `KeyboardEvent.key` names it, wherever the focus is."""
        code = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36} | {
            f"Arrow{way}": 37 + n for n, way in enumerate(("Left", "Up", "Right", "Down"))
        }
        for kind in ("rawKeyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code[key]
            )

    def picture(self, *, whole: bool = True) -> NDArray[np.uint8]:
        """What one sees: height x width x red, green, blue; of the whole page, or of the window."""
        encoded = self._call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **self._all(whole)
        )
        image = Image.open(io.BytesIO(base64.b64decode(encoded["data"])))
        return np.asarray(image.convert("RGB"))

    def _all(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, **{k: size[k] for k in ("width", "height")}, "scale": 1}}

    # -- the pipe ----------------------------------------------------------------------------

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._hear(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, f"the browser has ended with {self._process.poll()}"
            self._read += part
        answer, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(answer)
        return found

    def _hear(self, event: dict[str, Any]) -> None:
        said = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._is_loaded = True
            case "Runtime.exceptionThrown":
                details = said["exceptionDetails"]
                shown = details.get("exception", {}).get("description", details["text"])
                self.complaints.append(shown)
            case "Log.entryAdded":
                self.complaints.append(said["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(said["args"]))
            case "Network.requestWillBeSent" if not said["request"]["url"].startswith(
                ("file:", "data:", "about:")
            ):
                self.complaints.append(f"asks for {said['request']['url']}")


# -- what is where -------------------------------------------------------------------------------


def box(browser: Browser, selector: str) -> list[float]:
    """Where an element is on the page: left, top, right, bottom."""
    found: list[float] = browser.ask(
        f"(() => {{const r = document.querySelector({selector!r}).getBoundingClientRect();"
        "return [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY]})()"
    )
    return found


def share(picture: NDArray[np.uint8], area: Sequence[float], colour: str, within: int = 3) -> float:
    """How much of an area of a picture has a colour, `rgb(...)` as a browser says it."""
    left, top, right, bottom = (round(edge) for edge in area)
    wanted = np.array([int(part) for part in colour[4:-1].split(",")])
    part = picture[top:bottom, left:right].astype(int)
    return float((abs(part - wanted) <= within).all(axis=2).mean())


def fill(browser: Browser, selector: str) -> str:
    return str(browser.ask(f"getComputedStyle(document.querySelector({selector!r})).fill"))


def text(browser: Browser, selector: str) -> str:
    return str(browser.ask(f"document.querySelector({selector!r}).innerText"))
