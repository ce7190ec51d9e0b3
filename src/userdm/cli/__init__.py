"""The command line: dmsetup's syntax, output and exit codes, one file for each group of verbs.

A script calls it a thousand times: a verb imports what it needs and no more, none of it large.
"""
