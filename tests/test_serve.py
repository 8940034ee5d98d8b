"""`minibark serve`: what OpenAI's clients send to a live server, and what comes back."""

import base64
import contextlib
import io
import itertools
import json
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import wave

import numpy as np
import pytest
import soundfile
from serving import Server, serving
from torture.serve import is_idle, odd_bodies, status_of

from minibark import Bark, LongOptions, Options
from minibark.commands import main
from minibark.options import knobs

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")

from minibark.serve.errors import RequestError  # noqa: E402
from minibark.serve.requests import parse  # noqa: E402
from minibark.serve.sound import FORMATS, Encoder, whole  # noqa: E402
from minibark.serve.voices import OPENAI, ServedVoices  # noqa: E402

KEY = "a key of this test"
ONE = {"input": "Hello there.", "voice": "female", "seed": 3, "max_duration_s": 0.3}
TWO = {
    "input": "Hello. We all hope very much that you are well today, my good friend.",
    "voice": "male",
    "seed": 5,
    "max_duration_s": 0.3,
    "retries": 0,
}
LONG = {"input": "I will go on and on, whatever you may say. " * 40, "voice": "female"}


@pytest.fixture(scope="module")
def server():
    options = ("--max-batch", "2", "--queue", "1", "--uploads", "--max-body", "64")
    with serving(*options, key=KEY) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def bark():
    return Bark.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def pieces(bark):
    """The sound of `TWO`, piece by piece."""
    options = {name: value for name, value in TWO.items() if name not in ("input", "voice")}
    made = list(bark.stream(TWO["input"], TWO["voice"], **options))
    assert len(made) > 1
    return made


def samples(pcm):
    return np.frombuffer(pcm, "<i2")


def rounded(audio):
    return np.rint(np.clip(audio, -1, 1).astype(np.float64) * 32767).astype(np.int16)


# ---- the official client ----


@pytest.mark.parametrize("audio_format", FORMATS)
def test_the_official_client_gets_every_format(client, audio_format, bark):
    more = {name: value for name, value in ONE.items() if name not in ("input", "voice")}
    answer = client.audio.speech.create(
        model="tts-1",
        voice=ONE["voice"],
        input=ONE["input"],
        response_format=audio_format,
        extra_body=more,
    )
    expected = rounded(bark.generate(ONE["input"], "female", seed=3, max_duration_s=0.3))
    content = answer.read()
    assert answer.response.headers["content-type"] == FORMATS[audio_format]
    if audio_format == "pcm":
        assert np.array_equal(samples(content), expected)
        return
    heard, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert rate == 24_000
    if audio_format in ("wav", "flac"):
        assert np.array_equal(heard, expected)
    else:
        assert len(expected) <= len(heard) <= len(expected) + 4000


def test_same_seed_same_samples_as_minibark_say(server, tmp_path):
    out = tmp_path / "out.wav"
    words = ["say", ONE["input"], "--voice", "female", "--seed", "3", "--max-duration", "0.3"]
    assert main.main([*words, "--model", "tiny", "-q", "-o", str(out)]) == 0
    assert server.speak({**ONE, "response_format": "wav"})[2] == out.read_bytes()


def test_a_long_text_leaves_as_it_is_made(client, pieces):
    more = {name: value for name, value in TWO.items() if name not in ("input", "voice")}
    with client.audio.speech.with_streaming_response.create(
        model="tiny", voice="male", input=TWO["input"], response_format="pcm", extra_body=more
    ) as answer:
        assert "content-length" not in answer.headers
        chunks = list(answer.iter_bytes())
    assert len(chunks) > 1
    assert np.array_equal(samples(b"".join(chunks)), rounded(np.concatenate(pieces)))


