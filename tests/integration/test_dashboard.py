"""The dashboard in a real browser: what an operator sees, by keyboard, on a phone, and of hostile text."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.proxy.harness import Answer, Stack, Wire, chat, get_json, request
from tests.support.chromium import Chromium, Page
from tests.support.polling import throughout, until
from vllm_stack.layout import failure_history, failure_record, phase_note
from vllm_stack.records.phase import Phase, write_phase
from vllm_stack.worker.failure import new_failure, record_failure, remember_failure

HOSTILE = "<img src=x onerror=window.hacked=1>"
# The model's name is also too long for a line of a phone.
MODEL = f"{HOSTILE}{'endless' * 20}"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers without wrappers: the tests write what those would note."""
    with Stack(tmp_path_factory.mktemp("stack")) as stack:
        stack.serve_models(([MODEL, "m"], [0, 1]))
        (stack.out / "logs/worker-0.log").write_text(f"the first line\n{HOSTILE}\n\x1b[2J\x07the last line\n")
        yield stack.start()
        stack.check_log()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(browser: Chromium, stack: Stack) -> Iterator[Page]:
    """The dashboard, loaded; at the end nothing was wrong with it and nothing left the machine."""
    page = browser.page()
    page.resize(1280, 900)
    page.open(f"http://127.0.0.1:{stack.admin_port}/")
    page.until("document.querySelectorAll('.card').length === 2", "the cards are there")
    yield page
    assert all(url.startswith(f"http://127.0.0.1:{stack.admin_port}/") for url in page.asked), page.asked
    assert page.evaluate("window.hacked === undefined")
    away = re.compile(r"ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_TIMED_OUT")
    assert [problem for problem in page.problems if not away.search(problem)] == []
    page.close()


def card(worker: int, what: str = "") -> str:
    """Write JavaScript that gives the text of a card, or of a part of it."""
    return f"document.querySelector('#workers .card:nth-child({worker + 1}) {what}').innerText"


