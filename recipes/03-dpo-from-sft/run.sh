#!/bin/sh
# From a model that answers to one that answers as people prefer: SFT, then DPO on pairs of a short
# answer and a rambling or evasive one. What the two stages did is measured on questions of neither.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/03-dpo-from-sft
output=$recipe/output
question="Which planet is the largest?"

say() { printf '\n== %s\n' "$*"; }

rm -rf "$output"
mkdir -p "$output"

say "the model"
erniekit models get starter

say "what is different from the defaults in preference training"
erniekit config show "$recipe/dpo.yaml" --changed

say "first half: SFT"
erniekit train "$recipe/sft.yaml"

say "pairs, the prompt in each once"
erniekit data preview "$recipe/dpo.yaml"

say "second half: DPO; the reference is the model that SFT left, and scores every pair once"
erniekit train "$recipe/dpo.yaml"

say "a question of neither stage, before and after"
for stage in sft dpo; do
    erniekit generate "$output/$stage" --prompt "$question" temperature=0 max_new_tokens=48 >"$output/$stage.txt"
    printf '%s: ' "$stage"
    cat "$output/$stage.txt"
done

say "what this recipe promises"
erniekit recipes check "$recipe"
