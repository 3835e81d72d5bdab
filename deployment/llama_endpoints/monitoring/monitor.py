"""Looks at a server again and again, whether or not it answers."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from llama_endpoints.monitoring.changes import Changes
from llama_endpoints.monitoring.client import Away, MetricsClient
from llama_endpoints.monitoring.look import Look
from llama_endpoints.monitoring.overview import Overview
from llama_serving.errors import SetupError

if TYPE_CHECKING:
    from llama_endpoints.monitoring.scrape import Scrape


class Monitor:
    """Looks at one server. Rates are those since it answered last."""

    def __init__(self, client: MetricsClient) -> None:
        self._client = client
        self._before: Scrape | None = None

    def first(self) -> Look:
        """Look for the first time. A server that is away may come; one that is refused or none of ours is an error.

        Raises:
            SetupError: it wants another key, or is no server of ours.
        """
        try:
            return self._seen()
        except Away as error:
            return self._unseen(error)

    def again(self) -> Look:
        """Look again. Whatever happened to the server, it may come back."""
        try:
            return self._seen()
        except (Away, SetupError) as error:
            return self._unseen(error)

    def _seen(self) -> Look:
        now = self._client.read()
        changes, self._before = Changes(self._before, now), now
        return Look(self._client.url, datetime.now(UTC), Overview.of(changes))

    def _unseen(self, error: Exception) -> Look:
        return Look(self._client.url, datetime.now(UTC), None, str(error))
