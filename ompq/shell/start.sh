# Sourced by the run scripts: starts a script with their settings and the user's arguments. Later
# arguments win, so every setting can be overridden. PYTHON names the interpreter, and NPROC starts
# that many ranks of a script that shares its work.

given() { # given "OPTION OPTION…" ARGUMENTS…: whether one of the options is among the arguments
    local options=" $1 " argument
    shift
    for argument in "$@"; do
        case "$options" in *" ${argument%%=*} "*) return 0 ;; esac
    done
    return 1
}

# start SCRIPT SETTINGS… -- ARGUMENTS…
# The base model and the data set come from --path and --save_path (or --data_path, --data), or from
# the variables OMPQ_BASE_MODEL and OMPQ_DATA.
start() {
    local script="$1" settings=()
    shift
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    if ! given "--path --pretrained" "$@"; then
        if [ -z "${OMPQ_BASE_MODEL:-}" ]; then
            echo "error: no base model; give --path FILE (or --pretrained), or set OMPQ_BASE_MODEL" >&2
            exit 2
        fi
        settings+=(--path "$OMPQ_BASE_MODEL")
    fi
    if ! given "--save_path --data_path --data --calibration_data --dataset" "$@"; then
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
    exec "${launcher[@]}" "$script" "${settings[@]}" "$@"
}
