"""What the proxy answers by itself is what its documents say: statuses, types, headers, bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.proxy.harness import KEY, Answer, Stack, Wire
from tests.surface.admin_document import admin_document
from tests.surface.conftest import MODELS
from tests.surface.door import Door, Said, ask, prepare, spell, to_check
from tests.surface.operations import Surface, labels, made_up
from tests.surface.public_document import public_document

NAMES = [name for names in MODELS for name in names]
ALONE, SEVERAL = public_document(), public_document(NAMES)
ADMIN = admin_document(["worker-0", "worker-1", "proxy", "supervisord"])
SURFACES = {"alone": Surface(ALONE), "several": Surface(SEVERAL), "admin": Surface(ADMIN)}
CONFORMANCE = [
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
# Of routes that take something: what is as it should be is answered, and what is not is refused.
JUDGEMENT = [positive_data_acceptance, negative_data_rejection]
# What a worker says of its models: of one that is known, and of one that nobody can ask for here.
ENTRY = {"object": "model", "created": 1, "owned_by": "vllm", "root": "r", "parent": None, "max_model_len": 9}
LIST = Said(
    200,
    "application/json",
    json.dumps({"object": "list", "data": [{"id": name, **ENTRY} for name in ("org/big", "lora")]}).encode(),
)
LOG = "GET /logs"
THEN_WORKERS = b"GET /workers HTTP/1.1\r\nhost: localhost\r\n\r\n"


def assert_conforms(case: Case[Any], request: requests.PreparedRequest, answer: Answer) -> None:
    takes = case.operation.query and "200" in case.operation.responses.status_codes
    # What is too long is refused as it is, unread.
    judged = JUDGEMENT if takes and answer.status != 414 else []
    case.validate_response(to_check(answer, request), checks=[*CONFORMANCE, *judged])


@pytest.mark.parametrize("label", labels(ALONE))
@given(data=st.data())
@made_up(3)
def test_health_needs_no_key(door: Door, label: str, data: st.DataObject) -> None:
    case = data.draw(SURFACES["alone"].cases(label))
    request = prepare(case)
    key = data.draw(st.sampled_from([{}, {"authorization": f"Bearer {KEY}"}, {"x_api_key": "other"}]))
    answer, seen = door.ask(spell(request, **key))
    assert_conforms(case, request, answer)
    assert not seen


@pytest.mark.parametrize("label", labels(SEVERAL))
@given(data=st.data())
@made_up(3)
def test_of_several_models_health_and_the_list_are_ours(pair: Door, label: str, data: st.DataObject) -> None:
    case = data.draw(SURFACES["several"].cases(label))
    request = prepare(case)
    key = data.draw(st.sampled_from([{}, {"authorization": f"Bearer {KEY}"}]))
    answer, seen = pair.ask(spell(request, **key), LIST)
    assert_conforms(case, request, answer)
    assert answer.status in ((401,) if label == "GET /v1/models" and not key else (200, 404))
    assert {one.target for one in seen} <= {"/v1/models"}


def assert_answers(stack: Stack, label: str, data: st.DataObject) -> None:
    """The admin door answers a request for this, made up, as its document says."""
    case = data.draw(SURFACES["admin"].cases(label))
    request = prepare(case)
    host = data.draw(
        st.sampled_from(["localhost", f"127.0.0.1:{stack.admin_port}", "[::1]:9", "LOCALHOST:80"])
    )
    with Wire(stack.admin_port) as wire:
        answer = ask(wire, spell(request, host), then=THEN_WORKERS)
    assert_conforms(case, request, answer)


@pytest.mark.parametrize("label", labels(ADMIN))
@given(data=st.data())
@made_up(3)
def test_the_admin_door_answers_as_it_says(stack: Stack, label: str, data: st.DataObject) -> None:
    assert_answers(stack, label, data)


@given(data=st.data())
@made_up(150)
def test_a_log_is_shown_to_who_asks_well_for_it_and_to_nobody_else(stack: Stack, data: st.DataObject) -> None:
    """The one page of the admin door that takes anything."""
    assert_answers(stack, LOG, data)


@given(data=st.data())
@made_up(50)
def test_the_admin_door_says_nothing_to_a_foreign_page(stack: Stack, data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(labels(ADMIN)))
    request = prepare(data.draw(SURFACES["admin"].cases(label)))
    host = data.draw(st.sampled_from(["evil.example", "127.0.0.1.evil.example", "localhost:x", "127.0.0.2"]))
    with Wire(stack.admin_port) as wire:
        answer = ask(wire, spell(request, host), then=THEN_WORKERS)
    assert answer.status == 414 or (answer.status, list(answer.json)) == (421, ["error"])
