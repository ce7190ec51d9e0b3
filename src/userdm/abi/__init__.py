"""The dm-ioctl structures as bytes, and the socket frames that carry them: shared by both ends.

Every command of the CLI imports this room before it does anything else, so it imports next to nothing itself.
"""
