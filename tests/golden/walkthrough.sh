# disks: m=8M d=2G
# The walk: a volume with ext4, a snapshot of it, a snapshot of the snapshot, files in each.
create pool "0 $(blockdev --getsz /dev/vdc) thin-pool /dev/vdb /dev/vdc 128 65536 1 skip_block_zeroing"
message "create_thin 0"
thin 0 2097152
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/thin0
mkdir -p /mnt/base /mnt/s1 /mnt/s2
mount -t ext4 /dev/mapper/thin0 /mnt/base
echo "hello world, I am a base" >/mnt/base/id.txt
sync
dmsetup suspend thin0
message "create_snap 1 0"
dmsetup resume thin0
thin 1 2097152
mount -t ext4 /dev/mapper/thin1 /mnt/s1
echo "I am snap1" >>/mnt/s1/id.txt
echo "I am snap1" >/mnt/s1/snap1.txt
sync
dmsetup suspend thin1
message "create_snap 2 1"
dmsetup resume thin1
thin 2 2097152
mount -t ext4 /dev/mapper/thin2 /mnt/s2
ls /mnt/base /mnt/s1 /mnt/s2
cat /mnt/s2/id.txt
umount /mnt/s2 /mnt/s1 /mnt/base
report 0 1 2
finish 0 1 2
