"""A network of integers as C99: one file without libraries, and test vectors.

`write_c` of source.py gives the files. plan.py makes steps of the network, which recording.py
notes: layers.py of layers, pools.py of windows and reductions, lowering.py of operations between
layers, copies.py of values that are arranged anew (views.py), and stages.py and operations.py what
is done to results before they are stored. memory.py finds places for values. text.py writes steps,
chains.py what is done to their results, constants.py tables, header.py the face and vectors.py
images to prove it by; program.py is what all of these speak of. The functions that steps call are
in runtime/, in C.
"""
