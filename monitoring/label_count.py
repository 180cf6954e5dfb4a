"""What counts as enough labels to learn from: pictures, not ids, and not one client's flood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

_CLIENTS_SHOWN = 3
_NAME_SHOWN = 60  # characters


class Answered(NamedTuple):
    """What was said of an image, and by whom; `looks` are equal for images of the same pixels."""

    looks: int
    labels: tuple[str, ...]
    clients: frozenset[str]


@dataclass(frozen=True)
class Counted:
    """How many labelled images count as enough to learn from, and which do not."""

    images: int
    repeats: int  # of a picture that counts
    contradicted: int  # images of a picture of which different things are said
    most_of_one: int  # that count of what one client alone labelled
    held_back: dict[str, int]  # how many a client alone labelled, where not all of them count

    @property
    def waiting(self) -> int:
        """Images that would count if their clients were trusted."""
        return sum(self.held_back.values()) - self.most_of_one * len(self.held_back)

    @property
    def left_out(self) -> str:
        """In words, with the way to mend it; empty where all count.

        Names are what clients are called: few, short, and nothing in them that cannot be printed.
        """
        told = [f"{self.repeats} more repeat a picture"] if self.repeats else []
        if self.contradicted:
            told.append(f"{self.contradicted} are of a picture of which different things are said")
        if self.held_back:
            told.append(
                f"{self.waiting} more wait for trust: of what one client alone labelled, at most"
                f" {self.most_of_one} count, and {self._labellers}; name those that you trust in"
                " PLUMBLINE_RETRAIN_TRUSTED_CLIENTS, or let another client label too"
            )
        return "; ".join(told)

    @property
    def _labellers(self) -> str:
        by_most = sorted(self.held_back.items(), key=lambda its: (-its[1], its[0]))
        shown = [f"{_shown(name)} labelled {count}" for name, count in by_most[:_CLIENTS_SHOWN]]
        others = len(by_most) - len(shown)
        return ", ".join(shown) + (f", {others} more clients likewise" if others else "")


def _shown(name: str) -> str:
    return repr(name if len(name) <= _NAME_SHOWN else f"{name[:_NAME_SHOWN]}...")


def count_images(
    labelled: Iterable[Answered], least: int, trusted: Collection[str] = ()
) -> Counted:
    """Labelled images that count toward `least`.

    Each picture counts once, under however many ids it was sent, and not where different things are
    said of it. What one client alone labelled makes up at most half of `least`, rounded up, unless
    the client is trusted: a flood from one cannot buy a retraining, also where nobody else labels.
    It takes two that say the same or label different pictures, or one that is trusted.

    >>> def said_by(client, pictures):
    ...     return [Answered(its, ("star",), frozenset({client})) for its in pictures]
    >>> flood = said_by("mallory", range(1000))
    >>> count_images(flood, least=300).images
    150
    >>> count_images(flood + said_by("anna", [1000]), least=300).images
    151
    >>> count_images(flood, least=300, trusted={"mallory"}).images
    1000
    """
    by_looks: dict[int, frozenset[str]] = {}
    answers: dict[int, set[tuple[str, ...]]] = {}
    images = Counter[int]()
    for its in labelled:
        by_looks[its.looks] = by_looks.get(its.looks, frozenset()) | its.clients
        answers.setdefault(its.looks, set()).add(its.labels)
        images[its.looks] += 1
    contradicted = 0
    for looks, given in answers.items():
        if len(given) > 1:
            del by_looks[looks]
            contradicted += images[looks]
    alone = Counter(
        client
        for clients in by_looks.values()
        if len(clients) == 1
        for client in clients - set(trusted)
    )
    # Rounded up, so that two can buy what one cannot, however few are wanted (two at least).
    most = (least + 1) // 2
    found = Counted(
        images=len(by_looks),
        repeats=images.total() - contradicted - len(by_looks),
        contradicted=contradicted,
        most_of_one=most,
        held_back={client: count for client, count in alone.items() if count > most},
    )
    return replace(found, images=found.images - found.waiting)
