"""Headless Chromium, spoken to through its debugging protocol: what a reader's browser does with a page."""

import base64
import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
]  # fmt: skip


class Tab:
    """One page: sends commands, and keeps the events that came."""

    def __init__(self, socket):
        self.socket, self.sent, self.events = socket, 0, []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        return self._until(lambda message: message.get("id") == self.sent)["result"]

    def _until(self, fits):
        while True:
            message = json.loads(self.socket.recv())
            if "method" in message:
                self.events.append(message)
            if fits(message):
                return message

    def open(self, path, width):
        """Load a file at a width in pixels and return the addresses asked for and what the console said."""
        self.events.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        self.ask("Page.navigate", url=path.absolute().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")
        self.evaluate("1")  # lets what loading caused arrive
        asked = [
            e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"
        ]
        said = [e for e in self.events if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")]
        return asked, said

    def evaluate(self, expression):
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path, height=900):
        shot = self.ask(
            "Page.captureScreenshot", captureBeyondViewport=True,
            clip={"x": 0, "y": 0, "width": self.evaluate("innerWidth"), "height": height, "scale": 1},
        )  # fmt: skip
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def tab():
    """Start Chromium with an empty profile, yield a Tab, and end it."""
    import websocket

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            line = next(line for line in process.stderr if "DevTools listening on" in line)
            browser = websocket.create_connection(line.split()[-1], timeout=60)
            browser.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
            targets = json.loads(browser.recv())["result"]["targetInfos"]
            page = next(t["targetId"] for t in targets if t["type"] == "page")
            host = line.split("/devtools")[0].split()[-1]
            socket = websocket.create_connection(f"{host}/devtools/page/{page}", timeout=60)
            yield Tab(socket)
            socket.close()
            browser.close()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def shoot(site, folder):
    """Save screenshots of all pages at the widths of a desk and a phone."""
    folder.mkdir(exist_ok=True)
    with tab() as page:
        for path in sorted(Path(site).glob("*.html")):
            for width in (1280, 390):
                page.open(path, width)
                page.screenshot(folder / f"{path.stem}-{width}.png", 3000)
