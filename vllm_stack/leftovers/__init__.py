"""What an earlier life of a program left behind, and its end."""
