"""Headless Chromium that a test drives through its debugging pipe, without a library."""

import base64
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One tab. Its pipe reads and writes JSON that ends in a zero byte (the Chrome DevTools Protocol)."""

    def __init__(self, pipe: "Pipe", session: str) -> None:
        self.pipe, self.session = pipe, session

    def call(self, method: str, **params: Any) -> dict:
        return self.pipe.call(method, self.session, **params)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> Any:
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}; the page says {self.run('document.body.innerText')}"
            time.sleep(0.02)
        return value

    def press(self, key: str) -> None:
        code = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}" if len(key) == 1 else key
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code)

    def tap(self, selector: str) -> None:
        x, y = self.run(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def size(self, width: int, height: int, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def save_picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Pipe:
    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.number, self.rest = write, read, 0, b""
        self.console: list[str] = []  # errors of scripts and of the security policy

    def call(self, method: str, session: str | None = None, **params: Any) -> dict:
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        while True:
            got = self._next()
            if got.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                if got["params"].get("entry", {}).get("source") != "network":  # statuses, which pages show themselves
                    self.console.append(json.dumps(got["params"]))
            if got.get("id") == self.number:
                assert "error" not in got, got
                return got["result"]

    def _next(self) -> dict:
        while b"\0" not in self.rest:
            part = os.read(self.read, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def open(self, url: str) -> Page:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.size(1280, 800)
        page.call("Page.navigate", url=url)
        return page


@contextmanager
def chromium(home: Path) -> Iterator[Pipe]:
    """home: an empty folder for its profile."""
    (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
    # It reads from 3 and writes to 4, so those that are put there lie above.
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (its_in, its_out)]
    start = f'exec 3<&{above[0]} 4>&{above[1]}; exec chromium "$@"'
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", *FLAGS, f"--user-data-dir={home}"],  # the fds of dash have one digit
        pass_fds=above, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for fd in (its_in, its_out, *above):
        os.close(fd)
    pipe = Pipe(our_out, our_in)
    try:
        yield pipe
        pipe.call("Browser.close")
    finally:
        os.close(our_out)
        os.close(our_in)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
