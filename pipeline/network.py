"""Addresses, interfaces and ports of this host. Standard library alone: it runs before anything is verified."""

import fcntl
import socket
import struct

_SIOCGIFADDR = 0x8915
_ANY_PORT = 9


def address_towards(host: str) -> str:
    """This host's own IPv4 address on the way to another. Raises OSError where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
        probe.connect((host, _ANY_PORT))
        return probe.getsockname()[0]


def address_of(interface: str) -> str:
    """IPv4 address of an interface of this host. Raises OSError when it has none, or there is no such interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])


def interface_of(address: str) -> str | None:
    """Name of this host's interface that has an address; None when none has it."""
    for _, name in socket.if_nameindex():
        try:
            if address_of(name) == address or (name == "lo" and address.startswith("127.")):
                return name
        except OSError:  # an interface without IPv4 address
            continue
    return None


def is_here(host: str) -> bool:
    """Whether a name or address is one of this host."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((socket.gethostbyname(host), 0))
    except OSError:
        return False
    return True


def free_port(address: str) -> int:
    """A port of this host on which nobody listens now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def port_is_free(address: str, port: int) -> bool:
    """Whether nobody listens on a port of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
