#!/bin/sh
# Fine-tuning with everything around it, and a proof that a killed run loses nothing: the same run
# once in one go and once killed without warning and continued, compared byte for byte.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/01-sft
config=$recipe/sft.yaml
output=$recipe/output

say() { printf '\n== %s\n' "$*"; }

rm -rf "$output"
mkdir -p "$output"

say "the model"
erniekit models get starter

say "what will be trained on"
erniekit data preview "$config"

say "the run"
erniekit train "$config"

say "the same run, killed (kill -9) after its first checkpoint"
erniekit train "$config" output_dir="$output/killed" >"$output/killed.log" 2>&1 &
training=$!
# The pointer to the latest checkpoint appears once a checkpoint is complete.
while [ ! -e "$output/killed/latest" ]; do
    kill -0 "$training" 2>/dev/null || { cat "$output/killed.log"; exit 1; }
    sleep 0.2
done
kill -9 "$training"
wait "$training" 2>/dev/null || true
echo "killed; its latest checkpoint is $(cat "$output/killed/latest")"

say "started again with the same command, it continues"
erniekit train "$config" output_dir="$output/killed"

say "both runs ended with the same bytes"
last=$(cat "$output/run/latest")
for file in "$last/model.safetensors" "$last/optimizer.safetensors" train_log.jsonl; do
    cmp "$output/run/$file" "$output/killed/$file"
    echo "equal: $file"
done
echo '{"bytes_equal": true}' >"$output/resume.json"

say "held-out loss of the best checkpoint"
erniekit eval "$config"

say "an answer"
erniekit generate "$output/run" --prompt "What is the capital of Egypt?" >"$output/answer.txt"
cat "$output/answer.txt"

say "what this recipe promises"
erniekit recipes check "$recipe"
