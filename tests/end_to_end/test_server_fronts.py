"""The command `serve` with its options of the front: what it refuses, and one process over TLS on IPv6 and a Unix socket."""

import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import console_script, environment
from llama_serving.server import json_logs
from llama_serving.server.__main__ import main
from tests.support import command
from tests.support.calls import PATIENCE_S, until
from tests.support.certificates import Authority


def refused(*arguments: str | Path, **settings: str) -> str:
    """What a start that can't succeed says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_logs, "log_as_json", lambda: None)
        done = command.run("serve", "--model", "nano", *arguments, env=settings)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--uds", "a.sock", "--port", "1"), "Give either --uds or --port."),
        (("--uds", "a.sock", "--host", "::1"), "Give either --uds or --host."),
        (("--uds", "a.sock", "--uds-mode", "066"), "066 is no mode of a socket"),
        (("--uds", "/nowhere/a.sock"), "/nowhere/a.sock can't be listened on: No such file or directory."),
        (("--path-prefix", "/v1"), "LLAMA_PATH_PREFIX=/v1 can't be used: this server has paths of its own there"),
        (("--path-prefix", "llama"), "LLAMA_PATH_PREFIX=llama can't be used: it must be a path such as /llama"),
        (("--trusted-proxies", "10.0.0.1/8"), "10.0.0.1/8 has host bits set"),
        (("--trusted-proxies", "*"), "LLAMA_TRUSTED_PROXIES=* can't be used"),
        (("--tls-cert", "/nowhere.crt"), "LLAMA_TLS_CERT=/nowhere.crt can't be used: No such file or directory"),
        (("--tls-key", "/nowhere.key"), "LLAMA_TLS_KEY needs LLAMA_TLS_CERT"),
        (("--tls-cert", ""), "--tls-cert is empty. Give it a value, or leave it out."),
        (("--tls-client-ca", " "), "--tls-client-ca is empty."),
        (("--deadline", ""), "--deadline is empty."),
        (("--host", "::"), "Set LLAMA_API_KEYS"),
    ],
)  # fmt: skip
def test_options_that_cant_be_used_are_a_sentence(arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--uds", "a.sock", "--port", "8453"), "Give either --uds or --port."),
        (("--uds", "a.sock", "--host", "127.0.0.1"), "Give either --uds or --host."),
        (("--port", "70000"), "70000 is no port: it must be from 1 to 65535"),
        (("--port", "-1"), "-1 is no port: it must be from 1 to 65535"),
        (("--uds", "a.sock", "--uds-mode", "066"), "066 is no mode of a socket"),
    ],
)
def test_options_of_the_module_that_cant_be_used_are_a_sentence(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_start_that_fails_leaves_no_socket(tmp_path: Path) -> None:
    assert "LLAMA_KV_MEMORY" in refused("--uds", tmp_path / "a.sock", LLAMA_KV_MEMORY="1KiB")
    assert list(tmp_path.iterdir()) == []


def test_a_socket_path_with_a_file_leaves_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.sock").write_text("kept")
    assert "something else than a socket" in refused("--uds", tmp_path / "a.sock")
    assert (tmp_path / "a.sock").read_text() == "kept"


@contextmanager
def process(folder: Path, *arguments: str | Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """A server's process, and its log."""
    words, log = (
        [console_script("llama-endpoints"), "serve", "--model", "nano", *map(str, arguments)],
        folder / "log",
    )
    with log.open("wb") as output:
        running = subprocess.Popen(
            words, env=environment({}), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield running, log
    finally:
        running.kill()
        running.wait(PATIENCE_S)


def test_one_process_over_tls_on_a_unix_socket(tmp_path: Path) -> None:
    """SIGHUP reads the certificate again, SIGTERM drains and removes the socket."""
    old, new, path = (
        Authority.at(tmp_path / "old.crt"),
        Authority.at(tmp_path / "new.crt", "new"),
        tmp_path / "a.sock",
    )
    cert, key = old.pair(tmp_path)

    def trusted(authority: Authority) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as plain:
                plain.settimeout(PATIENCE_S)
                plain.connect(str(path))
                context = ssl.create_default_context(cafile=authority.path)
                context.wrap_socket(plain, server_hostname="127.0.0.1").close()
        except OSError:
            return False
        return True

    with process(tmp_path, "--uds", path, "--tls-cert", cert, "--tls-key", key) as (running, log):
        until(lambda: trusted(old))
        assert f"Serving nano at https://localhost on the Unix socket {path} once" in log.read_text()
        for file in new.pair(tmp_path / "new"):
            file.replace(tmp_path / file.name)
        running.send_signal(signal.SIGHUP)
        until(lambda: trusted(new))
        assert not trusted(old)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE_S) == 0
    assert not path.exists()
