"""Pictures from files, folders, addresses, bytes and memory: all give the same pixels, or a sentence says why not."""

import io
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from visionattn.inference import find_images, list_pictures
from visionattn.inference.pictures import OUTPUT_MARKER, printable
from visionattn.inference.web import read_url


def read_all(inputs):
    return [picture.read() for picture in list_pictures(inputs)]


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()


def test_every_kind_of_input_gives_the_same_pixels(noise, tmp_path, monkeypatch):
    image = noise(5, 7)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(png(image))))
    with path.open("rb") as file:
        inputs = [str(path), path, png(image), io.BytesIO(png(image)), file, Image.fromarray(image), image, "-"]
        pictures = list(list_pictures(item for item in inputs))
        assert all(np.array_equal(picture.read(), image) for picture in pictures)
    names = [picture.name for picture in pictures]
    assert names[:4] == [str(path), str(path), "image-2", "image-3"] and names[-1] == "standard input"
    assert len(list(list_pictures(image))) == len(list(list_pictures(str(path)))) == 1  # one, not its rows or letters


@pytest.mark.parametrize(
    "array",
    [
        np.arange(35, dtype=np.uint8).reshape(5, 7),
        np.arange(35, dtype=np.uint8).reshape(5, 7, 1),
        np.arange(35, dtype=np.uint16).reshape(5, 7) * 256 + 3,
    ],
    ids=["grey", "one channel", "16 bits"],
)
def test_grey_is_repeated(array):
    (picture,) = read_all(array)
    assert picture.shape == (5, 7, 3) and picture.dtype == np.uint8
    assert (picture == np.arange(35).reshape(5, 7, 1)).all()
    if array.ndim == 2:
        (same,) = read_all(Image.fromarray(array))
        assert np.array_equal(same, picture)


def test_transparency_is_left_out(noise):
    image = noise(5, 7)
    layered = np.dstack([image, np.zeros((5, 7), np.uint8)])
    for given in (layered, Image.fromarray(layered)):
        assert np.array_equal(read_all(given)[0], image)


def test_pil_pictures_are_turned_as_their_exif_data_say(noise):
    image = Image.fromarray(noise(5, 7))
    image.getexif()[0x0112] = 6
    assert read_all(image)[0].shape == (7, 5, 3)


@pytest.mark.parametrize(
    "array", [np.zeros((5, 7, 3)), np.zeros((5, 7, 2), np.uint8), np.zeros((0, 7, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(ValueError, match=r"image-0 must be a uint8 array \(H, W, 3\) in RGB or \(H, W\) in grey, got"):
        read_all(array)


@pytest.mark.parametrize("inputs", [3, [3], [["a.png"]]])
def test_what_is_no_input(inputs):
    with pytest.raises(TypeError, match="an input must be a path, an address, bytes, a PIL picture"):
        read_all(inputs)


@pytest.mark.parametrize(("content", "why"), [(b"", "the file is empty"), (b"GIF9", "it is truncated or in no format")])
def test_bytes_that_are_no_picture(content, why):
    with pytest.raises(ValueError, match=f"cannot read image image-0: {why}"):
        read_all(content)


class TestFolders:
    def test_what_is_searched(self, tmp_path, noise):
        wanted = ["a.PNG", "b [x].jpg", "z/猫.webp"]
        unwanted = [".hidden.png", ".cache/c.png", "__MACOSX/d.png", "notes.txt", "old/e.png"]
        for name in wanted + unwanted:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(noise(2, 2)))
        (tmp_path / "folder.png").mkdir()
        (tmp_path / "old" / OUTPUT_MARKER).touch()
        (tmp_path / "z" / "loop").symlink_to(tmp_path)
        assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == wanted
        assert len(read_all(tmp_path)) == 3

    def test_nothing_found(self, tmp_path):
        with pytest.raises(ValueError, match=r"no images in .* \(looked for \.bmp, "):
            find_images(tmp_path)
        (tmp_path / OUTPUT_MARKER).touch()
        with pytest.raises(ValueError, match="it holds predictions"):
            find_images(tmp_path)
        with pytest.raises(FileNotFoundError, match="no folder"):
            find_images(tmp_path / "missing")

    def test_a_broken_link_is_a_picture_that_cannot_be_read(self, tmp_path):
        (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
        (picture,) = list_pictures(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
            picture.read()

    def test_names_that_the_locale_cannot_decode_become_valid_text(self):
        assert printable("a/猫.png") == "a/猫.png"
        assert printable(os.fsdecode(b"\xff.png")).encode() == "\ufffd.png".encode()


@pytest.fixture(scope="module")
def web():
    """A server of pictures and of what may come in their place; gives its address."""
    image = png(np.zeros((3, 4, 3), np.uint8))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/moved":
                self.answer(302, b"", Location="/a.png")
            elif self.path == "/file":
                self.answer(302, b"", Location="file:///etc/hostname")
            elif self.path == "/ftp":
                self.answer(302, b"", Location="ftp://127.0.0.1/a.png")
            elif self.path == "/page":
                self.answer(200, b"<html>", **{"Content-Type": "text/html"})
            elif self.path == "/gone":
                self.answer(404, b"")
            elif self.path == "/short":
                self.answer(200, image[:10], **{"Content-Length": str(len(image))})
            elif self.path == "/slow":
                self.answer(200, b"")
                for _ in range(40):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            else:
                self.answer(200, image)

        def answer(self, code, content, **headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class TestAddresses:
    @pytest.mark.parametrize("path", ["/a.png", "/moved"])
    def test_pictures_are_read(self, web, path):
        (picture,) = list_pictures(f"{web}{path}")
        assert picture.name == f"{web}{path}" and picture.read().shape == (3, 4, 3)

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("/file", ""),
            ("/ftp", ""),
            ("/page", "it is a web page"),
            ("/gone", "404"),
            ("/short", "IncompleteRead|the connection ended at 10 of"),
        ],
    )
    def test_what_is_no_picture_is_named_in_one_line(self, web, path, why):
        with pytest.raises(ValueError, match=f"cannot read {web}{path}: .*({why})") as caught:
            read_all([f"{web}{path}"])
        assert "\n" not in str(caught.value)

    def test_size_and_time_are_bounded(self, web):
        with pytest.raises(ValueError, match="it has more than 20 bytes"):
            read_url(f"{web}/a.png", most_bytes=20)
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"it takes longer than 0\.3 s|timed out"):
            read_url(f"{web}/slow", most_seconds=0.3)
        assert time.monotonic() - start < 1.5

    def test_nobody_there(self):
        with pytest.raises(ValueError, match=r"cannot read http://127\.0\.0\.1:9/a\.png: .*refused"):
            read_all("http://127.0.0.1:9/a.png")
