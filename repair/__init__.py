"""Mends checkpoints: the only room that writes, and only what a plan says, with a way back."""
