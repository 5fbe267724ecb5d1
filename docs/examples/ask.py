"""Ask a running stack one question and print the answer as it comes.

    python docs/examples/ask.py ["What is the capital of France?"]

OPENAI_BASE_URL (default http://127.0.0.1:8000/v1) says where, OPENAI_API_KEY with which key. Needs the
package openai, which comes with vLLM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import openai

BASE_URL = "http://127.0.0.1:8000/v1"
QUESTION = "What is the capital of France?"
MAX_TOKENS = 64


def stream_answer(client: openai.OpenAI, question: str) -> Iterator[str]:
    """Yield the answer of the first model that the server lists, piece by piece.

    Raises ``openai.OpenAIError`` when the server cannot be reached or answers an error.
    """
    models = client.models.list().data
    if not models:
        raise openai.OpenAIError("the server lists no model")
    chunks = client.chat.completions.create(
        model=models[0].id,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
    )
    for chunk in chunks:
        if chunk.choices:
            yield chunk.choices[0].delta.content or ""


def main(arguments: list[str]) -> int:
    """Print the answer; return 1 with one line on stderr when there is none."""
    base_url = os.environ.get("OPENAI_BASE_URL") or BASE_URL
    client = openai.OpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY") or "none")
    try:
        for piece in stream_answer(client, " ".join(arguments) or QUESTION):
            print(piece, end="", flush=True)
        print()
    except openai.APIConnectionError as error:
        print(f"ask: cannot reach {base_url}: {error.__cause__ or error}", file=sys.stderr)
        return 1
    except openai.OpenAIError as error:
        print(f"ask: {base_url} answered with an error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
