"""The commands, one file each. Exit 0: fine; 1: what was asked found a problem; 2: wrong usage."""
