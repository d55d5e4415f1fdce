"""Numbers: codes, scales, blocks and their errors.  Knows no file, no tensor name and no table."""
