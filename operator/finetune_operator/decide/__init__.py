"""Decisions: pure functions from job, observation and time to a plan."""

from finetune_operator.decide.lifecycle import decide, decide_unreadable
from finetune_operator.decide.plan import Action, CreateCluster, DeleteCluster, DeleteJob, Plan, StopRun, Submit

__all__ = ["Action", "CreateCluster", "DeleteCluster", "DeleteJob", "Plan", "StopRun", "Submit", "decide", "decide_unreadable"]
