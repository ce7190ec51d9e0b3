# disks: m=2M d=64M o=8390656
# Volumes over an external origin of 16388 sectors (128 blocks and 4 sectors). Volume 0 is larger than the origin,
# 1 is smaller, 2 is a snapshot of 0 and keeps the origin.
block=0
while [ $block -lt 16388 ]; do
    fill /dev/vdd $block 4 "outside $block"
    block=$((block + 521)) # 16 sectors and more apart, in every part of a block
    block=$((block - block % 4))
done
fill /dev/vdd 16384 4 "the fractional tail"
pool 128
message "create_thin 0"
message "create_thin 1"
thin 0 32768 /dev/vdd
thin 1 8192 /dev/vdd
fill /dev/mapper/thin0 3 2 "part of block 0"
fill /dev/mapper/thin0 256 128 "all of block 2"
fill /dev/mapper/thin0 16386 1 "in the tail, over the origin"
fill /dev/mapper/thin0 20000 8 "past the origin"
fill /dev/mapper/thin1 8000 100 "in the smaller one"
dmsetup suspend thin0
message "create_snap 2 0"
dmsetup resume thin0
thin 2 32768 /dev/vdd
fill /dev/mapper/thin2 4 1 "broken in the snapshot"
fill /dev/mapper/thin2 700 1 "from the origin into the snapshot"
report 0 1 2
finish 2 1 0
