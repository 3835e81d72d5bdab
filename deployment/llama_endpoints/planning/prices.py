"""Hourly prices of machines, from Azure's public price list (cached for a day) or from a file. None is built in.

The list: https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

import json
import math
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from llama_endpoints.planning.skus import sku_of
from llama_serving.errors import SetupError

URL: Final = "https://prices.azure.com/api/retail/prices"
FRESH_S: Final = 24 * 3600
PAGES: Final = 20
TIMEOUT_S: Final = 30
_REGION: Final = re.compile(r"[a-z0-9]{2,40}")


def read(path: Path) -> dict[str, float]:
    """Read prices from a JSON object of machine names and hourly prices.

    Raises:
        SetupError: the file is invalid, or names an unknown machine.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"Cannot read prices from {path}: {error}.") from error
    numbers = isinstance(given, dict) and all(_is_price(price) for price in given.values())
    if not numbers or not given:
        raise SetupError(f'{path} must be a JSON object such as {{"Standard_NC24ads_A100_v4": 3.67}}.')
    try:
        return {sku_of(name).name: float(price) for name, price in given.items()}
    except SetupError as error:
        raise SetupError(f"Cannot read prices from {path}: {error}") from error


def of_region(region: str, skus: Collection[str], url: str | None = None) -> dict[str, float]:
    """Return the prices of machines in a region, in US dollars, pay as you go, for Linux.

    Args:
        region: Azure's name of the region, such as `westeurope`.
        skus: names of the machines.
        url: address of the list or a mirror; `LLAMA_PRICES_URL` or Azure's by default.

    Raises:
        SetupError: the list cannot be read, or does not have the region.
    """
    if not _REGION.fullmatch(region):
        raise SetupError(f"Invalid region {region}: use Azure's name, such as westeurope or eastus2.")
    kept = _cache() / f"prices-{region}.json"
    if (fresh := _fresh(kept)) is not None:
        return fresh
    found = _current(
        _items(url or os.environ.get("LLAMA_PRICES_URL") or URL, region, skus),
        datetime.now(UTC).date().isoformat(),
    )
    if not found:
        raise SetupError(
            f"Azure's price list has none of these machines in {region}. Check the region's name, such as westeurope."
        )
    _keep(kept, found)
    return found


def _items(url: str, region: str, skus: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """Yield all items of the list, page by page."""
    import requests

    names = " or ".join(f"armSkuName eq '{name}'" for name in sorted(skus))
    filters = f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}' and priceType eq 'Consumption' and ({names})"
    query: dict[str, str] | None = {"api-version": "2023-01-01-preview", "$filter": filters}
    address: str | None = url
    for _ in range(PAGES):
        try:
            response = requests.get(str(address), params=query, timeout=TIMEOUT_S)
            response.raise_for_status()
            page = response.json()
            yield from page["Items"]
            address, query = page["NextPageLink"], None
        except (requests.RequestException, KeyError, TypeError, ValueError) as error:
            raise SetupError(
                f"Cannot read Azure's price list: {_cause(error, url)}. Use --prices-file instead."
            ) from error
        if not address:
            return
        if urlsplit(address).netloc != urlsplit(url).netloc:
            raise SetupError(
                f"Azure's price list continues at another host, {urlsplit(address).netloc}. Use --prices-file instead."
            )
    raise SetupError(
        f"Azure's price list has more than {PAGES} pages for one region. Use --prices-file instead."
    )


def _cause(error: Exception, url: str) -> str:
    """Return the cause in a few words; requests puts the whole query into its messages."""
    import requests

    host = urlsplit(url).netloc
    if isinstance(error, requests.HTTPError):
        return f"{host} answered {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return f"{host} did not answer within {TIMEOUT_S} s"
    if isinstance(error, requests.ConnectionError):
        return f"cannot connect to {host}"
    if isinstance(error, requests.RequestException) and not isinstance(error, ValueError):
        return f"the request to {host} failed ({type(error).__name__})"
    return f"{host} did not answer with a page of prices"


def _current(items: Iterable[Mapping[str, Any]], today: str) -> dict[str, float]:
    """Return one price per machine: the newest already in effect."""
    found: dict[str, tuple[str, float]] = {}
    for item in items:
        name, price, since = (
            item.get("armSkuName"),
            item.get("retailPrice"),
            str(item.get("effectiveStartDate", "")),
        )
        if isinstance(name, str) and _is_price(price) and price and _is_plain(item) and since[:10] <= today:
            found[name] = max((since, float(price)), found.get(name, ("", 0.0)))
    return {name: price for name, (_, price) in found.items()}


def _is_plain(item: Mapping[str, Any]) -> bool:
    """Whether the item is Linux, pay as you go. The list also has Windows, Spot, Low Priority and dedicated hosts."""
    product = str(item.get("productName", ""))
    sold = f"{item.get('skuName', '')} {item.get('meterName', '')}"
    cheaper = any(word in sold for word in ("Spot", "Low Priority"))
    another = product.endswith((" Windows", " Win")) or "DedicatedHost" in product
    by_the_hour = item.get("unitOfMeasure") == "1 Hour" and item.get("type") == "Consumption"
    return by_the_hour and not cheaper and not another


def _is_price(price: Any) -> bool:
    return isinstance(price, int | float) and not isinstance(price, bool) and 0 <= price < math.inf


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-endpoints"


def _fresh(kept: Path) -> dict[str, float] | None:
    """Return the cached prices, unless they are old or damaged."""
    try:
        return read(kept) if time.time() - kept.stat().st_mtime < FRESH_S else None
    except (OSError, SetupError):
        return None


def _keep(kept: Path, found: Mapping[str, float]) -> None:
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(kept)
    except OSError:  # an unwritable home only costs another request
        part.unlink(missing_ok=True)
