"""Small files that programs and verbs leave for each other, and for the next life."""
