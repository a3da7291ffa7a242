"""Client certificates are renewed while a client is in use."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.logins import NEW, OLD, TRUST, Peers, Program, kubeconfig, lists

from finetune_client import FinetuneClient
from finetune_client.errors import NotLoggedInError


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


async def test_a_renewed_client_certificate_is_shown_on_new_connections(tmp_path: Path, program: Program) -> None:
    pairs = [OLD, OLD, NEW]
    program.gives(lambda number: dict(zip(("clientCertificateData", "clientKeyData"), pairs[min(number, 2)], strict=True)))
    server = Peers()
    async with server.running() as url:
        client = FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user, **TRUST))
        await lists(client)
        server.knows = "client"
        await lists(client, 2)
    assert server.names == ["old", "old", "client", "client"]
    assert program.runs == 2


async def test_a_certificate_that_cannot_be_used_at_renewal_is_told(tmp_path: Path, program: Program) -> None:
    pairs = [OLD, OLD, (NEW[0], OLD[1])]
    program.gives(lambda number: dict(zip(("clientCertificateData", "clientKeyData"), pairs[min(number, 2)], strict=True)))
    server = Peers()
    async with server.running() as url:
        client = FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user, **TRUST))
        server.knows = "client"
        with pytest.raises(NotLoggedInError, match="a certificate or key of the kubeconfig cannot be read"):
            await lists(client)


async def test_the_files_of_a_client_certificate_are_read_again_after_a_refusal(tmp_path: Path) -> None:
    files = tmp_path / "client.crt", tmp_path / "client.key"

    def write(pair: tuple[str, str]) -> None:
        for file, text in zip(files, pair, strict=True):
            file.write_text(text)

    write(OLD)
    server = Peers()
    server.refused = lambda: write(NEW)
    user = {"client-certificate": str(files[0]), "client-key": str(files[1])}
    async with server.running() as url:
        client = FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, user, **TRUST))
        await lists(client)
        server.knows = "client"
        await lists(client, 2)
    assert server.names == ["old", "old", "client", "client"]
