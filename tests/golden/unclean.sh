# disks: m=2M d=64M
# The machine is cut off in the middle of a commit: the new metadata blocks are written, the superblock is not.
sectors=$(blockdev --getsz /dev/vdb)
create meta "0 $sectors linear /dev/vdb 0"
create pool "0 $(blockdev --getsz /dev/vdc) thin-pool /dev/mapper/meta /dev/vdc 128 0"
message "create_thin 0"
thin 0 32768
for block in 0 1 2 3 4 5 6 7 8 9; do
    fill /dev/mapper/thin0 $((block * 128)) 128 "flushed $block"
done
dmsetup suspend thin0
message "create_snap 1 0"
dmsetup resume thin0
thin 1 32768
fill /dev/mapper/thin1 640 7 "flushed in the snapshot"
sync
# from now on a write of the superblock takes a minute
dmsetup suspend meta
printf '%s\n' "0 8 delay /dev/vdb 0 0 /dev/vdb 0 60000" "8 $((sectors - 8)) linear /dev/vdb 8" | dmsetup load meta
dmsetup resume meta
echo 1 >/proc/sys/kernel/sysrq
report 0 1
echo "KERNEL_DM_END 0"
sleep 0.5
(
    fill /dev/mapper/thin0 384 128 "never committed" # breaks sharing
    fill /dev/mapper/thin1 0 128 "never committed"
    for block in 60 61 62 63 64 65; do
        fill /dev/mapper/thin0 $((block * 128)) 128 "never committed $block"
    done
    sync
) &
sleep 5
echo b >/proc/sysrq-trigger
