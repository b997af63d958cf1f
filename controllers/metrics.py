"""The controller's numbers for Prometheus, in its text format 0.0.4.

Two kinds: what migrations leave behind is counted as they end (`MigrationMetrics`); everything else is read from the
controller's state when somebody asks (`controllers.views`). The library writes the text; it also refuses names and
labels that Prometheus would not take.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from migration.report import Report

__all__ = ["CONTENT_TYPE", "Metric", "MigrationMetrics", "counter", "gauge", "render"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
STATES = ("completed", "rolled_back", "failed", "refused", "cancelled")
# Milliseconds matter, so the library's own buckets (from 5 ms up) are too coarse.
# fmt: off
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
)
# fmt: on
_BYTES = tuple(float(1 << power) for power in range(20, 37, 2))  # 1 MiB to 64 GiB

disable_created_metrics()  # type: ignore[no-untyped-call]  # a further time series for every number

Labels = Mapping[str, str]


class MigrationMetrics:
    """What migrations were like."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes = Counter(
            "migrations_total",
            "Migrations by how they ended.",
            ["outcome"],
            "p4ferry",
            registry=self.registry,
        )
        self._gap = self._histogram("migration_gap_seconds", "Longest pause that a measuring client saw.")
        self._frozen = self._histogram("migration_frozen_seconds", "From the freeze to the complete image.")
        self._steps = self._histogram("migration_step_seconds", "Time of each step.", ["step"])
        self._image = self._histogram("image_bytes", "Size of the checkpoints.", buckets=_BYTES)
        for state in STATES:
            self._outcomes.labels(
                state
            )  # present from the start, so that a first failure is seen as an increase

    def _histogram(
        self, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        return Histogram(name, help, labels, "p4ferry", registry=self.registry, buckets=buckets)

    def count(self, state: str, report: Report) -> None:
        """Count a migration that has ended; what it did not come to is not counted."""
        self._outcomes.labels(state).inc()
        for step in report.steps:
            self._steps.labels(step.name).observe(step.ms / 1000)
        if report.criu.frozen_ms:
            self._frozen.observe(report.criu.frozen_ms / 1000)
        if report.criu.image_bytes:
            self._image.observe(report.criu.image_bytes)
        # Only a client knows what clients saw: without one there is nothing to count.
        gap = report.client.get("gap_ms") if report.client else None
        if gap is not None:
            self._gap.observe(gap / 1000)


def gauge(name: str, help: str, *samples: tuple[Labels, float]) -> Metric:
    """Make a family of numbers that go up and down."""
    return _filled(GaugeMetricFamily(f"p4ferry_{name}", help, labels=_names(samples)), samples)


def counter(name: str, help: str, *samples: tuple[Labels, float]) -> Metric:
    """Make a family of numbers that only grow."""
    return _filled(CounterMetricFamily(f"p4ferry_{name}", help, labels=_names(samples)), samples)


def _names(samples: Sequence[tuple[Labels, float]]) -> Sequence[str]:
    return list(samples[0][0]) if samples else ()


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[tuple[Labels, float]]
) -> Metric:
    for labels, value in samples:
        family.add_metric(list(labels.values()), value)
    return family


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Iterable[Metric]) -> str:
    """Write families as text."""
    return generate_latest(_Families(families)).decode()