def look(page: Page) -> None:
    """Have the page look now, as it does when its tab comes into view."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def until_shown(page: Page, expression: str, what: str) -> None:
    def shown() -> Any:
        look(page)
        return page.evaluate(expression)

    until(shown, 20, what, every=0.1)


def note(stack: Stack, worker: int) -> Path:
    return phase_note(stack.out / "run/state", f"worker-{worker}")


# ------------------------------------------------------------------ what is shown


def test_cards_show_what_each_worker_does(stack: Stack, page: Page) -> None:
    assert page.evaluate("document.title").startswith("2/2 ready")
    assert page.evaluate("document.getElementById('verdict').innerText") == "Both workers are ready"
    assert "ready" in page.evaluate(card(0, ".state"))
    write_phase(note(stack, 0), Phase.READY)
    write_phase(note(stack, 1), Phase.WEDGED, f"{HOSTILE} no step for 120 s")
    try:
        until_shown(page, f"{card(1, '.state')} === 'wedged'", "worker-1 hangs")
        assert HOSTILE in page.evaluate(card(1, ".story"))
        assert MODEL in page.evaluate(card(1))
        assert re.search(r"Uptime\s+\d+ s", page.evaluate(card(0)))
        assert page.evaluate("document.getElementById('verdict').innerText") == "1 of 2 workers is ready"
        write_phase(note(stack, 1), Phase.WAITING, "vLLM was killed by SIGKILL", until=time.time() + 45)
        until_shown(
            page, f"/starts again in 4\\d s/.test({card(1, '.story')})", "worker-1 waits out its delay"
        )
        assert page.evaluate(card(1, ".state")) == "waiting"
    finally:
        note(stack, 0).unlink()
        note(stack, 1).unlink()


def test_plots_get_points_and_tell_them_to_pointer_keyboard_and_table(stack: Stack, page: Page) -> None:
    for _ in range(3):
        assert stack.ask(request(body={**chat(tokens=5), "model": "m"})).status == 200
        look(page)
    lines = "[...document.querySelectorAll('.plot')]"
    lines += ".map(plot => plot.querySelector('path:not(.grid)').getAttribute('d'))"
    # Requests, time to first byte, in flight and generated tokens: what the fake vLLM tells of.
    until_shown(page, f"{lines}.slice(0, 4).every(d => (d.match(/[ML]/g) ?? []).length > 1)", "lines")
    area = "document.querySelectorAll('.area')[1]"
    assert re.search(r"p50 [\d.]+ ms", page.evaluate(f"{area}.getAttribute('aria-valuetext')"))
    page.evaluate(f"{area}.focus()")
    page.press("ArrowLeft", 37)
    page.until(f"{area}.getAttribute('aria-valuetext').includes(' ago: p50')", "the moment before")
    page.evaluate(f"{area}.scrollIntoView()")
    box = page.evaluate(f"(b => ({{x: b.x, y: b.y, w: b.width}}))({area}.getBoundingClientRect())")
    page.move_to(box["x"] + box["w"] - 2, box["y"] + 20)
    page.until(f"{area}.querySelector('.cursor').getAttribute('d') !== ''", "a cursor")
    page.evaluate("document.querySelector('.plot details').open = true")
    page.until("document.querySelectorAll('.plot:first-child tbody tr').length > 1", "a table")
    assert page.evaluate("document.querySelectorAll('.numbers dd')[0].innerText").endswith("/s")


def test_a_failure_appears_with_its_cause_and_last_words(stack: Stack, page: Page) -> None:
    state = stack.out / "run/state"
    page.until("document.getElementById('no-failures').checkVisibility()", "it says that there are none")
    failure = new_failure(-9, 75.0, "ready")
    told = {**{name: getattr(failure, name) for name in failure.__dataclass_fields__}}
    told |= {"cause": f"the kernel ran out of memory {HOSTILE}", "lines": ("one", f"two {HOSTILE}")}
    try:
        record_failure(failure_record(state, "worker-1"), type(failure)(**told))
        remember_failure(failure_history(state, "worker-1"), type(failure)(**told))
        until_shown(page, "document.querySelectorAll('#failures li').length === 1", "the failure")
        shown = page.evaluate("document.getElementById('failures').textContent")
        assert "worker-1 was killed by SIGKILL" in shown
        assert f"the kernel ran out of memory {HOSTILE}" in shown
        assert f"one\ntwo {HOSTILE}" in shown
        assert "Failed once" in page.evaluate(card(1, ".last"))
        page.until("!document.getElementById('no-failures').checkVisibility()", "that is no longer said")
    finally:
        failure_record(state, "worker-1").unlink()
        failure_history(state, "worker-1").unlink()


def test_the_log_is_reached_by_keyboard_follows_and_is_text(stack: Stack, page: Page) -> None:
    focus = "document.activeElement"
    places = []
    for _ in range(60):
        page.press("Tab", 9)
        places.append(page.evaluate(f"{focus}.id || {focus}.className || {focus}.tagName"))
        if places[-1] == "log":
            break
        assert page.evaluate(f"getComputedStyle({focus}).outlineWidth") == "3px", places
    assert places[-1] == "log", places
    assert {"skip", "area", "program"} <= set(places)
    page.press("Tab", 9)  # and it lets go
    assert page.evaluate(f"{focus}.id") != "log"
    text = "document.getElementById('log').textContent"
    page.until(f"{text}.includes('the last line')", "the log")
    assert HOSTILE in page.evaluate(text)
    assert "\x07" not in page.evaluate(text)
    with (stack.out / "logs/worker-0.log").open("a") as log:
        log.writelines(f"line {number}\n" for number in range(100))
    until_shown(page, f"{text}.includes('line 99')", "the log has grown")
    assert page.evaluate(
        "(l => l.scrollHeight - l.scrollTop - l.clientHeight < 2)(document.getElementById('log'))"
    )
    page.evaluate("document.querySelector('[aria-label=\"Log of worker-1\"]').click()")
    page.until(f"{text} === '' && document.activeElement.id === 'log'", "the other worker's log")


# ------------------------------------------------------------------ where it is shown

# Gives the texts whose contrast with what is behind them is below 4.5 (WCAG 2, level AA).
CONTRAST = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) =>
    0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const says = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const ratio = (element) => {
    const pair = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  return [...document.querySelectorAll('body *')]
    .filter((element) => says(element) && element.checkVisibility() && ratio(element) < 4.5)
    .map((element) => `${element.tagName}.${element.className} ${ratio(element).toFixed(2)}`);
})()"""


