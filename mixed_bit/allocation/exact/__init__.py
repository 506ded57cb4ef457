"""The proven optimum of the allocation program, in whole numbers.

knapsack     the program as whole numbers; greedy filling, and which of equal choices to take
relaxation   the linear relaxation: multipliers of the budgets, and first choices by rounding
tighten      limits and a count of near ties that make the relaxation a better bound
exchange     a better choice, by changing two groups at once
frontier     partial choices as arrays: the states of the dynamic program
branch       the search that puts these together: `prove`
"""
