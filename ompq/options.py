"""Command-line options that several scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ompq.data import BACKENDS, DATASETS, ImageWishes, Loader, choose_preprocess, make_loader
from ompq.errors import OmpqError
from ompq.parser import Parser as Parser
from ompq.parser import read_text
from ompq.preprocess import INTERPOLATIONS, Preprocess
from ompq.runtime import Ranks
from ompq.script import is_main_process
from ompq.values import channel_means, float_list, natural, positive, seed_number
from ompq.zoo import Network, load_network

DEFAULT_DATASET = "imagenet"


def add_network_options(
    parser: argparse.ArgumentParser, *name_flags: str, required: bool = True
) -> None:
    """Add the options of the network, its weights and its classes.

    Args:
        parser: Parser to add them to.
        name_flags: Flags of the option that names the network.
        required: Whether the network must be named.
    """
    group = parser.add_argument_group("network")
    group.add_argument(
        *name_flags,
        dest="model",
        required=required,
        metavar="NAME",
        help="a name such as resnet18, torchvision:NAME, timm:NAME, pytorchcv:NAME, or "
        "FILE.py:FACTORY for a network of your own",
    )
    group.add_argument("--path", type=Path, help="checkpoint: a file, or the folder that holds it")
    group.add_argument(
        "--pretrained", action="store_true", help="the library's own weights (downloaded)"
    )
    group.add_argument(
        "--num_classes", type=int, help="number of classes, where no checkpoint tells it"
    )


def add_data_options(
    parser: argparse.ArgumentParser, title: str, *folder_flags: str
) -> argparse._ArgumentGroup:
    """Add the options of the data set and of how its images are read.

    Args:
        parser: Parser to add them to.
        title: Title of the group of options.
        folder_flags: Flags of the option that gives the data set's folder.

    Returns:
        The group, for further options.
    """
    group = parser.add_argument_group(title)
    group.add_argument(
        "--dataset", choices=list(DATASETS), default=DEFAULT_DATASET, help="data set"
    )
    group.add_argument(*folder_flags, dest="data", type=Path, help="folder of the data set")
    add_input_size(group)
    group.add_argument(
        "--resize",
        type=positive,
        metavar="PIXELS",
        help="length of the shorter side before the crop (default: the network's, in proportion "
        "to the crop; none below 100 pixels)",
    )
    group.add_argument(
        "--mean",
        type=channel_means,
        metavar="M,M,…",
        help="mean of every channel of pixels in 0..1, or one number (default: the network's)",
    )
    group.add_argument(
        "--std", type=float_list, metavar="S,S,…", help="standard deviation of every channel"
    )
    group.add_argument(
        "--interpolation", choices=INTERPOLATIONS, help="for the resizing (default: the network's)"
    )
    group.add_argument("--loader", choices=BACKENDS, default="auto", help="who decodes the images")
    return group


def add_input_size(group: argparse._ArgumentGroup) -> None:
    """Add `--input_size` to a group of options."""
    group.add_argument(
        "--input_size",
        "--crop",
        type=positive,
        metavar="PIXELS",
        help="side of the square that the network sees, cut from the centre (default: the "
        "network's)",
    )


def add_configuration_choice(
    parser: argparse.ArgumentParser,
    title: str,
    *,
    list_help: str,
    scheme_help: str = "a published scheme or uniformN",
    required: bool = False,
) -> argparse._ArgumentGroup:
    """Add `--bit_cfg` and `--quant_scheme`, which exclude each other.

    Args:
        parser: Parser to add them to.
        title: Title of the group of options.
        list_help: Help of `--bit_cfg`.
        scheme_help: Help of `--quant_scheme`.
        required: Whether one of them must be given.

    Returns:
        The group, for further options.
    """
    group = parser.add_argument_group(title)
    choice = group.add_mutually_exclusive_group(required=required)
    choice.add_argument("--bit_cfg", type=read_text, metavar="LIST|FILE", help=list_help)
    choice.add_argument("--quant_scheme", metavar="NAME", help=scheme_help)
    return group


def add_target(group: argparse._ArgumentGroup, effect: str) -> None:
    """Add `--target` to a group of options.

    Args:
        group: Group to add it to.
        effect: What it does in this script.
    """
    group.add_argument(
        "--target",
        type=Path,
        metavar="FILE",
        help=f"a device, as a YAML file (examples/targets): {effect}",
    )


def add_deployment_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of what reconstruction and fine-tuning make of the network for a device."""
    group.add_argument(
        "--quantize_sums",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="8 bits before sums, concatenations and averages too, as int8 kernels read them",
    )
    group.add_argument(
        "--equalise_layers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make channels between two layers of the float network even, for weights of 4 bits or "
        "more with a scale per channel",
    )


