"""Headless Chromium, spoken to through its debugging protocol: what a reader's browser does with a page."""

import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank",
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
        self._until(lambda message: message.get("id") == self.sent)

    def _until(self, fits):
        while not fits(message := json.loads(self.socket.recv())):
            self.events.append(message)
        self.events.append(message)

    def open(self, path):
        """Load a file and return the addresses asked for and what the console said."""
        self.events.clear()
        self.ask("Page.navigate", url=path.absolute().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")
        self.ask("Runtime.evaluate", expression="1")  # lets what loading caused arrive
        asked = [event["params"]["request"]["url"] for event in self._named("Network.requestWillBeSent")]
        return asked, self._named("Log.entryAdded") + self._named("Runtime.consoleAPICalled")

    def _named(self, method):
        return [event for event in self.events if event.get("method") == method]


@contextmanager
def tab():
    """Start Chromium with an empty profile, yield a Tab, and end it."""
    import websocket

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, f"--user-data-dir={profile}", *FLAGS]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            address = next(line for line in process.stderr if "DevTools listening on" in line).split()[-1]
            browser = websocket.create_connection(address, timeout=60)
            browser.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
            targets = json.loads(browser.recv())["result"]["targetInfos"]
            page = next(t["targetId"] for t in targets if t["type"] == "page")
            host = address.split("/devtools")[0]
            yield Tab(websocket.create_connection(f"{host}/devtools/page/{page}", timeout=60))
        finally:
            process.kill()
            process.communicate()
