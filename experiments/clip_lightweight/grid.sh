#!/usr/bin/env bash
# The grid of CLIP-lightweight: {plain FPN, LSeg-like, DenseCLIP-like, bridge none / v2t / t2v / both} x backbones, with
# the same schedule for all, then one table of mean and standard deviation over seeds, docs/light_grid_WORLD.md.
#   experiments/clip_lightweight/grid.sh toy|camvid|ade20k [FOLDER OF THE RUNS]      from the root of the repository
# BACKBONES, VARIANTS, SEEDS, STEPS and OVSL can be set. What is finished is not run again. As a SLURM array, one cell per
# task: sbatch --array=0-20 --wrap "experiments/clip_lightweight/grid.sh ade20k"; the table afterwards with REPORT=only.
set -euo pipefail
world=${1:?toy, camvid or ade20k}
runs=${2:-runs/clip_lightweight/$world}
here=experiments/clip_lightweight
ovsl=${OVSL:-ovsl}
variants=${VARIANTS:-fpn lseg denseclip bridge_none bridge_v2t bridge_t2v bridge_both}
backbones=${BACKBONES:-mobilenetv2 resnet18 resnet50}
short=(--trainer.limit_val_batches 0 --trainer.max_steps)
case $world in
  toy)
    classes=31 seeds=${SEEDS:-0 1 2} steps=("${short[@]}" "${STEPS:-250}")
    stack="-c configs/data/toy.yaml -c configs/trainer/cpu.yaml -c $here/toy.yaml" ;;
  camvid)
    classes=11 seeds=${SEEDS:-0} steps=("${short[@]}" "${STEPS:-150}")
    stack="-c configs/trainer/cpu.yaml -c $here/camvid.yaml" ;;
  ade20k)
    classes=150 seeds=${SEEDS:-0} steps=(${STEPS:+--trainer.max_steps "$STEPS"})
    stack="-c $here/ade20k.yaml" ;;
  *) echo "There is no world '$world'; choose toy, camvid or ade20k." >&2; exit 2 ;;
esac
number=0
if [ "${REPORT:-}" != only ]; then
  for seed in $seeds; do
    for backbone in $backbones; do
      for variant in $variants; do
        mine=$number number=$((number + 1))
        [ "${SLURM_ARRAY_TASK_ID:-$mine}" = "$mine" ] || continue
        run=$runs/$backbone-$variant-seed$seed
        compgen -G "$run/results/test-*.json" >/dev/null && continue
        echo "== $backbone, $variant, seed $seed"
        closed=()
        [ "$variant" = fpn ] && closed=(--model.num_classes "$classes")
        $ovsl fit $stack -c "$here/backbones/$backbone.yaml" -c "$here/variants/$variant.yaml" "${closed[@]}" \
          --seed_everything "$seed" --data.seed "$seed" --run_dir "$run" "${steps[@]}"
        $ovsl test -c "$run/config.yaml" --run_dir "$run"
      done
    done
  done
fi
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] && exit
$ovsl report "$runs" --stage test --average_seeds true --format markdown --output "docs/light_grid_$world.md"
cat "docs/light_grid_$world.md"