def add_run_options(
    parser: argparse.ArgumentParser,
    output_dir: str,
    *output_flags: str,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Add the options of where and how a run happens.

    Args:
        parser: Parser to add them to.
        output_dir: Default folder for the results.
        output_flags: Further names of `--output_dir`.
        seed: Default seed, which differs between the published scripts.
        workers: Default number of decoding threads, which differs between them as well.
    """
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=seed_number, default=seed, help="seed of everything random")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--workers", "-j", type=natural, default=workers, help="threads that decode images"
    )
    group.add_argument(
        "--output_dir",
        *output_flags,
        dest="output_dir",
        type=Path,
        default=Path(output_dir),
        help="folder for the results",
    )
    # torch.distributed.launch passes it; the environment says the same.
    group.add_argument(
        "--local-rank", "--local_rank", type=int, dest="local_rank", help=argparse.SUPPRESS
    )


def load_requested_network(arguments: argparse.Namespace) -> tuple[Network, Preprocess]:
    """Load the network that the command line names, and find what its images go through.

    Args:
        arguments: Command line of a parser with network and data options.

    Raises:
        OmpqError: No network is named, or it cannot be loaded.
    """
    if arguments.model is None:
        raise OmpqError("name the network with --arch, or give --evaluate DIR; see --help")
    network = load_network(
        arguments.model,
        path=arguments.path,
        pretrained=arguments.pretrained,
        num_classes=arguments.num_classes,
    )
    wishes = ImageWishes(
        input_size=arguments.input_size,
        resize=arguments.resize,
        mean=arguments.mean,
        std=arguments.std,
        interpolation=arguments.interpolation,
    )
    return network, choose_preprocess(arguments.dataset, network, wishes)


def print_images(
    arguments: argparse.Namespace, preprocess: Preprocess, notes: Iterable[str] = ()
) -> None:
    """Print what the images go through, and what a user should know of them; once of all ranks.

    Args:
        arguments: Command line, which holds the parser.
        preprocess: Preprocessing of the images.
        notes: Notes on the opened images; several about one thing are printed once.
    """
    if is_main_process():
        print(f"images: {preprocess.describe()}", flush=True)
        arguments.parser.print_notes(dict.fromkeys(notes))


def make_evaluation_loader(
    arguments: argparse.Namespace,
    preprocess: Preprocess,
    batch_size: int,
    ranks: Ranks | None = None,
    *,
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
) -> Loader:
    """Make the loader of the labelled images of `--dataset` that accuracy is measured on.

    Args:
        arguments: Command line of a parser with data and run options.
        preprocess: Preprocessing that the images go through.
        batch_size: Number of images per batch.
        ranks: This process among those that share the images; None for one process.
        class_names: Names of the network's classes, where they are known.
        num_classes: Number of the network's classes, where it is known.
    """
    ranks = ranks or Ranks()
    return make_loader(
        arguments.dataset,
        arguments.data,
        "val",
        preprocess,
        batch_size,
        workers=arguments.workers,
        backend=arguments.loader,
        rank=ranks.rank,
        world_size=ranks.world_size,
        class_names=class_names,
        num_classes=num_classes,
    )


def name_outputs(images: Loader, num_outputs: int) -> tuple[str, ...]:
    """Name the outputs of a network by the classes of its images; none where these are not all.

    Args:
        images: Labelled images that the network is evaluated on, or trained with.
        num_outputs: Number of classes that the network tells.
    """
    return images.class_names if len(images.class_names) == num_outputs else ()


def check_classes(labelled: int, told: int | None) -> list[str]:
    """Tell a user of labels that are not those of the network.

    Args:
        labelled: Number of classes of the images; 0 without labels.
        told: Number of classes that the network tells; None where that is not known.

    Returns:
        Notes, one line each; none where all is well.

    Raises:
        OmpqError: The images have labels that the network cannot tell.

    >>> check_classes(labelled=10, told=1000)
    ['the images are of 10 classes, the network tells 1000']
    """
    if told is None:
        return []
    if labelled > told:
        raise OmpqError(
            f"the images are of {labelled} classes, the network tells {told}; give a checkpoint "
            "for these images, or --num_classes"
        )
    if 0 < labelled < told:
        return [f"the images are of {labelled} classes, the network tells {told}"]
    return []


def json_ready(arguments: argparse.Namespace) -> dict[str, Any]:
    """Convert the command line to what a result file keeps of it."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(arguments).items()
        if key not in ("local_rank", "parser")
    }


# What a quantized network's folder tells already.
_TOLD_BY_FOLDER = """
model path bit_cfg quant_scheme input_size resize mean std interpolation
""".split()


def note_unused(arguments: argparse.Namespace) -> list[str]:
    """Return a note on the options that an evaluation does not use, for the folder tells them."""
    unused = [name for name in _TOLD_BY_FOLDER if getattr(arguments, name) is not None]
    if not unused:
        return []
    flags = ", ".join(f"`{name}`" for name in unused)
    return [f"the folder tells the network and its images; not used: {flags}"]
