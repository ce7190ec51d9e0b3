# disks: m=2M d=64M
# Reference counts of 1, 2, 3 and more: ten volumes share data blocks, each with a mapping tree of its own, and three
# more share a whole mapping tree.
pool 128
message "create_thin 0"
thin 0 4096
for block in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
    fill /dev/mapper/thin0 $((block * 128)) 128 "origin $block"
done
for id in 1 2 3 4 5 6 7 8 9; do
    dmsetup suspend thin0
    message "create_snap $id 0"
    dmsetup resume thin0
    thin $id 4096
    # one sector in a block of its own: block 0 stays shared by all, and each mapping tree is copied
    fill /dev/mapper/thin$id $(((16 + id) * 128)) 1 "snapshot $id"
done
# blocks that fewer and fewer share
for id in 1 2 3 4 5 6 7 8 9; do
    block=1
    while [ $block -le $id ]; do
        fill /dev/mapper/thin$id $((block * 128 + 5)) 3 "broken in $id"
        block=$((block + 1))
    done
done
# three that share everything with number 9
for id in 10 11 12; do
    dmsetup suspend thin9
    message "create_snap $id 9"
    dmsetup resume thin9
    thin $id 4096
done
report 0 1 2 3 4 5 6 7 8 9 10 11 12
finish 0 1 2 3 4 5 6 7 8 9 10 11 12
