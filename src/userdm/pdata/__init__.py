"""The kernel's persistent-data structures: checksummed blocks, copy-on-write btrees and space maps.

Everything here counts in metadata blocks of 4096 bytes, and all integers on disk are little-endian. What is read
from disk is checked before it is used; what is wrong is an OSError that names the block and what was expected,
with the kernel's errno: EILSEQ for a bad checksum or structure, ENOTBLK for a block that says it is another one.

A change never touches a block that a sealed transaction can reach: it goes to a copy in a new place, and the place
of the old one is not used again before the transaction that freed it is durable.
"""
