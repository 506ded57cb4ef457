"""Run recipes, and tell whether their figures were met: `ompq-run`."""

from __future__ import annotations

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse
    import sys

    from ompq.errors import OmpqError
    from recipes.commands import build_commands, find_dataset
    from recipes.options import build_parser, read_places
    from recipes.recipe import Recipe, read_recipe
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
    _refuse_common_folder(recipes)
    # All of them before any is run: a mistake in the last one shows at once.
    commands = [build_commands(each, places) for each in recipes]
    datasets = [find_dataset(*each) for each in zip(recipes, commands, strict=True)]
    is_chosen = [name not in arguments.without for name in datasets]
    common = {name for name in datasets if name not in {*arguments.without, *places.data_of}}
    if places.data is not None and len(common) > 1:
        names = ", ".join(sorted(common))
        raise OmpqError(f"`data` is the folder of one data set, not of {names}; give DATASET=DIR")
    chosen = [each for each, wanted in zip(recipes, is_chosen, strict=True) if wanted]
    if not chosen:
        arguments.parser.print_note("no recipe is left to be run")
    if arguments.show:
        for lines, wanted in zip(commands, is_chosen, strict=True):
            print(*(lines if wanted else []), sep="\n", end="\n" if wanted else "")
        return
    told, failed, all_met = [], [], True
    for recipe in chosen:
        print(f"{recipe.name}: {recipe.title}", flush=True)
        try:
            finding = run_recipe(recipe, places, resume=arguments.resume)
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


def _refuse_common_folder(recipes: list[Recipe]) -> None:
    """Refuse recipes of one name, whose results would be in one folder."""
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if names.count(recipe.name) > 1:
            raise OmpqError(f"two recipes are called {recipe.name}; run one after the other")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
