"""`llama-endpoints plan` as people run it; prices from a list on loopback that speaks as Azure's does."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support import command

MODEL = "meta-llama/Llama-2-13b-hf"


def plan(*options: str, **variables: str) -> command.Done:
    return command.run("plan", *options, env=variables)


def told(*options: str, **variables: str) -> dict[str, Any]:
    ran = plan(*options, "--json", **variables)
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_as_json() -> None:
    answer = told("--model", MODEL, "--context", "2048", "--engine", "pipeline")
    assert answer.keys() >= {"sku", "gpus", "fits", "memory_mib", "alternatives", "quota_cores"}
    assert (answer["sku"], answer["gpus"], answer["fits"]) == ("Standard_NC24ads_A100_v4", 1, True)
    assert answer["memory_mib"]["total"] == pytest.approx(26_406, rel=0.05)


def test_as_a_table() -> None:
    ran = plan("--model", MODEL, "--context", "2048", "--dtype", "fp16")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == f"{MODEL} in fp16: 30 sequences of 2,048 tokens"
    assert any(line.split()[:2] == ["weights", "24,825.8"] for line in lines)
    assert "Standard_NC24ads_A100_v4 runs it with vllm on 1 of 1 GPU, A100 80 GB PCIe." in lines
    assert "  quota: 24 cores of standardNCADSA100v4Family, 1 instance of 24" in lines
    assert "too old for vLLM" in next(line for line in lines if line.startswith("NC12s_v3 "))
    assert next(line for line in lines if line.startswith("NC4as_T4_v3 ")).endswith(" MiB short")
    assert max(map(len, lines)) <= 80
    assert "HOURLY" not in ran.stdout


def test_quota_says_what_the_fifth_more_comes_to() -> None:
    ran = plan(
        "--model", "codellama/CodeLlama-7b-hf", "--context", "12288", "--precision", "int4", "--instances", "3"
    )
    assert "  quota: 16 cores of standard NCASv3_T4 Family, 4 instances of 4\n" in ran.stdout
    assert "    (3, plus 20 % for upgrades, rounded up)\n" in ran.stdout


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        ("managed_online", "  up to 2,048 tokens for each within the request limit of 178 s\n"),
        ("kubernetes", "  up to 2,048 tokens for each within the request limit of 148 s\n"),
        ("batch", "  26.0 GB to copy to a new instance: usually 130 s, at worst 1,041 s\n"),
    ],
)
def test_what_an_offer_allows(offer: str, says: str) -> None:
    ran = plan("--model", MODEL, "--context", "2048", "--for", offer)
    assert says in ran.stdout
    assert ("request limit" in ran.stdout) == (offer != "batch")
    assert "12 to 18 minutes" in ran.stdout


def test_nothing_that_fits_is_exit_code_1_and_says_what_would() -> None:
    ran = plan("--model", MODEL, "--context", "2048", "--sku", "p3.2xlarge", "--dtype", "fp16")
    assert ran.returncode == 1
    assert (
        "p3.2xlarge cannot run it:\n  it takes 27,114 MiB of 15,073 MiB usable on 1 x V100 16 GB.\n"
        in ran.stdout
    )
    assert "\np3.8xlarge " in ran.stdout
    ran = plan("--model", "codellama/CodeLlama-70b-hf", "--concurrency", "400", "--context", "16384")
    assert ran.returncode == 1
    assert "No azure machine offered for managed_online holds it." in ran.stdout
    assert "One of these options would make it fit:\n  --concurrency 1   NC80adis_H100_v5\n" in ran.stdout
    ran = plan("--model", MODEL, "--cloud", "aws")
    assert (ran.returncode, "  --dtype fp16      p3.8xlarge\n" in ran.stdout) == (1, True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", f"{MODEL}-typo"), f"models` lists it. Did you mean {MODEL}?\n"),
        (("--model", MODEL, "--context", "8192"), "supports a context of 16 to 4,096 tokens"),
        (("--model", MODEL, "--sku", "NC24ads_A100"), "Standard_NC24ads_A100_v4"),
        (("--model", MODEL, "--sku", ""), "Unknown machine ''"),
        (
            ("--model", MODEL, "--sku", "p3.2xlarge", "--cloud", "azure"),
            "p3.2xlarge is a machine of aws, not of azure",
        ),
        (("--model", MODEL, "--engine", "pipeline", "--concurrency", "16"), "one sequence at a time, not 16"),
        (("--model", MODEL, "--engine", "pipeline", "--dtype", "int4"), "has no int4 weights"),
        (("--model", MODEL, "--instances", "999999999"), "1 to 50 instances, not 999,999,999"),
        (("--model", MODEL, "--prices", "West Europe"), "use Azure's name"),
        (("--model", MODEL, "--prices", ""), "use Azure's name"),
        (
            ("--model", MODEL, "--cloud", "aws", "--prices", "westeurope"),
            "has no prices for aws. Use --prices-file",
        ),
        (("--model", MODEL, "--prices", "westeurope", "--prices-file", "p.json"), "not both"),
        (("--model", MODEL, "--prices-file", "absent.json"), "Cannot read prices from"),
    ],
)
def test_refusals(options: tuple[str, ...], says: str) -> None:
    ran = plan(*options)
    assert ran.returncode == 2
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def item(sku: str, price: float, **changes: Any) -> dict[str, Any]:
    plain = {
        "currencyCode": "USD", "retailPrice": price, "unitPrice": price, "armRegionName": "westeurope", "meterName": sku,
        "skuName": sku, "productName": "Virtual Machines Series", "serviceName": "Virtual Machines", "unitOfMeasure": "1 Hour",
        "type": "Consumption", "armSkuName": sku, "effectiveStartDate": "2024-01-01T00:00:00Z",
    }  # fmt: skip
    return {**plain, **changes}


A100, H100 = "Standard_NC24ads_A100_v4", "Standard_NC40ads_H100_v5"
PAGES = (
    [
        item(A100, 9.0),
        item(A100, 15.0, productName="Virtual Machines Series Windows"),
        item(A100, 15.0, productName="Virtual Machines Srs Win"),
        item(A100, 15.0, productName="Virtual Machines Series DedicatedHost"),
        item(A100, 15.0, unitOfMeasure="1 Month"),
        item(A100, 15.0, skuName="NC24ads A100 v4 Spot"),
        item(A100, 15.0, meterName="NC24ads A100 v4 Low Priority"),
        item(A100, 15.0, type="DevTestConsumption"),
        item(A100, 4.0, effectiveStartDate="2020-01-01T00:00:00Z"),
        item(A100, 0.5, effectiveStartDate="2999-01-01T00:00:00Z"),
        item(A100, 0.0),
    ],
    [item(H100, 7.0), item("Standard_ND96isr_H100_v5", 80.0, productName="Virtual Machines Series Linux")],
)
"""What Azure's list has beside the price of a Linux machine that is paid as it goes. (Of several such the highest would be taken.)"""


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The host and port of a server on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def price_list(pages: tuple[list[dict[str, Any]], ...], *, away: str = "") -> Iterator[tuple[str, list[str]]]:
    """A list on loopback; its address, and the queries that it was asked."""
    asked = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(urlsplit(self.path).query)
            number = int(parse_qs(asked[-1]).get("$skip", ["0"])[0])
            following = f"{away or address}?$skip={number + 1}" if number + 1 < len(pages) else None
            body = json.dumps(
                {"Items": pages[number], "NextPageLink": following, "Count": len(pages[number])}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with served(Handler) as host:
        address = f"http://{host}/api/retail/prices"
        yield address, asked


def test_prices_of_a_region_choose_the_cheapest_and_are_kept(tmp_path: Path) -> None:
    with price_list(PAGES) as (address, asked):
        variables = {"LLAMA_PRICES_URL": address, "XDG_CACHE_HOME": str(tmp_path)}
        answer = told("--model", MODEL, "--context", "2048", "--prices", "westeurope", **variables)
        assert (answer["sku"], answer["price_per_hour"]) == (H100, 7.0)
        prices = {one["sku"]: one["price_per_hour"] for one in answer["alternatives"]}
        assert (prices[A100], prices["Standard_ND96isr_H100_v5"], prices["Standard_NC4as_T4_v3"]) == (
            9.0,
            80.0,
            None,
        )
        first = parse_qs(asked[0])
        assert first["api-version"] == ["2023-01-01-preview"]
        assert "armRegionName eq 'westeurope' and priceType eq 'Consumption'" in first["$filter"][0]
        assert f"armSkuName eq '{A100}'" in first["$filter"][0]
        assert len(asked) == 2
        again = told("--model", MODEL, "--context", "2048", "--prices", "westeurope", **variables)
        assert (again, len(asked)) == (answer, 2)


def test_a_kept_list_that_is_damaged_or_a_day_old_is_asked_for_again(tmp_path: Path) -> None:
    with price_list(PAGES) as (address, asked):
        variables = {"LLAMA_PRICES_URL": address, "XDG_CACHE_HOME": str(tmp_path)}
        options = ("--model", MODEL, "--prices", "westeurope")
        told(*options, **variables)
        kept = tmp_path / "llama-endpoints" / "prices-westeurope.json"
        day_ago = kept.stat().st_mtime - 25 * 3600
        os.utime(kept, (day_ago, day_ago))
        told(*options, **variables)
        assert len(asked) == 4
        kept.write_text('{"torn')
        told(*options, **variables)
        assert len(asked) == 6


def test_a_list_that_leads_elsewhere_or_is_none_is_refused(tmp_path: Path) -> None:
    with price_list(PAGES, away="http://127.0.0.2:9/prices") as (address, _):
        ran = plan(
            "--model", MODEL, "--prices", "westeurope", LLAMA_PRICES_URL=address, XDG_CACHE_HOME=str(tmp_path)
        )
        assert (ran.returncode, "continues at another host" in ran.stderr) == (2, True)
    with price_list(([],)) as (address, _):
        ran = plan(
            "--model", MODEL, "--prices", "westeurope", LLAMA_PRICES_URL=address, XDG_CACHE_HOME=str(tmp_path)
        )
        assert (ran.returncode, "has none of these machines in westeurope" in ran.stderr) == (2, True)
    variables = {"LLAMA_PRICES_URL": address, "XDG_CACHE_HOME": str(tmp_path)}
    ran = plan("--model", MODEL, "--prices", "westeurope", **variables)
    host = urlsplit(address).netloc
    assert ran.returncode == 2
    assert (
        f"Cannot read Azure's price list: cannot connect to {host}. Use --prices-file instead.\n" in ran.stderr
    )


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (503, b"", "answered 503"),
        (200, b"<html>", "did not answer with a page of prices"),
        (200, b"{}", "did not answer with a page of prices"),
        (200, b"[]", "did not answer with a page of prices"),
    ],
)
def test_a_list_that_answers_otherwise(status: int, body: bytes, says: str, tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with served(Handler) as host:
        variables = {"LLAMA_PRICES_URL": f"http://{host}/prices", "XDG_CACHE_HOME": str(tmp_path)}
        ran = plan("--model", MODEL, "--prices", "westeurope", **variables)
    assert ran.returncode == 2
    assert f"Cannot read Azure's price list: {host} {says}. Use --prices-file instead.\n" in ran.stderr


def test_prices_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"nc24ads_a100_v4": 9, H100: 7.5}))
    answer = told("--model", MODEL, "--context", "2048", "--prices-file", str(file))
    assert (answer["sku"], answer["price_per_hour"]) == (H100, 7.5)
    assert [one["price_per_hour"] for one in answer["alternatives"] if one["sku"] == A100] == [9.0]
    assert "HOURLY" in plan("--model", MODEL, "--prices-file", str(file)).stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": "b"}', "must be a JSON object"),
        (f'{{"{A100}": -1}}', "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        (f'{{"{A100}": true}}', "must be a JSON object"),
        ("{}", "must be a JSON object"),
        (f'{{"{A100}": Infinity}}', "must be a JSON object"),
        (f'{{"{A100}": 1e999}}', "must be a JSON object"),
        (f'{{"{A100}": NaN}}', "must be a JSON object"),
        (
            '{"Standard_NC24": 1}',
            "Unknown machine 'Standard_NC24'. The closest: Standard_NC24ads",
        ),
    ],
)
def test_a_file_that_has_no_prices(content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(content)
    ran = plan("--model", MODEL, "--prices-file", str(file))
    assert (ran.returncode, says in ran.stderr) == (2, True), ran.stderr
