"""`erniekit quantize`: a model in few bits from one in full, and what that costs."""

HELP = "a model in few bits (RTN, AWQ, GPTQ, CCQ; int8 to 2 bits, FP8), and what that costs"
USAGE = """usage: erniekit quantize CONFIG [key=value | --key value | --key=value ...]

Quantises model_name_or_path (or the checkpoint of output_dir, where a run is there) as quant_scheme says,
calibrated with train_dataset_path, into quant_dir (output_dir/quantized without one). It works block by
block, with one block in memory, and goes on where it was when it is started again. On eval_dataset_path it
then tells perplexity, divergence from the model in full, and how often the likeliest token is the same;
report.md beside the weights holds all of it. With max_quality_drop the exit code is 1 when perplexity rises
by more than that.

  quant_scheme=wint4_g64     also wint8, wint4, wint4_g32, wint4/8, nf4, w8a8, w4a8, w4a8c8,
                             fp8_tensor, fp8_block, wint2, wint2.5, int2
  quant_method=gptq          also rtn, awq
  target_bits=3.5            2, 4 or 8 bits for each matrix by its sensitivity, this many on average
  quant_layout=fastdeploy    also compressed-tensors

  erniekit quantize examples/configs/starter/run_quantize.yaml
  erniekit quantize run.yaml quant_scheme=w8a8 smooth_alpha=0.5 quant_dir=./w8a8
  erniekit chat ./output/quantized"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.launch import require_paddle
    from erniekit.cli.target import choose_target
    from erniekit.errors import ConfigError

    require_paddle()
    target = choose_target(argv, "quantize")
    if target.adapters:
        raise ConfigError(
            f"erniekit quantize takes a model in full, and {target.adapters[0]} is an adapter; merge it "
            "first with erniekit export"
        )
    from erniekit.assemble import set_device
    from erniekit.export.quantise import quantise_model
    from erniekit.log import console, logger

    logger.info(f"model: {target.description}")
    settings = target.config.run
    set_device(device=settings.device, seed=settings.seed, kernels=settings.kernels)
    done = quantise_model(target.config, target.model, target.output_dir)
    for line in done.lines():
        console.print(line, markup=False, highlight=False)
    return 0 if done.passed else 1
