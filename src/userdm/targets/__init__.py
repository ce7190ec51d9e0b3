"""One file per target driver: a table line in, segments out."""
