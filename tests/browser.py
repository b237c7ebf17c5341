"""A headless Chromium to look at pages with, driven over a pipe: the viewer's tests need no library for it.

Left out on purpose: everything but opening a page, running a line of script in it, pressing keys, and taking a picture.
"""

import base64
import itertools
import json
import os
import select
import subprocess
import tempfile
from pathlib import Path

from lab.gallery import BROWSER as PROGRAM

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update
    --disable-sync --hide-scrollbars --remote-debugging-pipe""".split()
PATIENCE = 60  # seconds to wait for any one answer


class Browser:
    """One page in a fresh profile. Use it in a `with`."""

    def __enter__(self) -> "Browser":
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (read, self.commands), (self.answers, write) = os.pipe(), os.pipe()
        redirected = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash"]  # Chromium's pipe: commands on 3, answers on 4
        self.process = subprocess.Popen(
            [*redirected, PROGRAM, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read), os.close(write)
        self.numbers, self.unread, self.session, self.events = itertools.count(1), b"", None, []
        try:
            self.attach()
        except (OSError, RuntimeError) as error:
            self.__exit__()
            raise RuntimeError(f"{PROGRAM} does not start: {error}") from None
        return self

    def attach(self) -> None:
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands), os.close(self.answers)
        self.profile.cleanup()

    def call(self, method: str, **parameters) -> dict:
        """Send one command of the DevTools protocol and wait for its answer; what happens meanwhile goes to `events`."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def receive(self) -> dict:
        while b"\0" not in self.unread:
            if not select.select([self.answers], [], [], PATIENCE)[0]:
                raise RuntimeError(f"no answer in {PATIENCE} seconds")
            chunk = os.read(self.answers, 2**16)
            if not chunk:
                raise RuntimeError("it has ended")
            self.unread += chunk
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, fragment: str = "", width: int = 1200, height: int = 800, dark: bool = False) -> None:
        """Load a file and wait until its scripts have run. width and height in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=page.resolve().as_uri() + fragment)
        while self.run("document.readyState") != "complete":
            pass

    def run(self, script: str):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "an exception in the page"))
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys as a person does, named as in KeyboardEvent.key."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            virtual = {"Tab": 9, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=virtual, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=virtual)

    def picture(self, file: Path) -> None:
        """A PNG of what the window shows."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
