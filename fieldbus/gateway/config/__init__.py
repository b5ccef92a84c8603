"""From files to a plant: everything that is read at start, with every problem told at once."""
