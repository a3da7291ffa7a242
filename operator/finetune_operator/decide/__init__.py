"""Decisions: pure functions from job, observation and time to a plan."""

from finetune_operator.decide.lifecycle import decide, decide_unreadable
from finetune_operator.decide.plan import (
    Action,
    CreateCluster,
    CreateFetchPod,
    DeleteCluster,
    DeleteJob,
    DeletePod,
    Plan,
    StopRun,
    Submit,
)

__all__ = [
    "Action",
    "CreateCluster",
    "CreateFetchPod",
    "DeleteCluster",
    "DeleteJob",
    "DeletePod",
    "Plan",
    "StopRun",
    "Submit",
    "decide",
    "decide_unreadable",
]
