"""Which widths are best: the program, its budgets and its solvers.

program              what is minimised, and under what; its values as exact whole numbers
budgets              size, bit operations and latency as whole costs
activation_memory    what activations take at every step, as budgets
solve                one width per group, by any of the solvers
exact                the proven optimum, and the linear relaxation rounded
projection           what the published PTQ runs computed
shared_activations   one activation width for groups that read one value
"""
