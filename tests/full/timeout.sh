# timeout: 2
# Nobody makes the data device larger: in the end the writers get ENOSPC, and so does who comes after them.
up 512 2 0
thin 0
put t0 0; put t0 1; state
later t0 2
join 2
state
put t0 3
state
dm table pool
dm suspend pool
state
dm resume pool
status
later t0 4
join 4
state
load 2 0
dm resume pool
state
later t0 4
join 4
state
trim t0 0 1
state
put t0 5
state
down
