#!/bin/sh
# A mixture of experts over four processes: planned, trained to the losses of one process, killed, continued
# over three processes under another plan, exported and asked.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/07-parallel
config=$recipe/sft.yaml
output=$recipe/output
experts=experts=4,top_k=2,start=4,interval=8
question="What is the capital of France?"

say() { printf '\n== %s\n' "$*"; }
losses() { sed -n 's/^{"step": \([0-9]*\), .*"loss": \([0-9.]*\), .*/\1 \2/p' "$1/train_log.jsonl"; }
children() { ps -o pid= --ppid "$1"; }
is_rank() { tr '\0' '\n' <"/proc/$1/environ" 2>/dev/null | grep -qx "PADDLE_TRAINER_ID=$2"; }

rm -rf "$output"
mkdir -p "$output"

say "the model: the starter with four experts in three of its layers"
erniekit models get starter
erniekit convert starter "$output/experts" --upcycle "$experts"

say "what each of four processes will hold and send"
erniekit plan "$config" devices=4 machine=cpu
erniekit plan "$config" devices=4 machine=cpu --json >"$output/plan.json"

say "one process"
erniekit train "$config" nproc_per_node=1 pipeline_parallel_degree=1 expert_parallel_degree=1 \
    gradient_accumulation_steps=4 save_strategy=no output_dir="$output/one"
rm -r "$output/one/checkpoint-8"

say "four processes, until one of them is killed after the checkpoint of step 4"
erniekit train "$config" >"$output/killed.txt" 2>&1 &
run=$!
until [ -f "$output/run/latest" ]; do
    kill -0 "$run" || { cat "$output/killed.txt"; exit 1; }
    sleep 0.2
done
ranks=$(children "$run")
for process in $ranks; do
    if is_rank "$process" 3; then kill -9 "$process"; fi
done
code=0
wait "$run" || code=$?
left=0
for process in $ranks; do
    if kill -0 "$process" 2>/dev/null; then left=$((left + 1)); fi
done
grep -v '│' "$output/killed.txt"
echo "{\"exit code\": $code, \"processes left\": $left}" >"$output/killed.json"
cat "$output/killed.json"

say "the rest over three processes that share every matrix"
erniekit train "$config" nproc_per_node=3 tensor_parallel_degree=3 pipeline_parallel_degree=1 \
    expert_parallel_degree=1 moe_group=dummy gradient_accumulation_steps=4 >"$output/continued.txt" 2>&1 ||
    { cat "$output/continued.txt"; exit 1; }
grep -v '│' "$output/continued.txt"

say "losses of one process, and of four (to step 4) and three"
losses "$output/one" >"$output/one.txt"
losses "$output/run" | paste -d ' ' "$output/one.txt" - | awk '
    { printf "step %d: %.7f %.7f\n", $1, $2, $4 >"/dev/stderr"
      difference = $2 > $4 ? $2 / $4 - 1 : $4 / $2 - 1
      if (difference > largest[$1 > 4]) largest[$1 > 4] = difference
      if ($1 == $3) steps++ }
    END { printf "{\"steps\": %d, \"difference of four processes\": %.9f, ", steps, largest[0]
          printf "\"difference of three\": %.9f}\n", largest[1] }' >"$output/compared.json"
cat "$output/compared.json"

say "export, read back and compared; and an answer"
erniekit export "$config" export_layout=hf export_dir="$output/export"
erniekit chat "$output/export" --prompt "$question" temperature=0 max_new_tokens=32 >"$output/answer.txt"
cat "$output/answer.txt"

say "what this recipe promises"
erniekit recipes check "$recipe"
