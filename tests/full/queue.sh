# A full pool whose writers wait, and go on after the data device was made larger.
up 512 4 0
thin 0
for b in 0 1 2 3; do put t0 $b; done
state
later t0 4
full
state
get t0 4; put t0 0
resize data "$D" 1024
load 8 1
state
dm resume pool
join 4
state
for b in 5 6 7; do put t0 $b; state; done
later t0 8
full
trim t0 0 1
join 8
status
later t0 9
full
message create_thin 1
message delete 1
status
trim t0 1 1
join 9
status
down