def test_a_wav_stream_is_read_by_wave_and_sox(server, pieces, tmp_path):
    _, headers, content = server.speak({**TWO, "response_format": "wav"})
    assert "content-length" not in headers
    expected = rounded(np.concatenate(pieces))
    with wave.open(io.BytesIO(content)) as file:
        assert file.getparams()[:3] == (1, 2, 24_000)
        assert np.array_equal(samples(file.readframes(1 << 24)), expected)
    if shutil.which("sox"):
        path = tmp_path / "stream.wav"
        path.write_bytes(content)
        command = ["sox", "--ignore-length", path, "-t", "raw", "-"]
        done = subprocess.run(command, capture_output=True, check=True)
        assert np.array_equal(samples(done.stdout), expected)


def test_server_sent_events(server, pieces):
    body = {**TWO, "response_format": "pcm", "stream_format": "sse"}
    status, headers, content = server.speak(body)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    blocks = content.decode().split("\n\n")
    assert blocks.pop() == ""
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert [event["type"] for event in events[:-1]] == ["speech.audio.delta"] * len(pieces)
    sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert np.array_equal(samples(sound), rounded(np.concatenate(pieces)))
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["input_tokens"] > 10 and usage["output_tokens"] > 10
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_the_official_client_raises_its_own_errors(client):
    kinds = {
        "aac": openai.UnprocessableEntityError,
        "nobody": openai.NotFoundError,
    }
    with pytest.raises(kinds["aac"], match="aac is not made here") as caught:
        client.audio.speech.create(model="m", voice="alloy", input="Hi.", response_format="aac")
    assert caught.value.body["param"] == "response_format"
    with pytest.raises(kinds["aac"], match="speed can only be 1"):
        client.audio.speech.create(model="m", voice="alloy", input="Hi.", speed=1.5)
    with pytest.raises(kinds["nobody"], match="no voice 'femal'; did you mean female"):
        client.audio.speech.create(model="m", voice="femal", input="Hi.")
    with pytest.raises(kinds["nobody"]):
        client.models.retrieve("gpt-5")
    other = client.with_options(api_key="another")
    with pytest.raises(openai.AuthenticationError):
        other.audio.speech.create(model="m", voice="alloy", input="Hi.")
    assert {"tiny", "tts-1"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("tiny").id == "tiny"


# ---- what other clients send ----


def test_open_webui(server):
    """As open-webui's backend/open_webui/routers/audio.py lists and speaks."""
    user = {"X_OpenWebUI_User_Name": "A", "X_OpenWebUI_User_Id": "1"}
    status, _, content = server.ask("GET", "/v1/audio/models")
    assert status == 200 and {"id": "tiny"}.items() <= json.loads(content)["models"][0].items()
    voices = json.loads(server.ask("GET", "/v1/audio/voices")[2])["voices"]
    named = {voice["id"]: voice["name"] for voice in voices}
    assert {"female", "male"} <= set(named)
    body = {"input": "Hi there.", "model": "tts-1", "voice": "alloy"}
    status, headers, content = server.speak(body, **user)
    assert (status, headers["content-type"]) == (200, "audio/mpeg")
    assert soundfile.info(io.BytesIO(content)).format == "MP3"


def test_sillytavern(server):
    """As SillyTavern's src/endpoints/openai.js passes on what openai-compatible.js asks for."""
    body = {
        "input": "Hi there.",
        "response_format": "mp3",
        "voice": "shimmer",
        "speed": 1,
        "model": "tts-1",
    }
    status, headers, content = server.speak(body)
    assert (status, headers["content-type"]) == (200, "audio/mpeg")
    assert len(soundfile.read(io.BytesIO(content))[0]) > 2000
    assert server.error({**body, "speed": 1.25})[0] == 422


def test_wyoming_openai(server, client):
    """As wyoming_openai's compatibility.py looks what it has before it, and then speaks."""
    for path in ("/v1/readyz", "/v1/test"):  # LocalAI's, Kokoro-FastAPI's
        assert server.ask("GET", path)[0] == 404
    assert server.ask("GET", "/health")[2] != b"OK"  # Speaches'
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="onyx", input="Hi there.", response_format="wav", speed=1.0
    ) as answer:
        content = b"".join(answer.iter_bytes(2048))
    with wave.open(io.BytesIO(content)) as file:
        assert file.getframerate() == 24_000 and len(file.readframes(1 << 24)) > 4000


