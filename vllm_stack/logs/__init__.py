"""The logs of all programs as one: found, dated, merged, followed, shown. Nothing here writes to them."""
