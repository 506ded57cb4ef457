"""Recipes: a network, its bits and its training in one file, with the figure to expect.

recipe        what a recipe says, read from its YAML file
commands      the command lines that it stands for
running       run them, and compare the figure that comes out
options       the command line of `ompq-run`
networks/     networks that recipes name by file

The recipes themselves are the YAML files beside these. They call what the scripts call: each stage
is handed the words of its own command line.
"""
