# timeout: 0
# Writers wait for ever; no suspend waits for them.
up 512 2 0
thin 0
put t0 0; put t0 1
later t0 2
full
dm suspend --noflush t0
dm suspend --noflush pool
state
dm resume pool
dm resume t0
sleep 3
state
dm suspend --noflush --nolockfs pool
dm resume pool
state
message create_thin 5
message delete 5
state
load 2 0 error_if_no_space
dm resume pool
join 2
state
dm table pool
down
