# A machine under systemd: the oracle's kernel, systemd as the first process of a process namespace.
# Disks: this Python and userdm, systemd. What is said inside is printed as "KEY: lines"; "after" is after its end.
mkdir -p /image /py /usr/bin /usr/sbin /sbin /run/lock /etc/systemd/system /sys/fs/cgroup
mount -t squashfs -o ro /dev/vdb /image && cp -a /image/. /py/ && umount /image
mount -t squashfs -o ro /dev/vdc /image || exit 1
for program in /image/bin/*; do
    name=${program##*/}
    rm -f "/bin/$name"
    cp "$program" /bin/
    ln -sf "../../bin/$name" /usr/bin/
done
cp -a /image/lib/. /lib/
umount /image
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
printf 'root:x:0:\ndisk:x:6:\n' >/etc/group
printf 'root:x:0:0::/:/bin/sh\n' >/etc/passwd
mount -t cgroup2 none /sys/fs/cgroup
export PYTHONHOME=/py PYTHONPATH=/py/site LD_LIBRARY_PATH=/py/shared LC_ALL=C.UTF-8 PATH=/bin:/py/bin

# somebody's service: it wants a device, and ends
cat >/etc/systemd/system/somebody.service <<'UNIT'
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
PassEnvironment=PYTHONHOME PYTHONPATH LD_LIBRARY_PATH LC_ALL PATH
ExecStart=/bin/sh /tmp/inside.sh
StandardOutput=file:/tmp/said
StandardError=file:/tmp/said
UNIT
cat >/tmp/inside.sh <<'INSIDE'
say() { key=$1; shift; "$@" 2>&1 | sed "s/^/$key: /"; }
userdm() { python -m userdm "$@"; }
truncate -s 32M /tmp/meta
truncate -s 256M /tmp/data
userdm create pool --table "0 524288 thin-pool /tmp/meta /tmp/data 128 0"
userdm message pool 0 "create_thin 7"
userdm create vol --table "0 204800 thin /dev/userdm/pool 7"
mkfs.ext4 -q /dev/userdm/vol
mkdir -p /mnt/vol
mount -t ext4 /dev/userdm/vol /mnt/vol
say group sed 's/^0:://' "/proc/$(cat /run/userdm/pid)/cgroup" "/proc/$(cat /run/userdm/worker)/cgroup"
say state systemctl show -p ActiveState -p MainPID userdm.service
say keeper cat /run/userdm/pid
say refused systemctl stop userdm.service
say in-use userdm daemon stop
echo unsynced >/mnt/vol/file
systemctl --no-block poweroff 2>/dev/null
INSIDE
unshare -m -p -f --mount-proc sh -c 'export container=oracle; mount -t tmpfs run /run
    exec /lib/systemd/systemd --system --unit=somebody.service --show-status=no --log-target=console' >/tmp/log 2>&1
cat /tmp/said
sed 's/^/log: /' /tmp/log

# what was mounted to the end was unmounted before the daemon ended, and nothing is left of the devices
say() { key=$1; shift; "$@" 2>&1 | sed "s/^/$key: /"; }
say left sh -c 'ls -d /dev/loop16*'
say check thin_check -q /tmp/meta
losetup /dev/loop6 /tmp/meta
losetup /dev/loop7 /tmp/data
dmsetup create pool --table "0 524288 thin-pool /dev/loop6 /dev/loop7 128 0"
dmsetup mknodes
dmsetup create vol --table "0 204800 thin /dev/mapper/pool 7"
dmsetup mknodes
say clean sh -c 'e2fsck -n /dev/mapper/vol 2>&1 | tail -n 1'
mount -t ext4 -o ro /dev/mapper/vol /mnt
say read cat /mnt/file
