"""A network of integers as C99: one file without libraries, and test vectors.

`write_c` of source.py gives the files. plan.py makes steps of the network: layers.py of layers,
pools.py of windows and reductions, copies.py of values that are arranged anew, and stages.py what
is done to results before they are stored. memory.py finds places for values. text.py writes steps,
constants.py tables, header.py the face and vectors.py images to prove it by; program.py is what all
of these speak of. The functions that steps call are in runtime/, in C.
"""
