#!/bin/sh
# Makes the demo model from nothing on a CPU, one process per core, in four runs of which each begins with what the one before it
# ended with; the learning rate falls to nothing in each.  Stopped, it goes on where it was when it is called again.
set -e
cd "$(dirname "$0")"

# run N ARGUMENT...: the Nth run; its state and checkpoint in state/N, its log in log-N.json
run() {
    n=$1
    shift
    torchrun --nproc_per_node "${PROCESSES:-2}" train.py --state "state/$n" --out "state/$n/model" --history "log-$n.json" "$@"
}

run 1 --canvases 620000
run 2 --canvases 300000 --weights state/1/model --seed 2 --blend 0.8
run 3 --canvases 110000 --weights state/2/model --seed 3 --lr 0.006 --alr 1e-3 --decay 0.9 --blend 0.7
run 4 --canvases 40000 --weights state/3/model --seed 4 --lr 0.004 --alr 7e-4 --decay 1 --blend 0.5 --rest state/2/model
mkdir -p ../models/demo
for file in config.json generation_config.json tokenizer.json tokenizer_config.json chat_template.jinja model.safetensors; do
    cp "state/4/model/$file" ../models/demo/
done
