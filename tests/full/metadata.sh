# The metadata device is full: nothing that changes it goes on, until it is larger or the table is loaded again.
up 128 4096 0 skip_block_zeroing
thin 0
put t0 0
before=$(events)
i=1
while out=$(dmsetup message pool 0 "create_thin $i" 2>&1); do i=$((i + 1)); done
echo "$out" | sed -n 's/.*failed: //p'
[ $i -gt 90 ] && [ $i -lt 130 ] && echo "it took long enough"
[ $(events) -gt $before ] && echo "events were sent"
status
since() { echo "events +$(($(events) - before))"; before=$(events); }
before=$(events)
message delete 1
put t0 0; put t0 1; get t0 0; get t0 1
trim t0 5 1
status t0
status; since
dm suspend pool; dm resume pool; status; since
load 4096 0 skip_block_zeroing
dm resume pool
status; since
put t0 2
status; since
load 4096 0 skip_block_zeroing
dm resume pool
message delete 1
status; since
message delete 2
put t0 2
status
while dmsetup message pool 0 "create_thin $i" >/dev/null 2>&1; do i=$((i + 1)); done
status
before=$(events)
resize meta "$M" 2048
status
dm suspend pool; dm resume pool
status; since
put t0 3
message delete 3
message create_thin 1
status; since
down