def test_a_dialog_and_voices_by_id(server, bark):
    text = "Ann: Hello.\nBob: Good day."
    options = {"seed": 2, "max_duration_s": 0.3, "retries": 0}
    speaker = {"Ann": "female", "Bob": {"id": "onyx"}}
    status, _, content = server.speak(
        {"input": text, "speaker": speaker, "voice": "unused", "response_format": "pcm", **options}
    )
    expected = bark.generate_dialog(text, {"Ann": "female", "Bob": "male_slow"}, **options)
    assert status == 200
    assert np.array_equal(samples(content), rounded(expected))
    status, error = server.error({"input": "Cat: Hi.", "speaker": speaker})
    assert status == 422 and "unknown speaker 'Cat'" in error["message"]


# ---- many at once ----


def test_two_at_once_get_what_they_get_alone(server):
    bodies = [{**ONE, "seed": seed, "response_format": "pcm"} for seed in (3, 4)]
    alone = [server.speak(body)[2] for body in bodies]
    together: dict[int, bytes] = {}

    def listen(index):
        together[index] = server.speak(bodies[index])[2]

    threads = [threading.Thread(target=listen, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone and alone[0] != alone[1]


def test_who_is_too_many_is_told_at_once_and_who_goes_ends_his_work(server):
    gone = server.stats()["requests"].get("gone", 0)
    body = json.dumps(LONG).encode()
    with contextlib.ExitStack() as stack:
        for n in range(3):  # two are spoken, one waits
            stack.enter_context(server.open(body))
            server.until(lambda s, n=n: s["queue"]["running"] + s["queue"]["waiting"] == n + 1)
        server.until(lambda s: s["queue"]["rows"] == 2)  # they are in one batch
        begin = time.monotonic()
        status, headers, content = server.speak(ONE)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert json.loads(content)["error"]["type"] == "rate_limit_error"
        assert time.monotonic() - begin < 2
    stats = server.until(is_idle, 10)
    assert stats["requests"]["gone"] == gone + 3


# ---- what is refused ----


BAD = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"[]", 400, None),
    (b'"text"', 400, None),
    (b"\xff\xfe", 400, None),
    (b'{"input": NaN}', 400, None),
    (b'{"input": "Hi.", "seed": 5, "seed": 7}', 400, None),
    (b"[" * 50_000, 400, None),
    (b'{"input": "Hi.", "seed": ' + b"9" * 5000 + b"}", 400, None),
    ({}, 422, "input"),
    ({"input": ""}, 422, "input"),
    ({"input": " \n"}, 422, "input"),
    ({"input": 3}, 422, "input"),
    ({"input": "\ud800"}, 422, "input"),
    ({"input": "[pause:9999s] Hi."}, 422, "input"),
    ({"input": "Hi.", "inptu": 1}, 422, "inptu"),
    ({"input": "Hi.", "temprature": 1}, 422, "temprature"),
    ({"input": "Hi.", "temperature": -1}, 422, "temperature"),
    ({"input": "Hi.", "temperature": 10**400}, 422, "temperature"),
    ('\ufeff{"input": "Hi.", "temperature": -1}'.encode(), 422, "temperature"),
    ({"input": "Hi.", "temperature": "hot"}, 422, "temperature"),
    ({"input": "Hi.", "temperature": 1e999}, 400, None),
    ({"input": "Hi.", "seed": -1}, 422, "seed"),
    ({"input": "Hi.", "seed": True}, 422, "seed"),
    ({"input": "Hi.", "retries": -1}, 422, "retries"),
    ({"input": "Hi.", "history": "reset:0"}, 422, "history"),
    ({"input": "Hi.", "sliding_window_len": 10**9}, 422, "max_coarse_history"),
    ({"input": "Hi.", "response_format": "ogg"}, 422, "response_format"),
    ({"input": "Hi.", "response_format": ["mp3"]}, 422, "response_format"),
    ({"input": "Hi.", "stream_format": 1}, 422, "stream_format"),
    ({"input": "Hi.", "speed": "1"}, 422, "speed"),
    ({"input": "Hi.", "voice": 7}, 422, "voice"),
    ({"input": "Hi.", "voice": {"id": 7}}, 422, "voice"),
    ({"input": "Hi.", "voice": "/etc/passwd"}, 404, "voice"),
    ({"input": "Hi.", "voice": "../tiny/voices/female.npz"}, 404, "voice"),
    ({"input": "Hi.", "voice": {"id": "nobody\r\nX-Header: 1"}}, 404, "voice"),
    ({"input": "Hi.", "speaker": {}}, 422, "speaker"),
    ({"input": "Ann: Hi.", "speaker": {"Ann": "nobody"}}, 404, "speaker"),
    ({"input": "Ann: Hi.", "speaker": {"A:n": "male"}}, 422, "input"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=lambda value: f"{value!s:.40}")
def test_bad_requests_are_refused_by_name(server, body, status, param):
    got, error = server.error(body)
    assert (got, error["param"]) == (status, param)
    assert error["message"].isprintable()


def test_null_is_as_if_it_were_not_there_and_other_pages_cannot_send():
    asked = parse(
        b'{"input": "Hi.", "voice": null, "speed": null, "temperature": null, "retries": null}'
    )
    assert (asked.voice, asked.options, asked.plan) == (None, Options(), LongOptions())
    assert parse(b'{"input": "Hi.", "model": "x", "instructions": "Sadly."}').text == "Hi."


def test_every_option_can_be_asked_for():
    every = {**vars(Options(seed=1)), **vars(LongOptions(goal=50))}
    asked = parse(json.dumps({"input": "Hi.", **every}).encode())
    assert asked.options == Options(seed=1) and asked.plan == LongOptions(goal=50)
    assert len(every) == len([*knobs(Options), *knobs(LongOptions)])


def test_only_json_is_a_body(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, error = server.error(ONE, Content_Type=kind)
        assert status == 400 and "application/json" in error["message"]


def test_large_bodies_are_cut_off(server):
    assert server.error({"input": "x" * 70_000})[0] == 413
    for length in ("Content-Length: 1000000", "Transfer-Encoding: chunked"):
        with server.open(b"", length) as connection:  # who sends slowly hears why, too
            for _ in range(10):
                time.sleep(0.05)
                piece = b" " * 100_000
                connection.sendall(b"186a0\r\n" + piece + b"\r\n" if "chunked" in length else piece)
            assert b" 413 " in connection.recv(100)
    with server.open(b"", "Content-Length: 1000000\r\nExpect: 100-continue") as connection:
        assert b" 413 " in connection.recv(100)
    with server.open(b"", "Transfer-Encoding: chunked") as connection:
        sent = 0
        with contextlib.suppress(OSError):  # it closes while we send
            for _ in range(4000):
                connection.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
                sent += 4096
        assert sent < 4000 * 4096
        with contextlib.suppress(OSError):
            assert b" 413 " in connection.recv(100)
    assert server.ask("GET", "/health")[0] == 200


def test_the_key(server):
    def refused() -> int:
        return json.loads(server.ask("GET", "/stats")[2])["requests"].get("401", 0)

    before = refused()
    for given in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY} ", "Bearer \xe9"):
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/stats"),
            ("POST", "/v1/audio/speech"),
            ("GET", "/v1/nothing"),
        ):
            status, headers, content = server.ask(method, path, Authorization=given)
            if given.strip() == f"Bearer {KEY}":  # white space around a header is not of it
                assert status != 401
                continue
            assert status == 401 and headers["www-authenticate"] == "Bearer"
            assert json.loads(content)["error"]["code"] == "invalid_api_key"
    assert server.ask("GET", "/health", Authorization="")[0] == 200
    assert refused() == before + 5  # speech requests


