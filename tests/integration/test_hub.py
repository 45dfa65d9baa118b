import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from sequoia.runtime.catalogue import ModelError, resolve
try:
    print(resolve(sys.argv[1]))
except ModelError as error:
    print(type(error).__name__, error)
"""


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub's API as fetching a model takes."""

    files: dict[str, bytes] = {}  # noqa: RUF012 set by each test's subclass
    fetched: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer with headers and body."""
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 its name above
        """Keep quiet."""

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path in {"/api/models/some/model", "/api/models/some/model/revision/main"}:
            siblings = [{"rfilename": name} for name in self.files]
            self._send(json.dumps({"id": "some/model", "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/models/some/model/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{index:040x}"}
                for index, (name, data) in enumerate(self.files.items())
            ]
            self._send(json.dumps(entries))
        elif path.startswith(f"/some/model/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/some/model/resolve/{COMMIT}/")
            if with_body:
                self.fetched.append(name)
            self._send(self.files[name], with_body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, body: str | bytes, with_body: bool = True) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(data):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


@contextmanager
def _hub(*names: str) -> Iterator[tuple[str, list[str]]]:
    """A hub with one model of these files; its address, and what is fetched from it."""
    fetched: list[str] = []
    files = {name: f"content of {name}".encode() for name in names}
    handler = type("Handler", (FakeHub,), {"files": files, "fetched": fetched})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", fetched
        finally:
            server.shutdown()
            thread.join()


def _resolve(reference: str, endpoint: str, cache: Path) -> str:
    """What `resolve` gives or raises with this hub; its client reads the address only at import."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, reference],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_of_the_hub_is_fetched_without_its_pickles(tmp_path: Path) -> None:
    """Weights in safetensors, configuration and tokenizer come; pickles, code and folders stay."""
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    others = ["pytorch_model.bin", "modeling.py", "README.md", "model.gguf", "onnx/config.json"]
    with _hub(*wanted, *others) as (endpoint, fetched):
        folder = Path(_resolve("some/model", endpoint, tmp_path))
    assert sorted(fetched) == wanted
    assert sorted(path.name for path in folder.iterdir()) == wanted


def test_a_model_that_was_fetched_needs_no_hub(tmp_path: Path) -> None:
    """With the hub gone, the copy that is here serves."""
    with _hub("config.json", "model.safetensors") as (endpoint, _):
        folder = _resolve("some/model", endpoint, tmp_path)
    assert _resolve("some/model", endpoint, tmp_path) == folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json", "pytorch_model.bin"], "UnsafeWeightsError"),
        (["config.json"], "ModelNotFoundError"),
        (["a.gguf", "b.gguf"], "ModelNotFoundError"),
    ],
)
def test_an_unusable_model_of_the_hub_is_not_fetched(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    """The list of files decides, before the first byte of a weight is downloaded."""
    with _hub(*names) as (endpoint, fetched):
        assert _resolve("some/model", endpoint, tmp_path).startswith(expected)
    assert fetched == []


def test_a_model_that_the_hub_does_not_know_is_not_found(tmp_path: Path) -> None:
    """A misspelt name gets the built-in names to choose from, on one line."""
    with _hub() as (endpoint, _):
        answer = _resolve("some/other", endpoint, tmp_path)
    assert answer.startswith("ModelNotFoundError model 'some/other'")
    assert answer.endswith("(smollm2-135m-instruct, smollm2-135m-instruct-draft)")
    assert "\n" not in answer


def test_an_unreachable_hub_points_to_what_works_without(tmp_path: Path) -> None:
    """No hub and no copy: the message offers a local folder and the built-in names."""
    answer = _resolve("some/model", "http://127.0.0.1:1", tmp_path)
    assert answer.startswith("ModelFetchError")
    assert "pass a local folder or a built-in name (smollm2-135m-instruct" in answer
    assert "\n" not in answer
