"""A network of integers as C99: one file without libraries, and test vectors.

write_c             source.py        the files of a network
plan                plan.py          the network as steps on values in memory
layers.py           layers and their weights; pools.py windows and reductions
copies.py           values arranged anew; memory.py where values lie
constants.py        tables of numbers; text.py steps as C; vectors.py images to prove it by
program.py          what all of these speak of
runtime/            the functions that the steps call, in C
"""
