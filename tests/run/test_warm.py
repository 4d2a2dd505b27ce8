from __future__ import annotations

import pytest

from mm3dad.errors import DataError
from mm3dad.run import serve, watch
from mm3dad.run.warm import warm_up


class Recorder:
    """Records what it is asked to predict, and refuses it."""

    def __init__(self, error=None):
        self.seen, self.error = [], error

    def predict(self, sample):
        self.seen.append(sample)
        if self.error is not None:
            raise self.error


def test_a_made_up_part_is_whole_and_always_the_same():
    first, second = Recorder(), Recorder()
    warm_up(first)
    warm_up(second)
    (sample,), (other,) = first.seen, second.seen
    assert sample.modalities == ("rgb", "xyz") and sample.valid.all() and sample.size == (128, 128)
    assert (sample.rgb == other.rgb).all() and (sample.xyz == other.xyz).all()


@pytest.mark.parametrize("error", [DataError("not mine"), RuntimeError("The size of tensor a must match")])
def test_a_detector_that_refuses_the_part_serves_all_the_same(error):
    refusing = Recorder(error)
    warm_up(refusing)
    assert len(refusing.seen) == 1


def test_watch_and_serve_warm_up_before_they_are_ready(monkeypatch, tmp_path):
    order = []

    class ReadyError(Exception):
        pass

    def ready(*_):
        order.append("ready")
        raise ReadyError

    for module in (watch, serve):
        monkeypatch.setattr(module, "load_detector", lambda _: Recorder())
        monkeypatch.setattr(module, "warm_up", lambda _: order.append("warm"))
    monkeypatch.setattr(watch, "require_ready", lambda _: None)
    monkeypatch.setattr(serve, "make_app", lambda *_: None)
    monkeypatch.setattr(serve, "make_server", lambda _: None)
    Recorder.config, Recorder.needs = None, type("Needs", (), {"inputs": ("rgb",)})
    with pytest.raises(ReadyError):
        watch.watch_folder("model", tmp_path, on_ready=ready)
    with pytest.raises(ReadyError):
        serve.serve_model("model", port=0, on_ready=ready)
    assert order == ["warm", "ready"] * 2
