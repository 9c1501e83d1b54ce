#!/bin/sh
# An adapter that gives the model a name: trained beside frozen weights, compared with full tuning in
# memory, merged with proof, and asked for its name, merged and not.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/02-lora-merge-chat
config=$recipe/sft.yaml
output=$recipe/output
question="What name do you go by?"

say() { printf '\n== %s\n' "$*"; }
peak() { sed -n 's/.*"peak_memory_bytes": \([0-9]*\).*/\1/p' "$1/timing.jsonl" | sort -n | tail -n 1; }
trained() { sed -n 's/.*, trained \([0-9,]*\) .*/\1/p' "$1/report.md" | tr -d ,; }
ask() { erniekit generate "$1" --prompt "$question" temperature=0 max_new_tokens=32 >"$output/$2.txt"; }

rm -rf "$output"
mkdir -p "$output"

say "the model, and who it says it is"
erniekit models get starter
ask starter before
cat "$output/before.txt"

say "the conversations, trained parts in [[ ]]"
erniekit data preview "$config"

say "the adapter"
erniekit train "$config"

say "full tuning for four steps, to compare memory"
erniekit train "$config" fine_tuning=Full learning_rate=5e-5 max_steps=4 evaluation_strategy=no \
    save_strategy=no output_dir="$output/full"
du -sh "$output/lora/checkpoint-48" "$output/full/checkpoint-4"
rm -r "$output/full/checkpoint-4"
awk -v lora="$(peak "$output/lora")" -v full="$(peak "$output/full")" \
    -v few="$(trained "$output/lora")" -v all="$(trained "$output/full")" \
    'BEGIN { printf "{\"lora_peak_gb\": %.3f, \"full_peak_gb\": %.3f, \"memory_ratio\": %.3f, ", \
                    lora / 1e9, full / 1e9, lora / full
             printf "\"trained\": %d, \"trained_of_full\": %d, \"trained_ratio\": %.4f}\n", few, all, few / all }' \
    >"$output/compared.json"
cat "$output/compared.json"

say "merged: read back, and its logits compared with those of the model and the adapter beside it"
erniekit export "$config" export_dir="$output/merged" >"$output/merged.txt"
cat "$output/merged.txt"
sed -n 's/.*texts \([0-9.e-]*\) (largest logit \([0-9.e-]*\)), .* at \([0-9]*\) of \([0-9]*\) .*/\1 \2 \3 \4/p' "$output/merged.txt" |
    awk '{ printf "{\"relative_difference\": %.3g, \"places_with_another_token\": %d}\n", $1 / $2, $4 - $3 }' \
        >"$output/proof.json"
cat "$output/proof.json"

say "who it is now: the adapter beside the model, and the merged model"
ask "$output/lora" unmerged
ask "$output/merged" answer
cat "$output/unmerged.txt" "$output/answer.txt"
cmp "$output/unmerged.txt" "$output/answer.txt"

say "the adapter alone, for peft and for PaddleFormers"
erniekit export "$config" export_layout=hf merge_adapter=false export_dir="$output/adapter-peft"
erniekit export "$config" export_layout=paddle merge_adapter=false export_dir="$output/adapter-paddle"

say "what this recipe promises"
erniekit recipes check "$recipe"
