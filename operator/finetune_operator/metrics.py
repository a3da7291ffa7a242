"""Prometheus metrics of the operator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILE_SECONDS = Histogram("finetune_reconcile_seconds", "Duration of one reconcile")
PHASE_CHANGES = Counter("finetune_phase_changes_total", "Phases that jobs have entered", ("phase", "reason"))
QUEUE_LENGTH = Gauge("finetune_queue_length", "Jobs that wait for a reconcile")
DASHBOARDS_UNREACHABLE = Gauge("finetune_dashboards_unreachable", "Ray dashboards that have not answered for 15 seconds")
DASHBOARDS_WAITING = Gauge("finetune_dashboards_waiting", "Ray dashboards that wait for their turn to be asked")
