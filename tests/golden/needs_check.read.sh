# What a kernel finds that opens it anew: run on a copy.
pool 128 skip_block_zeroing error_if_no_space
thin 0 2097152
report 0
message "create_thin 1" || true
dmsetup remove thin0
dmsetup remove pool
