"""Reading what an endpoint serves, as Prometheus does."""

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import wait_until_sync

URL = re.compile(r"http://[\w.\[\]:]+/metrics")


class Scrape:
    """Everything that an endpoint gave at one time."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=30) as answer:
            self.families = list(text_string_to_metric_families(answer.read().decode()))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples with these labels; None where there is none."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found) if found else None


def url_in(log: str) -> str:
    """The URL that a node says."""
    found = URL.search(log)
    assert found, log
    return found.group()


def wait_for(url: str, number: float, name: str, **labels: str) -> None:
    """Scrape until a number is there that is not less, and compare it."""
    wait_until_sync(lambda: (Scrape(url).value(name, **labels) or 0) >= number, 30, 0.1)
    assert Scrape(url).value(name, **labels) == number
