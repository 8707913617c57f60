#!/usr/bin/env bash
# Every method on the toy world, three seeds each, then one table of mean and standard deviation.
#   experiments/toy/run.sh [FOLDER OF THE RUNS]      from the root of the repository
# METHODS, SEEDS ("0 1 2"), STEPS (400) and OVSL (ovsl) can be set. What is finished is not run again.
set -euo pipefail
runs=${1:-runs/toy}
ovsl=${OVSL:-ovsl}
toy="-c configs/data/toy.yaml -c configs/trainer/cpu.yaml"
for method in maskclip sclip naclip clearclip proxyclip corrclip; do # nothing is trained, so there are no seeds
  [ -f "$runs/$method/results/test-toy.json" ] || $ovsl test -c configs/methods/$method.yaml $toy --run_dir "$runs/$method"
done
for seed in ${SEEDS:-0 1 2}; do
  for method in ${METHODS:-patch_text zegclip san fc_clip}; do
    run=$runs/$method-seed$seed
    [ -f "$run/results/test-toy.json" ] && continue
    echo "== $method, seed $seed"
    recipe=(--trainer.max_steps "${STEPS:-400}")
    # ZegCLIP learns its decoder from scratch, class by class: more and cheaper steps, as in its ablation.
    [ "$method" = zegclip ] && recipe=(--trainer.max_steps 2000 --data.batch_size 8 --data.train_transform.crop_size 96)
    $ovsl fit -c configs/methods/$method.yaml $toy --seed_everything "$seed" --data.seed "$seed" \
      --run_dir "$run" "${recipe[@]}" --trainer.limit_val_batches 0
    $ovsl test -c "$run/config.yaml" --run_dir "$run"
  done
done
$ovsl report "$runs" --stage test --average_seeds true --format markdown --output docs/toy_table.md
cat docs/toy_table.md
