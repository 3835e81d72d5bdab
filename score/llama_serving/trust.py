"""Which servers are trusted when we are the client: the system's authorities, or those of a file."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from llama_serving.errors import SetupError

BUNDLES: Final = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Variables that name a file or folder of certificates: the one that Azure's clients read, and OpenSSL's."""


def trusted_certificates(url: str) -> ssl.SSLContext | bool:
    """Return the certificates for the `verify` of an HTTP client of this address; True stands for the system's.

    Raises:
        SetupError: the address is of https, and the named file cannot be used.
    """
    if urlsplit(url).scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # (trusts nobody, and reads no file)
    name = next((one for one in BUNDLES if os.environ.get(one)), None)
    if name is None:
        return True
    bundle = os.environ[name]
    folder = Path(bundle).is_dir()
    try:
        return ssl.create_default_context(cafile=None if folder else bundle, capath=bundle if folder else None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise SetupError(
            f"{name}={bundle} can't be used: {reason}. It must be a file of certificates in PEM."
        ) from None


def distrust(error: BaseException) -> str | None:
    """Return why a server's certificate was refused, and what to do, as the end of a sentence; None for any other error."""
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({one.verify_message}). If it is your own authority's, name a file with that "
                f"authority's certificate in {BUNDLES[0]}"
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
