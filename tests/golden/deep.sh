# disks: m=16M d=4G
# A mapping tree of depth three: one sector written in each of some 60,000 blocks, in random order (with fewer, two
# levels would do: a node holds 252 entries). Every sector holds its own offset, eight bytes little-endian, over and over.
pool 128 skip_block_zeroing
message "create_thin 0"
thin 0 8388608
fio --name=scatter --filename=/dev/mapper/thin0 --rw=randwrite --bs=512 --blockalign=64k --direct=1 --ioengine=psync \
    --io_size=$((162000 * 512)) --norandommap --randseed=5 --verify=pattern --verify_pattern=%o --do_verify=0 \
    --output-format=terse >/dev/null
report 0
finish 0
