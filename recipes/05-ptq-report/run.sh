#!/bin/sh
# Schemes and methods on one model, and what each costs: bits, bytes, perplexity, divergence, the likeliest token,
# and how fast it answers. At last a mixture of experts, whose experts alone are in 4 bits.
set -eu
cd "$(dirname "$0")/../.."
recipe=recipes/05-ptq-report
config=$recipe/run_quantize.yaml
output=$recipe/output

say() { printf '\n== %s\n' "$*"; }
figure() { sed -n "s/.*\"$2\": \([0-9.e-]*\),*$/\1/p" "$output/$1/quantization.json" | head -n 1; }

rm -rf "$output"
mkdir -p "$output"

say "the model, in bf16; and the same with four experts in four of its layers"
erniekit models get starter
erniekit export starter export_layout=paddle export_dtype=bf16 export_dir="$output/bf16"
erniekit convert "$output/bf16" "$output/experts" --upcycle experts=4,top_k=2,start=4,interval=8

say "8 bits"
erniekit quantize "$config" quant_scheme=wint8 quant_method=rtn quant_dir="$output/wint8-rtn"
erniekit quantize "$config" quant_scheme=fp8_tensor quant_method=rtn quant_dir="$output/fp8_tensor-rtn"
erniekit quantize "$config" quant_scheme=fp8_block quant_method=rtn quant_dir="$output/fp8_block-rtn"

say "8 bits, inputs too"
erniekit quantize "$config" quant_scheme=w8a8 quant_method=rtn quant_dir="$output/w8a8-rtn"
erniekit quantize "$config" quant_scheme=w8a8 quant_method=rtn smooth_alpha=0.5 quant_dir="$output/w8a8-smooth"
erniekit quantize "$config" quant_scheme=w8a8 quant_method=rtn rotation_block_size=64 quant_dir="$output/w8a8-rotation"

say "4 bits"
erniekit quantize "$config" quant_scheme=nf4 quant_method=rtn quant_dir="$output/nf4-rtn"
erniekit quantize "$config" quant_scheme=wint4 quant_method=rtn quant_dir="$output/wint4-rtn"
erniekit quantize "$config" quant_scheme=wint4 quant_method=gptq quant_dir="$output/wint4-gptq"
erniekit quantize "$config" quant_scheme=wint4_g32 quant_method=gptq quant_dir="$output/wint4_g32-gptq"

say "MLPs in 2 bits, all else in 8"
erniekit quantize "$config" quant_scheme=int2 quant_method=rtn quant_dir="$output/int2-rtn"
erniekit quantize "$config" quant_scheme=int2 quant_method=gptq quant_dir="$output/int2-gptq"
erniekit quantize "$config" quant_scheme=wint2 quant_method=gptq quant_dir="$output/wint2-gptq"
erniekit quantize "$config" quant_scheme=wint2.5 quant_method=gptq quant_dir="$output/wint2.5-gptq"

say "experts in 4 bits with inputs in 8, all else in 8"
erniekit quantize "$config" model_name_or_path="$output/experts" quant_scheme=w4a8 quant_dir="$output/w4a8-experts"

rows="wint8-rtn fp8_tensor-rtn fp8_block-rtn w8a8-rtn w8a8-smooth w8a8-rotation nf4-rtn wint4-rtn wint4-gptq"
rows="$rows wint4_g32-gptq int2-rtn int2-gptq wint2-gptq wint2.5-gptq w4a8-experts"

say "how fast each answers, one row at a time"
for name in bf16 $rows; do
    erniekit generate "$output/$name" --input "$recipe/beginnings.txt" --output "$output/$name.jsonl" --raw --rows 1 \
        temperature=0 max_new_tokens=48 2>"$output/$name.log"
    # Behind each row stand the rates of all until then; the first row also makes what decoding reads.
    sed -n 's/.*rows | \([0-9.]*\) tok.s.*/\1/p' "$output/$name.log" |
        awk -v name="$name" '{ rate[NR] = $1 } END { printf "%s %.1f\n", name, (NR - 1) / (NR / rate[NR] - 1 / rate[1]) }'
done >"$output/speed.txt"

for name in bf16 $rows; do
    speed=$(awk -v name="$name" '$1 == name { print $2 }' "$output/speed.txt")
    case $name in
        bf16) echo "bf16 16 $(figure wint8-rtn full_bytes) $(figure wint8-rtn perplexity) 0 1 $speed" ;;
        *) echo "$name $(figure "$name" bits) $(figure "$name" bytes) $(figure "$name" quantised_perplexity)" \
            "$(figure "$name" divergence) $(figure "$name" same) $speed" ;;
    esac
done >"$output/rows.txt"

say "the table"
awk 'BEGIN {
        print "| scheme | method | bits a weight | MB | perplexity | KL, nats | same likeliest token | tokens/s |"
        print "|---|---|---|---|---|---|---|---|"
    }
    {
        split($1, words, "-"); method = substr($1, length(words[1]) + 2)
        printf "| `%s` | %s | %.2f | %.0f | %.2f | %.4f | %.1f %% | %.0f |\n",
            words[1], method, $2, $3 / 1e6, $4, $5, 100 * $6, $7
    }' "$output/rows.txt" >"$output/table.md"
cat "$output/table.md"
awk '{ bits[$1] = $2; size[$1] = $3; ppl[$1] = $4; kl[$1] = $5; same[$1] = $6; speed[$1] = $7 }
    END {
        print "{"
        for (name in bits) {
            printf "  \"%s bits\": %s,\n  \"%s bytes\": %s,\n", name, bits[name], name, size[name]
            printf "  \"%s perplexity\": %s,\n  \"%s divergence\": %s,\n", name, ppl[name], name, kl[name]
            printf "  \"%s same\": %s,\n  \"%s speed\": %s,\n", name, same[name], name, speed[name]
        }
        printf "  \"perplexity of wint2 over that of int2, to nearest\": %.4f,\n", ppl["wint2-gptq"] / ppl["int2-rtn"]
        printf "  \"perplexity of wint2 over that of int2, GPTQ\": %.4f,\n", ppl["wint2-gptq"] / ppl["int2-gptq"]
        printf "  \"divergence of wint2.5 over that of wint2\": %.4f,\n", kl["wint2.5-gptq"] / kl["wint2-gptq"]
        printf "  \"divergence of wint4, GPTQ over to nearest\": %.4f,\n", kl["wint4-gptq"] / kl["wint4-rtn"]
        printf "  \"divergence of wint4_g32 over that of wint4, GPTQ\": %.4f,\n", kl["wint4_g32-gptq"] / kl["wint4-gptq"]
        printf "  \"divergence of w8a8, smoothed over to nearest\": %.4f,\n", kl["w8a8-smooth"] / kl["w8a8-rtn"]
        printf "  \"divergence of w8a8, rotated over to nearest\": %.4f,\n", kl["w8a8-rotation"] / kl["w8a8-rtn"]
        printf "  \"speed of wint8 over that of bf16\": %.3f\n}\n", speed["wint8-rtn"] / speed["bf16"]
    }' "$output/rows.txt" >"$output/table.json"

say "what this recipe promises"
erniekit recipes check "$recipe"
