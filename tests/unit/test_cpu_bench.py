"""The benchmark of a CPU beside its peers: what it counts, and what it makes of it."""

from __future__ import annotations

import io
import json
import sys

from tests.benchmarks.cpu_bench import summarise, table
from tests.benchmarks.cpu_rows import Clock, labels, make_rows


def test_rows_are_the_same_each_time_and_have_the_mean_that_is_promised() -> None:
    rows = make_rows(1000)
    assert rows == make_rows(1000)
    assert 180 < sum(len(row.ids) for row in rows) / len(rows) < 200
    assert all(0 < row.first < len(row.ids) <= 512 for row in rows)
    assert labels(rows[0])[rows[0].first - 1 :][:2] == [-100, rows[0].ids[rows[0].first]]


def test_clock_counts_the_steps_after_the_warm_ones_and_ends_the_loop_for_other_batches() -> None:
    orders = [{"batch": 2, "warm": 1, "steps": 2, "seconds": 0}, {"batch": 4, "warm": 0, "steps": 1, "seconds": 0}]
    sys.stdin, before, said = io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), sys.stdin, io.StringIO()
    try:
        clock = Clock(said)
        assert clock.wait()
        assert [clock.step(tokens) for tokens in (1000, 10)] == [False, False]
        assert clock.step(20)
        assert clock.batch == 4
        assert clock.step(5)
        assert clock.order == {}
    finally:
        sys.stdin = before
    answers = [json.loads(line) for line in said.getvalue().splitlines()]
    assert [(answer["steps"], answer["tokens"]) for answer in answers] == [(2, 30), (1, 5)]


def test_result_has_medians_quartiles_and_ratios() -> None:
    found = summarise({"product": [300.0, 200.0, 400.0], "trl": [100.0, 90.0, 110.0]})
    assert found["product"] == {"median": 300.0, "low": 250.0, "high": 350.0}
    assert found["trl"]["productIsFaster"] == 3.0
    for entry in found.values():
        entry["batch"] = 4
    assert table({"contestants": found}).splitlines()[2:] == [
        "| this trainer | 4 | 300 | 250–350 |  |",
        "| TRL with packing | 4 × 512 tokens | 100 | 95–105 | 3.00 × |",
    ]
