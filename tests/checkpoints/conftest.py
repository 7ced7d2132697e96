"""The local imitation of the hub, for a module's `repositories`."""

import hub
import pytest


@pytest.fixture
def server(repositories, monkeypatch):
    """The hub with a copy of the mapping `repositories`: name -> (folder, licence on its card)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub.running(dict(repositories)) as running:
        hub.set_endpoint(monkeypatch, running.url)
        yield running
