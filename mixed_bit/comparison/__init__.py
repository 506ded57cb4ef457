"""What allocations do to the network's output: outcomes, baselines, Pareto fronts."""
