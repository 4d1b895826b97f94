#!/usr/bin/env bash
# Everything worth knowing of this version on one GPU, in at most 8 minutes and without a network: see usage below.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 2

usage() {
    cat <<'END'
Checks the package on a GPU and prints one table: versions, the tests marked gpu, the rows of scripts/benchmark.py with
the share of time in which the card is busy, trainings with the presets base and paper, and a short run on real cells.

  bash scripts/gpu_check.sh [--python PYTHON] [--wheels DIR] [--kang FILE.h5ad] [--out DIR] [--dry]

  --python PYTHON   an interpreter with torch for CUDA [.venv/bin/python, else python3]
  --wheels DIR      first install the package and what it lacks from these wheels, without a network
  --kang FILE.h5ad  cells of Kang et al. (2018) for the real run [../shared/data/kang_ifnb.h5ad]
  --out DIR         logs, numbers and the table [runs/gpu_check]
  --dry             the same parts in toy size on the CPU, to see that this script runs

Every part has its own time limit and says when it ends. A part that fails or runs out of time stops no other; the
script then ends with 1.
END
}

python='' wheels='' kang=$root/../shared/data/kang_ifnb.h5ad out=runs/gpu_check dry=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit ;;
        --dry) dry=yes; shift ;;
        --python | --wheels | --kang | --out)
            [ $# -gt 1 ] || { echo "error: $1 needs a value." >&2; exit 2; }
            printf -v "${1#--}" %s "$2"; shift 2 ;;
        *) echo "error: there is no option '$1'; all options: bash scripts/gpu_check.sh --help" >&2; exit 2 ;;
    esac
done
if [ -z "$python" ]; then python=$root/.venv/bin/python; [ -x "$python" ] || python=python3; fi
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
rm -rf "${out:?}"/*.log "$out"/*.json "$out/parts.tsv" "$out/cells.h5ad" "$out"/{dataset,base,paper,real,rows}
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
device=cuda
if [ -n "$dry" ]; then
    device=cpu
    export CUDA_VISIBLE_DEVICES='' EVAE_TESTS_DEVICE=cpu OMP_WAIT_POLICY=PASSIVE
fi
failed=0

# part NAME SECONDS COMMAND...: runs within the limit, into NAME.log; what went wrong is shown and remembered
part() {
    local name=$1 limit=$2 started=$SECONDS code=0 how=ok
    shift 2
    [ -z "$dry" ] || limit=$((limit * 12)) # a CPU takes longer, and one that others use longer still
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
    case $code in
        0) ;;
        124 | 137) how="stopped after $limit s" ;;
        *) how="FAILED with $code" ;;
    esac
    printf '%-22s %s, %d s\n' "$name" "$how" $((SECONDS - started))
    printf '%s\t%s\t%d\n' "$name" "$how" $((SECONDS - started)) >>"$out/parts.tsv"
    if [ $code != 0 ]; then
        failed=1
        tail -n 12 "$out/$name.log" | sed 's/^/    /'
    fi
    return $code
}

if [ -n "$wheels" ]; then
    part wheels 90 "$python" -m pip install --no-index --find-links "$wheels" "$root"
fi
part versions 30 "$python" -c "
import platform, sys, torch, transformers, evae
print('python', platform.python_version(), '| torch', torch.__version__, '| transformers', transformers.__version__)
print('CUDA', torch.version.cuda, '|', torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')
sys.exit('no GPU is seen' if '$device' == 'cuda' and not torch.cuda.is_available() else 0)"
part tests 110 "$python" -m pytest -q -n 0 -p no:cacheprovider -m gpu -rs tests/gpu
if [ -z "$dry" ] && grep -q SKIPPED "$out/tests.log"; then
    printf 'skipped\tFAILED: tests were skipped\t0\n' >>"$out/parts.tsv"
    grep SKIPPED "$out/tests.log"
    failed=1
fi
part operations 60 "$python" scripts/benchmark.py --operations --device "$device" ${dry:+--quick} \
    --rows train_prior,encode --out "$out/rows/operations"
for row in train_tokenizer train_prior encode sample diffuse generate; do
    part "$row" 35 "$python" scripts/benchmark.py --rows "$row" --repeats 2 --device "$device" ${dry:+--quick} \
        --out "$out/rows/$row"
done

sample=()
steps=(max_steps=200 log_every=50 eval_every=200 save_every=200 eval_cells=200)
if [ -n "$dry" ]; then
    steps=(max_steps=2 log_every=1 eval_every=2 save_every=2 batch_size=4 eval_cells=8)
    sample=(calibration_cells=16)
fi
cells=(simulate "$out/cells.h5ad" --seed 0)
dataset=(prepare "$out/cells.h5ad" --perturbation-key perturbation --cell-type-key cell_type --control control --split auto
    --genes auto --out "$out/dataset")
if part cells 25 "$python" -m evae.cli "${cells[@]}" && part dataset 25 "$python" -m evae.cli "${dataset[@]}"; then
    for preset in base paper; do
        part "${preset}_tokenizer" 40 "$python" -m evae.cli train tokenizer --config $preset "dataset=$out/dataset" \
            "output_dir=$out/$preset/tokenizer" "${steps[@]}" ${sample[@]+"${sample[@]}"} &&
            part "${preset}_prior" 40 "$python" -m evae.cli train prior --config $preset "dataset=$out/dataset" \
                "tokenizer=$out/$preset/tokenizer" "output_dir=$out/$preset/prior" "${steps[@]}"
    done
fi
if [ -f "$kang" ]; then
    cat >"$out/evae" <<END
#!/usr/bin/env bash
exec "$python" -m evae.cli "\$@"
END
    chmod +x "$out/evae"
    short=(--tokenizer max_steps=400 --prior max_steps=200)
    [ -z "$dry" ] || short=(--preset tiny --genes hvg:50 --tokenizer max_steps=4 --tokenizer batch_size=8 --prior max_steps=4)
    EVAE=$out/evae part real_run 100 bash scripts/demo.sh --data "$kang" --perturbation-key perturbation --cell-type-key cell_type \
        --control ctrl --hold-out-cell-type 'CD14 Mono' --out "$out/real" "${short[@]}"
else
    printf 'real_run\tnot run: no file %s\t0\n' "$kang" >>"$out/parts.tsv"
fi
"$python" scripts/gpu_check_table.py "$out" | tee "$out/table.md" || failed=1
exit $failed
