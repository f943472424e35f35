"""`pretrained=True` fetches timm's weights from its hub, here a local server that answers as the hub does."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

ROOT = Path(__file__).parents[2]
NARROW = {"num_heads": (1, 2, 4, 8), "depths": (2, 1, 1, 1)}
CODE = """
import sys, timm, torch, visionattn
arguments = dict(dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), depths=(2, 1, 1, 1))
model = timm.create_model("va_twins_svt_small", pretrained=True, **arguments).eval()
with torch.inference_mode():
    torch.save(model(torch.load(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture
def hub(tmp_path):
    """A hub that holds what is put into the folder, and the list of what was asked for."""
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            asked.append((self.command, self.path))
            repo, found, name = self.path.partition("/resolve/main/")
            path = tmp_path / "hub" / repo.strip("/") / name
            if not found or not path.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_weights_come_from_timms_hub(hub, tmp_path):
    endpoint, asked = hub
    torch.manual_seed(0)
    theirs = timm.create_model("twins_svt_small", embed_dims=(16, 32, 64, 128), **NARROW).eval()
    folder = tmp_path / "hub" / "timm" / "twins_svt_small.in1k"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(theirs.state_dict(), folder / "model.safetensors")
    x = torch.randn(1, 3, 64, 64)
    torch.save(x, tmp_path / "x.pt")
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    environment["TORCH_HOME"] = str(tmp_path / "torch")
    command = [sys.executable, "-c", CODE, str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ("GET", "/timm/twins_svt_small.in1k/resolve/main/model.safetensors") in asked
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(tmp_path / "y.pt"), theirs(x))


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("va_twins_pcpvt_large", "timm/twins_pcpvt_large.in1k"),
        ("va_davit_base", "timm/davit_base.msft_in1k"),
    ],
)
def test_names_on_the_hub_are_timms(name, hub_id):
    assert timm.get_pretrained_cfg(name).hf_hub_id == hub_id
    assert timm.get_pretrained_cfg(name.removeprefix("va_")).hf_hub_id == hub_id
