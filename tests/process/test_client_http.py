"""Both clients against a stub on loopback that answers, breaks off or hangs as each test says."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from client_stub import DEADLINE, Handler, Stub, echo, endless, hang, wait_until_gone

from vllm_manager import registry
from vllm_manager.client import AsyncClient, Client
from vllm_manager.errors import (
    AuthenticationFailed,
    Busy,
    InvalidResponse,
    ModelNotReady,
    ResponseTimeout,
    StreamInterrupted,
    Unavailable,
    UnknownModel,
    UnsupportedOperation,
)
from vllm_manager.store import Secrets, Store
from vllm_manager.types import Endpoint, Phase

SHORT = 0.2  # a timeout that a test wants to see run out


class Driver:
    """A client of either kind, called the same way."""

    def __init__(self, kind: str, resolve: Callable[[], Endpoint]) -> None:
        self._runner = asyncio.Runner() if kind == "async" else None
        self.client = AsyncClient(resolve) if kind == "async" else Client(resolve)

    def call(self, method: str, *args, **options):
        result = getattr(self.client, method)(*args, **options)
        return self._runner.run(_awaited(result)) if self._runner else result

    def chat(self, prompt="hi", **options):
        return self.call("chat", prompt, **options)

    def open(self, prompt="hi", **options):
        return self.client.stream(prompt, **options)

    def next(self, stream):
        return self._runner.run(_awaited(anext(stream))) if self._runner else next(stream)

    def collect(self, stream) -> list[str]:
        if self._runner:
            return self._runner.run(_collected(stream))
        return [str(chunk) for chunk in stream]

    def end(self, stream) -> None:
        if self._runner:
            self._runner.run(stream.aclose())
        else:
            stream.close()

    def close(self) -> None:
        if self._runner:
            self._runner.run(self.client.aclose())
            self._runner.close()
        else:
            self.client.close()


async def _awaited(result):
    return await result


async def _collected(stream) -> list[str]:
    return [str(chunk) async for chunk in stream]


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Handler], None]], Stub]]:
    stubs: list[Stub] = []

    def start(script: Callable[[Handler], None]) -> Stub:
        stubs.append(Stub(script))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.stop()


@pytest.fixture(params=["sync", "async"])
def connect(request, serve) -> Iterator[Callable[..., Driver]]:  # after serve: clients close before stubs
    drivers: list[Driver] = []

    def start(target: Stub | Callable[[], Endpoint], **fields) -> Driver:
        resolve = (lambda: target.endpoint(**fields)) if isinstance(target, Stub) else target
        drivers.append(Driver(request.param, resolve))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.close()


# --- answers


def test_chat_returns_the_answer_and_sends_the_key(serve, connect):
    stub = serve(echo)

    response = connect(stub, api_key="sk-1").chat("hello", max_tokens=4)

    assert (str(response), response.usage.completion_tokens, response.model) == ("hello", 2, "llama")
    (request,) = stub.requests
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.body["max_tokens"] == 4


def test_requests_share_one_connection(serve, connect):
    stub = serve(echo)
    driver = connect(stub)

    assert [str(driver.chat(text)) for text in ("a", "b", "c")] == ["a", "b", "c"]
    assert stub.connections == 1


def test_a_stream_yields_pieces_and_tells_the_rest_at_its_end(serve, connect):
    def script(handler: Handler) -> None:
        handler.begin_stream()
        for text, finish in (("hel", None), ("lo", None), (None, "stop")):
            handler.delta(text, finish)
        handler.end_stream()

    stub = serve(script)
    driver = connect(stub)
    stream = driver.open()

    assert driver.collect(stream) == ["hel", "lo", ""]
    assert (stream.text, stream.finish_reason, stream.usage.completion_tokens) == ("hello", "stop", 2)
    driver.collect(driver.open())
    assert stub.connections == 1  # a stream read to its end gives its connection back


def test_a_stream_that_is_never_read_sends_nothing(serve, connect):
    stub = serve(echo)
    driver = connect(stub)

    driver.end(driver.open())

    assert stub.requests == []


def test_models_and_ready(serve, connect):
    stub = serve(lambda handler: handler.answer(200, {"data": [{"id": "llama"}, {"id": "alias"}]}))

    assert connect(stub).call("models") == ("llama", "alias")
    assert connect(stub).call("ready") is True
    assert connect(stub, model="other").call("ready") is False
    assert connect(stub, phase=Phase.LOADING).call("ready") is False


def test_ready_is_false_when_nothing_listens_and_raises_for_a_wrong_key(serve, connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    stub = serve(lambda handler: handler.answer(401, {"error": "Unauthorized"}))

    assert connect(stub, root_url=closed).call("ready") is False
    with pytest.raises(AuthenticationFailed):
        connect(stub).call("ready")


def test_a_large_answer_arrives_whole(serve, connect):
    text = "x" * 10_000_000
    stub = serve(lambda handler: handler.chat(text))

    assert connect(stub).chat().text == text


def test_a_completion_is_whole_or_in_pieces(serve, connect):
    def script(handler: Handler) -> None:
        choice = {"index": 0, "text": f"{handler.body['prompt']} upon", "finish_reason": "length"}
        if not handler.body.get("stream"):
            handler.answer(200, {"model": "llama", "choices": [choice]})
            return
        handler.begin_stream()
        handler.event({"choices": [choice]})
        handler.end_stream()

    stub = serve(script)
    driver = connect(stub)

    assert str(driver.call("complete", "once", max_tokens=1)) == "once upon"
    stream = driver.client.stream_completion("once")
    assert driver.collect(stream) == ["once upon"]
    assert (stream.text, stream.finish_reason, stream.usage.completion_tokens) == ("once upon", "length", 2)


def test_the_numbers_of_a_pooling_model_are_read(serve, connect):
    rows = {
        "/v1/embeddings": {"embedding": [0.5]},
        "/classify": {"label": "yes", "probs": [0.5]},
        "/pooling": {"data": [[0.5]]},
        "/score": {"score": 0.5},
    }
    stub = serve(lambda handler: handler.answer(200, {"data": [{"index": 0} | rows[handler.path]]}))
    driver = connect(stub)

    assert driver.call("embed", "a").vectors == ([0.5],)
    assert driver.call("classify", "a").results[0].label == "yes"
    assert driver.call("pooling", "a").data == ([[0.5]],)
    assert driver.call("score", "a", "b").scores == (0.5,)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_rerank_takes_the_route_that_is_there(serve, connect, path):
    def script(handler: Handler) -> None:
        if handler.path == path:
            handler.answer(200, {"results": [{"index": 1, "relevance_score": 0.9}]})
        else:
            handler.answer(404, {"detail": "Not Found"})

    stub = serve(script)

    (result,) = connect(stub).call("rerank", "q", ["a", "b"], 1).results
    assert (result.index, result.score, result.document) == (1, 0.9, "b")
    assert stub.requests[-1].body == {"model": "llama", "query": "q", "documents": ["a", "b"], "top_n": 1}


def test_rerank_without_any_route_is_unsupported_and_an_unknown_model_is_asked_for_once(serve, connect):
    paths = []

    def script(handler: Handler) -> None:
        paths.append(handler.path)
        handler.answer(404, {"detail": "Not Found"})

    with pytest.raises(UnsupportedOperation):
        connect(serve(script)).call("rerank", "q", ["a"])
    assert paths == ["/v1/rerank", "/rerank"]

    error = {"message": "The model `llama` does not exist.", "type": "NotFoundError", "param": None}
    stub = serve(lambda handler: handler.answer(404, {"error": error}))
    with pytest.raises(UnknownModel):
        connect(stub).call("rerank", "q", ["a"])
    assert len(stub.requests) == 1


def test_a_sound_file_is_uploaded_with_its_fields(serve, connect, tmp_path):
    stub = serve(lambda handler: handler.answer(200, {"text": "hey", "usage": {"seconds": 1}}))
    path = tmp_path / "speech.wav"
    path.write_bytes(b"RIFF\0\r\n--")

    response = connect(stub, api_key="sk-1").call("transcribe", path, "en", temperature=0.5)

    assert (str(response), response.seconds) == ("hey", 1.0)
    (request,) = stub.requests
    assert request.headers["authorization"] == "Bearer sk-1"
    boundary = request.headers["content-type"].partition("multipart/form-data; boundary=")[2]
    parts = request.raw.split(b"--" + boundary.encode())[1:-1]
    sent = {part.split(b'name="')[1].split(b'"')[0]: part.partition(b"\r\n\r\n")[2] for part in parts}
    assert sent == {
        b"model": b"llama\r\n",
        b"language": b"en\r\n",
        b"temperature": b"0.5\r\n",
        b"file": b"RIFF\0\r\n--\r\n",
    }
    assert b'filename="speech.wav"' in request.raw


# --- refusals


@pytest.mark.parametrize(
    ("status", "body", "headers", "cls"),
    [
        (503, {"error": {"message": "busy", "type": "Service Unavailable"}}, {"Retry_After": "7"}, Busy),
        (404, {"error": {"message": "no", "type": "NotFoundError", "param": "model"}}, {}, UnknownModel),
        (200, {"error": {"message": "boom", "code": 500}}, {}, InvalidResponse),
        (200, b"<html>", {"content_type": "text/html"}, InvalidResponse),
        (200, b"not gzip", {"content_encoding": "gzip"}, InvalidResponse),
        (302, b"", {"location": "http://127.0.0.1:1/"}, InvalidResponse),
    ],
)
@pytest.mark.parametrize("how", ["chat", "stream"])
def test_a_refusal_is_raised_once_and_not_retried(serve, connect, how, status, body, headers, cls):
    stub = serve(lambda handler: handler.answer(status, body, **headers))
    driver = connect(stub)

    with pytest.raises(cls) as caught:
        driver.chat() if how == "chat" else driver.collect(driver.open())

    assert caught.value.deployment == "llama"
    assert caught.value.retry_after == (7.0 if status == 503 else None)
    assert len(stub.requests) == 1


def test_an_error_does_not_spoil_the_connection(serve, connect):
    stub = serve(lambda handler: handler.answer(503, b"") if handler.served == 1 else echo(handler))
    driver = connect(stub)

    with pytest.raises(Busy):
        driver.chat()
    assert str(driver.chat("again")) == "again"
    assert stub.connections == 1


def test_nothing_is_sent_while_the_deployment_is_not_ready(serve, connect):
    stub = serve(echo)
    driver = connect(stub, phase=Phase.LOADING)

    with pytest.raises(ModelNotReady):
        driver.chat()
    with pytest.raises(ModelNotReady):
        driver.collect(driver.open())
    assert stub.requests == []


# --- streams that break


def broken_off(handler: Handler) -> None:
    handler.hang_up()


def ended_early(handler: Handler) -> None:
    handler.send(b"")


def reported(handler: Handler) -> None:
    handler.event({"error": {"message": "EngineCore encountered an issue", "code": 500}})
    handler.send(b"data: [DONE]\n\n")
    handler.send(b"")


@pytest.mark.parametrize("ending", [broken_off, ended_early, reported, hang])
def test_a_stream_that_breaks_raises_with_the_text_so_far(serve, connect, ending):
    def script(handler: Handler) -> None:
        handler.begin_stream()
        handler.delta("half an ")
        handler.delta("answer")
        ending(handler)

    driver = connect(serve(script))
    stream = driver.open(timeout=SHORT if ending is hang else None)

    with pytest.raises(StreamInterrupted) as caught:
        driver.collect(stream)

    assert caught.value.partial == stream.text == "half an answer"


def test_closing_a_stream_ends_the_generation(serve, connect):
    stub = serve(endless)
    driver = connect(stub)
    stream = driver.open()
    assert str(driver.next(stream)) == "more "

    driver.end(stream)

    assert stub.gone.wait(DEADLINE)
    assert stream.text.startswith("more ")


# --- connections


def test_a_silent_server_times_out(serve, connect):
    stub = serve(hang)

    with pytest.raises(ResponseTimeout, match=r"0\.2 s") as caught:
        connect(stub).chat(timeout=SHORT)
    assert caught.value.hint
    assert len(stub.requests) == 1


def test_slow_bytes_are_no_timeout_while_they_come(serve, connect):
    def script(handler: Handler) -> None:
        handler.begin_stream()
        for _ in range(8):
            handler.delta(".")
            handler.server.released.wait(0.1)  # all together longer than the timeout
        handler.delta(None, "stop")
        handler.end_stream()

    driver = connect(serve(script))

    assert "".join(driver.collect(driver.open(timeout=0.6))) == "........"


def test_nothing_listening_is_unavailable(serve, connect):
    stub = serve(echo)
    driver = connect(stub)
    assert driver.chat()
    stub.stop()

    with pytest.raises(Unavailable) as caught:
        driver.chat()
    assert "llama" in caught.value.hint


def test_a_kept_connection_that_was_just_closed_is_replaced_once(serve, connect):
    # What vLLM's keep-alive does when a request meets its end: the socket was open when the request left.
    stub = serve(lambda handler: echo(handler) if handler.served == 1 else handler.hang_up())
    driver = connect(stub)

    assert [str(driver.chat(text)) for text in ("a", "b", "c")] == ["a", "b", "c"]
    assert (stub.connections, len(stub.requests)) == (3, 5)


def test_a_request_that_ends_a_new_connection_is_not_repeated(serve, connect):
    stub = serve(Handler.hang_up)

    with pytest.raises(Unavailable):
        connect(stub).chat()
    assert len(stub.requests) == 1


def test_an_answer_that_breaks_off_is_not_asked_for_again(serve, connect):
    def script(handler: Handler) -> None:
        if handler.served == 1:
            echo(handler)
            return
        handler.begin_stream()
        handler.send(b'{"choices": ')
        handler.hang_up()

    stub = serve(script)
    driver = connect(stub)
    driver.chat()

    with pytest.raises(Unavailable, match="before its answer was complete"):
        driver.chat()
    assert len(stub.requests) == 2


def test_proxies_of_the_environment_do_not_catch_loopback(serve, connect, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    stub = serve(echo)

    assert str(connect(stub).chat("direct")) == "direct"
    with Client.at(f"{stub.url}/v1", model="llama") as client:
        assert str(client.chat("direct")) == "direct"


def test_the_registrys_client_follows_a_deployment_to_its_new_port_and_key(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(tmp_path))
    store = Store(tmp_path)
    one, two = serve(echo), serve(echo)
    store.save_endpoints((one.endpoint(),))
    with registry.client("llama") as client:
        client.chat("to one")

        store.save_secrets("llama", Secrets(api_key="sk-2"))
        store.save_endpoints((two.endpoint(),))
        client.chat("to two")

    assert [request.body["messages"][0]["content"] for request in one.requests] == ["to one"]
    assert [request.headers["authorization"] for request in two.requests] == ["Bearer sk-2"]


# --- threads, tasks, loops


def test_eight_threads_share_one_client(serve):
    stub = serve(echo)
    texts = [str(number) for number in range(200)]

    with Client(stub.endpoint) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: str(client.chat(text)), texts))

    assert answers == texts
    assert stub.connections <= 8


def test_a_with_block_left_early_ends_the_generation(serve):
    stub = serve(endless)

    with Client(stub.endpoint) as client:
        with client.stream("hi") as stream:
            next(stream)
        assert stub.gone.wait(DEADLINE)


def test_cancelling_a_task_ends_its_request(serve):
    stub = serve(wait_until_gone)

    async def main() -> None:
        async with AsyncClient(stub.endpoint) as client:
            task = asyncio.create_task(client.chat("hi"))
            assert await asyncio.to_thread(stub.arrived.wait, DEADLINE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(stub.gone.wait, DEADLINE)

    asyncio.run(main())


def test_cancelling_a_task_ends_its_stream(serve):
    stub = serve(endless)

    async def main() -> None:
        async with AsyncClient(stub.endpoint) as client:
            task = asyncio.create_task(_collected(client.stream("hi")))
            assert await asyncio.to_thread(stub.arrived.wait, DEADLINE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(stub.gone.wait, DEADLINE)

    asyncio.run(main())


def test_many_requests_of_one_loop_run_at_once(serve):
    together = threading.Barrier(50)

    def script(handler: Handler) -> None:
        together.wait(DEADLINE)  # none is answered before all are there
        echo(handler)

    stub = serve(script)

    async def main() -> list[str]:
        async with AsyncClient(stub.endpoint) as client:
            return [str(answer) for answer in await asyncio.gather(*(client.chat(str(n)) for n in range(50)))]

    assert asyncio.run(main()) == [str(n) for n in range(50)]


def test_one_asyncio_client_serves_several_loops_at_once_and_one_after_another(serve):
    stub = serve(echo)
    client = AsyncClient(stub.endpoint)

    def in_a_loop_of_its_own(text: str) -> str:
        async def main() -> str:
            async with client:
                return str(await client.chat(text))

        return asyncio.run(main())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(in_a_loop_of_its_own, "abcdefgh")) == list("abcdefgh")
