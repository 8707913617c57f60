#!/usr/bin/env bash
# The ablation of ZegCLIP on the toy world: five rows, three seeds each, then the table of mean and spread, and an
# analysis of what the rows know and of the offset of seen classes.
#   experiments/zegclip/toy_ablation/run.sh [FOLDER OF THE RUNS]      from the root of the repository
# SPLIT (zero_shot_few_seen), STEPS (4000), SEEDS ("0 1 2"), ROWS (all five), TABLES (docs/zegclip), OVSL (ovsl) and
# PYTHON (python) can be set. What is finished is not run again.
set -euo pipefail
here=experiments/zegclip/toy_ablation
split=${SPLIT:-zero_shot_few_seen}
runs=${1:-runs/toy_ablation/$split}
tables=${TABLES:-docs/zegclip}
ovsl=${OVSL:-ovsl}
for seed in ${SEEDS:-0 1 2}; do
  for row in ${ROWS:-0_baseline_tuned 1_baseline 2_prompts 3_loss 4_descriptor}; do
    run=$runs/$row-seed$seed
    [ -f "$run/results/test-toy.json" ] && continue
    echo "== $row, seed $seed"
    $ovsl fit -c configs/methods/zegclip.yaml -c configs/data/toy.yaml -c configs/trainer/cpu.yaml -c "$here/$row.yaml" \
      --seed_everything "$seed" --data.seed "$seed" --run_dir "$run" \
      --data.split "$split" --data.evaluation.toy.split "$split" \
      --data.batch_size 8 --data.train_transform.crop_size 96 --trainer.max_steps "${STEPS:-4000}" --trainer.limit_val_batches 0
    $ovsl test -c "$run/config.yaml" --run_dir "$run"
  done
done
$ovsl report "$runs" --stage test --average_seeds true --format markdown --output "${tables}_ablation.md"
cat "${tables}_ablation.md"
${PYTHON:-python} "$here/analysis.py" "$runs" | tee "${tables}_analysis.md"
