"""Which model a request names: in the JSON of its body, in a form's field, in its query.

A stack of several models needs the name before it can choose a server, and clients put it anywhere:
openai-python writes `messages` before `model`, so it may stand behind megabytes of images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qs

import gevent
import msgspec
from msgspec import Struct
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import Request

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "model"
_MULTIPART = b"multipart/form-data"
# Bytes of a form that are parsed at a time: behind those with the name in them, none is.
_PIECE = 1024 * 1024
# Parts of a form and header lines of them that are looked at, each in a call of its own; Starlette takes no
# more than 1000 fields and 1000 files either.
_MOST_CALLS = 4000
# Bytes of a form's field that can be a name. A longer one names no model, wherever it is cut.
_LONGEST = 4096


class _Body(Struct, gc=False):
    """All that is decoded of a body; the rest is skipped in C, and must be JSON all the same."""

    model: str | None = None


_decode = msgspec.json.Decoder(_Body).decode


def in_body(request: Request) -> str:
    """Give the model that a whole request names in its body, never an empty name.

    Raises `Refusal` 400 where there is none, and for a body that cannot be read.
    """
    form = _form_boundary(request)
    return (_in_json(request.body) if form is None else _in_form(request.body, form)) or _missing("body")


def in_query(request: Request) -> str | None:
    """Give the model that a request names in its query, as OpenAI has it for `/v1/realtime`.

    None without one. Of several the last counts, as for Starlette, on which vLLM stands.
    """
    query = request.head.target.partition(b"?")[2]
    if not query:
        return None
    named = parse_qs(query.decode("latin-1")).get(FIELD)
    return named[-1] if named else None


def required_in_query(request: Request) -> str:
    """Give the same; raises `Refusal` 400 without one."""
    return in_query(request) or _missing("query")


def _missing(place: str) -> NoReturn:
    raise Refusal(
        400,
        "model_required",
        f"Name a model in the {place} of the request (`{FIELD}`): GET /v1/models lists those there are",
        param=FIELD,
    )


def _in_json(body: bytes) -> str | None:
    try:
        return _decode(body).model
    except msgspec.ValidationError:
        message = (
            f"The body must be a JSON object whose `{FIELD}` is a string: GET /v1/models lists the names"
        )
        raise Refusal(400, "model_required", message, param=FIELD) from None
    except (ValueError, RecursionError):  # msgspec's own and UnicodeDecodeError are ValueErrors
        raise Refusal(400, "invalid_json", "The body of the request is not JSON") from None


def _form_boundary(request: Request) -> bytes | None:
    """Give what parts the fields of a form (RFC 7578 section 4.1), None where the body is no form.

    It is empty where the head does not say.
    """
    types = request.values(b"content-type")
    if not types or types[0][: len(_MULTIPART)].lower() != _MULTIPART:
        return None
    return parse_options_header(types[0])[1].get(b"boundary", b"")


def _in_form(body: bytes, boundary: bytes) -> str | None:
    """Give the form's field; None without one."""
    field = _Field()
    try:
        if not boundary:
            raise FormParserError("The head names no boundary")
        parser = MultipartParser(boundary, field.callbacks)
        view = memoryview(body)
        for start in range(0, len(body), _PIECE):
            parser.write(bytes(view[start : start + _PIECE]))
            if field.complete:
                return field.value.decode("utf-8", "replace")
            gevent.sleep(0)  # it is Python that parses: others must have their turn
    except FormParserError:
        raise Refusal(400, "invalid_form", "The body of the request is not multipart/form-data") from None
    return None


class _Field:
    """The form's field `model`, while the parser finds it; a file of that name is none."""

    def __init__(self) -> None:
        self.value = b""
        self.complete = False
        self._is_this = False
        self._name = b""
        self._value = b""
        self._calls = 0
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._count()
        self._is_this = False

    def _count(self) -> None:
        self._calls += 1
        if self._calls > _MOST_CALLS:
            raise FormParserError("so many parts or header lines are no upload")

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._count()
        if self._name.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self._is_this = options.get(b"name") == FIELD.encode() and b"filename" not in options
        self._name = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_this and not self.complete and len(self.value) < _LONGEST:
            self.value += data[start : min(end, start + _LONGEST)]

    def _end(self) -> None:
        self.complete = self.complete or self._is_this
