"""The command line of `quant_train.py`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ompq.errors import OmpqError
from ompq.integer import ConversionSettings, RangeRule
from ompq.options import (
    Parser,
    add_configuration_choice,
    add_data_options,
    add_deployment_options,
    add_network_options,
    add_run_options,
    add_target,
)
from ompq.parser import read_text
from ompq.target import Target, read_matching_target
from QAT.settings import TrainingSettings

DEFAULT_SCHEME = "uniform8"
NO_TEACHER = "None"
DISTILLATIONS = (NO_TEACHER, "KD_naive")
LEARNED = "lsq"
QUANTIZERS = ("hawq", LEARNED)
ASYMMETRIC = "asymmetric"
QUANT_MODES = ("symmetric", ASYMMETRIC)
PROCESS_BACKENDS = ("nccl", "gloo")
# Options that a resumed run must repeat. Their names are part of checkpoints.
BINDING_OPTIONS = """
model seed dataset input_size resize mean std interpolation init_from batch_size data_percentage
epochs start_epoch lr momentum wd fix_BN fix_BN_threshold quantizer quant_mode channel_wise
act_range_momentum act_percentile weight_percentile bias_bit fixed_point_quantization
quantize_sums distill_method teacher_arch teacher_path distill_alpha temperature evaluate_times amp
""".split()
# Fields of the library whose options are called otherwise in this script.
_FIELDS = {
    "bias_bits": "bias_bit",
    "checkpoint_steps": "checkpoint_iter",
    "dyadic": "fixed_point_quantization",
    "evaluations": "evaluate_times",
    "fix_norms": "fix_BN_threshold",
    "folder": "output_dir",
    "fraction": "data_percentage",
    "learning_rate": "lr",
    "per_channel": "channel_wise",
    "print_steps": "print_freq",
    "re_estimate_norms": "re_estimate_BN",
    "source": "init_from",
    "weight_decay": "wd",
}


def build_parser() -> Parser:
    """Build the parser with all options of the script."""
    parser = Parser(
        prog="quant_train.py",
        description="Fine-tune a trained network so that it computes with integers.",
        fields=_FIELDS,
    )
    add_network_options(parser, "-a", "--arch", "--model", required=False)
    _add_data_options(parser)
    _add_quantization_options(parser)
    _add_training_options(parser)
    _add_distillation_options(parser)
    _add_distributed_options(parser)
    add_run_options(parser, "qat_output", "--save_path", workers=4)
    group = parser.add_argument_group("what to do")
    group.add_argument(
        "-e",
        "--evaluate",
        type=read_text,
        nargs="?",
        const="",
        metavar="DIR",
        help="evaluate the network of that folder (default: --save_path) and stop",
    )
    group.add_argument(
        "--integer_only",
        action="store_true",
        help="with --evaluate: also run it with integer arithmetic alone, and compare to the bit",
    )
    group.add_argument(
        "--resume",
        type=read_text,
        nargs="?",
        const="",
        metavar="FILE",
        help="go on with a killed run from its checkpoint, whatever its name, in its folder or in "
        "--save_path (default: the last one of --save_path); a file of float weights is started "
        "from, like --path",
    )
    group.add_argument(
        "--resume_quantize",
        action="store_true",
        help="insist that --resume names a checkpoint of quantization-aware training",
    )
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = add_data_options(parser, "images", "--data", "--data_path")
    group.add_argument(
        "-b", "--batch_size", type=int, default=128, help="images per step, of all processes"
    )
    group.add_argument(
        "--data_percentage",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the training images, a fixed subset by --seed (1 for all)",
    )


def _add_quantization_options(parser: argparse.ArgumentParser) -> None:
    group = add_configuration_choice(
        parser,
        "quantization",
        list_help='a list such as "[4, 8]", a bit_config.json, a HAWQ dictionary (literal or '
        "JSON), or layers and their bits of another tool: NNCF's, ModelOpt's or MCT's JSON, or a "
        "CSV",
        scheme_help=f"a published scheme or uniformN (default {DEFAULT_SCHEME})",
    )
    add_target(group, "what contradicts it is refused")
    group.add_argument("--act_bits", type=int, help="activation bits (default: the scheme's own)")
    group.add_argument(
        "--quantizer",
        choices=QUANTIZERS,
        default=QUANTIZERS[0],
        help="steps that follow ranges, or learned ones (LSQ)",
    )
    group.add_argument(
        "--init_from", type=Path, metavar="DIR", help="start from the network that PTQ wrote there"
    )
    group.add_argument(
        "--quant_mode",
        choices=QUANT_MODES,
        default=QUANT_MODES[0],
        help="8-bit activations (narrower ones are asymmetric, weights symmetric)",
    )
    group.add_argument(
        "--channel_wise",
        nargs="?",
        type=_parse_boolean,
        const=True,
        default=True,
        metavar="BOOL",
        help="a weight scale per channel",
    )
    group.add_argument(
        "--act_range_momentum",
        type=float,
        default=0.99,
        help="momentum of the activations' ranges; -1 for the widest seen",
    )
    group.add_argument(
        "--act_percentile", type=float, default=0.0, help="of activations within range, 0 for all"
    )
    group.add_argument(
        "--weight_percentile", type=float, default=0.0, help="of weights within range, 0 for all"
    )
    group.add_argument("--bias_bit", type=int, default=32, help="width of biases; 0 for float")
    group.add_argument(
        "--fixed_point_quantization",
        action="store_true",
        help="rescale by real factors instead of integers and shifts",
    )
    add_deployment_options(group)


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=int,
        default=TrainingSettings.epochs,
        help="passes over the training images",
    )
    group.add_argument("--start_epoch", type=int, default=0, help="begin the schedule there")
    group.add_argument(
        "--lr",
        "--learning_rate",
        type=float,
        default=TrainingSettings.learning_rate,
        help="learning rate",
    )
    group.add_argument("--momentum", type=float, default=TrainingSettings.momentum, help="of SGD")
    group.add_argument(
        "--wd",
        "--weight_decay",
        type=float,
        default=TrainingSettings.weight_decay,
        help="weight decay",
    )
    group.add_argument("--fix_BN", action="store_true", help="keep the batch norms' statistics")
    group.add_argument(
        "--fix_BN_threshold", type=int, metavar="STEP", help="keep them from this step on"
    )
    group.add_argument(
        "--re_estimate_BN",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="estimate the batch norms' statistics anew at the end, and keep them where that is "
        "better; not with --fix_BN",
    )
    group.add_argument(
        "--checkpoint_iter",
        type=int,
        default=-1,
        metavar="STEPS",
        help="write a checkpoint every so many steps too; -1 for once per evaluation",
    )
    group.add_argument(
        "--evaluate_times", type=int, default=-1, help="evaluations per epoch; -1 for one"
    )
    group.add_argument("-p", "--print_freq", type=int, default=100, help="steps between two lines")
    group.add_argument("--amp", action="store_true", help="train in bfloat16 where that works")
    group.add_argument("--compile", action="store_true", help="train through torch.compile")
    group.add_argument("--tensorboard", action="store_true", help="write scalars for TensorBoard")


def _add_distillation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--distill_method",
        choices=DISTILLATIONS,
        default=NO_TEACHER,
        help="teacher; it sees the images at its own size and with its own normalisation",
    )
    group.add_argument("--teacher_arch", default="resnet101", metavar="NAME", help="its network")
    group.add_argument(
        "--teacher_path", type=Path, help="its checkpoint (else the library's own weights)"
    )
    group.add_argument(
        "--distill_alpha",
        type=float,
        default=TrainingSettings.distill_alpha,
        help="its share of the loss",
    )
    group.add_argument(
        "--temperature", type=float, default=TrainingSettings.temperature, help="of both softmaxes"
    )


def _add_distributed_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processes (torchrun needs none of these)")
    group.add_argument(
        "--multiprocessing_distributed",
        action="store_true",
        help="start one process per GPU of this machine (two on the CPU)",
    )
    group.add_argument("--world_size", type=int, default=1, help="number of machines")
    group.add_argument("--rank", type=int, default=0, help="number of this machine")
    group.add_argument("--dist_url", help="tcp://HOST:PORT of machine 0")
    group.add_argument("--dist_backend", choices=PROCESS_BACKENDS, help="default: by device")
    group.add_argument("--gpu", type=int, help="use this GPU, like --device cuda:N")
    group.add_argument(
        "--apex", action="store_true", help="average gradients by NVIDIA Apex instead of PyTorch"
    )


def _parse_boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def list_unused_options(arguments: argparse.Namespace) -> list[str]:
    """Return notes on options that were given and do nothing.

    Args:
        arguments: Arguments of `build_parser`.
    """
    idle: dict[str, tuple[str, ...]] = {}
    if arguments.distill_method == NO_TEACHER:
        of_teacher = ("teacher_arch", "distill_alpha", "temperature")
        idle["without `distill_method` KD_naive there is no teacher for"] = of_teacher
    if arguments.quantizer == LEARNED:
        idle["`quantizer` lsq learns step sizes, without"] = ("weight_percentile",)
    notes = []
    for told, names in idle.items():
        given = [n for n in names if getattr(arguments, n) != arguments.parser.get_default(n)]
        notes += [f"{told} {', '.join(f'`{name}`' for name in given)}"] if given else []
    return notes


def read_settings(arguments: argparse.Namespace) -> TrainingSettings:
    """Return the settings of the fine-tuning that the command line asks for.

    Raises:
        OmpqError: A setting is out of range, or a teacher's weights are given and no teacher.
    """
    if arguments.teacher_path is not None and arguments.distill_method == NO_TEACHER:
        raise OmpqError("`teacher_path` goes with `distill_method` KD_naive")
    threshold = 0 if arguments.fix_BN else None
    return TrainingSettings(
        epochs=arguments.epochs,
        learning_rate=arguments.lr,
        momentum=arguments.momentum,
        weight_decay=arguments.wd,
        fix_norms=threshold if arguments.fix_BN_threshold is None else arguments.fix_BN_threshold,
        re_estimate_norms=arguments.re_estimate_BN,
        distill_alpha=arguments.distill_alpha,
        temperature=arguments.temperature,
        evaluations=1 if arguments.evaluate_times == -1 else arguments.evaluate_times,
        checkpoint_steps=0 if arguments.checkpoint_iter == -1 else arguments.checkpoint_iter,
        print_steps=arguments.print_freq,
        amp=arguments.amp,
        compile=arguments.compile,
        apex=arguments.apex,
    )


def read_conversion_settings(arguments: argparse.Namespace) -> ConversionSettings:
    """Return the settings of the conversion to integers that the command line asks for."""
    rule = RangeRule(
        per_channel=arguments.channel_wise,
        weight_percentile=arguments.weight_percentile,
        act_percentile=arguments.act_percentile,
        act_range_momentum=arguments.act_range_momentum,
        asymmetric=arguments.quant_mode == ASYMMETRIC,
    )
    return ConversionSettings(
        rule=rule,
        bias_bits=arguments.bias_bit,
        dyadic=not arguments.fixed_point_quantization,
        learned=arguments.quantizer == LEARNED,
        quantize_sums=arguments.quantize_sums,
    )


def read_requested_target(arguments: argparse.Namespace) -> Target | None:
    """Read the target that the command line names; None without one.

    Raises:
        OmpqError: The file is no target, or another option contradicts it.
    """
    return read_matching_target(
        arguments.target, per_channel=arguments.channel_wise, act_bits=arguments.act_bits
    )


def check_process_options(arguments: argparse.Namespace) -> None:
    """Refuse options that say how processes are started, where none is to be started.

    Raises:
        OmpqError: Names the options.
    """
    if arguments.multiprocessing_distributed:
        return
    given = {
        "--world_size": arguments.world_size != 1,
        "--rank": arguments.rank != 0,
        "--dist_url": arguments.dist_url is not None,
    }
    unused = [option for option, told in given.items() if told]
    if unused:
        raise OmpqError(
            f"{', '.join(unused)}: only with --multiprocessing_distributed; torchrun takes these "
            "itself"
        )


def torchrun_command(
    arguments: argparse.Namespace, processes: int, command_line: Sequence[str]
) -> list[str]:
    """Return the command that starts this script on several processes by torchrun.

    Args:
        arguments: Arguments of `build_parser`.
        processes: Number of processes on this machine.
        command_line: Path of the script, and what it is given.

    Raises:
        OmpqError: There are several machines, and no address of the first or one that is none.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    if arguments.dist_url is None:
        if arguments.world_size > 1:
            raise OmpqError("--world_size above 1 needs --dist_url tcp://HOST:PORT of machine 0")
        command.append("--standalone")
    else:
        host, _, port = arguments.dist_url.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdecimal():
            raise OmpqError(f"--dist_url {arguments.dist_url}: write it tcp://HOST:PORT")
        command += [f"--nnodes={arguments.world_size}", f"--node_rank={arguments.rank}"]
        command += [f"--master_addr={host}", f"--master_port={port}"]
    return [*command, *command_line]