def test_it_is_readable_in_light_and_dark_and_fits_a_phone(page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page.prefer(prefers_color_scheme="light")
    light = page.evaluate(colour)
    assert page.evaluate(CONTRAST) == []
    page.prefer(prefers_color_scheme="dark", prefers_reduced_motion="reduce")
    assert page.evaluate(colour) != light
    assert page.evaluate(CONTRAST) == []
    page.resize(360, 740, phone=True)
    page.until("innerWidth === 360", "the phone")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    outside = "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility()"
    outside += (
        " && e.getBoundingClientRect().right > 361 && !e.closest('.scroll, svg')).map(e => e.outerHTML)"
    )
    assert page.evaluate(outside) == []


def test_nobody_is_asked_while_nobody_looks(page: Page) -> None:
    asked = lambda: sum(url.endswith("/state") for url in page.asked)  # noqa: E731
    before = asked()
    look(page)
    until(lambda: asked() > before, 5, "it has just asked")
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    before = asked()
    throughout(lambda: asked() == before, 2.5, "it rests", every=0.2)
    page.evaluate("delete document.hidden")
    look(page)
    until(lambda: asked() > before, 5, "it asks again")


def test_it_says_that_the_proxy_is_away_and_finds_it_again(stack: Stack, page: Page) -> None:
    stack.proxy.terminate()
    stack.proxy.wait(10)
    until_shown(page, "document.getElementById('away').innerText.includes('does not answer since')", "away")
    assert page.evaluate("document.getElementById('main').classList.contains('stale')")
    assert page.evaluate("document.querySelectorAll('.card').length") == 2
    stack.start_proxy()
    until_shown(page, "document.getElementById('away').innerText === ''", "it is back")
    until_shown(page, "document.title.startsWith('2/2 ready')", "and so are its workers")


# ------------------------------------------------------------------ the pages below it


def get(stack: Stack, target: str, host: str = "localhost") -> Answer:
    with Wire(stack.admin_port) as wire:
        return wire.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).answer()


@pytest.mark.parametrize("target", ["/", "/state", "/failures", "/logs?worker=worker-0", "/workers", "/none"])
def test_no_foreign_page_can_read_or_frame_what_the_door_says(stack: Stack, target: str) -> None:
    answer = get(stack, target)
    assert answer.status == (404 if target == "/none" else 200)
    assert "default-src 'none'" in (answer.header("content-security-policy") or "")
    assert answer.header("x-frame-options") == "DENY"
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("cross-origin-resource-policy") == "same-origin"
    assert not [name for name, _ in answer.headers if name.startswith("access-control-")]
    rebound = get(stack, target, host=f"evil.example:{stack.admin_port}")
    assert rebound.status == 421
    assert rebound.json == {"error": "ask for 127.0.0.1 or localhost, by any port"}
    assert get(stack, target, host="localhost:12345").status == answer.status  # a tunnel


def test_logs_are_those_of_the_settings_alone(stack: Stack) -> None:
    key = (stack.out / "secrets/internal-key").read_text().strip()
    for name in ("../secrets/internal-key", "worker-7", "/etc/passwd", "worker-0.log", "%2e%2e/stack"):
        answer = get(stack, f"/logs?worker={name}")
        assert answer.status == 404
        assert answer.json["error"] == "say worker= and one of worker-0, worker-1, proxy, supervisord"
        assert key.encode() not in answer.body
    assert get(stack, "/logs?worker=proxy&lines=1").body.count(b"\n") == 1


def look_at_state(stack: Stack) -> dict[str, Any]:
    state: dict[str, Any] = get_json(stack.admin_port, "/state")
    return state


def test_many_who_look_cost_no_more_than_one(stack: Stack) -> None:
    scrapes = lambda: sum(w.state()["requests"].get("/metrics", 0) for w in stack.workers)  # noqa: E731
    before = scrapes()
    until(lambda: look_at_state(stack) and scrapes() > before, 5, "a look of now")
    before = scrapes()
    with ThreadPoolExecutor(10) as pool:
        states = list(pool.map(look_at_state, [stack] * 10))
    # A second may end between them.
    assert scrapes() - before <= len(stack.workers)
    assert len({state["at"] for state in states}) <= 2


def test_a_worker_that_hangs_holds_up_nobody_who_looks(stack: Stack) -> None:
    hung = stack.workers[1].process
    assert hung is not None
    os.kill(hung.pid, signal.SIGSTOP)
    try:
        took: dict[float, float] = {}

        def silent() -> bool:
            began = time.monotonic()
            state = look_at_state(stack)
            took.setdefault(state["at"], time.monotonic() - began)  # those that were no repetition
            return [server["engine"] is None for server in state["servers"]] == [False, True]

        until(silent, 15, "one engine tells nothing any more", every=0.3)
        # A question to a worker may take 2 s. The first state may have been there before.
        assert min(list(took.values())[1:]) < 1.8
    finally:
        os.kill(hung.pid, signal.SIGCONT)
    stack.wait_ready()
