# A machine whose kernel has a device mapper of its own: both at once, and a pool that moves from one to the other.
# What each says is printed as "KEY: lines".
say() { key=$1; shift; "$@" 2>&1 | sed "s/^/$key: /"; }
truncate -s 32M /tmp/meta; truncate -s 256M /tmp/data
losetup /dev/loop6 /tmp/meta; losetup /dev/loop7 /tmp/data
dmsetup create own --table "0 2048 zero"
userdm create own --table "0 4096 zero"
say folder ls /dev/userdm
say kernel-folder ls /dev/mapper
say ls userdm ls
say kernel-ls dmsetup ls
# the kernel's tidies up its own folder, and removes its own devices
dmsetup mknodes
say kernel-remove dmsetup remove_all
say after-remove userdm ls
say after-remove-node ls /dev/userdm

pool="0 524288 thin-pool /dev/loop6 /dev/loop7 128 0"
userdm create pool --table "$pool"
userdm message pool 0 "create_thin 7"
userdm create vol --table "0 204800 thin /dev/userdm/pool 7"
mkfs.ext4 -q /dev/userdm/vol && mount -t ext4 /dev/userdm/vol /mnt && echo one >/mnt/one && umount /mnt
# what userdm has, the kernel cannot have as well
say kernel-busy dmsetup create pool --table "$pool"
dmsetup remove pool 2>/dev/null
userdm remove vol; userdm remove pool
dmsetup create pool --table "$pool" && dmsetup message pool 0 "create_snap 8 7"
dmsetup mknodes
dmsetup create vol --table "0 204800 thin /dev/mapper/pool 8"
dmsetup mknodes
mount -t ext4 /dev/mapper/vol /mnt && cat /mnt/one | sed 's/^/kernel-read: /' && echo two >/mnt/two && umount /mnt
say busy userdm create pool --table "$pool"
dmsetup remove vol; dmsetup remove pool
userdm create pool --table "$pool" && userdm create vol --table "0 204800 thin /dev/userdm/pool 8"
mount -t ext4 /dev/userdm/vol /mnt && cat /mnt/one /mnt/two | sed 's/^/read: /'
say status userdm status pool
umount /mnt
userdm remove vol; userdm remove pool; userdm remove own
say stop userdm daemon stop
say left ls /dev/userdm
say check thin_check -q /dev/loop6

# the same with udev, which opens every block device that comes or changes
printf 'root:x:0:\ndisk:x:6:\n' >/etc/group
printf 'root:x:0:0::/:/bin/sh\n' >/etc/passwd
systemd-udevd --daemon 2>/dev/null
udevadm trigger
udevadm settle
userdm create pool --table "$pool"
for round in 1 2 3 4; do
    userdm message pool 0 "create_snap 2$round 8"
    userdm create vol --table "0 204800 thin /dev/userdm/pool 2$round"
    userdm rename vol volume
    mount -t ext4 /dev/userdm/volume /mnt && cat /mnt/two | sed 's/^/udev: /' && umount /mnt
    say udev userdm remove volume
    say udev userdm message pool 0 "delete 2$round"
done
say udev-knows udevadm info --query=symlink /dev/userdm/pool
say udev userdm remove pool
say udev-stop userdm daemon stop
udevadm settle
say udev-left ls /dev/userdm
say udev-left sh -c 'ls -d /dev/loop16*'
