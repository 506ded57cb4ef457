"""From a trained network to the bit width of every layer: orthogonality and an integer program."""
