#!/bin/sh
# What rounding costs a fine-tuned model, and how much of it training for the rounding wins back: rounded to
# nearest, with GPTQ and with SmoothQuant, and trained for 4-bit weights and for 4-bit weights with 8-bit inputs.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/04-qat-to-int4
config=$recipe/sft.yaml
output=$recipe/output
question="What is the capital of Egypt?"

say() { printf '\n== %s\n' "$*"; }
last_loss() { sed -n 's/.*"eval_loss": \([0-9.]*\).*/\1/p' "$output/$1/train_log.jsonl" | tail -n 1; }
rounded_loss() { sed -n 's/.*"quantised_loss": \([0-9.]*\).*/\1/p' "$1/quantization.json"; }

rm -rf "$output"
mkdir -p "$output"

say "the model, and fine-tuning in bf16"
erniekit models get starter
erniekit train "$config"

say "rounded afterwards, to 4 bits: to nearest, and GPTQ"
erniekit quantize "$config" quant_scheme=wint4 quant_method=rtn quant_dir="$output/wint4-rtn"
erniekit quantize "$config" quant_scheme=wint4 quant_method=gptq quant_dir="$output/wint4-gptq"

say "MLPs in 4 bits, all else in 8, and inputs in 8 bits: to nearest, and after SmoothQuant"
erniekit quantize "$config" quant_scheme=w4a8 quant_method=rtn quant_dir="$output/w4a8-rtn"
erniekit quantize "$config" quant_scheme=w4a8 quant_method=rtn smooth_alpha=0.5 quant_dir="$output/w4a8-smooth"

say "as many steps more in full, to compare with"
erniekit train "$recipe/sft_qat.yaml" qat_scheme=null save_strategy=no output_dir="$output/full"

say "as many steps more with rounding in them, for each scheme"
erniekit train "$recipe/sft_qat.yaml"
erniekit train "$recipe/sft_qat.yaml" qat_scheme=w4a8 output_dir="$output/w4a8"

say "the codes, with the scales that training left"
erniekit quantize "$recipe/sft_qat.yaml"
erniekit quantize "$recipe/sft_qat.yaml" output_dir="$output/w4a8"

awk -v full="$(last_loss full)" -v sft="$(last_loss sft)" \
    -v r4="$(rounded_loss "$output/wint4-rtn")" -v g4="$(rounded_loss "$output/wint4-gptq")" \
    -v r48="$(rounded_loss "$output/w4a8-rtn")" -v s48="$(rounded_loss "$output/w4a8-smooth")" \
    -v q4="$(rounded_loss "$output/wint4/quantized")" -v q48="$(rounded_loss "$output/w4a8/quantized")" \
    -v told4="$(last_loss wint4)" -v told48="$(last_loss w4a8)" '
    function won(rounded, trained) { return (rounded - trained) / (rounded - full) }
    function apart(one, other) { return one > other ? one - other : other - one }
    BEGIN {
        printf "{\n  \"sft\": %.4f,\n  \"as many steps more\": %.4f,\n", sft, full
        printf "  \"wint4 rtn\": %.4f,\n  \"wint4 gptq\": %.4f,\n  \"wint4 qat\": %.4f,\n", r4, g4, q4
        printf "  \"w4a8 rtn\": %.4f,\n  \"w4a8 smooth\": %.4f,\n  \"w4a8 qat\": %.4f,\n", r48, s48, q48
        printf "  \"wint4: gptq wins back\": %.3f,\n  \"wint4: qat wins back\": %.3f,\n", won(r4, g4), won(r4, q4)
        printf "  \"w4a8: smooth wins back\": %.3f,\n  \"w4a8: qat wins back\": %.3f,\n", won(r48, s48), won(r48, q48)
        printf "  \"wint4: codes less told\": %.6f,\n", apart(q4, told4)
        printf "  \"w4a8: codes less told\": %.6f\n}\n", apart(q48, told48)
    }' >"$output/compared.json"
cat "$output/compared.json"

say "in the layout of compressed-tensors, for transformers and vLLM; read back and compared number by number"
erniekit quantize "$recipe/sft_qat.yaml" quant_layout=compressed-tensors quant_dir="$output/compressed"

say "the folder of codes answers: $question"
erniekit generate "$output/wint4/quantized" --prompt "$question" temperature=0 max_new_tokens=48 >"$output/answer.txt"
cat "$output/answer.txt"

say "what this recipe promises"
erniekit recipes check "$recipe"
