"""The allocation program in whole numbers: its relaxation, its proven optimum, and projection."""
