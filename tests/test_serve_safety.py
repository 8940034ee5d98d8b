"""`minibark serve`: who is let in, what is told, and how it ends."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from serving import serving

from minibark import Bark
from minibark.commands import main

pytest.importorskip("starlette")

from starlette.datastructures import Headers
from starlette.requests import Request

from minibark.serve import speech
from minibark.serve.door import Admission, checked_origin
from minibark.serve.errors import RequestError
from minibark.serve.speech import House
from minibark.serve.stats import Stats
from minibark.serve.work import Desk

ORIGIN = "http://localhost:3000"
ONE = {"input": "Hello there.", "voice": "female", "seed": 3, "max_duration_s": 0.3}
LONG = {"input": "I will go on and on, whatever you may say. " * 40, "voice": "female"}


@pytest.fixture(scope="module")
def server():
    options = ("--max-batch", "1", "--queue", "2", "--uploads", "--allow-host", "Voice.example")
    with serving(*options, "--allow-origin", ORIGIN, "-q") as one:
        yield one


def code_of(answer):
    return answer[0], json.loads(answer[2])["error"]["code"]


def test_the_key_guards_a_path_whatever_the_host_header_says():
    admission = Admission(key="k")
    for host in ("a?", "a#", "a/", "", "localhost"):
        for path in ("/v1/models", "/stats", "/study"):
            with pytest.raises(RequestError, match="the key") as caught:
                admission.check("GET", path, Headers({"host": host}))
            assert caught.value.status == 401
        for scheme in ("Bearer", "bearer", "BEARER"):
            held = Headers({"host": host, "authorization": f"{scheme} k"})
            admission.check("GET", "/v1/models", held)


def test_only_its_own_names_reach_it(server):
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8", "[::1]", "voice.example"):
        assert server.ask("GET", "/", Host=host)[0] == 200, host
    for host in ("evil.example", "localhost.evil.example", "a?", "localhost:x", "::1", "127.0.0.2"):
        assert code_of(server.ask("GET", "/v1/models", Host=host)) == (403, "bad_host"), host


def test_pages_of_other_places_cannot_send(server):
    own = f"127.0.0.1:{server.port}"
    for origin in (f"http://{own}", f"https://{own}", ORIGIN):
        assert server.ask("DELETE", "/v1/audio/voices/none", Origin=origin)[0] == 404, origin
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://{own}.evil"):
        answer = server.ask("DELETE", "/v1/audio/voices/none", Origin=origin)
        assert code_of(answer) == (403, "bad_origin"), origin
        assert code_of(server.speak(ONE, Origin=origin)) == (403, "bad_origin")
    asked = {"Access_Control_Request_Method": "POST"}
    asked["Access_Control_Request_Headers"] = "authorization,x-stainless-os,x-stainless-retry-count"
    path = "/v1/audio/speech"
    assert server.ask("OPTIONS", path, Origin=ORIGIN, **asked)[0] == 200
    assert server.ask("OPTIONS", path, Origin="http://evil.example", **asked)[0] == 400


def test_origins_and_names_are_checked_before_anything_is_loaded(capsys):
    assert checked_origin("HTTP://Host:8") == "http://host:8"
    for origin in ("localhost:3000", "http://a/", "http://a/b", "http://", "*", "http://a?b"):
        with pytest.raises(SystemExit):
            main.main(["serve", "--model", "tiny", "--allow-origin", origin])
        assert "scheme://host" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main(["serve", "--model", "tiny", "--allow-host", "http://a"])


def test_a_method_that_is_not_there(server):
    for path, method, allowed in (
        ("/v1/audio/speech", "GET", {"POST"}),
        ("/v1/audio/voices", "DELETE", {"GET", "HEAD", "POST"}),
    ):
        status, headers, content = server.ask(method, path)
        assert (status, json.loads(content)["error"]["code"]) == (405, "method_not_allowed")
        assert set(headers["allow"].split(", ")) == allowed
    assert server.ask("GET", "/v1/models/")[0] == 404  # and no redirection


def test_a_voice_that_is_deleted_while_a_request_waits_is_heard(server, tmp_path):
    Bark.from_pretrained("tiny", device="cpu").load_voice("male").save(tmp_path / "v.npz")
    kind = {"Content_Type": "application/octet-stream"}
    content = (tmp_path / "v.npz").read_bytes()
    assert server.ask("POST", "/v1/audio/voices?name=mine", content, **kind)[0] == 200
    heard = []
    with server.open(json.dumps(LONG).encode()):
        server.until(lambda s: s["queue"]["running"] == 1)
        body = {**ONE, "voice": "mine"}
        waiting = threading.Thread(target=lambda: heard.append(server.speak(body)[0]))
        waiting.start()
        server.until(lambda s: s["queue"]["waiting"] == 1)
        assert server.ask("DELETE", "/v1/audio/voices/mine")[0] == 200
    waiting.join()
    assert heard == [200]


def test_what_cannot_be_read_is_told_to_the_listener(server):
    odd = {**ONE, "input": "Hello \u4f60 there."}
    status, headers, _ = server.speak(odd)
    assert status == 200 and "cannot be read" in headers["x-warning"]
    assert headers["x-warning"].isascii()
    assert "x-warning" not in server.speak(ONE)[1]
    done = server.speak({**odd, "stream_format": "sse"})[2].decode().split("data: ")[-1]
    assert "cannot be read" in json.loads(done)["warnings"][0]
    status, error = server.error({**ONE, "input": "\u4f60\u597d"})
    assert (status, error["param"]) == (422, "input")
    assert "nothing of the text" in error["message"]


def test_names_are_escaped_once(server):
    _, error = server.error({**ONE, "voice": "no\nbody"})
    assert r"'no\nbody'" in error["message"]


def test_quiet_hides_nothing_but_what_was_served(server):
    assert any("listens on" in line for line in server.said)
    assert server.speak(ONE)[0] == 200
    assert not any("characters" in line and "the first after" in line for line in server.said)
    with serving("--host", "0.0.0.0", "-q") as open_to_all:
        assert any("whoever reaches" in line for line in open_to_all.said)
        assert open_to_all.ask("GET", "/", Host="any.example")[0] == 200


@pytest.mark.parametrize("is_debug", [False, True])
def test_a_failure_is_told_and_with_debug_where_it_was(is_debug):
    async def fail() -> list[str]:
        said: list[str] = []
        house = House("m", Desk(1, 1), Stats(), said.append, 1, print, is_debug)
        try:
            {}["what"]
        except KeyError as error:
            house.failed(error)
        return said

    first, *rest = asyncio.run(fail())
    assert first.startswith("KeyError: ")
    assert ("--debug" in first, any(f"in {fail.__name__}" in line for line in rest)) == (
        not is_debug,
        is_debug,
    )


def test_hosts_that_cannot_be_had_are_told_in_words_that_fit(capsys):
    for host, words in (
        ("no.such.host.invalid", "no name of this machine"),
        ("192.0.2.1", "--host must be an address of this machine"),
        ("a" * 300, "no name of this machine"),
    ):
        assert main.main(["serve", "--model", "tiny", "--port", "0", "--host", host]) == 1
        said = capsys.readouterr().err
        assert words in said and "while attempting" not in said and "--port" not in said
    with pytest.raises(SystemExit):
        main.main(["serve", "--model", "tiny", "--host", ""])
    with serving("--host", "localhost") as by_name:
        assert by_name.ask("GET", "/health")[0] == 200


def test_who_takes_nothing_is_given_less_time_at_the_end():
    async def wait_and_close() -> float:
        desk, begin = Desk(1, 1), time.monotonic()

        async def stalled() -> None:
            async with desk.patience(60, 0.1):
                await asyncio.sleep(60)

        listener = asyncio.ensure_future(stalled())
        await asyncio.sleep(0)
        await desk.close()
        for one in (listener, stalled()):  # who stalled before, and who does so after
            with pytest.raises(TimeoutError):
                await one
        return time.monotonic() - begin

    assert 0.1 < asyncio.run(wait_and_close()) < 10


def test_a_body_that_does_not_come_closes_its_connection(monkeypatch):
    """What would come of it later is no request."""
    monkeypatch.setattr(speech, "_BODY_S", 0.05)

    async def nothing() -> None:
        await asyncio.sleep(60)

    request = Request({"type": "http", "headers": []}, nothing)
    with pytest.raises(RequestError, match="did not come within") as caught:
        asyncio.run(speech.read_body(request, Desk(1, 1), 1000))
    response = caught.value.response()
    assert (response.status_code, response.headers["connection"]) == (400, "close")


def test_the_end_waits_for_no_body_and_a_second_signal_is_no_failure():
    with (
        serving("--max-batch", "1") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow,
        server.open(json.dumps(LONG).encode()),
    ):
        server.until(lambda s: s["queue"]["running"] == 1)
        head = "POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        time.sleep(0.2)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert b" 503 " in slow.recv(100)
        assert time.monotonic() - begin < 2
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("after_s", [0.3, 0.8])
def test_a_signal_in_the_first_second_is_no_failure(after_s):
    command = [sys.executable, "-m", "minibark", "serve", "--model", "tiny", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(after_s)
    process.terminate()
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, "written" in said) == (0, False), said
