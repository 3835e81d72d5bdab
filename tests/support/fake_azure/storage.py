"""Blob storage as its REST API answers: lists in pages, ranges with their MD5 under `If-Match`, small uploads.

What it does follows learn.microsoft.com/rest/api/storageservices (List Blobs, Get Blob, Put Blob, Set Blob Metadata).
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any
from xml.sax.saxutils import escape

from tests.support.fake_azure.network import Answer, Faults, Request, next_fault
from tests.support.hubs import BreakOff, Fault, Hold, Status, Wrong

HOST = ".blob.core.windows.net"
PAGE = 3
LONGEST_WITH_MD5 = 4 << 20
WHEN = "Sun, 22 Nov 2026 00:00:00 GMT"


@dataclass(frozen=True)
class Stored:
    """A blob; `md5` is what whoever uploaded it said of it."""

    content: bytes
    md5: bytes | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    version: int = 0

    @property
    def etag(self) -> str:
        return f"0x8D{self.version:04}{hashlib.sha1(self.content).hexdigest()[:10].upper()}"


@dataclass
class Storage:
    """All accounts.

    Attributes:
        containers: blobs by their names, by account and container.
        signatures: that are good now.
        bearer: the token that is good.
        faults: by the end of a blob's name (`list` for lists), one a request, in order.
    """

    bearer: str
    go_on: Event
    faults: Faults
    containers: dict[tuple[str, str], dict[str, Stored]] = field(default_factory=dict)
    signatures: set[str] = field(default_factory=set)
    issued: int = 0

    def put(self, account: str, container: str, name: str, content: bytes, **more: Any) -> None:
        """A blob, or another version of it; with the MD5 of its content unless `md5` is given."""
        there = self.containers.setdefault((account, container), {})
        version = there[name].version + 1 if name in there else 0
        there[name] = Stored(content, **{"md5": hashlib.md5(content).digest(), "version": version, **more})

    def sign(self) -> str:
        """A new signature, as the query that carries it."""
        self.issued += 1
        self.signatures.add(f"sig{self.issued}")
        return f"sv=2025-01-05&sr=c&sp=rl&sig=sig{self.issued}"

    def answer(self, request: Request) -> Answer:
        account = request.host.removesuffix(HOST)
        container, _, name = request.path.lstrip("/").partition("/")
        blobs = self.containers.get((account, container))
        if not self._may_read(request, account):
            return error(403, "AuthenticationFailed")
        if blobs is None:
            return error(404, "ContainerNotFound")
        if request.query.get("comp") == "list":
            fault = next_fault(self.faults, "list")
            if isinstance(fault, Status):
                return error(fault.code, "Because", fault.headers)
            page = _page(blobs, request)
            return replace(page, cut=fault.after) if isinstance(fault, BreakOff) else page
        return self._of_blob(account, container, name, request)

    def _of_blob(self, account: str, container: str, name: str, request: Request) -> Answer:
        blobs = self.containers[account, container]
        if request.method == "PUT":
            return self._write(account, container, name, request)
        if name not in blobs:
            return error(404, "BlobNotFound")
        if request.method == "HEAD":
            given = {f"x-ms-meta-{key}": value for key, value in blobs[name].metadata.items()}
            return Answer(
                200,
                blobs[name].content,
                {"x-ms-blob-type": "BlockBlob", "Last-Modified": WHEN, **given},
            )
        return self._range(blobs[name], request, next_fault(self.faults, name))

    def _write(self, account: str, container: str, name: str, request: Request) -> Answer:
        blobs = self.containers[account, container]
        describes = request.query.get("comp") == "metadata"
        if describes:
            blobs[name] = replace(blobs[name], metadata=_metadata(request.headers))
        else:
            self.put(account, container, name, request.body)
        return Answer(200 if describes else 201, b"", {"ETag": f'"{blobs[name].etag}"', "Last-Modified": WHEN})

    def _may_read(self, request: Request, account: str) -> bool:
        who = request.headers.get("Authorization", "")
        if "sig" in request.query:
            return request.query["sig"] in self.signatures
        return who == f"Bearer {self.bearer}" or who.startswith(f"SharedKey {account}:")

    def _range(self, blob: Stored, request: Request, fault: Fault | None) -> Answer:
        if isinstance(fault, Status):
            return error(fault.code, "Because", fault.headers)
        if request.headers.get("If-Match", f'"{blob.etag}"') != f'"{blob.etag}"':
            return error(412, "ConditionNotMet")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("x-ms-range", "bytes=0-"))
        assert asked is not None
        start, end = int(asked[1]), min(int(asked[2] or len(blob.content)), len(blob.content) - 1)
        if start > end:
            return error(416, "InvalidRange")
        going = blob.content[start : end + 1]
        headers = {
            "ETag": f'"{blob.etag}"', "Last-Modified": WHEN, "x-ms-blob-type": "BlockBlob",
            "Content-Range": f"bytes {start}-{end}/{len(blob.content)}", "Content-Type": "application/octet-stream",
        }  # fmt: skip
        if request.headers.get("x-ms-range-get-content-md5") == "true":
            if len(going) > LONGEST_WITH_MD5:
                return error(400, "OutOfRangeInput")
            headers["Content-MD5"] = b64encode(hashlib.md5(going).digest()).decode()
        if isinstance(fault, Wrong):
            going = bytes(byte ^ 1 for byte in going)
        answer = Answer(206, going, headers)
        if isinstance(fault, BreakOff):
            return replace(answer, cut=fault.after)
        return replace(answer, cut=fault.after, hold=self.go_on) if isinstance(fault, Hold) else answer


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    start = "x-ms-meta-"
    return {name[len(start) :]: value for name, value in headers.items() if name.lower().startswith(start)}


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """What storage says where it does not do what it was asked for."""
    text = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>Said so.</Message></Error>'
    )
    given = {"x-ms-error-code": code, "Content-Type": "application/xml", **(headers or {})}
    return Answer(status, text.encode(), given)


def _page(blobs: Mapping[str, Stored], request: Request) -> Answer:
    prefix, after = request.query.get("prefix", ""), request.query.get("marker", "")
    names = sorted(name for name in blobs if name.startswith(prefix) and name > after)
    shown, rest = names[:PAGE], names[PAGE:]
    items = "".join(_item(name, blobs[name]) for name in shown)
    marker = escape(shown[-1]) if rest else ""
    text = (
        '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://x/" ContainerName="c">'
        f"<Prefix>{escape(prefix)}</Prefix><Blobs>{items}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
    )
    return Answer(200, text.encode(), {"Content-Type": "application/xml"})


def _item(name: str, blob: Stored) -> str:
    md5 = f"<Content-MD5>{b64encode(blob.md5).decode()}</Content-MD5>" if blob.md5 else "<Content-MD5 />"
    metadata = "".join(f"<{key}>{value}</{key}>" for key, value in blob.metadata.items())
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{WHEN}</Last-Modified><Etag>{blob.etag}</Etag>"
        f"<Content-Length>{len(blob.content)}</Content-Length><Content-Type>application/octet-stream</Content-Type>{md5}"
        f"<BlobType>BlockBlob</BlobType></Properties><Metadata>{metadata}</Metadata></Blob>"
    )
