"""Routing keys: stable over the turns of a conversation, and never an error or a long wait."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.proxy import destination
from vllm_stack.proxy.destination import ANYWHERE, Destination, make_reader
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.routing_key import MAX_BODY, WITH_PREFIX

CHAT = b"/v1/chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 500}}


def request(
    body: bytes | dict[str, Any], path: bytes = CHAT, method: bytes = b"POST", **headers: str
) -> Request:
    head = RequestHead()
    head.method, head.path, head.target = method, path, path
    for name, value in headers.items():
        head.add(name.replace("_", "-").encode(), value.encode())
    made = Request(head)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    made.chunks, made.body_size = [data], len(data)
    made.finish()
    return made


def key(body: bytes | dict[str, Any], path: bytes = CHAT) -> int | None:
    return make_reader("prefix", "x-session-id")(request(body, path)).key


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


# ------------------------------------------------------------------ conversations


CONTENT = st.one_of(
    st.text(),
    st.lists(st.one_of(st.builds(lambda text: {"type": "text", "text": text}, st.text()), st.just(IMAGE))),
)


@given(system=st.none() | CONTENT, first=CONTENT, later=st.lists(CONTENT, max_size=6), stream=st.booleans())
def test_the_key_of_a_conversation_stays_while_turns_are_added(
    system: Any, first: Any, later: list[Any], stream: bool
) -> None:
    start = ([] if system is None else [say("system", system)]) + [say("user", first)]
    turns = [say(("assistant", "user")[number % 2], content) for number, content in enumerate(later)]
    grown = {"stream": stream, "max_tokens": len(later), **chat(*start, *turns)}
    assert key(grown) == key(chat(*start))


@given(system=st.text(), first=st.text(), other=st.text())
def test_conversations_that_begin_with_another_question_have_another_key(
    system: str, first: str, other: str
) -> None:
    same = first == other
    assert (
        key(chat(say("system", system), say("user", first)))
        == key(chat(say("system", system), say("user", other)))
    ) is same


def test_system_and_question_do_not_run_into_each_other() -> None:
    assert key(chat(say("system", "ab"), say("user", "c"))) != key(
        chat(say("system", "a"), say("user", "bc"))
    )


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_what_stands_before_the_first_question_counts(role: str) -> None:
    keys = {key(chat(say(role, words), say("user", "why?"))) for words in ("be brief", "be long")}
    assert len(keys) == 2


@pytest.mark.parametrize("where", ["begins", "ends"])
def test_long_texts_that_differ_at_one_end_have_different_keys(where: str) -> None:
    common = "a long file " * 5000
    texts = [f"{mark}{common}" if where == "begins" else f"{common}{mark}" for mark in ("A", "B")]
    assert len({key(chat(say("user", text))) for text in texts}) == 2


def test_pictures_tell_conversations_apart_that_begin_with_the_same_words() -> None:
    def about(data: str) -> dict[str, Any]:
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000 + data}}
        return chat(say("user", [{"type": "text", "text": "What is this?"}, picture]))

    assert key(about("cat")) == key(about("cat"))
    assert key(about("cat")) != key(about("dog"))


def test_a_string_that_a_client_turns_into_a_marked_part_keeps_its_key() -> None:
    marked = [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]
    assert key(chat(say("user", marked))) == key(chat(say("user", "Hello")))


def test_messages_with_a_system_field_are_keyed_by_both() -> None:
    def ask(system: Any, question: str) -> int | None:
        return key(chat(say("user", question), system=system), b"/v1/messages")

    assert ask("be brief", "why?") == ask([{"type": "text", "text": "be brief"}], "why?")
    assert len({ask("be brief", "why?"), ask("be long", "why?"), ask("be brief", "how?")}) == 3


def test_a_billing_header_that_is_new_with_every_request_is_left_out() -> None:
    def ask(billing: str) -> int | None:
        system = [{"type": "text", "text": billing}, {"type": "text", "text": "be brief"}]
        return key(chat(say("user", "why?"), system=system), b"/v1/messages")

    assert ask("x-anthropic-billing-header: cch=1") == ask("x-anthropic-billing-header: cch=2")
    assert ask("something else: 1") != ask("something else: 2")


def test_responses_are_keyed_by_instructions_and_the_first_question() -> None:
    def ask(instructions: str, given: Any) -> int | None:
        return key({"instructions": instructions, "input": given}, b"/v1/responses")

    first = say("user", "why?")
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    assert ask("be brief", [first]) == ask(
        "be brief", [first, say("assistant", "so"), call, say("user", "no")]
    )
    assert len({ask("be brief", "why?"), ask("be long", "why?"), ask("be brief", "how?")}) == 3


@pytest.mark.parametrize("prompt", ["head " * 300, ["head " * 300, "another"], list(range(1000))])
def test_a_prompt_is_keyed_by_its_head(prompt: Any) -> None:
    grown = prompt + prompt[-1:] * 1000
    other = type(prompt)(reversed(prompt)) if isinstance(prompt, list) else "other " * 300
    ours, longer, another = (key({"prompt": p}, b"/v1/completions") for p in (prompt, grown, other))
    assert ours == longer
    assert ours is not None
    assert ours != another


# ------------------------------------------------------------------ what has no key


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'"messages"',
        b"{}",
        b'{"messages": null}',
        b'{"messages": 5}',
        b'{"messages": []}',
        b'{"messages": [[{"role": "user", "content": "hi"}]]}',
        b'{"messages": [{"role": 5, "content": "hi"}]}',
        b'{"messages": [{"role": "user", "content": [5]}]}',
        b'{"messages": [{"role": "user", "content": null}]}',
        b'{"messages": [{"role": "\xff", "content": "hi"}]}',
        b'{"messages": [{"role": "user", "content": "hi"}]',
        b"--boundary\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n--boundary--",
        b'{"messages":' + b"[" * 500_000,
        b'{"x":' + b'{"x":' * 100_000,
        b'{"messages": [{"role": "user", "content": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]}",
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
@pytest.mark.parametrize("path", sorted(WITH_PREFIX), ids=bytes.decode)
def test_what_does_not_decode_has_no_key(body: bytes, path: bytes) -> None:
    assert key(body, path) is None


@given(body=st.binary(max_size=300), path=st.sampled_from(sorted(WITH_PREFIX)))
def test_no_bytes_are_an_error(body: bytes, path: bytes) -> None:
    key(body, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner),
)
FIELDS = ["messages", "system", "instructions", "input", "prompt", "previous_response_id"]


@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON), path=st.sampled_from(sorted(WITH_PREFIX)))
def test_no_json_is_an_error(body: dict[str, Any], path: bytes) -> None:
    key(body, path)


def test_a_body_beyond_the_bound_has_no_key() -> None:
    assert key(chat(say("user", "x" * (MAX_BODY - 100)))) is not None
    assert key(chat(say("user", "x" * MAX_BODY))) is None


def test_the_worst_body_within_the_bound_is_read_in_a_moment() -> None:
    tiny = b'{"role":""},' * (MAX_BODY // 12 - 10)
    parts = b'{"messages":[{"role":"user","content":[' + b"{}," * (MAX_BODY // 3 - 30) + b"{}]}]}"
    for body in (b'{"messages":[' + tiny + b"{}]}", parts):
        begun = time.process_time()
        key(body)
        assert time.process_time() - begun < 0.5  # 0.03 s where it was written


@pytest.mark.parametrize("path", [b"/v1/embeddings", b"/v1/models", b"/v1/chat/completions/batch"])
def test_other_routes_have_no_key(path: bytes) -> None:
    assert key({**chat(say("user", "hi")), "input": "hi", "prompt": "hi"}, path) is None


@pytest.mark.parametrize("policy", ["least-loaded", "round-robin", "random", "session"])
def test_no_body_is_decoded_for_a_policy_that_does_not_ask(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination, "decode", lambda request: pytest.fail("the body was decoded"))
    assert make_reader(policy, "x-session-id")(request(chat(say("user", "hi")))) == ANYWHERE


# ------------------------------------------------------------------ sessions and stored responses


def test_a_session_is_named_by_its_header_alone() -> None:
    read = make_reader("session", "X-Conversation")
    one = read(request(chat(say("user", "a")), x_conversation="7"))
    assert one.key is not None
    assert read(request(b"garbage", b"/v1/embeddings", X_Conversation="7")) == one
    assert read(request(b"garbage", x_conversation="8")).key not in (one.key, None)
    assert read(request(b"garbage", x_session_id="7")) == ANYWHERE
    assert read(request(b"garbage", x_conversation="")) == ANYWHERE


@pytest.mark.parametrize("policy", ["prefix", "session", "least-loaded", "round-robin", "random"])
def test_requests_about_a_stored_response_say_so_under_every_policy(policy: str) -> None:
    read = make_reader(policy, "x-session-id")
    stored = Destination(None, True)
    assert read(request(b"", b"/v1/responses/resp_1", b"GET")) == stored
    assert read(request(b"", b"/v1/responses/resp_1", b"DELETE")) == stored
    assert read(request(b"", b"/v1/responses/resp_1/cancel")) == stored
    assert read(request({"input": "go on", "previous_response_id": "resp_1"}, b"/v1/responses")) == stored
    assert not read(request({"input": "begin", "previous_response_id": None}, b"/v1/responses")).stored
    assert not read(request({"input": "begin"}, b"/v1/responses")).stored
    assert not read(request(b"", b"/v1/responsesque", b"GET")).stored
    assert not read(request(chat(say("user", "hi"), previous_response_id="resp_1"))).stored
