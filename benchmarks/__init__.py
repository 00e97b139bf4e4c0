"""Scripts that print what was measured, the floor or reference, and the ratio, with the hardware."""
