"""How a mapped device is reached: a FUSE file, and for root a loop block device over it. Contract 4 of the house.

`userdm.export.exporter.DeviceExporter` is the room's front door.
"""
