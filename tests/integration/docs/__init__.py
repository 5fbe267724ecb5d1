"""What the pages of the documentation tell a reader to type, typed in a world made for them."""
