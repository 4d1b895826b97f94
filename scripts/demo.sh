#!/usr/bin/env bash
# The whole way on a small scale, from a fresh checkout: sets up .venv if need be, then runs six `evae` commands.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
    cat <<'END'
The whole way on a small scale: cells, dataset, tokenizer, prior, held-out predictions, numbers and plots.

  bash scripts/demo.sh                       simulated cells, at most 10 minutes on 2 cores
  bash scripts/demo.sh --data FILE.h5ad --perturbation-key KEY --cell-type-key KEY --control LABEL

  --data FILE.h5ad               your raw counts; simulated cells if left out
  --perturbation-key KEY         obs column that names the perturbation [perturbation]
  --cell-type-key KEY            obs column that names the cell type, line or batch [cell_type]
  --control LABEL                label of unperturbed cells [control]
  --split FILE.json              what to hold out; what suits the data if left out
  --hold-out-cell-type NAME      instead: the held-out cell type
  --hold-out-perturbations A,B   instead: its held-out perturbations
  --genes GENES                  all, hvg:N, a panel file or auto: at most 1,000 [auto]
  --layer NAME                   layer of raw counts [X]
  --out DIR                      folder of everything the demo makes [runs/demo]
  --preset NAME                  of both trainings [tiny; small with --data]
  --tokenizer KEY=VALUE          setting of the tokenizer's training; may be repeated
  --prior KEY=VALUE              setting of the prior's training; may be repeated
  --seed N                       of everything random [0]
  --overwrite                    start anew, deleting the demo in DIR

A stopped demo goes on when the same command is given again. Relative paths count from where it is called.
EVAE names another `evae` command than that of .venv, which then is not set up.
END
}

refuse() {
    echo "error: $1" >&2
    exit 2
}

