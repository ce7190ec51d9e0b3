# disks: m=2M d=64M
# A metadata snapshot is reserved and stays so, while the live metadata goes on without it.
pool 128 skip_block_zeroing
message "create_thin 0"
message "create_thin 1"
thin 0 8192
thin 1 8192
fill /dev/mapper/thin0 0 512 "before"
fill /dev/mapper/thin1 1024 256 "before, in the other"
message "reserve_metadata_snap"
fill /dev/mapper/thin0 4096 128 "after"
message "create_snap 2 0"
thin 2 8192
fill /dev/mapper/thin2 0 128 "after, in a snapshot"
dmsetup remove thin1
message "delete 1"
message "set_transaction_id 0 7"
report 0 2
finish 0 2
