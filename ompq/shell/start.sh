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

# Names of the option that gives the data set's folder, the first one preferred.
data_options="--save_path --data_path --data"

# start SCRIPT SETTINGS… -- ARGUMENTS…
# The base model and the data set come from --path and the first of $data_options, or from the
# variables OMPQ_BASE_MODEL and OMPQ_DATA.
start() {
    local script="$1" settings=()
    shift
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    if ! given "--path --pretrained --evaluate --init_from" "$@"; then
        if [ -z "${OMPQ_BASE_MODEL:-}" ]; then
            echo "error: no base model; give --path FILE (or --pretrained), or set OMPQ_BASE_MODEL" >&2
            exit 2
        fi
        settings+=(--path "$OMPQ_BASE_MODEL")
    fi
    if ! given "$data_options --calibration_data --dataset --evaluate" "$@"; then
        if [ -z "${OMPQ_DATA:-}" ]; then
            echo "error: no data set; give ${data_options%% *} FOLDER (with train/), or set OMPQ_DATA" >&2
            exit 2
        fi
        settings+=("${data_options%% *}" "$OMPQ_DATA")
    fi
    local launcher=("${PYTHON:-python3}")
    if [ "${NPROC:-1}" != 1 ]; then
        launcher+=(-m torch.distributed.run --standalone --nproc_per_node="$NPROC")
    fi
    exec "${launcher[@]}" "$script" "${settings[@]}" "$@"
}
