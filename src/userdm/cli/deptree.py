"""Which device stands on which: every mapped device, and what their live tables name."""

from __future__ import annotations

from userdm.api.control import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from userdm.api.control import Info
    from userdm.cli.session import Session


class Node:
    """``name`` is empty, and ``info`` None, for what is no mapped device of ours."""

    def __init__(self, devno: tuple[int, int], name: str = "", uuid: str = "", info: Info | None = None) -> None:
        self.devno = devno
        self.name = name
        self.uuid = uuid
        self.info = info
        self.uses: list[Node] = []
        self.used_by: list[Node] = []

    def children(self, inverted: bool) -> list[Node]:
        return self.used_by if inverted else self.uses

    def mapped_users(self) -> list[Node]:
        return [node for node in self.used_by if node.info is not None]


class DepTree:
    """``root`` uses the devices that nothing stands on, and is used by those that stand on nothing."""

    def __init__(self, session: Session, *, open_count: bool = False) -> None:
        self._session = session
        self._open_count = open_count
        self.root = Node((0, 0))
        self.nodes: dict[tuple[int, int], Node] = {}
        names = session.control.devices()
        self._ours = {devno for _, devno in names}
        if not names:
            session.write("No devices found\n")
        for _, devno in names:
            self._add(devno)
        self.root.uses = [node for node in self.nodes.values() if not node.used_by and node.info is not None]
        self.root.used_by = [node for node in self.nodes.values() if not node.uses]

    def _add(self, devno: tuple[int, int]) -> Node:
        node = self.nodes.get(devno)
        if node is not None:
            return node
        if devno not in self._ours:
            node = self.nodes[devno] = Node(devno)
            return node
        session = self._session
        device = Device(devno=devno)
        info, numbers = session.ioctl("deps", device, session.control.deps, device)
        if self._open_count:
            info = session.info(device) or info
        node = self.nodes[devno] = Node(devno, session.shown(info.name), session.shown(info.uuid, "UUID"), info)
        for number in numbers:
            below = self._add(number)
            if below not in node.uses:
                node.uses.append(below)
                below.used_by.append(node)
        return node
