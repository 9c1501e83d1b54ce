#!/bin/sh
# A mixture of experts from a dense model: made, trained with its experts balanced, compared with the
# dense model after the same tokens, exported and asked. Then a tiny one for text and pictures.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/06-moe
config=$recipe/sft.yaml
output=$recipe/output
experts=experts=8,top_k=2,start=4,interval=5
question="What is the capital of France?"

say() { printf '\n== %s\n' "$*"; }
steps_with() { grep -c "\"modality\": \"$2\"" "$1/train_log.jsonl" || true; }
same() { if cmp -s "$1"/checkpoint-*/model.safetensors "$2"/checkpoint-*/model.safetensors; then echo true; else echo false; fi; }
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

say "a tiny model with experts for text and for pictures, on rows of both"
erniekit train "$recipe/pt_two_modalities.yaml"

say "on text alone, as it is and with the vision half frozen: the same file"
sed 's|^model_name.*|model_name_or_path: ./recipes/06-moe/output/both|; s|^continue_.*|continue_training: true|' \
    "$recipe/pt_two_modalities.yaml" >"$output/on.yaml"
erniekit train "$output/on.yaml" train_dataset_path=./examples/data/pt-train.jsonl output_dir="$output/text"
erniekit train "$output/on.yaml" train_dataset_path=./examples/data/pt-train.jsonl output_dir="$output/text-frozen" \
    'freeze=["\\.vision_experts\\.", "\\.gate\\.weight_1$"]'

say "on pictures alone, as it is and with the text half frozen: the same file"
erniekit train "$output/on.yaml" train_dataset_path="$recipe/two-modalities/placeholders.jsonl" output_dir="$output/vision"
erniekit train "$output/on.yaml" train_dataset_path="$recipe/two-modalities/placeholders.jsonl" output_dir="$output/vision-frozen" \
    'freeze=["\\.experts\\.", "\\.gate\\.weight$"]'

say "on both, with the vision half frozen: another file"
erniekit train "$recipe/pt_two_modalities.yaml" output_dir="$output/both-frozen" \
    'freeze=["\\.vision_experts\\.", "\\.gate\\.weight_1$"]'
cat >"$output/isolation.json" <<END
{
  "steps on both with tokens for vision": $(steps_with "$output/both" vision),
  "steps on text with tokens for vision": $(steps_with "$output/text" vision),
  "steps on pictures with tokens for text": $(steps_with "$output/vision" text),
  "text leaves the vision half as it is": $(same "$output/text" "$output/text-frozen"),
  "pictures leave the text half as it is": $(same "$output/vision" "$output/vision-frozen"),
  "both leave the vision half as it is": $(same "$output/both" "$output/both-frozen")
}
END
cat "$output/isolation.json"

say "what this recipe promises"
erniekit recipes check "$recipe"
