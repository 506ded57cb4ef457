"""The command line of `quant_train.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ompq.options import (
    Parser,
    add_configuration_choice,
    add_data_options,
    add_network_options,
    add_run_options,
)
from QAT.settings import TrainingSettings

DISTILLATIONS = ("None", "KD_naive")
QUANTIZERS = ("hawq", "lsq")


def build_parser() -> argparse.ArgumentParser:
    """All options of the script."""
    parser = Parser(prog="quant_train.py", description=__doc__)
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
        nargs="?",
        const="",
        metavar="FILE",
        help="go on with a killed run from its checkpoint (default: the last one of --save_path); "
        "a file of float weights is started from, like --path",
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
        list_help='a list such as "[4, 8]", a bit_config.json, or a HAWQ dictionary (literal or '
        "JSON)",
        scheme_help="a published scheme or uniformN (default uniform8)",
    )
    group.add_argument("--act_bits", type=int, help="activation bits (default: the scheme's own)")
    group.add_argument(
        "--quantizer",
        choices=QUANTIZERS,
        default="hawq",
        help="steps that follow ranges, or learned ones (LSQ)",
    )
    group.add_argument(
        "--init_from", type=Path, metavar="DIR", help="start from the network that PTQ wrote there"
    )
    group.add_argument(
        "--quant_mode",
        choices=("symmetric", "asymmetric"),
        default="symmetric",
        help="8-bit activations (narrower ones are asymmetric, weights symmetric)",
    )
    group.add_argument(
        "--channel_wise",
        nargs="?",
        type=_truth,
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


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=90, help="passes over the training images")
    group.add_argument("--start_epoch", type=int, default=0, help="begin the schedule there")
    group.add_argument("--lr", "--learning_rate", type=float, default=1e-4, help="learning rate")
    group.add_argument("--momentum", type=float, default=0.9, help="of SGD")
    group.add_argument("--wd", "--weight_decay", type=float, default=1e-4, help="weight decay")
    group.add_argument("--fix_BN", action="store_true", help="keep the batch norms' statistics")
    group.add_argument(
        "--fix_BN_threshold", type=int, metavar="STEP", help="keep them from this step on"
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
    group.add_argument("--distill_method", choices=DISTILLATIONS, default="None", help="teacher")
    group.add_argument("--teacher_arch", default="resnet101", metavar="NAME", help="its network")
    group.add_argument(
        "--teacher_path", type=Path, help="its checkpoint (else the library's own weights)"
    )
    group.add_argument("--distill_alpha", type=float, default=0.95, help="its share of the loss")
    group.add_argument("--temperature", type=float, default=6.0, help="of both softmaxes")


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
    group.add_argument("--dist_backend", choices=("nccl", "gloo"), help="default: by device")
    group.add_argument("--gpu", type=int, help="use this GPU, like --device cuda:N")
    group.add_argument(
        "--apex", action="store_true", help="average gradients by NVIDIA Apex instead of PyTorch"
    )


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def settings_of(arguments: argparse.Namespace) -> TrainingSettings:
    """The fine-tuning that the command line asks for."""
    threshold = 0 if arguments.fix_BN else None
    return TrainingSettings(
        epochs=arguments.epochs,
        learning_rate=arguments.lr,
        momentum=arguments.momentum,
        weight_decay=arguments.wd,
        fix_norms=threshold if arguments.fix_BN_threshold is None else arguments.fix_BN_threshold,
        distill_alpha=arguments.distill_alpha,
        temperature=arguments.temperature,
        evaluations=1 if arguments.evaluate_times == -1 else arguments.evaluate_times,
        checkpoint_steps=0 if arguments.checkpoint_iter == -1 else arguments.checkpoint_iter,
        print_steps=arguments.print_freq,
        amp=arguments.amp,
        compile=arguments.compile,
        apex=arguments.apex,
    )
