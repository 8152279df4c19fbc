"""Requests that drip or never end: each ends, and all together."""

import time
from collections.abc import Iterator

import faults
import pytest
from hub_server import TOKEN, HubServer, hang, status
from huggingface_hub import HfApi, close_session, constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from selectit_hf import patience
from selectit_hf.patience import Overdue, bounded, patiently, time_limit

LONG = 30.0
"""Seconds that a test would take without the limits."""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        server.add_repo("dataset", "user/data", {"a.txt": b"a" * 4000})
        yield server


@pytest.fixture
def api(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    bounded()
    close_session()
    yield HfApi(endpoint=server.url, token=TOKEN)
    set_client_factory(default_client_factory)


def test_a_server_that_drips_is_given_up(server: HubServer, api: HfApi) -> None:
    server.at("GET", faults.drip(), times=9)
    begun = time.monotonic()
    with pytest.raises(Overdue, match="moved less than 1024 bytes a second"):
        api.dataset_info("user/data")
    assert time.monotonic() - begun < LONG / 3


def test_a_server_that_thinks_is_waited_for_at_each_request(server: HubServer, api: HfApi) -> None:
    server.at("GET", hang(0.3), times=4)
    for _ in range(4):  # on one connection, together more than one may take
        assert api.dataset_info("user/data").sha == server.repo("dataset", "user/data").head


@pytest.mark.parametrize(
    "fault", [hang(LONG), faults.drip(), status(503)], ids=["hang", "drip", "status"]
)
def test_all_requests_together_have_one_limit(
    server: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch, fault: object
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 60.0)
    server.at("GET", fault, times=99)  # type: ignore[arg-type]
    begun = time.monotonic()
    with time_limit(1.0), pytest.raises(Overdue, match="the time limit is reached"):
        patiently(lambda: api.dataset_info("user/data"))
    assert time.monotonic() - begun < LONG / 3
    server.faults.clear()
    assert api.dataset_info("user/data").sha  # the limit is over with its block


def test_a_limit_within_another_gives_its_own_time(server: HubServer, api: HfApi) -> None:
    with time_limit(0.001):
        time.sleep(0.01)
        with pytest.raises(Overdue):
            api.dataset_info("user/data")
        with time_limit(LONG):
            assert api.dataset_info("user/data").sha
