"""Run recipes, and tell whether their figures were met: `ompq-run`."""

from __future__ import annotations

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import sys

    from ompq.errors import OmpqError
    from recipes.commands import build_commands
    from recipes.options import build_parser, read_places
    from recipes.recipe import read_recipe
    from recipes.running import run_recipe


def run(arguments: argparse.Namespace) -> None:
    """Run the recipes one after the other; end with 1 where a figure was not met.

    Args:
        arguments: Arguments of `build_parser`.

    Raises:
        OmpqError: A recipe cannot be read or run; of several, the others are run all the same.
    """
    places = read_places(arguments)
    recipes = [read_recipe(file) for file in arguments.recipe]
    chosen = [each for each in recipes if each.data.get("dataset") not in arguments.without]
    if arguments.show:
        for recipe in chosen:
            for command in build_commands(recipe, places):
                print(command)
        return
    told, failed, all_met = [], [], True
    for recipe in chosen:
        print(f"{recipe.name}: {recipe.title}", flush=True)
        try:
            finding = run_recipe(recipe, places)
        except OmpqError as error:
            if len(chosen) == 1:
                raise
            failed.append(f"{recipe.name}: {error}")
            print(f"{recipe.name}: could not be run: {error}", flush=True)
            continue
        all_met &= finding.is_met
        told.append(finding.describe())
        print(told[-1], flush=True)
    if len(chosen) > 1:
        print("\n".join(["", *told]), flush=True)
    if failed:
        raise OmpqError(f"{len(failed)} of {len(chosen)} recipes could not be run: {failed[0]}")
    if not all_met:
        sys.exit(1)


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