data='' perturbation_key=perturbation cell_type_key=cell_type control=control
split='' hold_out_cell_type='' hold_out_perturbations='' genes=auto layer=''
out=runs/demo preset='' seed=0 overwrite='' tokenizer=() prior=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit ;;
        --overwrite) overwrite=yes; shift; continue ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case $1 in
        --tokenizer | --prior | --data | --perturbation-key | --cell-type-key | --control | --split | --genes) ;;
        --hold-out-cell-type | --hold-out-perturbations | --layer | --out | --preset | --seed) ;;
        *) refuse "there is no option '$1'; all options: bash scripts/demo.sh --help" ;;
    esac
    [ $# -gt 1 ] || refuse "$1 needs a value."
    case $1 in
        --tokenizer) tokenizer+=("$2") ;;
        --prior) prior+=("$2") ;;
        *) name=${1#--}; printf -v "${name//-/_}" %s "$2" ;;
    esac
    shift 2
done
case $data in '' | /*) ;; *) data=$PWD/$data ;; esac
[ -z "$data" ] || [ -f "$data" ] || refuse "no such file: $data"
[ -n "$preset" ] || preset=$([ -n "$data" ] && echo small || echo tiny)

# The folder is this demo's, of the same data, or nobody's.
marker=$out/demo.txt
chosen=$(printf '%s\n' "data=$data" "perturbation-key=$perturbation_key" "cell-type-key=$cell_type_key" \
    "control=$control" "split=$split" "hold-out-cell-type=$hold_out_cell_type" \
    "hold-out-perturbations=$hold_out_perturbations" "genes=$genes" "layer=$layer" "seed=$seed")
if [ -f "$marker" ] && [ -n "$overwrite" ]; then
    rm -rf "$out"
elif [ -f "$marker" ]; then
    changed=$({ diff <(echo "$chosen") "$marker" || true; } | sed -n 's/^[<>] \([a-z-]*\)=.*/--\1/p' | sort -u | paste -s -d ' ' -)
    [ -z "$changed" ] || refuse "$out holds a demo with another $changed; choose another --out, or pass --overwrite."
elif [ -e "$out" ] && { [ ! -d "$out" ] || [ -n "$(ls -A "$out")" ]; }; then
    refuse "$out holds other files; choose another --out."
fi

[ -n "${EVAE:-}" ] || environment ""
evae=${EVAE:-$root/.venv/bin/evae}
mkdir -p "$out"
echo "$chosen" >"$marker"
bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
steps=$([ -n "$data" ] && echo 5 || echo 6)
number=0

child=''
stop() { # CODE: stops the command too
    [ -z "$child" ] || { kill "$child" 2>/dev/null; wait "$child"; }
    echo "stopped; the same command goes on" >&2
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM

# step TITLE MADE ARGUMENTS...: runs `evae ARGUMENTS` and shows it, unless MADE is there already
step() {
    local title=$1 made=$2 started=$SECONDS
    shift 2
    number=$((number + 1))
    printf '\n%s%d/%d  %s%s\n' "$bold" "$number" "$steps" "$title" "$plain"
    printf '$ evae'
    printf ' %q' "$@"
    printf '\n'
    if [ -n "$made" ] && [ -e "$made" ]; then
        echo "made before: $made"
        return
    fi
    "$evae" "$@" &
    child=$!
    wait "$child" || return
    echo "done in $((SECONDS - started)) s"
}

echo "evae is $evae"
if [ -z "$data" ]; then
    data=$out/simulated.h5ad
    step "Cells: a simulated Perturb-seq screen with known effects" "$data" \
        simulate "$data" --effect-size 1.5 --seed "$seed"
fi

hold_out=()
[ -z "$split" ] || hold_out+=(--split "$split")
[ -z "$hold_out_cell_type" ] || hold_out+=(--hold-out-cell-type "$hold_out_cell_type")
[ -z "$hold_out_perturbations" ] || hold_out+=(--hold-out-perturbations "$hold_out_perturbations")
[ ${#hold_out[@]} -gt 0 ] || hold_out=(--split auto)
[ -z "$layer" ] || hold_out+=(--layer "$layer")
step "Dataset folder: what is held out, gene panel, Parquet shards" "$out/dataset" \
    prepare "$data" --perturbation-key "$perturbation_key" --cell-type-key "$cell_type_key" --control "$control" \
    "${hold_out[@]}" --genes "$genes" --seed "$seed" --out "$out/dataset" || {
    code=$?
    # Refused: nothing was made that a further try could use.
    if [ $code = 2 ]; then rm -f "$marker" "$out/simulated.h5ad" && { rmdir "$out" 2>/dev/null || true; }; fi
    exit $code
}

tokenizer=(tokenizer --config "$preset" "dataset=$out/dataset" "output_dir=$out/tokenizer" "seed=$seed" resume=true
    ${tokenizer[@]+"${tokenizer[@]}"})
prior=(prior --config "$preset" "dataset=$out/dataset" "tokenizer=$out/tokenizer" "output_dir=$out/prior"
    "seed=$seed" resume=true ${prior[@]+"${prior[@]}"})

# look TRAINING...: refuses wrong settings before the first training begins
look() {
    local said code=0
    said=$("$evae" train "$@" --dry-run 2>&1) || code=$?
    [ $code != 0 ] || return 0
    grep '^error: ' <<<"$said" >&2 || echo "$said" >&2
    case $said in
        *"with other settings"*)
            echo "To train this demo with other settings, choose another --out, or start anew with --overwrite." >&2 ;;
    esac
    exit $code
}
look "${tokenizer[@]}"
look "${prior[@]}"
step "Tokenizer: learns to write a cell as a few codes" "" train "${tokenizer[@]}"
step "Prior: learns which codes follow a perturbation in a cell type" "" train "${prior[@]}"
step "Prediction of the held-out cells" "" \
    predict "$out/prior" --held-out "$out/dataset" --seed "$seed" --out "$out/predicted.h5ad" --overwrite
step "Evaluation beside baselines" "" \
    evaluate "$out/predicted.h5ad" --dataset "$out/dataset" --tokenizer "$out/tokenizer" --out "$out/evaluation" \
    --overwrite

cat <<END

How to read it: a perfect model comes near the real cells' own split half; a model that ignores the
perturbation gives the control copy; what the tokenizer alone loses, no prior can bring back.

To use the model:
  evae predict $out/prior --controls FILE.h5ad --perturbation NAME --out predicted.h5ad
END
