"""The daemon: the control socket, the state, starting and stopping. No storage logic.

`python -m userdm.daemon` starts one for this user's runtime folder.
"""
