# A session without root: as_user.sh FOLDER PYTHON. What is printed is what test_as_user.py expects.
set -eu
export XDG_RUNTIME_DIR=$1
unset USERDM_RUNTIME_DIR USERDM_MAPPER_DIR || true
userdm() { "$python" -m userdm "$@"; }
python=$2
cd "$1"
nodes=$1/userdm/mapper
trap 'userdm daemon stop --force >/dev/null 2>&1 || userdm daemon stop --kill' EXIT

truncate -s 4M meta
truncate -s 64M data
userdm create pool --table "0 131072 thin-pool meta data 128 100 1 skip_block_zeroing"
userdm message "$nodes/pool" 0 create_thin 0
userdm create vol --table "0 32768 thin $nodes/pool 0"
printf hello | dd of="$nodes/vol" conv=notrunc,fsync status=none
userdm suspend vol
userdm message pool 0 create_snap 1 0
userdm resume vol
printf there | dd of="$nodes/vol" conv=notrunc,fsync status=none
# whoever writes without a file system that could be frozen is in the way, unless he is not to be minded
exec 4<>"$nodes/vol"
userdm message pool 0 create_snap 2 0 2>&1 | sed -n 1,2p
userdm message --force pool 0 create_snap 2 0
exec 4<&-
userdm create snap -r --table "0 32768 thin $nodes/pool 1"
head -c 5 "$nodes/snap"; echo
userdm daemon stop
ls "$nodes"
userdm info -c --noheadings -o name,attr,open
head -c 5 "$nodes/vol"; echo
kill -9 "$(cat userdm/pid)"
while userdm daemon status >/dev/null 2>&1; do sleep 0.1; done
head -c 5 "$nodes/snap" 2>/dev/null || echo dead
userdm table snap
head -c 5 "$nodes/snap"; echo
exec 3<"$nodes/vol"
userdm remove vol 2>&1 | sed -n 1p
exec 3<&-
userdm remove snap vol pool
ls "$nodes"
userdm daemon upgrade 2>&1 | sed -n 1p
userdm daemon stop
userdm daemon status 2>&1 | sed "s|$1|HERE|"
