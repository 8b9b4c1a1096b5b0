"""Headless Chromium by its debugging protocol: what a reader's browser does with a page."""

import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from urllib.request import urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank"]


class Tab:
    """One page: sends commands, and keeps the events that came."""

    def __init__(self, socket):
        self.socket, self.sent, self.events = socket, 0, []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        """Send a command and return its result."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": params}))
        return self.wait("id", self.sent)["result"]

    def wait(self, key, value):
        while (message := json.loads(self.socket.recv())).get(key) != value:
            self.events.append(message)
        return message

    def open(self, path):
        """Load a file and return the addresses asked for and what the console said."""
        self.events.clear()
        self.ask("Page.navigate", url=path.absolute().as_uri())
        self.wait("method", "Page.loadEventFired")
        self.ask("Runtime.evaluate", expression="1")  # lets what loading caused arrive
        asked = [url["params"]["request"]["url"] for url in self.named("Network.requestWillBeSent")]
        return asked, self.named("Log.entryAdded") + self.named("Runtime.consoleAPICalled")

    def value(self, script):
        """Return what a script in the page comes to."""
        return self.ask("Runtime.evaluate", expression=script)["result"].get("value")

    def named(self, method):
        return [event for event in self.events if event.get("method") == method]


@contextmanager
def tab():
    """Start Chromium with an empty profile, yield a Tab, and end it."""
    import websocket

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, f"--user-data-dir={profile}", *FLAGS]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            address = next(line for line in process.stderr if "DevTools listening on" in line)
            host = address.split("//")[1].split("/")[0]
            page = next(page for page in json.load(urlopen(f"http://{host}/json")) if page["type"] == "page")
            try:
                yield Tab(websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60))
            finally:
                process.kill()
