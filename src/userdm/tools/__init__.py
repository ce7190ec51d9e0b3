"""What is done to a pool from outside: check, dump, restore, repair."""
