"""A download ends in a verified file or in one clear error with nothing under the file's name."""

import hashlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
import urllib.request

import pytest
from web import plain, serving

from visionattn.utils.download import FetchError, RetryPolicy, fetch, recorded_hash
from visionattn.utils.http import PermanentError, _Redirects, check_url

CONTENT = random.Random(0).randbytes(20_000)
HASH = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(timeout=0.3, attempts=2, wait=0.01)
KNOWN = {"size": len(CONTENT), "sha256": HASH, "retry": QUICK}
fork = multiprocessing.get_context("fork")


@pytest.fixture
def web():
    with serving() as web:
        web.files["/w.pth"] = CONTENT
        yield web


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "w.pth"


def get(web, path, *names, **known):
    return fetch([f"{web.url}/{name}" for name in names or ("w.pth",)], path, **(known or KNOWN))


def assert_nothing_but_parts(path):
    assert not path.exists()
    assert all(other.name.startswith(".") for other in path.parent.iterdir())


def test_whole_file_with_progress(web, path):
    seen = []
    assert get(web, path, **KNOWN, progress=lambda *at: seen.append(at)) == path
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [other.name for other in path.parent.iterdir() if not other.name.endswith(".lock")] == ["w.pth"]
    get(web, path)
    assert len(web.asked) == 1, "what is there is not fetched again"


def test_interrupted_in_the_middle_resumes(web, path):
    web.cuts = [7000, 5000]
    get(web, path)
    assert path.read_bytes() == CONTENT
    assert web.asked == [("/w.pth", None), ("/w.pth", "bytes=7000-"), ("/w.pth", "bytes=12000-")]


@pytest.mark.parametrize("known", [KNOWN, {"retry": QUICK}], ids=["known hash", "no hash"])
def test_a_killed_download_resumes(known, web, path):
    web.cuts, web.stall = [8192], True
    process = fork.Process(target=get, args=(web, path), kwargs={**known, "retry": RetryPolicy()})
    process.start()
    part = path.with_name(".part-w.pth")
    deadline = time.monotonic() + 20
    while not (part.is_file() and part.stat().st_size == 8192) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert_nothing_but_parts(path)
    get(web, path, **known)
    assert path.read_bytes() == CONTENT and web.asked[-1] == ("/w.pth", "bytes=8192-")
    assert recorded_hash(path) == (None if known is KNOWN else HASH)


def test_a_file_that_changed_meanwhile_starts_anew(web, path):
    web.cuts = [7000, 0, 0]
    with pytest.raises(FetchError):
        get(web, path, retry=QUICK)
    web.files["/w.pth"] = CONTENT[::-1]
    web.cuts = []
    assert get(web, path, retry=QUICK).read_bytes() == CONTENT[::-1]


def test_a_part_that_is_whole_already(web, path):
    path.parent.mkdir()
    path.with_name(".part-w.pth").write_bytes(CONTENT)
    assert get(web, path, sha256=HASH, retry=QUICK).read_bytes() == CONTENT
    assert web.asked == [("/w.pth", f"bytes={len(CONTENT)}-")]


@pytest.mark.parametrize(
    "part", [CONTENT[:100] + b"x" + CONTENT[101:5000], CONTENT + b"x"], ids=["damaged", "too long"]
)
def test_a_part_that_is_wrong_starts_anew(part, web, path):
    path.parent.mkdir()
    path.with_name(".part-w.pth").write_bytes(part)
    assert get(web, path).read_bytes() == CONTENT


def test_corrupted_byte(web, path):
    web.files["/w.pth"] = CONTENT[:5000] + bytes([CONTENT[5000] ^ 1]) + CONTENT[5001:]
    with pytest.raises(
        FetchError, match=rf"failed to download w.pth: \S+/w.pth: is damaged: its sha256 is .*not {HASH[:16]}"
    ):
        get(web, path)
    assert_nothing_but_parts(path)
    web.files["/mirror"] = CONTENT
    assert get(web, path, "w.pth", "mirror").read_bytes() == CONTENT


def test_a_damaged_file_is_replaced_or_gone(web, path):
    path.parent.mkdir()
    path.write_bytes(b"x" + CONTENT[1:])
    assert get(web, path).read_bytes() == CONTENT
    path.write_bytes(b"x" + CONTENT[1:])
    web.files.clear()
    with pytest.raises(FetchError):
        get(web, path)
    assert_nothing_but_parts(path)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b""], ids=["short", "long", "empty"])
def test_wrong_size(content, chunked, web, path):
    web.files["/w.pth"], web.chunked = content, chunked
    with pytest.raises(FetchError, match=rf"{len(content)} bytes, not 20000|more than 20000 bytes"):
        get(web, path)
    assert_nothing_but_parts(path)


def test_always_cut_short(web, path):
    web.cuts = [3000] + [0] * 9
    with pytest.raises(FetchError, match=r"the connection ended at 3000 of 20000 bytes \(after 2 attempts\)"):
        get(web, path)
    assert_nothing_but_parts(path)


def test_not_found(web, path):
    with pytest.raises(FetchError, match=r"/gone: 404 Not Found; .*/lost: 404 Not Found$"):
        get(web, path, "gone", "lost")
    assert len(web.asked) == 2, "what is not there is not asked for again"
    assert_nothing_but_parts(path)
    assert get(web, path, "gone", "w.pth").read_bytes() == CONTENT


