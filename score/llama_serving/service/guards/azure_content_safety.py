"""Azure AI Content Safety, over HTTP: categories of harm, blocklists, and protected material for code.

Sources: the REST references of `text:analyze` (2024-09-01) and `text:detectProtectedMaterialForCode` (2024-09-15-preview).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from llama_serving.contract.content_filter import Finding
from llama_serving.service.guards.guard import Passage, Stage

ANALYZE: Final = "/contentsafety/text:analyze?api-version=2024-09-01"
PROTECTED_CODE: Final = "/contentsafety/text:detectProtectedMaterialForCode?api-version=2024-09-15-preview"
SCOPE: Final = "https://cognitiveservices.azure.com/.default"
MOST: Final = 10_000
"""Characters that one call takes."""
SHARED: Final = 500
"""Characters that two calls for parts of one text have in common."""
REACH: Final = 1000
"""Characters in front of the unchecked part that are sent with it."""
LARGEST_ANSWER: Final = 1 << 20
NAMES: Final = {"Hate": "hate", "SelfHarm": "self_harm", "Sexual": "sexual", "Violence": "violence"}
"""Azure OpenAI's names of the categories, in answers."""
WORDS: Final = {0: "safe", 2: "low", 4: "medium", 6: "high"}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked of the service, and what blocks.

    Attributes:
        severities: for each category the lowest severity that blocks: 2, 4 or 6.
        blocklists: names of the resource's lists.
        protected_code: whether texts are compared with code of public repositories: None, or whether that blocks.
        filtered: whether categories and blocklists block; otherwise they annotate.
    """

    severities: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 4))
    blocklists: tuple[str, ...] = ()
    protected_code: bool | None = None
    filtered: bool = True


class WrongAnswerError(Exception):
    """The service answered something else than its reference says."""


class AzureContentSafety:
    """Asks one resource.

    Args:
        endpoint: `https://NAME.cognitiveservices.azure.com`.
        authorization: returns the headers of a request: a key's, or a token's.
        policy: what to ask.
        timeout_s: seconds that one call may take.
    """

    def __init__(
        self,
        endpoint: str,
        authorization: Callable[[], Mapping[str, str]],
        policy: Policy,
        *,
        timeout_s: float,
    ) -> None:
        self._authorization, self._policy, self._timeout_s = authorization, policy, timeout_s
        self._http = httpx2.Client(
            base_url=endpoint,
            timeout=timeout_s,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,  # no proxy of the environment
        )

    def check(self, passage: Passage) -> list[Finding]:
        """See `Guard.check`.

        Raises:
            httpx2.HTTPError: the service can't be reached, or refuses.
            WrongAnswerError: its answer can't be read.
        """
        if not passage.has_news:
            return []
        found: list[Finding] = []
        until = time.monotonic() + self._timeout_s
        for text in _parts(passage.recent(REACH)):
            if not text.strip():
                continue
            if time.monotonic() > until:  # whoever asked has gone, and each call is paid for
                raise TimeoutError
            if self._policy.severities or self._policy.blocklists:
                found += self._analyzed(text)
            if self._policy.protected_code is not None and passage.stage is Stage.TEXT:
                found += self._compared(text, filtered=self._policy.protected_code)
        return found

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _analyzed(self, text: str) -> list[Finding]:
        body: dict[str, Any] = {
            "text": text,
            "categories": list(self._policy.severities),
            "outputType": "FourSeverityLevels",
        }
        if self._policy.blocklists:
            body |= {"blocklistNames": list(self._policy.blocklists), "haltOnBlocklistHit": False}
        answer = self._post(ANALYZE, body)
        severities = {one["category"]: one["severity"] for one in _list(answer, "categoriesAnalysis")}
        if not severities.keys() >= self._policy.severities.keys() or not _integers(severities.values()):
            raise WrongAnswerError
        found = [
            Finding(
                NAMES[category], self._policy.filtered, {"severity": WORDS.get(severities[category], "high")}
            )
            for category, least in self._policy.severities.items()
            if severities[category] >= least
        ]
        lists = {one["blocklistName"] for one in _list(answer, "blocklistsMatch", required=False)}
        return found + [
            Finding("custom_blocklists", self._policy.filtered, {"details": sorted(lists)})
            for _ in [0]
            if lists
        ]

    def _compared(self, text: str, *, filtered: bool) -> list[Finding]:
        answer = self._post(PROTECTED_CODE, {"code": text})
        analysis = answer.get("protectedMaterialAnalysis")
        if not isinstance(analysis, dict) or not isinstance(analysis.get("detected"), bool):
            raise WrongAnswerError
        if not analysis["detected"]:
            return []
        citations = _list(analysis, "codeCitations", required=False)
        first = next(iter(citations), {})
        cited = {"URL": next(iter(first.get("sourceUrls") or ()), None), "license": first.get("license")}
        return [Finding("protected_material_code", filtered, {"citation": cited} if citations else {})]

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with self._http.stream("POST", path, json=body, headers=dict(self._authorization())) as response:
            response.raise_for_status()
            said = bytearray()
            for chunk in response.iter_bytes():
                said += chunk
                if len(said) > LARGEST_ANSWER:
                    raise WrongAnswerError
        try:
            answer = json.loads(said)
        except (ValueError, RecursionError):
            raise WrongAnswerError from None
        if response.status_code != 200 or not isinstance(answer, dict):
            raise WrongAnswerError
        return answer


def by_key(key: str) -> Callable[[], Mapping[str, str]]:
    """Return the headers of a resource's key."""
    return lambda: {"Ocp-Apim-Subscription-Key": key}


def by_managed_identity(client_id: str | None) -> Callable[[], Mapping[str, str]]:
    """Return the headers of a token of the machine's identity; azure-identity keeps it until it is about to expire."""
    from azure.identity import ManagedIdentityCredential

    credential = ManagedIdentityCredential(client_id=client_id)
    return lambda: {"Authorization": f"Bearer {credential.get_token(SCOPE).token}"}


def _parts(text: str) -> Iterator[str]:
    """Yield a text in parts that one call takes."""
    for start in range(0, max(1, len(text) - SHARED), MOST - SHARED):
        yield text[start : start + MOST]


def _list(answer: Mapping[str, Any], name: str, *, required: bool = True) -> Sequence[dict[str, Any]]:
    value = answer.get(name, None if required else [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise WrongAnswerError
    return value


def _integers(values: Any) -> bool:
    return all(type(one) is int for one in values)
