"""CRIU's own test programs as passengers of our moves; they are the user's, and none of them is in this repository."""