def test_paths_and_methods(server):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/audio/speech", 405),
        ("GET", "/page/../serve.py", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("DELETE", "/v1/audio/voices/female", 404),
    ):
        got, _, content = server.ask(method, path)
        assert got == status, path
        assert json.loads(content)["error"]["message"]


def test_the_page_and_its_policy(server):
    size = 0
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/java")):
        status, headers, content = server.ask("GET", path, Authorization="")
        assert status == 200 and headers["content-type"].startswith(kind)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert not [
            word for word in (b"http:", b"https:", b"style=", b" on") if word in content
        ] or (path != "/")
        size += len(content)
    assert size <= 25_000


def test_a_study_page_is_of_the_very_sound(server, bark):
    assert server.ask("POST", "/study", ONE, Authorization="")[0] == 401
    for wrong, param in (
        ({**ONE, "seed": None}, "seed"),
        ({**LONG, "seed": 1}, "input"),
        ({**ONE, "speaker": {"A": "male"}}, "speaker"),
        ({**ONE, "temperature": -1}, "temperature"),
        ({**ONE, "input": "Hi [pause:-1s] there."}, "input"),
        ({**ONE, "input": "\u2026 \u2014 !"}, "input"),
        ({**ONE, "max_coarse_history": 100_000}, "max_coarse_history"),
    ):
        status, _, content = server.ask("POST", "/study", wrong)
        assert (status, json.loads(content)["error"]["param"]) == (422, param)
    status, _, content = server.ask("POST", "/study", ONE)
    assert status == 200
    place = json.loads(content)["url"]
    status, headers, content = server.ask("GET", f"/{place}", Authorization="")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"  # it has its own beside
    sound = re.search(rb"data:audio/wav;base64,([^\"]+)", content)
    heard, _ = soundfile.read(io.BytesIO(base64.b64decode(sound[1])), dtype="int16")
    expected = rounded(bark.generate(ONE["input"], "female", seed=3, max_duration_s=0.3))
    assert np.abs(heard.astype(int) - expected).max() <= 1
    assert server.ask("GET", f"/{place}x")[0] == 404


