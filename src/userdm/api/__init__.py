"""One interface, two implementations: `userdm.api.control` to the daemon, `userdm.api.pool` in this process.

The command line imports this room for every verb: nothing is imported here.
"""
