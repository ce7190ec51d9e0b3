"""How a mapped device is reached: a FUSE file, and for root a loop block device over it. Contract 4 of the house.

`userdm.export.exporter.DeviceExporter` is the room's front door.

A program that imports this room starts its children with fork, not vfork. With vfork a parent keeps the interpreter
until the child has closed its copies of the parent's descriptors; when one of these is, by then, the last of a device
that we serve, the device is written down first, by threads that wait for the interpreter: for ever.
"""

import subprocess

subprocess._USE_VFORK = False  # type: ignore[attr-defined]
