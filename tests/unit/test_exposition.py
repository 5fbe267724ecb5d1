"""Several servers' metrics in one text: parsed back by Prometheus' own client, all is what went in."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.examples import examples
from vllm_stack.proxy.exposition import BadExposition, merge, read_families

RECORDED = (Path(__file__).parent / "recorded" / "vllm-0.32.prom").read_text("utf-8")
PLACE = {"worker": "worker-0", "gpu": "0,1", "model": "m"}
Sample = tuple[str, frozenset[tuple[str, str]], float]


def samples(text: str) -> list[Sample]:
    """Give all samples; every family must be there once."""
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names)), names
    return [
        (one.name, frozenset(one.labels.items()), one.value) for family in families for one in family.samples
    ]


def labelled(text: str, **labels: str) -> list[Sample]:
    return [(name, own | frozenset(labels.items()), value) for name, own, value in samples(text)]


def relabel(text: str, labels: dict[str, str] = PLACE) -> str:
    return merge([read_families(text, labels)])


def test_what_vllm_prints_is_the_same_but_for_the_labels() -> None:
    assert samples(relabel(RECORDED)) == labelled(RECORDED, **PLACE)
    before, after = (
        [(f.name, f.type, f.documentation) for f in text_string_to_metric_families(text)]
        for text in (RECORDED, relabel(RECORDED))
    )
    assert after == before


def test_the_samples_of_all_workers_stand_in_one_family() -> None:
    workers = [{**PLACE, "worker": f"worker-{n}"} for n in range(3)]
    text = merge(read_families(RECORDED, labels) for labels in workers)
    expected = [sample for labels in workers for sample in labelled(RECORDED, **labels)]
    assert Counter(samples(text)) == Counter(expected)
    lines = text.splitlines()
    assert len(lines) == len(set(lines))
    assert [line for line in lines if line.startswith("#")] == [
        line for line in RECORDED.splitlines() if line.startswith("#")
    ]


def test_a_worker_of_another_version_may_have_other_families() -> None:
    older = "# HELP a Older.\n# TYPE a gauge\na 1.0\n# TYPE b gauge\nb 2.0\n"
    newer = "# HELP a Newer.\n# TYPE a gauge\na 3.0\n# TYPE c_total counter\nc_total 4.0\n"
    text = merge([read_families(older, {"worker": "0"}), read_families(newer, {"worker": "1"})])
    assert text.splitlines() == [
        "# HELP a Older.",
        "# TYPE a gauge",
        'a{worker="0"} 1.0',
        'a{worker="1"} 3.0',
        "# TYPE b gauge",
        'b{worker="0"} 2.0',
        "# TYPE c_total counter",
        'c_total{worker="1"} 4.0',
    ]


NAMES = st.sampled_from(["worker", "gpu", "model", "exported_model", "exported_worker", "a", "engine"])
VALUES = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ['"', "\\", "\n", "{", "}", ',model="x"', "b,model=", '\\"', "\\n", "a\\", "#", "} 1.0", " "]
)


@settings(max_examples=examples(60))
@given(st.dictionaries(NAMES, VALUES), VALUES, VALUES)
def test_any_label_keeps_its_value(own: dict[str, str], gpu: str, model: str) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("g", 'Of "what"\nand \\.', list(own), registry=registry)
    (gauge.labels(*own.values()) if own else gauge).set(3)
    place = {"worker": "worker-0", "gpu": gpu, "model": model}
    ((name, labels, value),) = samples(relabel(generate_latest(registry).decode(), place))
    assert (name, value) == ("g", 3.0)
    assert frozenset(place.items()) <= labels
    assert frozenset(own.items() - {(name, own[name]) for name in place if name in own}) <= labels
    assert sorted(value for _, value in labels) == sorted([*own.values(), *place.values()])
    assert all(name.startswith("exported_") for name, _ in labels if name not in own and name not in place)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ('model="x"', 'exported_model="x"'),
        ('a="1",worker="x",gpu="y"', 'a="1",exported_worker="x",exported_gpu="y"'),
        ('exported_model="e",model="x"', 'exported_model="e",exported_exported_model="x"'),
        ('a="b,model=",c="{model=\\"x\\"}"', 'a="b,model=",c="{model=\\"x\\"}"'),
        ('a="b,model=",worker="w"', 'a="b,model=",exported_worker="w"'),
        ('model_name="x"', 'model_name="x"'),
    ],
)
def test_a_label_that_is_called_like_one_of_ours_is_exported(own: str, expected: str) -> None:
    assert relabel(f"a{{{own}}} 1\n", {"worker": "0", "gpu": "", "model": "m"}) == (
        f'a{{worker="0",gpu="",model="m",{expected}}} 1\n'
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a 1", 'a{w="0"} 1'),
        ("a{} 1", 'a{w="0"} 1'),
        ('a{b="c",} 1', 'a{w="0",b="c"} 1'),
        ("a 1.5e-07 1700000000000", 'a{w="0"} 1.5e-07 1700000000000'),
        ("a NaN", 'a{w="0"} NaN'),
        ('vllm:a_bucket{le="+Inf"} +Inf', 'vllm:a_bucket{w="0",le="+Inf"} +Inf'),
        ("# EOF", ""),
        ("# TYPE a nonsense\na 1", 'a{w="0"} 1'),
        ("", ""),
    ],
)
def test_every_kind_of_line_is_understood(line: str, expected: str) -> None:
    assert relabel(f"{line}\n", {"w": "0"}).strip() == expected


def test_samples_that_nothing_was_said_of_are_families_of_their_own() -> None:
    families = read_families("# TYPE a histogram\na_count 1\na_sum 3\na_more 2\nb 4\n", {"w": "0"})
    assert {name: len(family.samples) for name, family in families.items()} == {"a": 2, "a_more": 1, "b": 1}


@pytest.mark.parametrize(
    "line",
    [
        "a",
        "a b",
        "a 1.2.3",
        "a 1 2 3",
        'a{b="c} 1',
        'a{b="c"d="e"} 1',
        "a{b=c} 1",
        "<html>",
        "1a 1",
        '{"error": "no"}',
        "a 1\r",
    ],
)
def test_what_prometheus_would_refuse_is_no_exposition(line: str) -> None:
    with pytest.raises(BadExposition, match="is no sample"):
        read_families(f"ok 1\n{line}\nok 2\n", {"w": "0"})


@pytest.mark.parametrize(
    "line",
    [
        'a{b="1",b="2"} 1',
        'a{__name__="b"} 1',
        "a 1e999",
        "a -1.5E400",
        "a 1 99999999999999999999",
        "vllm_stack_waiting 5",
        "# TYPE vllm_stack_waiting gauge",
    ],
)
def test_what_cannot_stand_beside_the_others_is_no_exposition(line: str) -> None:
    with pytest.raises(BadExposition):
        read_families(f"ok 1\n{line}\nok 2\n", {"w": "0"})


def test_a_number_without_end_takes_no_longer_than_its_line() -> None:
    begun = time.process_time()
    with pytest.raises(BadExposition):
        read_families("a " + "1" * 30_000 + "x", {"w": "0"})
    assert time.process_time() - begun < 1  # 45 s if each digit is tried as the last one
