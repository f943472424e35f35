"""Videos in and out: each frame a record, and an annotated video."""

import cv2
import numpy as np
import pytest

from visionattn.inference import list_pictures, predict_to_folder, read_records
from visionattn.inference.video import VideoWriter, frame_count, frame_rate


class Captured:
    """A video that is read; classes derived from OpenCV's own crash the interpreter when they are collected."""

    real = cv2.VideoCapture

    def __init__(self, path):
        self.capture = self.real(path)

    def __getattr__(self, name):
        return getattr(self.capture, name)


@pytest.fixture
def clip(tmp_path, scene):
    """Six frames of a scene that moves, 5 a second."""
    path = tmp_path / "clip [1].avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (128, 96))
    for shift in range(6):
        writer.write(np.ascontiguousarray(np.roll(scene, 4 * shift, 1)[:96, :, ::-1]))
    writer.release()
    return path


def test_frames_come_in_order_with_their_time(clip):
    frames = list(list_pictures(clip))
    assert [frame.name for frame in frames] == [f"{clip}#{n}" for n in range(6)]
    assert [frame.seconds for frame in frames] == pytest.approx([n / 5 for n in range(6)])
    assert all(frame.read().shape == (96, 128, 3) for frame in frames)
    assert frame_count(clip) == 6 and frame_rate(clip) == 5


def test_a_file_is_let_go_of(clip, monkeypatch):
    """What stays open can't be removed on some systems."""
    left = set()

    class Counted(Captured):
        def __init__(self, path):
            super().__init__(path)
            left.add(self)

        def release(self):
            left.discard(self)
            self.capture.release()

    monkeypatch.setattr("visionattn.inference.video.cv2.VideoCapture", Counted)
    assert frame_rate(clip) == 5 and not left
    assert frame_count(clip) == 6 and not left
    assert len([frame.read() for frame in list_pictures(clip)]) == 6 and not left


@pytest.mark.parametrize("kind", ["classifier", "detector", "segmentor"])
def test_an_annotated_video_and_a_record_for_each_frame(kind, request, clip, tmp_path):
    predictor = request.getfixturevalue(kind)
    report = predict_to_folder(predictor, [clip], tmp_path / "out", batch_size=4)
    records = list(read_records(report.folder))
    assert report.count == 6 and [record["seconds"] for record in records] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    (video,) = (path for path in report.folder.iterdir() if path.suffix in (".mp4", ".avi"))
    assert video.stem == "00000_clip [1]" and not list(report.folder.glob("*.png"))
    assert frame_count(video) == 6 and frame_rate(video) == pytest.approx(5, abs=0.01)
    frames = [frame.read() for frame in list_pictures(video)]
    assert len(frames) == 6 and all(frame.shape == (360, 480, 3) for frame in frames)
    plain = cv2.resize(next(list_pictures(clip)).read(), (480, 360)).astype(int)
    assert np.abs(frames[0] - plain).max() > 50, "nothing is drawn"


def test_two_videos_do_not_get_mixed(classifier, clip, tmp_path):
    other = tmp_path / "other.avi"
    other.write_bytes(clip.read_bytes())
    folder = predict_to_folder(classifier, [clip, other], tmp_path / "out").folder
    videos = sorted(path for path in folder.iterdir() if path.suffix in (".mp4", ".avi"))
    assert [path.stem for path in videos] == ["00000_clip [1]", "00006_other"]
    assert [frame_count(path) for path in videos] == [6, 6]


def test_a_damaged_video_is_skipped(classifier, clip, noise, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    report = predict_to_folder(classifier, [broken, tmp_path / "gone.mkv", noise(8, 8)], tmp_path / "out")
    assert report.count == 1 and len(report.skipped) == 2
    assert all("it is missing, damaged or in no format" in reason for _, reason in report.skipped)


def test_a_video_that_ends_early_says_so(classifier, clip, tmp_path, monkeypatch):
    class Short(Captured):
        def get(self, what):
            return 60.0 if what == cv2.CAP_PROP_FRAME_COUNT else self.capture.get(what)

    monkeypatch.setattr("visionattn.inference.video.cv2.VideoCapture", Short)
    skipped = []
    results = list(classifier([clip], on_error=lambda name, error: skipped.append(str(error))))
    assert len(results) == 6 and skipped == [f"video {clip} ends after 6 of 60 frames"]


def test_frames_that_were_not_written_are_noticed(tmp_path):
    """OpenCV says nothing when the disk is full."""
    writer = VideoWriter(tmp_path / "v", 5)
    for value in range(8):
        writer.add(np.full((48, 64, 3), 20 * value, np.uint8))
    writer.count = 9
    with pytest.raises(OSError, match="holds 8 of 9 frames: is the disk full"):
        writer.close()
