"""The order in which waiting images are computed: fair between clients, and between requests.

Clients take turns, one image each, so that nobody gets more by asking for more at a time. Of one
client's turns every other goes to the request that came first, and every other to the one that has
least left. So a single image goes ahead of a form of 64 that was there before it, the form gets
half of the turns whatever comes after it, and forms of one size are done one after the other.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


@dataclass(slots=True, eq=False)
class Request(Generic[Entry]):
    """What one request has waiting."""

    arrival: int
    group: Hashable
    client: Hashable
    entries: deque[Entry]


class _Client(Generic[Entry]):
    """The requests of one client that wait."""

    def __init__(self) -> None:
        self._requests: dict[int, Request[Entry]] = {}  # in the order in which they came
        self._is_turn_of_first = False

    def __len__(self) -> int:
        return len(self._requests)

    def put(self, request: Request[Entry]) -> None:
        self._requests[request.arrival] = request

    def pop(self) -> tuple[Entry, Request[Entry]]:
        request = self._next()
        entry = request.entries.popleft()
        if not request.entries:
            self.remove(request)
        return entry, request

    def remove(self, request: Request[Entry]) -> None:
        del self._requests[request.arrival]

    def _next(self) -> Request[Entry]:
        first = next(iter(self._requests.values()))
        self._is_turn_of_first = not self._is_turn_of_first
        if self._is_turn_of_first or len(first.entries) == 1:
            return first
        return min(self._requests.values(), key=lambda request: len(request.entries))


class FairQueue(Generic[Entry]):
    """Entries of requests of clients, in groups that are taken apart from each other.

    >>> queue = FairQueue()
    >>> _ = queue.put("model", "bulk", ["b1", "b2", "b3"])
    >>> _ = queue.put("model", "shop", ["s1"])
    >>> [queue.pop("model") for _ in range(4)]
    ['b1', 's1', 'b2', 'b3']
    """

    def __init__(self) -> None:
        self._groups: dict[Hashable, OrderedDict[Hashable, _Client[Entry]]] = {}
        self._requests: dict[int, Request[Entry]] = {}  # in the order in which they came
        self._arrivals = itertools.count()
        self._waiting = 0

    def __len__(self) -> int:
        """How many entries wait."""
        return self._waiting

    def put(self, group: Hashable, client: Hashable, entries: Iterable[Entry]) -> Request[Entry]:
        """Add the entries of one request; what is given back is for `drop`."""
        request = Request(next(self._arrivals), group, client, deque(entries))
        if request.entries:
            clients = self._groups.setdefault(group, OrderedDict())
            clients.setdefault(client, _Client()).put(request)
            self._requests[request.arrival] = request
            self._waiting += len(request.entries)
        return request

    def group(self) -> Hashable | None:
        """The group of the request that has waited longest; None where nothing waits."""
        return next((request.group for request in self._requests.values()), None)

    def pop(self, group: Hashable) -> Entry | None:
        """The next entry of a group; None where it has none."""
        clients = self._groups.get(group)
        if clients is None:
            return None
        name, client = next(iter(clients.items()))
        entry, request = client.pop()
        self._waiting -= 1
        clients.move_to_end(name)
        if not request.entries:
            self._forget(request)
        return entry

    def drop(self, request: Request[Entry]) -> int:
        """Take out what still waits of a request; how much that was."""
        dropped = len(request.entries)
        if dropped:
            self._groups[request.group][request.client].remove(request)
            self._waiting -= dropped
            request.entries.clear()
            self._forget(request)
        return dropped

    def _forget(self, request: Request[Entry]) -> None:
        """A request of which nothing waits; with it its client and its group, were it the last."""
        del self._requests[request.arrival]
        clients = self._groups[request.group]
        if not clients[request.client]:
            del clients[request.client]
        if not clients:
            del self._groups[request.group]
