"""Reports as people write them -> sections -> token ids."""
