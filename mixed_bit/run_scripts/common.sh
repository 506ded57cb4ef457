# Sourced by the run scripts: starts feature_extract.py with their settings and the user's arguments.
# The base model and the data set come from --path and --save_path, or from the variables
# OMPQ_BASE_MODEL and OMPQ_DATA. Later arguments win, so every setting can be overridden. NPROC
# starts that many ranks, PYTHON names the interpreter.

here="$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

given() { # given OPTION ARGUMENTS…: whether the option is among the arguments
    local option="$1" argument
    shift
    for argument in "$@"; do
        case "$argument" in "$option" | "$option"=*) return 0 ;; esac
    done
    return 1
}

search() { # search SETTINGS… -- ARGUMENTS…
    local settings=()
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    if ! given --path "$@" && ! given --pretrained "$@"; then
        if [ -z "${OMPQ_BASE_MODEL:-}" ]; then
            echo "error: no base model; give --path FILE (or --pretrained), or set OMPQ_BASE_MODEL" >&2
            exit 2
        fi
        settings+=(--path "$OMPQ_BASE_MODEL")
    fi
    if ! given --save_path "$@" && ! given --data_path "$@" && ! given --data "$@" &&
        ! given --calibration_data "$@" && ! given --dataset "$@"; then
        if [ -z "${OMPQ_DATA:-}" ]; then
            echo "error: no data set; give --save_path FOLDER (with train/), or set OMPQ_DATA" >&2
            exit 2
        fi
        settings+=(--save_path "$OMPQ_DATA")
    fi
    local launcher=("${PYTHON:-python3}")
    if [ "${NPROC:-1}" != 1 ]; then
        launcher+=(-m torch.distributed.run --standalone --nproc_per_node="$NPROC")
    fi
    exec "${launcher[@]}" "$here/../feature_extract.py" "${settings[@]}" "$@"
}
