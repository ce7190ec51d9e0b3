# A full pool whose writers get an error: ENOSPC, on the very write. What needs no block goes on.
up 512 4 2 error_if_no_space
state
dm table pool
dm deps -o devno pool | sed 's/(X, Y)/-/g'
thin 0
dm table t0
status t0
for b in 0 1 2 3 4 5; do put t0 $b; state; done
put t0 0; get t0 0; get t0 4
status t0
trim t0 0 2
state
put t0 7
state
down
