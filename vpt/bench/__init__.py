"""What the savings are worth on the machine at hand: ours, the plain way and the floor, measured in turns."""
