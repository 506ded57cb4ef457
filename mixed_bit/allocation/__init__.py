"""Which widths are best: the program, its budgets and its solvers."""
