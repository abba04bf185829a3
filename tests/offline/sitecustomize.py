"""No Python that starts with this folder on PYTHONPATH reaches another machine: it fails instead.

An AssertionError, which no library takes for a network that is merely down.
"""

import ipaddress
import socket


def _refuse_strangers(host) -> None:
    host = host.decode() if isinstance(host, bytes) else host
    if not host or host in ("localhost", socket.gethostname()):
        return
    try:
        if ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified:
            return
    except ValueError:
        pass  # a name
    raise AssertionError(f"a connection to {host}, though nothing should leave this machine")


def _guard(method):
    def guarded(self, *arguments):
        address = arguments[-1]
        if isinstance(address, tuple):
            _refuse_strangers(address[0])
        return method(self, *arguments)

    return guarded


def _resolve(host, *arguments, **options):
    _refuse_strangers(host)
    return getaddrinfo(host, *arguments, **options)


getaddrinfo, socket.getaddrinfo = socket.getaddrinfo, _resolve
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guard(getattr(socket.socket, _name)))
