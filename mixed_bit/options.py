"""The command lines of the bit search: all that knows their flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixed_bit.latency.table import load_latency
from mixed_bit.sensitivity import METRICS
from mixed_bit.settings import (
    FRONT_POINTS,
    MEASURED_FRONT_POINTS,
    ROUNDINGS,
    SOLVERS,
    SearchSettings,
    check_front_ends,
)
from ompq.assignment import DEFAULT_ACT_BITS, QUANT_TYPES
from ompq.data.datasets.registry import SPLITS
from ompq.errors import OmpqError
from ompq.options import (
    Parser,
    add_configuration_choice,
    add_data_options,
    add_input_size,
    add_network_options,
    add_run_options,
    add_target,
)
from ompq.target import read_target
from ompq.values import float_list, int_list, pin, widths_by_layer

# Fields of `SearchSettings` whose options are called otherwise.
_FIELDS: dict[str, str | tuple[str, ...]] = {
    "size_mb": "model_size",
    "bops_g": "bops",
    "candidate_bits": "bits",
    "candidate_bits_by_layer": "bits",
    "pins": "pin",
    "latency_ms": "latency",
    "act_memory_kb": "act_memory",
    "kl_nats": "kl",
    "drop_points": "drop",
    "random_trials": "random",
    "rank_trials": "ranked",
    "centred": "uncentred",
}


class _CandidateBits(argparse.Action):
    """Keep plain widths as `bits`, the last ones given, and those of layers as `bits_by_layer`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Note what one occurrence of the option gives."""
        layer, widths = values
        if not layer:
            namespace.bits = widths
            return
        held = dict(namespace.bits_by_layer)
        _set_last(held, layer, widths, "--bits")
        namespace.bits_by_layer = held


def build_search_parser() -> Parser:
    """Build the parser of `feature_extract.py`."""
    parser = Parser(
        prog="feature_extract.py",
        description="Find the bit width of every layer of a trained network from a handful of "
        "images.",
        fields={**_FIELDS, "size_mb": ("model_size", "sweep")},
    )
    add_network_options(parser, "--model", "-a", "--arch")
    _add_calibration_options(parser)
    _add_budget_options(parser)
    _add_method_options(parser)
    add_run_options(parser, "ompq_output")
    return parser


def _add_calibration_options(parser: Parser) -> None:
    group = add_data_options(parser, "calibration images", "--save_path", "--data_path", "--data")
    group.add_argument(
        "--calibration_data",
        type=Path,
        metavar="FILE",
        help=".pt or .npy of normalised images n×C×H×W, instead of the data set",
    )
    group.add_argument("--num_images", type=int, default=64, help="how many images")
    group.add_argument(
        "--batch_size",
        type=int,
        default=64,
        help="images per forward pass; with more images than that, the unbiased minibatch "
        "estimate is used",
    )
    group.add_argument(
        "--augment", action="store_true", help="training transforms instead of evaluation ones"
    )


def _add_budget_options(parser: Parser) -> None:
    group = parser.add_argument_group("search: widths and budgets")
    _add_quant_type(group, "what will be done with it")
    group.add_argument("--model_size", type=float, metavar="MB", help="size budget (2^20 bytes)")
    group.add_argument("--bops", type=float, metavar="G", help="budget of bit operations (10^9)")
    _add_candidate_bits(group)
    group.add_argument(
        "--pin",
        type=pin,
        action="append",
        default=[],
        metavar="LAYER=BITS",
        help="fix the width of a layer, or of all that a glob such as 'layer4.*' matches; may be "
        "repeated (exact names go before globs, later globs before earlier ones)",
    )
    group.add_argument(
        "--act_bits",
        type=int_list,
        metavar="A,A,…",
        help="activation bits, for the BOPs (default: 8); several to choose from, with --bops or "
        "--act_memory",
    )
    group.add_argument("--latency", type=float, metavar="MS", help="latency budget, by the table")
    group.add_argument(
        "--latency_table",
        type=Path,
        metavar="FILE",
        help="measured times, a JSON file {layer: {bits: milliseconds}}",
    )
    group.add_argument(
        "--act_memory",
        type=float,
        metavar="KB",
        help="budget of the memory of activations (1024 bytes): the most that lies in memory at "
        "one step of the network, for one image",
    )
    add_target(group, "its widths limit the layers', its memory the size and the activations")
    group.add_argument(
        "--kl",
        type=float,
        metavar="NATS",
        help="the smallest network whose output diverges no more from the float network's; half "
        "of the images judge, the others are measured on; budgets stay limits",
    )
    group.add_argument(
        "--drop",
        type=float,
        metavar="POINTS",
        help="the smallest network that loses no more top-1 accuracy on that half, by labels or, "
        "without labels, counting every changed answer as a loss",
    )
    group.add_argument(
        "--sweep",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the allocations between two sizes in MB, instead of --model_size",
    )
    group.add_argument(
        "--sweep_points",
        type=int,
        metavar="N",
        help=f"budgets of a sweep (default {FRONT_POINTS}, with --auto {MEASURED_FRONT_POINTS}); "
        "0 for every reachable one",
    )


def _add_method_options(parser: Parser) -> None:
    group = parser.add_argument_group("search: method")
    group.add_argument(
        "--metric",
        choices=METRICS,
        help="what a width costs a group: orthogonality (the paper's), relative error, Fisher "
        "information, output divergence, Hessian trace, or relative error times orthogonality "
        "(default: fisher; orm with --beta, --solver or --uncentred, or in several processes)",
    )
    group.add_argument(
        "--auto",
        action="store_true",
        help="try every metric, several beta, projection and random allocations, and take the one "
        "whose output diverges least from the float network's",
    )
    group.add_argument(
        "--labels", action="store_true", help="use the images' labels (default: own predictions)"
    )
    group.add_argument("--beta", type=float, help="beta of theta = exp(-beta gamma) (default: 10)")
    group.add_argument("--solver", choices=SOLVERS, default="ilp", help="how to solve the program")
    group.add_argument(
        "--rounding", choices=ROUNDINGS, default="fill", help="for --solver projection"
    )
    group.add_argument(
        "--uncentred", action="store_true", help="Gram matrices without centring (the formula)"
    )


def build_compare_parser() -> Parser:
    """Build the parser of `compare.py`."""
    parser = Parser(
        prog="compare.py",
        description="Compare every way to allocate bits at equal size, by what really happens to "
        "the output.",
        fields={**_FIELDS, "size_mb": "sizes"},
    )
    add_network_options(parser, "--model", "-a", "--arch")
    group = add_data_options(parser, "images", "--save_path", "--data_path", "--data")
    group.add_argument("--num_images", type=int, default=64, help="images that prices come from")
    group.add_argument(
        "--num_eval", type=int, default=256, help="images that outcomes are measured on"
    )
    group.add_argument(
        "--eval_split",
        choices=SPLITS,
        default="val",
        help="where these come from; of train, only images that no price comes from",
    )
    group.add_argument("--batch_size", type=int, default=64, help="images per forward pass")
    group = parser.add_argument_group("comparison")
    budgets = group.add_mutually_exclusive_group(required=True)
    budgets.add_argument("--sizes", type=float_list, metavar="MB,MB,…", help="size budgets")
    budgets.add_argument(
        "--mean_bits",
        type=float_list,
        metavar="B,B,…",
        help="size budgets as mean bits of the listed parameters",
    )
    _add_quant_type(group, "what the list covers")
    _add_candidate_bits(group)
    group.add_argument("--random", type=int, default=20, help="random allocations at every size")
    group.add_argument(
        "--ranked", type=int, default=60, help="random allocations of any size to be ranked"
    )
    add_run_options(parser, "compare_output")
    return parser


def build_cost_parser() -> Parser:
    """Build the parser of `model_cost.py`."""
    parser = Parser(
        prog="model_cost.py",
        description="Print size and BOPs of a network under a bit configuration.",
    )
    add_network_options(parser, "--model", "-a", "--arch")
    group = add_configuration_choice(
        parser,
        "configuration",
        list_help='a list such as "[4, 3, 8]", a bit_config.json, '
        "or layers and their bits of another tool (JSON or CSV)",
        required=True,
    )
    _add_quant_type(group, "what the list covers")
    group.add_argument("--act_bits", type=int, help="activation bits (default: the scheme's, or 8)")
    add_input_size(group)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def build_latency_parser() -> Parser:
    """Build the parser of `measure_latency.py`."""
    parser = Parser(
        prog="measure_latency.py",
        description="Measure how long every layer takes in ONNX Runtime, in float and on 8 bits, "
        "for --latency of feature_extract.py.",
    )
    add_network_options(parser, "--model", "-a", "--arch")
    group = parser.add_argument_group("measurement")
    add_input_size(group)
    group.add_argument("--batch_size", type=int, default=1, help="images at a time")
    group.add_argument("--repeats", type=int, default=20, help="runs of every layer and form")
    group.add_argument("--threads", type=int, default=0, help="0: one per core")
    group.add_argument(
        "--output", type=Path, default=Path("latency.json"), metavar="FILE", help="the table"
    )
    return parser


def _add_quant_type(group: argparse._ArgumentGroup, help_text: str) -> None:
    group.add_argument("--quant_type", choices=sorted(QUANT_TYPES), default="QAT", help=help_text)


def _add_candidate_bits(group: argparse._ArgumentGroup) -> None:
    ranges = ", ".join(
        f"{name} {min(kind.candidates)}..{max(kind.candidates)}"
        for name, kind in QUANT_TYPES.items()
    )
    group.add_argument(
        "--bits",
        action=_CandidateBits,
        type=widths_by_layer,
        metavar="[LAYER=]B,B,…",
        help=f"candidate widths ({ranges}); repeated with a layer or glob, those of its layers",
    )
    group.set_defaults(bits_by_layer={})


def check_at_least(arguments: argparse.Namespace, **least: int) -> None:
    """Refuse whole numbers of the command line that are too small.

    Args:
        arguments: Parsed command line.
        least: Destination of an option → its smallest value.

    Raises:
        OmpqError: Names the first option that is too small.
    """
    for name, smallest in least.items():
        given = getattr(arguments, name)
        if given < smallest:
            raise OmpqError(f"`{name}` {given}: give {smallest} or more")


def read_settings(arguments: argparse.Namespace) -> SearchSettings:
    """Read the search that the command line of `feature_extract.py` asks for.

    Raises:
        OmpqError: Options that do not go together, or values out of range.
    """
    check_at_least(arguments, num_images=2, batch_size=1, workers=0)
    _check_sweep(arguments)
    target = read_target(arguments.target) if arguments.target else None
    usual = DEFAULT_ACT_BITS if target is None else target.choose_act_bits(DEFAULT_ACT_BITS)
    act_bits = arguments.act_bits or (usual,)
    several = len(set(act_bits)) > 1
    table = arguments.latency_table
    settings = SearchSettings(
        quant_type=arguments.quant_type,
        size_mb=arguments.sweep[1] if arguments.sweep else arguments.model_size,
        bops_g=arguments.bops,
        candidate_bits=arguments.bits,
        candidate_bits_by_layer=arguments.bits_by_layer,
        pins=_read_pins(arguments.pin),
        act_bits=max(act_bits),
        candidate_act_bits=act_bits if several else (),
        latency_ms=arguments.latency,
        latency_table=load_latency(table) if table else None,
        act_memory_kb=arguments.act_memory,
        kl_nats=arguments.kl,
        drop_points=arguments.drop,
        target=target,
        metric=arguments.metric,
        beta=arguments.beta,
        solver=arguments.solver,
        rounding=arguments.rounding,
        centred=not arguments.uncentred,
    )
    _check_labels(arguments, settings.chosen_metric)
    return settings


def _check_labels(arguments: argparse.Namespace, metric: str) -> None:
    if not arguments.labels:
        return
    using = [name for name, metric in METRICS.items() if metric.uses_labels]
    if not arguments.auto and metric not in using:
        raise OmpqError(f"--labels goes with --metric {' or '.join(using)}, no other asks")
    if arguments.calibration_data is not None:
        raise OmpqError("--labels: a file of calibration images has none; give a data set")


def _check_sweep(arguments: argparse.Namespace) -> None:
    sweep, points = arguments.sweep, arguments.sweep_points
    if sweep and arguments.model_size is not None:
        raise OmpqError("--sweep LOW HIGH takes the place of --model_size; give one of them")
    if sweep:
        check_front_ends(*sweep)
    if arguments.auto and points is not None and points < 2:
        raise OmpqError("--sweep_points with --auto is 2 or more: it tries out every budget")
    if points is not None and (not sweep or points < 0):
        raise OmpqError("--sweep_points N goes with --sweep and is not negative")
    if (arguments.auto or sweep) and (arguments.kl, arguments.drop) != (None, None):
        raise OmpqError(
            "--kl and --drop go with neither --auto nor --sweep: they follow the front of one "
            "--metric"
        )
    if (arguments.auto or sweep) and arguments.solver != "ilp":
        raise OmpqError(
            f"--solver {arguments.solver} goes with neither --auto nor --sweep; leave it out"
        )


def _read_pins(given: list[tuple[str, int]]) -> dict[str, int]:
    pins: dict[str, int] = {}
    for layer, width in given:
        _set_last(pins, layer, width, "--pin")
    return pins


def _set_last(held: dict[str, Any], layer: str, value: object, option: str) -> None:
    """Put an entry behind all others; refuse one that is there with another value."""
    if held.pop(layer, value) != value:
        raise OmpqError(f"{option} {layer} is given twice, with different bits; leave one out")
    held[layer] = value
