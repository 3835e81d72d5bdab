"""Azure's names, at their edges; numbers that stand in the serving code as well."""

import pytest

from llama_endpoints.azure import limits
from llama_endpoints.azure.limits import (
    COMPUTES,
    ENDPOINTS,
    IDENTITIES,
    INSTANCE_TYPES,
    MANAGED,
    REGISTRIES,
    Names,
)

IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/llama"


@pytest.mark.parametrize(
    ("names", "taken", "refused"),
    [
        (ENDPOINTS, ["abc", "A-1", "a" * 32, "a-" * 15 + "ab"], ["ab", "a" * 33, "a--b", "ab-", "-ab", "1ab", "a_b", "a-" * 31 + "b"]),
        (COMPUTES, ["abc", "a-b1", "a" * 24, "llama-nc24ads-a100-v4"], ["ab", "a" * 25, "cpu-cluster-1", "a--b", "1ab"]),
        (REGISTRIES, ["our_1", "1ab", "a" * 33], ["ab", "a" * 34, "-ab", "a.b"]),
        (INSTANCE_TYPES, ["a", "a.b-1", "1", "a" * 63], ["", "A", "a_b", "-a", "a-", "a" * 64]),
        (IDENTITIES, [IDENTITY, IDENTITY.lower()], ["llama", f"{IDENTITY}/x", IDENTITY.removeprefix("/")]),
    ],
)  # fmt: skip
def test_names(names: Names, taken: list[str], refused: list[str]) -> None:
    assert [name for name in taken if not names.take(name)] == []
    assert [name for name in refused if names.take(name)] == []
    assert not names.take(None)


def test_our_entry_has_the_deadline_of_a_managed_endpoint() -> None:
    online = pytest.importorskip("llama_serving.hosts.azureml_online")
    assert MANAGED.deadline_s == online.DEFAULT_DEADLINE_S


def test_what_we_ask_for_is_allowed() -> None:
    for front in (limits.MANAGED, limits.KUBERNETES):
        assert front.deadline_s < front.request_s <= front.most_s
