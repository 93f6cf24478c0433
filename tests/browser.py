"One Chromium for many pages: its own protocol over a pipe, with nothing to install."

import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((c for c in map(shutil.which, NAMES) if c), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")


class Browser:
    "A page of a headless Chromium: open an address, run a script in it, read what it said and asked for."

    def __init__(self, profile):
        ours, theirs = os.pipe(), os.pipe()  # what they read, what they write
        keep = lambda: (os.dup2(ours[0], 3), os.dup2(theirs[1], 4))
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in (ours[0], theirs[1]):
            os.set_inheritable(end, True)
        self.process = subprocess.Popen(command, preexec_fn=keep, close_fds=False, **quiet)
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.by = ours[1], theirs[0]
        self.left, self.count, self.session, self.events = b"", 0, None, []
        pages = self.ask("Target.getTargets")["targetInfos"]
        page = next(p["targetId"] for p in pages if p["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def read(self, until):
        "The next message of the browser; AssertionError when `until` has passed."
        while b"\0" not in self.left:
            ready, _, _ = select.select([self.by], [], [], max(0, until - time.time()))
            assert ready, "the browser does not answer"
            self.left += os.read(self.by, 1 << 20)
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def ask(self, method, **parameters):
        "What the browser answers to one command; events that come meanwhile are kept."
        self.count += 1
        sent = dict(id=self.count, method=method, params=parameters)
        if self.session:
            sent["sessionId"] = self.session
        os.write(self.to, json.dumps(sent).encode() + b"\0")
        until = time.time() + 120
        while (message := self.read(until)).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def window(self, width, height=900, dark=False):
        "Give the page a size and a colour scheme."
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address):
        "Open an address and wait until it is loaded."
        self.events = []
        self.ask("Page.navigate", url=address)
        until = time.time() + 120
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.read(until))

    def run(self, script):
        "The value of a script in the page; a promise is waited for."
        asked = dict(expression=script, returnByValue=True, awaitPromise=True)
        found = self.ask("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def errors(self):
        "What the page complained of in the console since it was opened."
        told = [(e["method"], e["params"]) for e in self.events if "method" in e]
        thrown = [str(p["exceptionDetails"]) for m, p in told if m == "Runtime.exceptionThrown"]
        logged = [p["entry"]["text"] for m, p in told if m == "Log.entryAdded"]
        said = [str(p["args"]) for m, p in told if m == "Runtime.consoleAPICalled"]
        return thrown + logged + said

    def asked_for(self):
        "The addresses that the page asked for since it was opened."
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def picture(self, path, height=None):
        "Write what the window shows, or the page's first `height` pixels, as a PNG."
        import base64

        width = self.run("innerWidth")
        clip = dict(x=0, y=0, width=width, height=height or 900, scale=1)
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        "End the browser."
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        os.close(self.by)
