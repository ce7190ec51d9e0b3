"""What a worker asks of its keeper: the other end here is a thread that keeps what it is given."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from userdm.daemon.link import Link
from userdm.daemon.packets import pair, receive, send

KEY = "redo:7:16384"


@pytest.fixture
def link() -> Iterator[Link]:
    """Of a worker whose predecessor left one thing."""
    ours, its = pair()
    kept: dict[str, int] = {KEY: memory(b"left")}

    def keep() -> None:
        while (received := receive(its)) is not None:
            message, fds = received
            if "give" in message:
                key = next(iter(list(kept)[message["give"] :]), None)
                if key is None:
                    send(its, {"end": True})
                else:
                    send(its, {"key": key, "note": "n"}, [kept[key]])
                continue
            if "put" in message:
                kept[message["put"]] = fds[0]
            elif "drop" in message:
                kept.pop(message["drop"], None)
            send(its, {})

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    link = Link(ours)
    link.inherit([])
    yield link
    ours.close()
    thread.join(10)
    its.close()


def memory(text: bytes) -> int:
    fd = os.memfd_create("kept")
    os.write(fd, text)
    return fd


def taken(link: Link) -> bytes | None:
    kept = link.take(KEY)
    if kept is None:
        return None
    (fd,) = kept.fds
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def test_who_fails_with_what_was_kept_finds_it_again(link: Link) -> None:
    """A pool that cannot be opened at first must not be opened without its redo log the second time."""
    assert taken(link) == b"left"
    assert taken(link) == b"left"
    assert link.left() == []


def test_what_nobody_took_is_left_over(link: Link) -> None:
    assert link.left() == [KEY]
    assert link.left("redo:") == [KEY]
    assert link.left("export:") == []


def test_what_was_put_or_dropped_anew_is_not_found_any_more(link: Link) -> None:
    assert taken(link) == b"left"
    fresh = memory(b"fresh")
    link.put(KEY, [fresh], "n")
    os.close(fresh)
    assert taken(link) is None
    link.drop(KEY)
    assert taken(link) is None


def test_no_descriptor_is_left(link: Link) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    taken(link)
    assert count() == before
    link.settled()
    assert count() == before - 1
    assert taken(link) is None
