"""The pool: superblock, devices, allocation, snapshots, commit, space, modes."""
