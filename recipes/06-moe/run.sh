#!/bin/sh
# A mixture of experts from a dense model: made, trained with its experts balanced, compared with the
# dense model after the same tokens, exported and asked.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/06-moe
config=$recipe/sft.yaml
output=$recipe/output
experts=experts=8,top_k=2,start=4,interval=5
question="What is the capital of France?"

say() { printf '\n== %s\n' "$*"; }
last_loss() { sed -n 's/.*"eval_loss": \([0-9.]*\).*/\1/p' "$1/train_log.jsonl" | tail -n 1; }

rm -rf "$output"
mkdir -p "$output"

say "the dense model"
erniekit models get starter

say "a mixture of experts that computes the same"
erniekit convert starter "$output/experts" --upcycle "$experts"
erniekit models show "$output/experts"

say "before: held-out loss, and what the routers do"
erniekit eval "$config" --base
erniekit eval "$config" --base --json >"$output/before.json"

say "training: watch the largest load fall"
erniekit train "$config"

say "after"
erniekit eval "$config"
erniekit eval "$config" --json >"$output/after.json"

say "the dense model on the same tokens"
erniekit train "$config" model_name_or_path=starter output_dir="$output/dense"
awk -v moe="$(last_loss "$output/run")" -v dense="$(last_loss "$output/dense")" \
    'BEGIN { printf "{\"dense\": %s, \"experts\": %s, \"difference\": %.6f}\n", dense, moe, moe - dense }' \
    >"$output/compared.json"
cat "$output/compared.json"

say "export, read back and compared; and an answer of the exported model"
erniekit export "$config" export_layout=hf export_dir="$output/export"
erniekit generate "$output/export" --prompt "$question" temperature=0 max_new_tokens=32 >"$output/answer.txt"
cat "$output/answer.txt"

say "what this recipe promises"
erniekit recipes check "$recipe"
