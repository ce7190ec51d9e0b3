# What the kernel finds there: run on a copy, so that the archive stays as the cut left it.
thin_check -q /dev/vdb && echo "thin_check ok"
pool 128
thin 0 32768
thin 1 32768
report 0 1
