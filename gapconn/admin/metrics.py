"""What `/metrics` says: metric families by the naming conventions of Prometheus, labelled with link and role.

Names begin with `gapconn_` and carry their unit (`_bytes`, `_seconds`); what only grows ends in `_total`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gapconn import __version__
from gapconn.admin.view import AdminView


def counter(name: str, help: str, value: float) -> Metric:  # noqa: A002 - Prometheus' word
    """Something that only grows, such as `gapconn_datagrams_sent_total`."""
    return CounterMetricFamily(_counter_name(name), help, value=value)


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:  # noqa: A002 - Prometheus' word
    """Several counts of one kind, told apart by `label`, such as drops by reason."""
    family = CounterMetricFamily(_counter_name(name), help, labels=[label])
    for which, value in values.items():
        family.add_metric([which], value)
    return family


def gauge(name: str, help: str, value: float) -> Metric:  # noqa: A002 - Prometheus' word
    """Something that goes up and down, such as `gapconn_spool_bytes`."""
    return GaugeMetricFamily(_gauge_name(name), help, value=value)


def gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:  # noqa: A002 - Prometheus' word
    """Several gauges of one kind, told apart by `label`."""
    family = GaugeMetricFamily(_gauge_name(name), help, labels=[label])
    for which, value in values.items():
        family.add_metric([which], value)
    return family


def _counter_name(name: str) -> str:
    if not name.startswith("gapconn_") or not name.endswith("_total"):
        raise ValueError(f"a counter is named gapconn_..._total, not {name!r}")
    return name


def _gauge_name(name: str) -> str:
    if not name.startswith("gapconn_") or name.endswith("_total"):
        raise ValueError(f"a gauge is named gapconn_... without _total, not {name!r}")
    return name


class _ViewCollector(Collector):
    """The families of one view, asked for at every scrape."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        constant = {"role": self._view.role}
        if self._view.link:
            constant = {"link": self._view.link, **constant}
        for family in self._families():
            family.samples = [sample._replace(labels={**constant, **sample.labels}) for sample in family.samples]
            yield family

    def _families(self) -> Iterable[Metric]:
        yield gauges("gapconn_build_info", "1; the label is the version that runs.", "version", {__version__: 1})
        yield gauge("gapconn_healthy", "1 while /health finds no problem.", not self._view.health())
        yield gauge("gapconn_ready", "1 while /ready finds no problem.", not self._view.ready())
        yield from self._view.metrics()


def make_registry(view: AdminView) -> CollectorRegistry:
    """Everything that `/metrics` shows: the view's families, and memory, CPU and open files of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ViewCollector(view))
    ProcessCollector(registry=registry)
    return registry