def test_uploaded_voices(server, bark, tmp_path):
    voice = bark.load_voice("male_fast")
    voice.save(tmp_path / "mine.npz")
    content = (tmp_path / "mine.npz").read_bytes()
    kind = {"Content_Type": "application/octet-stream"}
    path = "/v1/audio/voices?name="
    assert server.ask("POST", f"{path}mine", content, **kind)[0] == 200
    _, _, pcm = server.speak({**ONE, "voice": "mine", "response_format": "pcm"})
    expected = bark.generate(ONE["input"], voice, seed=3, max_duration_s=0.3)
    assert np.array_equal(samples(pcm), rounded(expected))
    for name, body, status in (
        ("female", content, 422),
        ("alloy", content, 422),
        ("a/b", content, 422),
        ("", content, 422),
        ("bad", b"PK\x03\x04 no zip", 422),
        ("bad", b"", 422),
        ("large", bytes(2 << 20), 413),
    ):
        got = server.ask("POST", path + name, body, **kind)
        assert (got[0], b'"error"' in got[2]) == (status, True), (name, got)
    assert server.ask("POST", f"{path}mine", content)[0] == 400
    assert server.ask("DELETE", "/v1/audio/voices/mine")[0] == 200
    assert server.error({**ONE, "voice": "mine"})[0] == 404


def test_odd_bodies_get_named_errors(server):
    """A small sample of tests/torture/serve.py."""
    statuses = [status_of(server, body) for body in odd_bodies(random.Random(0), 60)]
    assert {400, 422} <= set(statuses)


def test_the_log_has_no_line_of_a_client(server):
    server.error({**ONE, "voice": "nobody\nminibark: forged"})
    server.speak({**ONE, "voice": "alloy"}, User_Agent="\x1b[31mred")
    assert all(line.startswith("minibark: ") and line.isprintable() for line in server.said)
    assert not any("forged" in line and "nobody" not in line for line in server.said)


