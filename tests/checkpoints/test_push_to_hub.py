"""A repository of the hub, here a local server that answers as the hub does: published, loaded, rebuilt."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import torch
import yaml
from test_publishing import ABOUT, CLASSES, FACTS, publish, same, trained

from visionattn import checkpoints
from visionattn.checkpoints import push_to_hub, write_hub_folder
from visionattn.utils.resources import USER_FOLDER

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(USER_FOLDER, raising=False)


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that creating, uploading and downloading use."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    asked: list[tuple[str, str]]

    def reply(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply_json(self, **content):
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append((self.command, self.path))
        repository, found, name = self.path.partition("/resolve/main/")
        content = self.files.get(f"{repository.strip('/')}/{name}") if found else None
        if content is None:
            self.reply(404, X_Error_Code="EntryNotFound")
            return
        self.reply(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit="0" * 40)

    def do_POST(self):
        self.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self.reply(401, b'{"error": "who are you"}', Content_Type="application/json")
        elif self.path == "/api/repos/create":
            self.reply_json(url=f"http://{self.headers['Host']}/me/photos")
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.reply_json(files=[{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names])
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[f"me/photos/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
            self.reply_json(commitUrl=f"http://{self.headers['Host']}/me/photos/commit/1", commitOid="1", success=True)
        else:
            self.reply(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    Hub.files, Hub.asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.url = f"http://127.0.0.1:{server.server_port}"
    yield Hub
    server.shutdown()
    server.server_close()


# huggingface_hub reads where the hub is when it is imported.
FRESH = """
import sys, timm, torch, visionattn
from visionattn import checkpoints
from visionattn.checkpoints import push_to_hub
print(push_to_hub("va_resnet10n.mine", "me/photos", token="hf_secret"))
try:
    push_to_hub("va_resnet10n.mine", "me/photos", token="hf_wrong")
except ConnectionError as error:
    print(error)
x = torch.load("x.pt")
models = [timm.create_model("hf-hub:me/photos", pretrained=True), checkpoints.build("hf-hub:me/photos")]
with torch.inference_mode():
    torch.save([(m.eval()(x), m.pretrained_cfg["label_names"]) for m in models], "y.pt")
print(checkpoints.info("hf-hub:me/photos")["name"])
"""


def test_pushed_and_loaded_by_timm_and_by_us(hub, tmp_path):
    model = trained("va_resnet10n", [{"plugin": "ela_l"}])
    publish(model, "va_resnet10n.mine", bits=8)
    hub.files["me/photos/README.md"] = b"written by hand"
    x = torch.randn(2, 3, 40, 40)
    torch.save(x, "x.pt")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    url, refusal, name = done.stdout.splitlines()
    assert url.endswith("/me/photos/commit/1") and name == "va_resnet10n.mine"
    assert refusal.startswith("failed to upload to me/photos on the hub: ") and "401" in refusal
    assert hub.files.keys() == {f"me/photos/{file}" for file in ("README.md", "config.json", "model.safetensors")}
    assert hub.files["me/photos/README.md"] == b"written by hand", "a model card that is there stays"
    expected = timm.create_model("va_resnet10n.mine", pretrained=True).eval()
    with torch.inference_mode():
        for y, labels in torch.load("y.pt"):
            torch.testing.assert_close(y, expected(x))
            assert tuple(labels) == CLASSES


@pytest.mark.parametrize("attach", [(), [{"plugin": "cbam", "stages": [-1]}]], ids=["plain", "with attention"])
def test_local_dir(attach):
    model = trained("va_resnet10n", attach, stem_stride=1)
    publish(model, "va_resnet10n.mine", facts={"arguments": {"stem_stride": 1}})
    folder = write_hub_folder("va_resnet10n.mine", "folder")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert same(loaded, model) and tuple(loaded.pretrained_cfg["label_names"]) == CLASSES
    assert tuple(loaded.pretrained_cfg["mean"]) == ABOUT["mean"] and loaded.conv1[0].stride == (1, 1)
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert other.num_classes == 7
    assert same(checkpoints.build(f"local-dir:{folder}"), model)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"folder/model.safetensors is empty"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in folder: there is neither model.safetensors nor"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_timms_own_network_needs_timm_only():
    model = trained("resnet18")
    folder = write_hub_folder(publish(model, "resnet18.mine", bits=8), "folder")
    # Weights of eight bits are restored, for timm does not know them.
    loaded = timm.create_model("local-dir:folder", pretrained=True)
    assert same(loaded, checkpoints.build("resnet18.mine")) and tuple(loaded.pretrained_cfg["label_names"]) == CLASSES
    assert "import visionattn" not in (folder / "README.md").read_text("utf-8")


def test_model_card_has_the_hubs_metadata():
    publish(trained("va_resnet10n", [{"plugin": "ela_l"}]), "va_resnet10n.mine")
    text = (write_hub_folder("va_resnet10n.mine", "folder", "me/photos") / "README.md").read_text("utf-8")
    _, head, body = text.split("---\n", 2)
    data = yaml.safe_load(head)
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == (
        "mit",
        "image-classification",
        "visionattn",
    )
    (result,) = data["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "top1", "value": FACTS["metrics"]["top1"]}]
    for fact in (
        "# photos",
        "import visionattn",
        "hf-hub:me/photos",
        "plugin='ela_l'",
        "ant, bee, Käfer",
        "| top1 | 0.75",
    ):
        assert fact in body


@pytest.mark.parametrize("repository", ["photos", "me/photos/x", "../photos", "me/", "me/ph otos"])
def test_names_of_repositories(repository):
    with pytest.raises(ValueError, match="the repository must be ORG/NAME, got"):
        push_to_hub("va_resnet10n.mine", repository)


def test_only_what_was_published():
    torch.save(trained().state_dict(), "w.pth")
    with pytest.raises(ValueError, match="was not written by `visionattn publish`"):
        write_hub_folder("w.pth", "folder")
    assert not Path("folder").exists()
