"""Pauses between repetitions, in virtual time."""

from __future__ import annotations

from tests.support import virtual_time
from tests.support.virtual_time import now, pass_time

from finetune_operator.backoff import Repeats, pause_after
from finetune_operator.decide import CreateCluster, Submit


def test_pauses_double_up_to_the_longest_and_differ() -> None:
    for failures, middle in ((1, 0.5), (2, 1), (5, 8), (8, 60), (10**6, 60)):
        pauses = [pause_after(failures, (0.5, 60.0)) for _ in range(50)]
        assert all(0.75 * middle <= pause <= 1.25 * middle for pause in pauses)
        assert len(set(pauses)) > 40


def test_an_action_that_is_decided_without_end_is_tried_less_and_less_often() -> None:
    async def scenario() -> None:
        repeats: Repeats[str, str] = Repeats((0.5, 60.0))
        tried = []
        while now() < 600:
            if not repeats.wait("job", Submit(1)):
                repeats.begin("job", Submit(1))
                tried.append(now())
            await pass_time(0.1)
        assert 12 <= len(tried) <= 20
        assert tried[-1] - tried[-2] >= 45

    virtual_time.run(scenario())


def test_another_action_another_attempt_and_another_job_do_not_wait() -> None:
    async def scenario() -> None:
        repeats: Repeats[str, str] = Repeats((0.5, 60.0))
        repeats.begin("job", Submit(1))
        repeats.end("job", Submit(1), "refused")
        assert repeats.wait("job", Submit(1)) > 0
        assert repeats.result("job", Submit(1)) == "refused"
        for key, action in (("job", Submit(2)), ("job", CreateCluster(1)), ("other", Submit(1))):
            assert repeats.wait(key, action) == 0
            assert repeats.result(key, action) is None
        repeats.forget("job")
        assert repeats.wait("job", Submit(1)) == 0

    virtual_time.run(scenario())
