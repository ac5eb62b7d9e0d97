"""A hub on the loopback interface, speaking the protocol that the hub's client speaks."""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

TOKEN = "hf_member"
LARGE = (".safetensors", ".msgpack")  # what the hub keeps outside of git, and redirects to


@dataclass
class Repository:
    """Commits by their hash (the files of each by their path), branches and tags by their name."""

    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)
    access: str = "public"  # or "private", "gated"

    def files(self, revision):
        return self.commits.get(self.refs.get(revision, revision))


class Hub(ThreadingHTTPServer):
    """Serves repositories; `requests`, `ranges` and `commits` say what was asked of it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {}
        self.requests = []
        self.commits = []
        self.ranges = []
        self.cut = {}  # file -> bytes after which the next download breaks off
        self.claims = None  # send so many bytes of every download and call them the whole
        self.status = None  # answer everything with this

    def commit(self, name, files, ref="main", access=None):
        """Adds a commit that holds these files alone."""
        repository = self.repositories.setdefault(name, Repository())
        repository.access = access or repository.access
        content = json.dumps([len(repository.commits), sorted(files)])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repository.commits[commit] = {
            path: text.encode() if isinstance(text, str) else text for path, text in files.items()
        }
        repository.refs[ref] = commit
        return commit

    def asked(self, method=None, file=None):
        """The requests of a method for a file."""
        return [
            path
            for verb, path in self.requests
            if method in (None, verb) and (file is None or path.endswith(file))
        ]


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does: the headers of commits, ETags, ranges, and its error codes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def handle_any(self):
        self.server.requests.append((self.command, self.path))
        path = unquote(urlsplit(self.path).path)
        if self.server.status:
            return self.answer(self.server.status)
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, *match.groups())
        return self.answer(404)

    do_GET = do_HEAD = do_POST = handle_any

    def answer(self, status, content=b"", cut=None, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def refuse(self, status, code, **headers):
        self.answer(status, X_Error_Code=code, X_Error_Message=code, **headers)

    def repository(self, name):
        """The repository of a name, or None once its refusal is sent."""
        repository = self.server.repositories.get(name)
        is_member = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.access == "private" and not is_member):
            return self.refuse(404 if is_member else 401, "RepoNotFound")
        if repository.access == "gated" and not is_member:
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if repository.access == "public" and not is_member and "Authorization" in self.headers:
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        return repository

    def resolve(self, name, revision, path):
        repository = self.repository(name)
        if repository is None:
            return
        files = repository.files(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        commit = repository.refs.get(revision, revision)
        if path not in files:
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit)
        content = files[path]
        tag = hashlib.sha256(content).hexdigest()
        if not path.endswith(LARGE):
            return self.download(content, path, X_Repo_Commit=commit, ETag=f'"{tag}"')
        # Another host, as far as the client can tell: it must not be given the token
        self.answer(
            302,
            Location=f"http://localhost:{self.server.server_port}/storage/{tag}/{path}",
            X_Repo_Commit=commit,
            X_Linked_Etag=f'"{tag}"',
            X_Linked_Size=str(len(content)),
        )

    def storage(self, tag, path):
        assert "Authorization" not in self.headers
        for repository in self.server.repositories.values():
            for files in repository.commits.values():
                if hashlib.sha256(files.get(path, b"")).hexdigest() == tag:
                    return self.download(files[path], path)
        self.answer(404)

    def download(self, content, path, **headers):
        cut = self.server.cut.pop(path, None) if self.command == "GET" else None
        if self.server.claims is not None:
            content = content[: self.server.claims]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked:
            return self.answer(200, content, cut, **headers)
        self.server.ranges.append(self.headers["Range"])
        start, size = int(asked[1]), len(content)
        headers["Content_Range"] = f"bytes {start}-{size - 1}/{size}"
        self.answer(206, content[start:], cut, **headers)

    def tree(self, name, revision):
        repository = self.repository(name)
        if repository is None:
            return
        files = repository.files(revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": "0"}
            for path, content in files.items()
        ]
        folders = {path.rpartition("/")[0] for path in files} - {""}
        entries += [{"type": "directory", "path": path, "size": 0, "oid": "0"} for path in folders]
        self.answer(200, entries)

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"])).decode()

    def create(self):
        asked = json.loads(self.body())
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        name = f"{asked['organization']}/{asked['name']}"
        exists = name in self.server.repositories
        if not exists:
            is_private = asked.get("private") or asked.get("visibility") == "private"
            access = "private" if is_private else "public"
            self.server.commit(name, {".gitattributes": ""}, access=access)
        self.answer(409 if exists else 200, {"url": f"{self.server.url}/{name}"})

    def preupload(self, name, revision):
        asked = json.loads(self.body())
        repository = self.repository(name)
        if repository is None:
            return
        if repository.files(revision) is None:
            return self.refuse(404, "RevisionNotFound")
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in asked["files"]
        ]
        self.answer(200, {"files": files})

    def commit(self, name, revision):
        lines = [json.loads(line) for line in self.body().splitlines()]
        asked = {"header": [], "file": []}
        for line in lines:
            asked[line["key"]].append(line["value"])
        is_request = "create_pr=1" in self.path
        ref = "refs/pr/1" if is_request else revision
        files = self.server.repositories[name].files(revision) | {
            file["path"]: base64.b64decode(file["content"]) for file in asked["file"]
        }
        commit = self.server.commit(name, files, ref)
        self.server.commits.append((name, ref, asked["header"][0]["summary"]))
        answer = {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit}
        if is_request:
            answer["pullRequestUrl"] = f"{self.server.url}/{name}/discussions/1"
        self.answer(200, answer)


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    (rf"/{NAME}/resolve/(.+?)/((?:sub/)?[^/]+)", Handler.resolve),
    (r"/storage/(\w+)/(.+)", Handler.storage),
    (rf"/api/models/{NAME}/tree/(.+)", Handler.tree),
    (r"/api/repos/create", Handler.create),
    (rf"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"/api/models/{NAME}/commit/(.+)", Handler.commit),
    (r"/api/validate-yaml", lambda handler: handler.answer(200, {"errors": [], "warnings": []})),
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that the client takes for the only one; nobody is logged in, retries do not wait."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    huggingface_hub.utils.disable_progress_bars()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
