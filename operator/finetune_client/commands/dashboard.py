"""``finetune dashboard``: the Ray dashboard of a job in the browser, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import webbrowser

from finetune_client import driver_log
from finetune_client.commands.common import client_of, note, say
from finetune_client.dashboard import Proxy
from finetune_client.errors import ClientError


def run(options: argparse.Namespace) -> int:
    """Serve it.

    Raises:
        ClientError: there is no such job or dashboard, or it cannot be reached.
    """
    client = client_of(options)
    job = client.get(options.job)
    proxy = Proxy(client, driver_log.reach(client, job))
    try:
        opened = proxy.server(options.port)
    except OSError as error:
        message = f"port {options.port} of this machine cannot be used: {error.strerror}"
        raise ClientError(message, "name another one, or leave --port out") from error
    with opened as server:
        say(proxy.address(server))
        sys.stdout.flush()
        note(f"This is the Ray dashboard of {job}, with the job's token and your rights. Ctrl-C ends it, and not the job.")
        if options.open:
            webbrowser.open(proxy.address(server))
        server.serve_forever(poll_interval=0.2)
    return 0
