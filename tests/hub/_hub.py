"""As much of the Hugging Face hub as a snapshot of one repository needs, on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

#: Loads what it is told to, and says of each what it got or what it was told instead.
CODE = """
import json, sys
from cfm.hub import load_checkpoint
answers = []
for source in sys.argv[1:]:
    try:
        loaded = load_checkpoint(source)
    except (ValueError, OSError) as error:
        answers.append([type(error).__name__, str(error)])
    else:
        answers.append([loaded.name, loaded.config])
sys.stdout.write(json.dumps(answers))
"""


class Hub:
    """Serves a folder as the repository ``o/n``.

    ``cut`` is how many bytes of a file are sent before the connection is closed, of how many
    requests (``n_cuts``); ``log`` the names of the files that were asked for.
    """

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.log: list[str] = []
        self.cut, self.n_cuts = 0, 0

    def __enter__(self) -> Hub:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            commit = "a" * 40

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: Any) -> None:
        """Answer a request as the hub does."""
        path, name = request.path, request.path.split("?")[0].rsplit("/", 1)[-1]
        files = sorted(self.folder.iterdir())
        is_file = False
        if path.startswith("/api/models/o/n/") and "/tree/" in path:
            digests = {p: hashlib.sha1(p.read_bytes()).hexdigest() for p in files}
            rows = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": digests[p]}
                for p in files
            ]
            body = json.dumps(rows).encode()
        elif path.startswith("/api/models/o/n/"):
            listed = [{"rfilename": p.name} for p in files]
            body = json.dumps({"id": "o/n", "sha": request.commit, "siblings": listed}).encode()
        elif path.startswith("/o/n/resolve/") and (self.folder / name).is_file():
            body, is_file = (self.folder / name).read_bytes(), True
        else:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        request.send_header("X-Repo-Commit", request.commit)
        request.end_headers()
        if request.command == "GET":
            if is_file:
                self.log.append(name)
            if is_file and self.cut and self.n_cuts and len(body) > self.cut:
                self.n_cuts -= 1
                request.wfile.write(body[: self.cut])
                request.wfile.flush()
                request.connection.close()
            else:
                request.wfile.write(body)

    def start(self, *sources: str, **more: str) -> subprocess.Popen[str]:
        """Ask for sources in a process of its own, as huggingface_hub reads settings at import."""
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        environment.pop("HF_HUB_OFFLINE", None)
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_address[1]}",
            "HF_HOME": str(self.cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-c", CODE, *sources],
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *sources: str, **more: str) -> list[list[Any]]:
        """Ask, and wait for the answers."""
        return answers_of(self.start(*sources, **more))


def answers_of(process: subprocess.Popen[str]) -> list[list[Any]]:
    """Wait for the answers of a process."""
    out, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    answers: list[list[Any]] = json.loads(out)
    return answers
