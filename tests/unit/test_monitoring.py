"""What Prometheus and Grafana are given: it can be read, and asks for nothing that nobody tells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.promql import questions
from tests.unit.boxes import inventory, options, plan_for
from vllm_stack.address import TcpAddress
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.exposition import merge, read_families
from vllm_stack.proxy.own_metrics import OwnMetrics, server_labels
from vllm_stack.proxy.routes import HEALTH, LIVENESS
from vllm_stack.proxy.scoreboard import Scoreboard
from vllm_stack.proxy.settings import KeyPaths, KeySettings, ProxySettings, Server
from vllm_stack.proxy.worker_records import LastFailure, WorkerRecords
from vllm_stack.records.lives import Lives
from vllm_stack.render import render

RECORDED = Path(__file__).parent / "recorded" / "vllm-0.32.prom"
MODEL = 'odd "model" {of\n\\all}'
# What Prometheus adds to all it scrapes, and tells itself.
SCRAPED = {"job", "instance"}
OF_PROMETHEUS = {"up": set(SCRAPED)}


@cache
def files() -> dict[str, str]:
    plan = plan_for(options(admin_port=9123), inventory())
    return {file.path.name: file.text for file in render(plan) if file.path.parent.name == "monitoring"}


def door(tmp_path: Path) -> Door:
    """A door of two workers that nobody opened."""
    given = dict.fromkeys(ProxySettings.__dataclass_fields__)
    servers = tuple(
        Server(f"worker-{n}", TcpAddress("127.0.0.1", 1 + n), None, 60.0, Path("/"), 0, None, (f"{n}", "7"))
        for n in range(2)
    )
    keys = KeySettings((b"1" * 32,), True, KeyPaths(tmp_path / "keys.json"))
    settings: dict[str, Any] = {**given, "servers": servers, "models": ((MODEL,),), "keys": keys}
    settings |= {"policy": "least-loaded", "open_routes": (), "cors_origins": (), "vllm_version": "0.32.0"}
    board = Scoreboard(2, 2)
    return Door(ProxySettings(**settings), board, board.row(board.take_row()))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every metric that the admin door tells, with its labels."""
    shut = door(tmp_path_factory.mktemp("door"))
    shut.board.tally.row(1).count(b"/v1/models", b"GET", 200, 0, 0.1, 0.2, 3, 4)
    (caller,) = shut.keys.callers
    caller.enter()
    labels = [server_labels(shut, server) for server in shut.backends.all]
    failed = WorkerRecords(Lives(2, 1), LastFailure(1.7e9, "was killed by SIGKILL", 'of "it"\n{}'), None)
    own = OwnMetrics(shut, labels, {0: failed, 1: failed}, {0})
    text = generate_latest(own).decode()
    text += merge([read_families(RECORDED.read_text("utf-8"), labels[0])])
    found: dict[str, set[str]] = {}
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(files()["alerts.yml"])["groups"]
    return list(group["rules"])


def board() -> dict[str, Any]:
    return dict(json.loads(files()["grafana.json"]))


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in board()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_every_metric_that_is_asked_for_is_told_with_its_labels(
    name: str, expression: str, told: dict[str, set[str]]
) -> None:
    selectors, grouped = questions(expression)
    assert selectors
    labels: set[str] = set()
    for selector in selectors:
        assert selector.metric in told | OF_PROMETHEUS, f"{name}: nobody tells {selector.metric}"
        own = (told | OF_PROMETHEUS)[selector.metric] | SCRAPED
        assert selector.labels <= own, f"{name}: {selector.metric} has no {selector.labels - own}"
        labels |= own
    assert grouped <= labels


def test_the_tests_see_a_metric_that_is_misspelled_and_a_label_that_is_none() -> None:
    selectors, grouped = questions(
        'sum by (le) (rate(a_bucket{x=~"b{", y!="}"}[$__rate_interval])) / on (w) group_left c:d > 1.5e3'
    )
    assert [(one.metric, one.labels) for one in selectors] == [("a_bucket", {"x", "y"}), ("c:d", set())]
    assert grouped == {"le", "w"}


def test_every_metric_of_ours_is_documented(told: dict[str, set[str]]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in told if name.startswith("vllm_stack_")}
    documented = set(re.findall(r"^\| `(vllm_stack_[a-z_]+)`", text, re.MULTILINE))
    assert documented == ours


def test_health_probes_are_kept_out_of_the_figures_of_requests() -> None:
    probes = {path.decode() for path in (*HEALTH, LIVENESS)}
    patterns = set(
        re.findall(r'route!~"([^"]*)"', files()["alerts.yml"] + json.dumps(board()).replace("\\", ""))
    )
    assert len(patterns) == 1
    for pattern in patterns:
        assert {path for path in (*probes, "/v1/models") if re.fullmatch(pattern, path)} == probes


def test_prometheus_is_told_where_the_admin_door_is_and_which_rules_there_are() -> None:
    given = yaml.safe_load(files()["prometheus.yml"])
    assert given["rule_files"] == ["alerts.yml"]
    (job,) = given["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:9123"]}]
    assert f'up{{job="{job["job_name"]}"}}' in files()["alerts.yml"]


def test_an_alert_says_how_bad_it_is_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["annotations"]["description"].endswith((".", "?"))


def test_the_board_can_be_imported_over_its_own_earlier_version() -> None:
    given = board()
    assert (given["uid"], given["id"]) == ("vllm-stack", None)
    numbers = [panel["id"] for panel in given["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {variable["name"] for variable in given["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", files()["grafana.json"])) - {"__rate_interval", "__all"}
    assert used == variables == {"datasource", "instance", "model", "worker"}
    for panel in given["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_no_panel_of_the_board_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