def test_the_end_lets_what_runs_be_heard(pieces):
    with serving("--max-batch", "1", "--voice", "male") as server:
        body = {**TWO, "response_format": "pcm"}
        heard: list[tuple] = []
        kept = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        listener = threading.Thread(target=lambda: heard.append(server.speak(body)))
        listener.start()
        server.until(lambda s: s["queue"]["running"] == 1)
        server.process.terminate()
        while server.ask("GET", "/health")[0] == 200:
            time.sleep(0.01)
        status, headers, content = server.speak(ONE)
        assert status == 503 and int(headers["retry-after"]) >= 1, content
        listener.join()
        kept.close()
        assert server.process.wait(30) == 0
        assert np.array_equal(samples(heard[0][2]), rounded(np.concatenate(pieces)))


def test_a_signal_while_it_loads_ends_it_well():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "minibark", "serve", "--model", "tiny", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    server = Server(process, port=port)
    try:
        while True:
            with contextlib.suppress(OSError):
                status, headers, content = server.ask("GET", "/health")
                break
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        if status != 200:  # it is quick
            assert (status, headers["retry-after"]) == (503, "2")
            assert json.loads(content)["error"]["code"] == "loading"
        assert process.wait(30) == 0
        assert "terminate" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_what_cannot_be_served_is_told_in_one_line(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main.main(["serve", "--model", "tiny", "--port", port]) == 1
        assert "cannot listen on 127.0.0.1:" in capsys.readouterr().err
    assert main.main(["serve", "--model", str(tmp_path / "none"), "--port", "0"]) == 1
    assert "none" in capsys.readouterr().err


# ---- without a server ----


@pytest.mark.parametrize("audio_format", FORMATS)
def test_an_encoder_gives_at_once_what_a_reader_of_a_pipe_needs(audio_format):
    rate, random_ = 24_000, np.random.default_rng(0)
    audio = (0.3 * np.sin(np.arange(5 * rate) * 0.03)).astype(np.float32)
    audio += random_.normal(0, 0.01, len(audio)).astype(np.float32)
    encoder, content, sizes = Encoder(rate, audio_format), b"", []
    for start in range(0, len(audio), rate):
        content += encoder.write(audio[start : start + rate])
        sizes.append(len(content))
    content += encoder.close()
    assert all(later > sooner for sooner, later in itertools.pairwise(sizes[1:]))
    if audio_format == "pcm":
        assert content == whole(audio, rate, "pcm")
        return
    if audio_format == "flac":  # the reader here, unlike players, needs to know the length
        assert content[:4] == b"fLaC" and not any(content[22:26])
        content = content[:22] + struct.pack(">I", len(audio)) + content[26:]
    heard, _ = soundfile.read(io.BytesIO(content), frames=6 * rate)
    if audio_format in ("wav", "flac"):
        assert np.array_equal(rounded(heard * 32768 / 32767), rounded(audio))
        return
    assert len(audio) <= len(heard) <= len(audio) + 3000
    n = 1 << 18
    both = np.fft.irfft(np.fft.rfft(heard, n) * np.fft.rfft(audio, n).conj())
    lag = int(both.argmax())
    assert 0 <= lag <= 3000
    heard = heard[lag : lag + len(audio)]
    assert np.corrcoef(heard, audio[: len(heard)])[0, 1] > 0.98


def test_openai_s_names_are_stable_and_a_voice_s_own_name_comes_first(bark):
    voices = ServedVoices(bark)
    assert {name: voices.find(name) for name in OPENAI} == {
        name: of_tiny for name, (of_tiny, _) in OPENAI.items()
    }
    assert voices.default is None and ServedVoices(bark, "echo").default == "male"
    with pytest.raises(RequestError, match="no voice 'nobody'"):
        ServedVoices(bark, "nobody")