def test_busy_server_is_asked_again(web, path):
    def busy(handler):
        del web.other["/w.pth"]
        plain(handler, 503)

    web.other["/w.pth"] = busy
    assert get(web, path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect(status, web, path):
    web.other["/old"] = lambda handler: plain(handler, status, Location="/w.pth")
    web.cuts = [9000]
    assert get(web, path, "old").read_bytes() == CONTENT
    assert web.asked[-1] == ("/w.pth", "bytes=9000-"), "the range survives the redirect"


def test_redirect_in_a_circle(web, path):
    web.other["/old"] = lambda handler: plain(handler, 302, Location="/old")
    with pytest.raises(FetchError, match="infinite loop"):
        get(web, path, "old")
    assert_nothing_but_parts(path)


def test_redirect_out_of_an_encrypted_connection():
    request = urllib.request.Request("https://a/w.pth")
    with pytest.raises(PermanentError, match=r"redirects to http://b/w\.pth, which is not encrypted"):
        _Redirects(verified=True).redirect_request(request, None, 302, "", {}, "http://b/w.pth")


def test_web_page_in_place_of_the_file(web, path):
    def page(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html; charset=utf-8")
        handler.end_headers()
        handler.wfile.write(b"<html>Please log in</html>")

    web.other["/w.pth"] = page
    with pytest.raises(FetchError, match="returned HTML instead of the file"):
        get(web, path, retry=QUICK)
    assert_nothing_but_parts(path)


def test_stalled_connection(web, path):
    web.cuts, web.stall = [6000], True
    assert get(web, path).read_bytes() == CONTENT, "the next connection goes on"
    path.unlink()
    web.cuts = [6000, 0, 0]
    with pytest.raises(FetchError, match=r"no byte within 0.3 s \(after 2 attempts\)"):
        get(web, path)
    assert_nothing_but_parts(path)


def test_nobody_listens(web, path):
    with pytest.raises(FetchError, match="refused"):
        fetch(["http://127.0.0.1:9/w.pth"], path, retry=QUICK)
    assert_nothing_but_parts(path)


def limited(web, path, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        get(web, path)
    except BaseException as error:
        results.put((type(error).__name__, str(error)))


def test_full_disk(web, path):
    """No file of this process may grow beyond 4096 bytes."""
    results = fork.SimpleQueue()
    process = fork.Process(target=limited, args=(web, path, results))
    process.start()
    process.join()
    name, message = results.get()
    assert name == "FetchError" and "no space left in" in message and "kept in .part-w.pth" in message
    assert_nothing_but_parts(path)
    assert get(web, path).read_bytes() == CONTENT, "with room it goes on"
    assert web.asked[-1] == ("/w.pth", "bytes=4096-")


@pytest.mark.parametrize("chunked", [False, True], ids=["told beforehand", "met on the way"])
def test_full_file_system(chunked, web, path):
    path.parent.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", path.parent], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs rights that this user lacks")
    try:
        web.chunked = chunked
        with pytest.raises(FetchError, match=f"no space left in .*{'No space left' if chunked else 'are free'}"):
            get(web, path)
        assert_nothing_but_parts(path)
    finally:
        subprocess.run(["umount", path.parent], check=True)


def test_two_processes(web, path):
    web.pause = 0.01
    processes = [fork.Process(target=get, args=(web, path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_bytes() == CONTENT and len(web.asked) == 1


def test_unwritable_folder(web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="cannot write"):
        get(web, tmp_path / "file" / "w.pth")


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("file:///etc/hostname", "only https:// and http:// are downloaded from, not file"),
        ("data:text/plain,x", "only https:// and http:// are downloaded from, not data"),
        ("ftp://example.org/w.pth", "only https:// and http:// are downloaded from, not ftp"),
        ("/etc/hostname", "only https:// and http:// are downloaded from, not a path"),
        ("http://example.org/w.pth", "plain http is refused where no sha256 is known"),
        ("http://localhost.example.org/w.pth", "plain http is refused where no sha256 is known"),
    ],
)
def test_what_is_not_downloaded_from(url, fault, web, path):
    with pytest.raises(FetchError, match=rf"failed to download w.pth: {url}: {fault}"):
        fetch([url], path, retry=QUICK)
    assert not path.exists()
    assert get(web, path, retry=QUICK).read_bytes() == CONTENT
    assert fetch([url, f"{web.url}/w.pth"], path.with_name("other.pth"), retry=QUICK).read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://example.org/w.pth", "http://example.org/w.pth"])
def test_redirects_to_what_is_not_downloaded_from(target, web, path):
    web.other["/old"] = lambda handler: plain(handler, 302, Location=target)
    with pytest.raises(
        FetchError, match=r"only https:// and http://|plain http is refused|[Rr]edirection to url 'file"
    ):
        get(web, path, "old", retry=QUICK)
    assert_nothing_but_parts(path)


def test_http_is_taken_where_the_hash_is_known():
    check_url("http://example.org/w.pth", verified=True)
    check_url("https://example.org/w.pth", verified=False)


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", ""])
def test_a_length_that_is_no_number_goes_on_to_the_next_mirror(length, web, path):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()

    web.other["/bad"] = answer
    assert get(web, path, "bad", "w.pth").read_bytes() == CONTENT
    path.unlink()
    with pytest.raises(FetchError, match="bad: sends a Content-Length that is not a number"):
        get(web, path, "bad")


def test_a_recorded_hash_is_kept_to(web, path):
    get(web, path, retry=QUICK)
    path.unlink()
    web.files["/w.pth"] = CONTENT[::-1]
    with pytest.raises(
        FetchError, match=r"is damaged: its sha256 .* \(w.pth.sha256 was recorded at the first download"
    ):
        get(web, path, retry=QUICK)
    assert not path.exists() and recorded_hash(path) == HASH
    path.with_name("w.pth.sha256").unlink()
    assert get(web, path, retry=QUICK).read_bytes() == CONTENT[::-1]
    path.with_name("w.pth.sha256").write_text("")
    with pytest.raises(ValueError, match=r"w.pth.sha256 is damaged: it does not begin with a sha256"):
        recorded_hash(path)
