"""A stand-in for the Hugging Face Hub on 127.0.0.1, with faults that can be switched on.

It answers what ``datasets`` asks of ``HF_ENDPOINT`` when it streams Parquet: file listings, headers, byte ranges; and
what ``huggingface_hub`` asks when it uploads. The variable is read at import, so code under test runs in a subprocess
with ``hub.environment(folder)``.
"""

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves ``<root>/<owner>/<name>/<files>`` as dataset repositories.

    Args:
        root: Folder of the repositories.

    Attributes:
        faults: Fault by a part of the file name: ``busy`` answers the first range request of that file with 503,
            ``drop`` closes the connection in the middle of its first body; each happens once per file and fault.
            ``slow`` sends it in pieces, and waits between them.
            ``limited`` answers every one with 429, and asks to come back in a second.
        reads: Bytes sent per file.
        happened: Faults that took place, per kind.
        users: Owner by token; only these may write, and to their own repositories.
        private: Repositories ``owner/name`` that nobody else may read.
        commits: Names of the files of each commit that was pushed.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults: dict[str, str] = {}
        self.reads: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self.users: dict[str, str] = {}
        self.private: set[str] = set()
        self.commits: list[list[str]] = []
        self.objects: dict[str, bytes] = {}
        self._done: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_UPDATE_DOWNLOAD_COUNTS": "FALSE",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def fault(self, path: str) -> str | None:
        """The fault that strikes this range request, if any."""
        with self._lock:
            for part, kind in self.faults.items():
                if part in path and (path, kind) not in self._done:
                    if kind != "limited":
                        self._done.add((path, kind))
                    self.happened[kind] += 1
                    return kind
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.body()
        self.json(200, {})

    def do_POST(self) -> None:
        sent = self.body()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(sent))
        if parts == ["api", "validate-yaml"]:
            return self.json(200, {})
        owner, name = parts[2:4] if parts[0] == "api" else (parts[1], parts[2].removesuffix(".git"))
        if self.user != owner:
            return self.json(403 if self.user else 401, {"error": "Forbidden"})
        if "preupload" in parts:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if ".parquet" in file["path"] else "regular",
                 "shouldIgnore": False}
                for file in json.loads(sent)["files"]
            ]  # fmt: skip
            return self.json(200, {"files": modes})
        if parts[-1] == "batch":
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}}
                for entry in json.loads(sent)["objects"]
            ]
            return self.json(200, {"transfer": "basic", "objects": objects})
        return self.commit(f"{owner}/{name}", [json.loads(line) for line in sent.splitlines()])

    def create(self, asked: dict) -> None:
        owner, name = asked["organization"], asked["name"]
        if self.user != owner:
            return self.json(403 if self.user else 401, {"error": "Forbidden"})
        url = {"url": f"{self.server.url}/datasets/{owner}/{name}"}
        if (self.server.root / owner / name).is_dir():
            return self.json(409, url)
        (self.server.root / owner / name).mkdir(parents=True)
        if asked.get("visibility") == "private":
            self.server.private.add(f"{owner}/{name}")
        return self.json(200, url)

    def commit(self, repo: str, lines: list[dict]) -> None:
        folder, names = self.server.root / repo, []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (folder / value["path"]).write_bytes(self.server.objects[value["oid"]])
            elif line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
            names += [value["path"]] if "path" in value else []
        self.server.commits.append(names)
        self.json(200, {"commitUrl": f"{self.server.url}/datasets/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

    @property
    def user(self) -> str | None:
        """Who asks."""
        return self.server.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        received = b""
        while size := int(self.rfile.readline(), 16):
            received += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return received

    def answer(self, body: bool) -> None:
        url = urlsplit(self.path)
        # Revisions hold encoded slashes: split first, unquote after.
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        api = parts[0] == "api"
        owner, name, *rest = [*parts[2 if api else 1 :], "", ""] if len(parts) < 4 else parts[2 if api else 1 :]
        repo = self.server.root / owner / name
        if parts[1 if api else 0] != "datasets" or not name:
            self.json(404, {"error": "not found"})
        elif f"{owner}/{name}" in self.server.private and self.user != owner:
            self.json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif not repo.is_dir():
            self.json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif api and (not rest or rest[0] == "revision"):
            self.json(200, {"id": f"{owner}/{name}", "sha": COMMIT})
        elif api and rest[0] == "tree":
            self.tree(repo, "/".join(rest[2:]), parse_qs(url.query).get("recursive") == ["true"])
        elif not api and rest[0] == "resolve":
            self.file(repo, "/".join(rest[2:]), body)
        else:
            self.json(404, {"error": "not found"})

    def tree(self, repo: Path, folder: str, recursive: bool) -> None:
        top = repo / folder
        if not top.is_dir():
            return self.json(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
        entries = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(repo).as_posix(),
                "size": 0 if path.is_dir() else path.stat().st_size,
                "oid": COMMIT,
            }
            for path in sorted(top.rglob("*") if recursive else top.iterdir())
        ]
        return self.json(200, entries)

    def file(self, repo: Path, name: str, body: bool) -> None:
        path = repo / name
        commit = {"X-Repo-Commit": COMMIT}
        if not path.is_file():
            return self.json(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound", **commit})
        data = path.read_bytes()
        headers = {"ETag": f'"{name.replace("/", "-")}"', **commit}
        requested = self.headers.get("Range")
        status, fault = 200, None
        if requested:
            first, last = requested.removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, len(data) - int(last))
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
            fault = self.server.fault(path.as_posix()) if body else None
        if fault == "limited":
            return self.json(429, {"error": "too many requests"}, {"Retry-After": "1"})
        if fault == "busy":
            return self.json(503, {"error": "busy"})
        self.head(status, len(data), headers)
        if fault == "drop":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
        elif body:
            step = -(-len(data) // 8) if fault == "slow" else len(data)
            for first in range(0, len(data), step or 1):
                self.wfile.write(data[first : first + step])
                self.wfile.flush()
                time.sleep(0.1 if fault == "slow" else 0)
            self.server.reads[path.name] += len(data)

    def json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.head(status, len(data), {"Content-Type": "application/json", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(data)

    def head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.end_headers()


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Run the stand-in for as long as the block lasts."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
