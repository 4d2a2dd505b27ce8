from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

import mm3dad
from mm3dad.cli import main
from mm3dad.errors import ConfigError
from mm3dad.run import measure
from mm3dad.run.serve import listen, make_app, make_server
from tests.run import toy

toy.register()
TOKEN = "secret"
LIMIT = 100_000
KEY = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def port(model):
    """A real server on a real port."""
    server = make_server(make_app(mm3dad.load(model), TOKEN, LIMIT))
    with listen("127.0.0.1", 0) as connection:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield connection.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def client(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=KEY, timeout=60) as client:
        yield client


def files_of(tree, number=0, defect="dent", roles=("rgb", "xyz")):
    suffixes = {"rgb": "png", "xyz": "tiff"}
    return {role: (tree / f"nut/test/{defect}/{role}/{number:03d}.{suffixes[role]}").read_bytes() for role in roles}


def test_an_upload_is_scored_as_predict_scores_it(tree, model, client):
    expected = mm3dad.load(model).predict(mm3dad.open_dataset("mvtec3d", tree, "nut", "test")[0])
    answer = client.post("/predict", files=files_of(tree), params={"name": "part 7", "map": True})
    assert answer.status_code == 200
    row = answer.json()
    assert (row["score"], row["threshold"], row["is_anomaly"]) == (expected.score, expected.threshold, True)
    assert row["id"] == "part 7" and row["size"] == [32, 32] and row["predict_ms"] > 0 and "paths" not in row
    values = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["map_png"])))) * row["map_step"]
    assert values == pytest.approx(expected.map.numpy(), abs=row["map_step"])
    assert "map_png" not in client.post("/predict", files=files_of(tree)).json()


def test_four_clients_get_their_own_answers_and_memory_stays(tree, model, port):
    detector = mm3dad.load(model)
    dataset = {sample.meta.id: sample for sample in mm3dad.open_dataset("mvtec3d", tree, "nut", "test")}
    names = [(defect, number) for defect in ("good", "dent") for number in range(3)]
    expected = {key: detector.predict(dataset[f"test/{key[0]}/{key[1]:03d}"]).score for key in names}
    assert len(set(expected.values())) == 6
    bodies = {key: files_of(tree, key[1], key[0]) for key in names}
    wrong, answered = [], []

    def work(offset):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=KEY, timeout=120) as client:
            for turn in range(50):
                key = names[(turn + offset) % 6]
                row = client.post("/predict", files=bodies[key], params={"name": f"{offset}-{turn}"}).json()
                answered.append(row["id"])
                if row["id"] != f"{offset}-{turn}" or row["score"] != expected[key]:
                    wrong.append((key, row))

    work(9)  # warm
    before = measure.peak_memory()
    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(set(answered)) == 250
    assert measure.peak_memory() - before < 40e6


def test_the_token_is_asked_for_before_the_body(tree, port):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        for path in ("/predict", "/openapi.json", "/elsewhere"):
            answer = httpx.post(f"http://127.0.0.1:{port}{path}", headers=headers)
            assert answer.status_code == 401 and "Authorization: Bearer" in answer.json()["detail"]
    assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok", "method": "toy", "mm3dad": mm3dad.__version__}


def test_openapi_describes_the_service(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/predict"}
    assert client.get("/docs").status_code == 404


def send_raw(port, head, pieces=()):
    """Speak HTTP by hand; return the status line, and how many bytes the server took."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        lines = [
            "POST /predict HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {TOKEN}",
            "Content-Type: multipart/form-data; boundary=b",
            *head,
        ]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        sent = 0
        try:
            for piece in pieces:
                connection.sendall(piece)
                sent += len(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass
        try:
            return connection.recv(4000).split(b"\r\n")[0].decode(), sent
        except ConnectionResetError:
            return "reset", sent


def test_2_gb_are_refused_as_announced_and_as_they_come(port, client):
    assert send_raw(port, [f"Content-Length: {2 << 30}"])[0].startswith("HTTP/1.1 413")
    start = b'--b\r\nContent-Disposition: form-data; name="rgb"; filename="a.png"\r\n\r\n'
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    first = f"{len(start):x}\r\n".encode() + start + b"\r\n"
    status, _ = send_raw(port, ["Transfer-Encoding: chunked"], [first, chunk, chunk])
    assert status.startswith("HTTP/1.1 413")
    _, sent = send_raw(port, ["Transfer-Encoding: chunked"], [first] + [chunk] * 32768)  # 2 GB, if it were taken
    assert sent < 100 << 20
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda given: {}, "got neither"),
        (lambda given: {"rgb": given["rgb"]}, "got no xyz"),
        (lambda given: {**given, "rgb": b"GIF89a"}, "rgb must be PNG or JPG"),
        (lambda given: {**given, "rgb": given["xyz"]}, "rgb must be PNG or JPG"),
        (lambda given: {**given, "rgb": given["rgb"][:900]}, "the uploaded .png"),
        (lambda given: {**given, "xyz": given["xyz"][:900]}, "the uploaded .tiff"),
    ],
)
def test_bad_uploads_are_told_and_the_service_goes_on(tree, client, change, words):
    answer = client.post("/predict", files=change(files_of(tree)) or None)
    assert answer.status_code == 422 and words in answer.json()["detail"] and "/tmp" not in answer.json()["detail"], answer.json()
    assert client.post("/predict", files=files_of(tree)).status_code == 200


def test_names_of_the_client_reach_no_path(tree, client):
    given = files_of(tree)
    sent = {"rgb": ("../../../../evil.png", given["rgb"]), "xyz": ("/etc/passwd", given["xyz"])}
    answer = client.post("/predict", files=sent, params={"name": "../../x"})
    assert answer.status_code == 200 and answer.json()["id"] == "../../x"


def test_a_port_in_use_and_bad_requests(port, model, tree, capsys):
    assert main(["serve", str(model), "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in line and "--port" in line
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen("127.0.0.1", 70000)
    with pytest.raises(ConfigError, match="needs a token"):
        make_app(mm3dad.load(model), "")
    samples = list(mm3dad.open_dataset("mvtec3d", tree, "nut", "test"))
    with pytest.raises(ConfigError, match="cannot score parts as they come"):
        make_app(mm3dad.create("toyset").fit(samples), TOKEN)


def test_the_verb_prints_address_and_token(model, tmp_path, monkeypatch, capsys):
    from mm3dad.run import serve

    class Server:
        def run(self, sockets):
            raise KeyboardInterrupt

    monkeypatch.setattr(serve, "make_server", lambda app: Server())
    monkeypatch.delenv("MM3DAD_TOKEN", raising=False)
    assert main(["serve", str(model), "--port", "0"]) == 0
    text = capsys.readouterr().out
    assert "listening on http://127.0.0.1:" in text and len(text.split("token: ")[1].split()[0]) >= 32
    (tmp_path / "token").write_text("hidden\n")
    assert main(["serve", str(model), "--port", "0", "--token-file", str(tmp_path / "token")]) == 0
    assert "hidden" not in capsys.readouterr().out
    for content in (None, " \n"):
        if content is None:
            (tmp_path / "token").unlink()
        else:
            (tmp_path / "token").write_text(content)
        assert main(["serve", str(model), "--token-file", str(tmp_path / "token")]) == 2
        assert str(tmp_path / "token") in capsys.readouterr().err


def test_health_is_json(client):
    assert json.loads(client.get("/health").text)["status"] == "ok"
