"""The operations of a document, and the requests that schemathesis makes up for one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import APIOperation, Case, GenerationMode

from tests.support.examples import examples

VLLM = Path(__file__).parent / "openapi-vllm-0.32.0.json"
FORM, UPLOAD = "application/x-www-form-urlencoded", "multipart/form-data"
Document = dict[str, Any]


def made_up(number: int) -> settings:
    """Give the settings of a test that is content with so many requests for an operation."""
    return settings(
        max_examples=examples(number),
        # The document decides how large a request is and how long it takes to make one up; all share a
        # stack.
        suppress_health_check=[
            HealthCheck.data_too_large,
            HealthCheck.function_scoped_fixture,
            HealthCheck.large_base_example,
            HealthCheck.too_slow,
        ],
        # To explain a failure takes longer than to shrink it, and every operation may have one.
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )


@cache
def vllm_document() -> Document:
    """Give what vLLM says of itself, with what it leaves out.

    FastAPI names one kind of form only, which cannot carry a file; clients send audio in the other one.
    """
    document: Document = json.loads(VLLM.read_text())
    for _, operation in _described(document):
        content = operation.get("requestBody", {}).get("content", {})
        if FORM in content:
            content[UPLOAD] = content[FORM]
    return document


def labels(document: Document) -> list[str]:
    """Name the operations of a document as schemathesis does: `POST /v1/completions`."""
    return [label for label, _ in _described(document)]


def path_of(label: str) -> str:
    return label.partition(" ")[2]


def _described(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


class Surface:
    """A document with its requests, good and bad."""

    def __init__(self, document: Document) -> None:
        self._schema = schemathesis.openapi.from_dict(document)
        self._cases: dict[str, SearchStrategy[Case[Any]]] = {}

    def cases(self, label: str) -> SearchStrategy[Case[Any]]:
        """Make up requests that are as the document wants them, and such as are not where there is a way."""
        if label not in self._cases:
            operation = self._operation(label)
            good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            # A path alone cannot be wrong: whatever stands in it is a string.
            wrong = bool(operation.body or operation.query)
            bad = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE) if wrong else good
            self._cases[label] = good | bad
        return self._cases[label]

    def _operation(self, label: str) -> APIOperation[Any, Any, Any, Any]:
        found = self._schema.find_operation_by_label(label)
        assert found is not None, label
        return found


@cache
def vllm_surface() -> Surface:
    return Surface(vllm_document())
